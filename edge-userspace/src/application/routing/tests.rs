#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use super::*;
use crate::domain::testing::{app_name, id, row};
use crate::domain::{Affinity, CountryCode, Limits, RawValue};

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
    assert_eq!(table.apply(&raw(&[]), false), Err(Emptied { had: 1 }));
    assert_eq!(table.load().backends().count(), 1);
    assert_eq!(table.apply(&raw(&[]), true).unwrap().accepted, 0);
    assert_eq!(table.load().backends().count(), 0);
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
    rows.regions.clear();
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
    assert_eq!(names, ["app web", "listener one", "listener two"]);
    let snapshot = table.snapshot();
    assert_eq!(snapshot.app(&app_name("web")).unwrap().spec().affinity, Affinity::Soft);
    let listener_at = |port| {
        let endpoint = snapshot.endpoints().at(std::net::SocketAddr::from(([192, 0, 2, 1], port)))?;
        endpoint.listener(None).map(|listener| listener.id.to_string())
    };
    assert_eq!(listener_at(80).as_deref(), Some("one"), "its last good version");
    assert_eq!(listener_at(81).as_deref(), Some("three"), "the first row at a place has it");
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
}
