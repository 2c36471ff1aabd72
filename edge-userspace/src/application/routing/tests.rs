#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod contradictions;

use std::time::{Duration, Instant};

use super::*;
use crate::domain::testing::{app_name, id, row};
use crate::domain::{
    Affinity, ClientAddr, CountryCode, Limits, MAX_REGIONS, NoBackend, RawAcl, RawApp, RawBackend, RawGeoOverride,
    RawListener, RawRegion, RawValue, Region, Request, Tried,
};

fn raw(backends: &[RawBackend]) -> RawRouting {
    RawRouting { backends: backends.to_vec(), ..RawRouting::default() }
}

#[test]
fn a_bad_row_is_refused_alone_and_keeps_its_last_good_version() {
    let table = RoutingTable::new();
    let (good, bad) = (row("a", "sa"), RawBackend { port: "http".into(), ..row("b", "sa") });
    let report = table.apply(&raw(&[good.clone(), bad.clone()]), false).unwrap();
    assert_eq!((report.generation, report.accepted, report.kept, report.apps), (1, 1, 0, 1));
    assert_eq!(report.rejected, [("b".into(), "port is \"http\": it must be an integer from 1 to 65535".into())]);

    table.apply(&raw(&[good.clone(), row("b", "us")]), false).unwrap();
    let report = table.apply(&raw(&[good, bad]), false).unwrap();
    assert_eq!((report.generation, report.accepted, report.kept), (3, 2, 1));
    assert_eq!(table.load().backend(&id("b")).unwrap().region.as_str(), "us");
}

#[test]
fn rows_without_a_name_and_doubles_are_refused() {
    let table = RoutingTable::new();
    let nameless = RawBackend { id: RawValue::Null, ..row("", "sa") };
    let report = table.apply(&raw(&[row("a", "sa"), nameless, row("a", "us")]), false).unwrap();
    assert_eq!(report.accepted, 1);
    let names: Vec<&str> = report.rejected.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["row 2", "a"]);
    assert_eq!(table.load().backend(&id("a")).unwrap().region.as_str(), "sa");
}

#[test]
fn tombstones_remove_whatever_else_they_hold() {
    let table = RoutingTable::new();
    table.apply(&raw(&[row("a", "sa"), row("b", "sa")]), false).unwrap();
    let gone = RawBackend { deleted: 1.into(), port: "?".into(), ..row("b", "sa") };
    let report = table.apply(&raw(&[row("a", "sa"), gone]), false).unwrap();
    assert_eq!((report.accepted, report.rejected.len()), (1, 0));
}

#[test]
fn an_emptied_table_needs_confirmation() {
    let table = RoutingTable::new();
    assert!(table.apply(&raw(&[]), false).is_ok(), "nothing is lost where nothing was");
    table.apply(&raw(&[row("a", "sa")]), false).unwrap();
    assert_eq!(table.apply(&raw(&[]), false), Err(Emptied { lost: vec![LostTable::backends(1)] }));
    assert_eq!(table.load().backends().count(), 1);
    assert_eq!(table.apply(&raw(&[]), true).unwrap().accepted, 0);
    assert_eq!(table.load().backends().count(), 0);
}

/// Every table, full, with one row each.
fn full() -> RawRouting {
    let listener = |id: &str, port: i64| RawListener { id: id.into(), port: port.into(), ..RawListener::default() };
    let rule = |id: &str, prefix: &str| RawAcl {
        id: id.into(),
        prefix: prefix.into(),
        action: "deny".into(),
        ..RawAcl::default()
    };
    let over = RawGeoOverride { prefix: "192.0.2.0/24".into(), country: "BR".into(), ..RawGeoOverride::default() };
    RawRouting {
        backends: vec![row("a", "sa")],
        regions: vec![RawRegion { name: "af".into(), ..RawRegion::default() }],
        apps: vec![RawApp::named("web")],
        listeners: vec![listener("one", 80), listener("two", 81)],
        geo_overrides: vec![over],
        acl: vec![rule("bad", "192.0.2.0/25"), rule("worse", "198.51.100.0/25")],
        missing: Vec::new(),
    }
}

type Change = fn(&mut RawRouting);

#[test]
fn a_table_that_lost_all_of_its_rows_needs_confirmation() {
    let cases: [(&str, usize, Change); 5] = [
        ("acl", 2, |raw| raw.acl.clear()),
        ("listeners", 2, |raw| raw.listeners.clear()),
        ("apps", 1, |raw| raw.apps.clear()),
        ("regions", 1, |raw| raw.regions.clear()),
        ("geo_overrides", 1, |raw| raw.geo_overrides.clear()),
    ];
    for (name, had, empty) in cases {
        let table = RoutingTable::new();
        assert_eq!(table.apply(&full(), false).unwrap().rejected, []);
        let mut emptied = full();
        // What is taken in with a refused reload must leave no trace, either.
        emptied.backends.push(row("b", "sa"));
        empty(&mut emptied);
        let refused = table.apply(&emptied, false).unwrap_err();
        assert_eq!(refused.lost, [LostTable { name, had, missing: false }]);
        assert_eq!(table.load().generation(), 1);
        emptied.missing.push(name);
        let refused = table.apply(&emptied, false).unwrap_err();
        assert_eq!(refused.lost, [LostTable { name, had, missing: true }]);
        let said = refused.to_string();
        assert!(said.contains(&format!("no table `{name}` where there was one with {had} rows")), "{said}");
        assert_eq!(table.apply(&full(), false).unwrap().generation, 2, "it is back");
        assert_eq!(table.apply(&emptied, true).unwrap().accepted, 2, "{name} is confirmed");
        assert!(table.apply(&emptied, false).is_ok(), "once is enough");
    }
    let table = RoutingTable::new();
    table.apply(&full(), false).unwrap();
    let lost = table.apply(&RawRouting::default(), false).unwrap_err().lost;
    assert_eq!(lost.len(), 6, "all are named: {lost:?}");
}

/// Who marks the last row has said what he wants; a row that is gone says nothing.
#[test]
fn the_last_row_may_be_marked_as_deleted() {
    let table = RoutingTable::new();
    let mut rows = full();
    table.apply(&rows, false).unwrap();
    rows.acl[0].deleted = 1.into();
    let mut half = rows.clone();
    half.acl.pop();
    assert_eq!(table.apply(&half, false).unwrap_err().lost, [LostTable { name: "acl", had: 2, missing: false }]);
    rows.acl[1].deleted = 1.into();
    rows.listeners.iter_mut().for_each(|row| row.deleted = 1.into());
    assert_eq!(table.apply(&rows, false).unwrap().rejected, []);
    // A bad row keeps its last good version, and what was none before is none now.
    let table = RoutingTable::new();
    let mut rows = full();
    table.apply(&rows, false).unwrap();
    rows.acl.remove(0);
    rows.acl[0].prefix = "everybody".into();
    assert_eq!(table.apply(&rows, false).unwrap().rejected.len(), 1);
    rows.acl[0].id = "another".into();
    assert!(table.apply(&rows, false).is_err(), "a bad row of another key keeps nothing");
}

#[test]
fn counts_and_slots_survive_reloads_and_removal() {
    let table = RoutingTable::with_slots(2);
    table.apply(&raw(&[row("a", "sa"), row("b", "sa")]), false).unwrap();
    let a = Arc::clone(table.load().backend(&id("a")).unwrap());
    let permit = a.load.try_reserve(Limits::new(0, 0).unwrap()).unwrap();
    let slot = a.load.slot();
    drop(a);

    table.apply(&raw(&[RawBackend { port: 9.into(), ..row("a", "us") }, row("b", "sa")]), false).unwrap();
    let active = |name| table.load().backend(&id(name)).map(|b| (b.load.slot(), b.load.active()));
    assert_eq!(active("a"), Some((slot, 1)), "a changed backend keeps its count");

    let report = table.apply(&raw(&[row("b", "sa"), row("c", "sa")]), false).unwrap();
    assert_eq!(report.rejected, [("c".into(), "no counter is left: at most 2 backends are supported".into())]);
    table.apply(&raw(&[row("a", "sa"), row("b", "sa")]), false).unwrap();
    assert_eq!(active("a"), Some((slot, 1)), "a backend that returns finds its connections");

    drop(permit);
    table.apply(&raw(&[row("b", "sa")]), false).unwrap();
    let report = table.apply(&raw(&[row("b", "sa"), row("c", "sa")]), false).unwrap();
    assert_eq!(report.rejected, [], "the slot of an idle removed backend is free again");
    assert_eq!(active("c"), Some((slot, 0)));
}

#[test]
fn operator_regions_are_taken_over_and_bad_ones_keep_their_last_version() {
    let table = RoutingTable::new();
    let af = RawRegion { name: "af".into(), countries: "ZA".into(), ..RawRegion::default() };
    let mut rows = RawRouting { backends: vec![row("a", "af")], regions: vec![af.clone()], ..RawRouting::default() };
    table.apply(&rows, false).unwrap();
    let region = || table.load().regions().region_of(CountryCode::parse("ZA").unwrap()).unwrap().to_string();
    assert_eq!(region(), "af");
    rows.regions[0].countries = "South Africa".into();
    let report = table.apply(&rows, false).unwrap();
    assert_eq!(report.rejected[0].0, "region af");
    assert_eq!(region(), "af");
    // Of two rows of one name the first counts, and the second is told.
    rows.regions = vec![af.clone(), RawRegion { countries: "BR".into(), ..af }];
    let report = table.apply(&rows, false).unwrap();
    assert_eq!(report.rejected.len(), 1);
    assert!(report.rejected[0].1.contains("another row has the same name"), "{:?}", report.rejected);
    assert_eq!(region(), "af");
    rows.regions.iter_mut().for_each(|row| row.deleted = 1.into());
    table.apply(&rows, false).unwrap();
    assert_eq!(region(), "eu");
}

#[test]
fn readers_and_reloads_don_t_disturb_each_other() {
    let table = RoutingTable::new();
    table.apply(&raw(&[RawBackend { hard_limit: 3.into(), ..row("a", "sa") }]), false).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let snapshot = table.snapshot();
                    let backend = snapshot.backend(&id("a")).unwrap();
                    let permit = backend.load.try_reserve(backend.limits);
                    assert!(backend.load.active() <= 3);
                    drop(permit);
                }
            });
        }
        for weight in 1..300i64 {
            let row = RawBackend { weight: weight.into(), hard_limit: 3.into(), ..row("a", "sa") };
            table.apply(&raw(&[row]), false).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(table.load().backend(&id("a")).unwrap().load.active(), 0);
}

#[test]
fn apps_and_listeners_keep_their_last_good_version_too() {
    let table = RoutingTable::new();
    let listener = |id: &str, app: &str, port: i64| RawListener {
        id: id.into(),
        app: app.into(),
        port: port.into(),
        ..RawListener::default()
    };
    let app = RawApp { affinity: "soft".into(), ..RawApp::named("web") };
    let mut rows = RawRouting {
        backends: vec![row("a", "sa")],
        apps: vec![app.clone()],
        listeners: vec![listener("one", "web", 80), listener("two", "web", 81)],
        ..RawRouting::default()
    };
    assert_eq!(table.apply(&rows, false).unwrap().rejected, []);
    rows.apps = vec![RawApp { affinity: "lax".into(), ..app }];
    rows.listeners = vec![listener("one", "web", 0), listener("three", "web", 81), listener("two", "other", 81)];
    let report = table.apply(&rows, false).unwrap();
    let names: Vec<&str> = report.rejected.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["app web", "listener one", "listener three"]);
    let snapshot = table.snapshot();
    assert_eq!(snapshot.app(&app_name("web")).unwrap().spec().affinity, Affinity::Soft);
    let listener_at = |port| {
        let endpoint = snapshot.endpoints().at(std::net::SocketAddr::from(([192, 0, 2, 1], port)))?;
        endpoint.listener(None).map(|listener| listener.id.to_string())
    };
    assert_eq!(listener_at(80).as_deref(), Some("one"), "its last good version");
    assert_eq!(listener_at(81).as_deref(), Some("two"), "who is at a place has it");
}

#[test]
fn times_are_kept_across_reloads_and_measured_anew_at_another_address() {
    let (table, time) = (RoutingTable::new(), Duration::from_millis(5));
    let estimate = |table: &RoutingTable| table.load().backend(&id("a")).unwrap().load.rtt().estimate(Instant::now());
    table.apply(&raw(&[row("a", "sa")]), false).unwrap();
    table.load().backend(&id("a")).unwrap().load.rtt().sample(time, Instant::now());
    table.apply(&raw(&[row("a", "us")]), false).unwrap();
    assert_eq!(estimate(&table), Some(time));
    let moved = RawBackend { wg_ip: "192.0.2.2".into(), ..row("a", "us") };
    table.apply(&raw(&[moved]), false).unwrap();
    assert_eq!(estimate(&table), None);

    // One that leaves and comes back elsewhere finds its connections, but not the time of its former way.
    let permit = {
        let backend = Arc::clone(table.load().backend(&id("a")).unwrap());
        backend.load.rtt().sample(time, Instant::now());
        backend.load.try_reserve(backend.limits).unwrap()
    };
    table.apply(&raw(&[row("b", "sa")]), false).unwrap();
    table.apply(&raw(&[row("a", "us")]), false).unwrap();
    let active = table.load().backend(&id("a")).unwrap().load.active();
    assert_eq!((active, estimate(&table)), (1, None));
    drop(permit);
}

#[test]
fn what_has_not_changed_is_taken_over_as_it_is() {
    let table = RoutingTable::new();
    let in_app = |id: &str, app: &str| RawBackend { app: app.into(), ..row(id, "sa") };
    let mut rows = vec![in_app("a", "one"), in_app("b", "one"), in_app("c", "two")];
    let place = |id_: &str| Arc::as_ptr(table.load().backend(&id(id_)).unwrap());
    let index = |app: &str| std::ptr::from_ref(table.load().app(&app_name(app)).unwrap());
    table.apply(&raw(&rows), false).unwrap();
    let before = (place("a"), place("b"), index("one"), index("two"));
    table.apply(&raw(&rows), false).unwrap();
    assert_eq!((place("a"), place("b"), index("one"), index("two")), before);

    rows[1].weight = 7.into();
    table.apply(&raw(&rows), false).unwrap();
    assert_eq!((place("a"), index("two")), (before.0, before.3));
    assert!(place("b") != before.1 && index("one") != before.2);
    assert_eq!(table.load().backend(&id("b")).unwrap().weight.0, 7);

    // Apps and regions change an index, too.
    let one = index("one");
    let app = RawApp { affinity: "soft".into(), ..RawApp::named("one") };
    table.apply(&RawRouting { apps: vec![app.clone()], ..raw(&rows) }, false).unwrap();
    assert!(index("one") != one && index("two") == before.3);
    let region = RawRegion { name: "sa".into(), latitude: 1.into(), longitude: 1.into(), ..RawRegion::default() };
    table.apply(&RawRouting { apps: vec![app], regions: vec![region], ..raw(&rows) }, false).unwrap();
    assert!(index("two") != before.3);
}

/// A distance is kept for each pair of regions, so rows without end would take memory by their square.
#[test]
fn regions_beyond_the_most_there_can_be_are_refused_and_those_in_force_stay() {
    let table = RoutingTable::new();
    let region = |n: usize| RawRegion {
        name: format!("r{n:05}").as_str().into(),
        latitude: 1.into(),
        longitude: 1.into(),
        ..RawRegion::default()
    };
    let regions = |numbers: std::ops::Range<usize>| RawRouting {
        regions: numbers.map(region).collect(),
        ..raw(&[row("a", "sa")])
    };
    assert_eq!(table.apply(&regions(7..7 + MAX_REGIONS), false).unwrap().rejected, []);
    let rejected = table.apply(&regions(0..7 + MAX_REGIONS), false).unwrap().rejected;
    let names: Vec<_> = rejected.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, (0..7).map(|n| format!("region r{n:05}")).collect::<Vec<_>>());
    assert_eq!(
        rejected[0].1,
        "there are 1000 regions already, and more are not supported: remove one that is not needed"
    );
    assert_eq!(table.load().regions().iter().count(), 4 + MAX_REGIONS);
    assert_eq!(table.apply(&regions(0..MAX_REGIONS), false).unwrap().rejected, [], "rows that go make room");
}

/// Limits hold whichever snapshot a connection was admitted by, whether its index was made anew or taken over.
#[test]
fn limits_hold_across_indexes_that_are_taken_over() {
    let table = RoutingTable::new();
    let rows = |weight: i64| {
        let limited = RawBackend { soft_limit: 1.into(), hard_limit: 2.into(), ..row("a", "sa") };
        raw(&[limited, RawBackend { app: "other".into(), weight: weight.into(), ..row("z", "sa") }])
    };
    table.apply(&rows(1), false).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut pick = |rows: RawRouting| {
        table.apply(&rows, false).unwrap();
        let (snapshot, sa) = (table.snapshot(), Region::parse("sa").unwrap());
        let request =
            Request { client_region: None, client_position: None, pop_region: &sa, client: None, bound: None };
        crate::domain::pick(
            snapshot.app(&app_name("web")).unwrap(),
            snapshot.regions(),
            &request,
            &Tried::new(),
            &mut rng,
        )
    };
    let held = [pick(rows(2)).unwrap(), pick(rows(3)).unwrap()];
    assert_eq!(pick(rows(4)).unwrap_err(), NoBackend::AllFull);
    drop(held);
    assert!(pick(rows(5)).is_ok());
}

#[test]
fn a_snapshot_that_is_looked_at_is_freed_later_by_the_one_who_reloads() {
    let table = RoutingTable::new();
    table.apply(&raw(&[row("a", "sa")]), false).unwrap();
    let looked_at = table.snapshot();
    let gone = Arc::downgrade(&looked_at);
    table.apply(&raw(&[row("b", "sa")]), false).unwrap();
    drop(looked_at);
    assert!(gone.upgrade().is_some(), "a worker that lets go frees nothing");
    table.clear_away();
    assert!(gone.upgrade().is_none());
}

#[test]
fn overrides_are_refused_alone_and_keep_their_last_good_version() {
    let table = RoutingTable::new();
    let over = |prefix: &str, country: &str| RawGeoOverride {
        prefix: prefix.into(),
        country: country.into(),
        ..RawGeoOverride::default()
    };
    let load = |overrides: &[RawGeoOverride]| {
        let raw = RawRouting { geo_overrides: overrides.to_vec(), ..raw(&[row("a", "sa")]) };
        table.apply(&raw, false).unwrap().rejected
    };
    let at = |ip: &str| {
        let snapshot = table.load();
        let place = snapshot.overrides().at(ClientAddr::new(ip.parse().unwrap())).map(|(_, place)| place.country);
        place.flatten().map(|country| country.to_string())
    };
    assert_eq!(load(&[over("9.0.0.0/8", "BR"), over("8.0.0.0/8", "PE")]), []);
    assert_eq!((at("9.1.1.1").as_deref(), at("8.1.1.1").as_deref()), (Some("BR"), Some("PE")));
    let rejected =
        load(&[over("9.0.0.0/8", "Brazil"), over("8.0.0.0/8", "CL"), over("8.0.0.0/8", "AR"), over("x", "AR")]);
    let names: Vec<_> = rejected.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["geo override 9.0.0.0/8", "geo override 8.0.0.0/8", "geo override row 4"]);
    assert_eq!((at("9.1.1.1").as_deref(), at("8.1.1.1").as_deref()), (Some("BR"), Some("CL")));
    load(&["9.0.0.0/8", "8.0.0.0/8"].map(|prefix| RawGeoOverride { deleted: 1.into(), ..over(prefix, "BR") }));
    assert_eq!((at("9.1.1.1"), at("8.1.1.1")), (None, None));
}
