//! Rows that contradict each other: what is in force stays, and the newcomer is refused.

use proptest::prelude::*;

use super::*;
use crate::domain::{AppName, ListenerId, RuleId};

fn listener(id: &str, app: &str, port: i64) -> RawListener {
    RawListener { id: id.into(), app: app.into(), port: port.into(), ..RawListener::default() }
}

fn rule(id: &str, prefix: &str, action: &str) -> RawAcl {
    RawAcl { id: id.into(), prefix: prefix.into(), action: action.into(), ..RawAcl::default() }
}

/// A routing table, and the rows that it gets one time after the other.
#[derive(Default)]
struct Scene {
    table: RoutingTable,
    rows: RawRouting,
}

impl Scene {
    fn of(listeners: Vec<RawListener>, acl: Vec<RawAcl>) -> Self {
        let scene =
            Self { rows: RawRouting { listeners, acl, ..raw(&[row("a", "sa")]) }, table: RoutingTable::default() };
        assert_eq!(scene.refused(), [""; 0]);
        scene
    }

    /// What is refused of the rows as they are now, the reason behind the name.
    fn refused(&self) -> Vec<String> {
        let mut sorted = self.rows.clone();
        // As they are read.
        sorted.listeners.sort_by_key(|row| row.id.to_string());
        sorted.acl.sort_by_key(|row| row.id.to_string());
        let report = self.table.apply(&sorted, false).unwrap();
        report.rejected.into_iter().map(|(name, why)| format!("{name}: {why}")).collect()
    }

    /// The listener of a port, and its app.
    fn at(&self, port: u16) -> Option<(String, String)> {
        let snapshot = self.table.snapshot();
        let endpoint = snapshot.endpoints().at(std::net::SocketAddr::from(([192, 0, 2, 1], port)))?;
        let listener = endpoint.listener(None)?;
        Some((listener.id.to_string(), listener.app.as_ref().map(AppName::to_string).unwrap_or_default()))
    }

    fn denies(&self, client: &str) -> Option<RuleId> {
        let client = ClientAddr::new(client.parse().unwrap());
        self.table.snapshot().access().denies(client, None, &app_name("web")).cloned()
    }
}

fn held(id: &str, app: &str) -> Option<(String, String)> {
    Some((id.to_owned(), app.to_owned()))
}

#[test]
fn a_listener_that_comes_to_a_place_in_use_is_refused_and_the_one_in_force_stays() {
    let mut scene = Scene::of(vec![listener("web-main", "web", 80)], vec![]);
    scene.rows.listeners.push(listener("aaa", "other", 80));
    let refused = scene.refused();
    assert!(refused[0].starts_with("listener aaa: ") && refused[0].contains("web-main"), "{refused:?}");
    assert_eq!((scene.at(80), refused.len()), (held("web-main", "web"), 1));
    // However often it is read, and until the place is free.
    assert_eq!(scene.refused(), refused);
    scene.rows.listeners.remove(0);
    assert_eq!(scene.refused(), [""; 0]);
    assert_eq!(scene.at(80), held("aaa", "other"));
}

#[test]
fn a_listener_that_asks_for_another_header_at_a_place_in_use_is_refused() {
    let mut scene = Scene::of(vec![listener("web-main", "web", 80)], vec![]);
    scene.rows.listeners.push(RawListener {
        server_name: "a.example".into(),
        accept_proxy: "required".into(),
        proxy_from: "192.0.2.0/24".into(),
        ..listener("aab", "web", 80)
    });
    let refused = scene.refused();
    assert!(refused.len() == 1 && refused[0].starts_with("listener aab: "), "{refused:?}");
    assert_eq!(scene.at(80), held("web-main", "web"));
    let snapshot = scene.table.snapshot();
    assert_eq!(snapshot.endpoints().iter().map(|endpoint| endpoint.accept_proxy.as_str()).collect::<Vec<_>>(), ["off"]);
}

#[test]
fn a_rule_about_what_another_rule_in_force_is_about_is_refused() {
    let mut scene = Scene::of(vec![], vec![rule("deny-bad", "192.0.2.66", "deny")]);
    scene.rows.acl.push(rule("allow-all", "192.0.2.66/32", "allow"));
    let refused = scene.refused();
    assert!(refused.len() == 1 && refused[0].starts_with("rule allow-all: rule deny-bad is about"), "{refused:?}");
    assert_eq!(scene.denies("192.0.2.66").unwrap().as_str(), "deny-bad");
}

/// With nothing in force there is only the order of the rows.
#[test]
fn at_the_first_load_the_row_that_is_read_first_counts() {
    let scene = Scene {
        rows: RawRouting {
            listeners: vec![listener("b", "two", 80), listener("a", "one", 80)],
            ..raw(&[row("a", "sa")])
        },
        ..Scene::default()
    };
    let refused = scene.refused();
    assert!(refused.len() == 1 && refused[0].starts_with("listener b: "), "{refused:?}");
    assert_eq!(scene.at(80), held("a", "one"));
}

#[test]
fn rows_that_move_out_of_each_others_way_at_once_move() {
    let mut scene =
        Scene::of(vec![listener("a", "one", 80), listener("b", "two", 81), listener("c", "three", 82)], vec![]);
    // Two change places, and the third makes room for one that is new.
    scene.rows.listeners =
        vec![listener("a", "one", 81), listener("b", "two", 80), listener("c", "three", 83), listener("0", "four", 82)];
    assert_eq!(scene.refused(), [""; 0]);
    let ids = [80, 81, 82, 83].map(|port| scene.at(port).unwrap().0);
    assert_eq!(ids, ["b", "a", "0", "c"]);
}

/// The new version of a row goes before rows that are new altogether.
#[test]
fn a_row_that_changes_where_it_is_keeps_its_place() {
    let mut scene = Scene::of(vec![listener("web-main", "web", 80)], vec![]);
    scene.rows.listeners = vec![listener("web-main", "changed", 80), listener("aaa", "other", 80)];
    let refused = scene.refused();
    assert!(refused.len() == 1 && refused[0].starts_with("listener aaa: "), "{refused:?}");
    assert_eq!(scene.at(80), held("web-main", "changed"));
}

/// Its last good version is in force, and what wants its place comes too late.
#[test]
fn a_row_whose_new_version_is_bad_keeps_its_place() {
    let mut scene = Scene::of(vec![listener("web-main", "web", 80)], vec![rule("z", "192.0.2.66", "deny")]);
    scene.rows.listeners = vec![listener("web-main", "web", 0), listener("aaa", "other", 80)];
    scene.rows.acl = vec![rule("z", "192.0.2.66", "forbid"), rule("a", "192.0.2.66", "allow")];
    let refused = scene.refused();
    let names: Vec<_> = refused.iter().map(|line| line.split_once(':').unwrap().0).collect();
    assert_eq!(names, ["listener aaa", "listener web-main", "rule a", "rule z"]);
    assert_eq!((scene.at(80), scene.denies("192.0.2.66").unwrap().as_str()), (held("web-main", "web"), "z"));
}

/// `a` can't have its new place, so it stays where it was; so `b` can't have that, and stays, too.
#[test]
fn a_row_that_has_to_stay_keeps_its_place_from_those_that_counted_on_it() {
    let mut scene =
        Scene::of(vec![listener("a", "one", 80), listener("b", "two", 81), listener("c", "three", 82)], vec![]);
    scene.rows.listeners =
        vec![listener("a", "one", 82), listener("b", "two", 80), listener("c", "three", 82), listener("0", "four", 81)];
    let refused = scene.refused();
    let names: Vec<_> = refused.iter().map(|line| line.split_once(':').unwrap().0).collect();
    assert_eq!(names, ["listener 0", "listener a", "listener b"]);
    assert_eq!([80, 81, 82].map(|port| scene.at(port).unwrap().0), ["a", "b", "c"]);
}

/// Each wants the place of a neighbour, and that of the last one is taken: one after the other has to stay, in whichever
/// order they come. If each were looked for among all others, it would take minutes.
#[test]
fn however_many_hang_together_none_that_is_in_force_is_lost_and_no_other_is_refused() {
    let count = 20_000_u32;
    let prefix = |place: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 + place).to_string();
    // The step has no divisor in common with the number of places, so each of them comes once.
    let scattered = |n: u32| n * 7919 % (count + 1);
    let orders: [&dyn Fn(u32) -> u32; 3] = [&|n| n, &|n| count - n, &scattered];
    for place in orders {
        let rows = |shift: u32| {
            let to = |n: u32| prefix(if place(n) < count { place(n) + shift } else { count });
            let chain = (0..=count).map(|n| rule(&format!("r{n:05}"), &to(n), "deny"));
            let first = rule("a", &format!("192.0.2.{shift}"), "deny");
            let last = rule("z", &format!("198.51.100.{shift}"), "deny");
            [first].into_iter().chain(chain).chain([last]).collect::<Vec<_>>()
        };
        let mut scene = Scene::of(vec![], rows(0));
        scene.rows.acl = rows(1);
        let refused = scene.refused();
        assert_eq!(refused.len(), count as usize, "{:?}", &refused[..3]);
        assert!(refused.iter().all(|why| why.contains(" is about the same prefix")), "{}", refused[0]);
        assert_eq!(["192.0.2.1", "198.51.100.1"].map(|client| scene.denies(client).unwrap().to_string()), ["a", "z"]);
        for n in 0..=count {
            assert_eq!(scene.denies(&prefix(place(n))).unwrap().as_str(), format!("r{n:05}"));
        }
    }
}

/// More than one may have counted on a place: all of them stay, and whoever counted on theirs, but nobody else.
#[test]
fn all_who_counted_on_the_place_of_one_that_stays_stay() {
    let behind = |id: &str, name: &str| RawListener {
        server_name: name.into(),
        accept_proxy: "required".into(),
        proxy_from: "192.0.2.0/24".into(),
        ..listener(id, "web", 80)
    };
    let before = vec![
        listener("b", "b", 81),
        listener("c", "c", 82),
        listener("d", "d", 83),
        listener("e", "e", 84),
        listener("m", "m", 80),
        listener("n", "n", 90),
        listener("z", "z", 91),
    ];
    let mut scene = Scene::of(before, vec![]);
    scene.rows.listeners = vec![
        behind("b", "*.example"),
        behind("c", "c.example c.test"),
        listener("d", "new", 82),
        listener("e", "new", 85),
        listener("m", "new", 90),
        listener("n", "n", 90),
        listener("z", "new", 92),
    ];
    let refused = scene.refused();
    let names: Vec<_> = refused.iter().map(|line| line.split_once(" has ").unwrap_or_default().0).collect();
    assert_eq!(names[..2], ["listener b: listener m", "listener c: listener m"]);
    assert!(refused[2].starts_with("listener d: listener c takes every server name"), "{refused:?}");
    assert!(refused[3].starts_with("listener m: listener n takes every server name"), "{refused:?}");
    let now = [80, 81, 82, 83, 84, 85, 90, 91, 92].map(|port| scene.at(port));
    let stay = |id| held(id, id);
    let moved = |id| held(id, "new");
    assert_eq!(
        now,
        [stay("m"), stay("b"), stay("c"), stay("d"), None, moved("e"), stay("n"), None, moved("z")],
        "{refused:?}"
    );
    assert_eq!(refused.len(), 4);
}

proptest! {
    /// Whatever changes: a row has its new place, or another one has it; then it keeps the one that it had.
    #[test]
    fn a_row_is_refused_only_where_another_one_is(
        places in prop::collection::vec((prop::option::weighted(0.8, 0..7_u8), prop::option::weighted(0.8, 0..7_u8)), 8),
    ) {
        let prefix = |place: u8| format!("192.0.2.{place}");
        let rows = |places: Vec<Option<u8>>| {
            let named = places.into_iter().enumerate().filter_map(|(n, place)| Some((n, place?)));
            // So that the table is never empty.
            let any = rule("any", "203.0.113.1", "deny");
            [any].into_iter().chain(named.map(|(n, place)| rule(&n.to_string(), &prefix(place), "deny"))).collect()
        };
        let mut scene = Scene { rows: raw(&[row("a", "sa")]), ..Scene::default() };
        scene.rows.acl = rows(places.iter().map(|(before, _)| *before).collect());
        scene.refused();
        let has = |scene: &Scene, n: usize, place: Option<u8>| {
            place.and_then(|place| scene.denies(&prefix(place))).is_some_and(|id| id.as_str() == n.to_string())
        };
        let had: Vec<bool> = places.iter().enumerate().map(|(n, (before, _))| has(&scene, n, *before)).collect();
        scene.rows.acl = rows(places.iter().map(|(_, now)| *now).collect());
        let refused = scene.refused();
        for (n, (before, now)) in places.iter().enumerate() {
            let Some(place) = now else { continue };
            let is_refused = refused.iter().any(|line| line.starts_with(&format!("rule {n}: ")));
            prop_assert_eq!(is_refused, !has(&scene, n, *now), "{}", n);
            if is_refused {
                prop_assert!(scene.denies(&prefix(*place)).is_some(), "{} was refused for nobody", n);
                prop_assert!(!had[n] || has(&scene, n, *before), "{} lost its place", n);
            }
        }
    }
}

/// Two spellings of a key: the row that is in force counts, wherever the other one stands.
#[test]
fn of_two_rows_with_one_key_the_one_in_force_counts() {
    let over = |prefix: &str, country: &str| RawGeoOverride {
        prefix: prefix.into(),
        country: country.into(),
        ..RawGeoOverride::default()
    };
    let region = |name: &str, latitude: i64| RawRegion {
        name: name.into(),
        latitude: latitude.into(),
        longitude: 0.into(),
        ..RawRegion::default()
    };
    let table = RoutingTable::new();
    let mut rows = RawRouting {
        geo_overrides: vec![over("::ffff:9.0.0.0/104", "BR")],
        regions: vec![region("af", 10)],
        apps: vec![RawApp { affinity: "soft".into(), ..RawApp::named("web") }],
        listeners: vec![listener("one", "web", 80)],
        acl: vec![rule("bad", "192.0.2.66", "deny")],
        ..raw(&[row("a", "sa"), row("b", "sa")])
    };
    assert_eq!(table.apply(&rows, false).unwrap().rejected, []);
    // White space around a name is no part of it.
    rows.backends.insert(0, RawBackend { wg_ip: "192.0.2.9".into(), ..row(" b", "us") });
    rows.geo_overrides.insert(0, over("9.0.0.0/8", "PE"));
    rows.regions.insert(0, region(" af", 20));
    rows.apps.insert(0, RawApp { affinity: "none".into(), ..RawApp::named(" web") });
    rows.listeners.insert(0, listener(" one", "other", 81));
    rows.acl.insert(0, rule(" bad", "192.0.2.66", "allow"));
    let report = table.apply(&rows, false).unwrap();
    assert_eq!((report.rejected.len(), report.accepted), (6, 2), "{report:?}");
    assert_eq!(table.apply(&rows, false).unwrap().rejected, report.rejected);
    let snapshot = table.snapshot();
    let place = snapshot.overrides().at(ClientAddr::new("9.1.1.1".parse().unwrap())).unwrap().1;
    assert!(
        snapshot
            .backend(&id("b"))
            .is_some_and(|b| b.region.as_str() == "sa" && b.addr.socket_addr().ip().to_string() == "192.0.2.1")
    );
    assert_eq!(place.country, CountryCode::parse("BR").ok());
    let af = snapshot.regions().iter().find(|(name, _)| name.as_str() == "af").unwrap().1;
    assert_eq!(af.unwrap().degrees().0, 10.0);
    assert_eq!(snapshot.app(&app_name("web")).unwrap().spec().affinity, Affinity::Soft);
    let one = ListenerId::parse("one").unwrap();
    assert!(snapshot.endpoints().iter().all(|endpoint| endpoint.sole().unwrap().id == one));
    assert!(snapshot.endpoints().at(([192, 0, 2, 1], 80).into()).is_some());
    assert!(snapshot.access().denies(ClientAddr::new("192.0.2.66".parse().unwrap()), None, &app_name("web")).is_some());
}
