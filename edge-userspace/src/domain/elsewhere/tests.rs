#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::time::Instant;

use super::*;
use crate::domain::testing::{World, id, region, row, snapshot_of_app, turn};
use crate::domain::{NextRegion, Permit, RTT_FORGOTTEN, RawApp, RawBackend, Tried, explain};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn regions_are_placed_by_time_and_those_as_near_share_a_place() {
    let places = |times: &[u64]| {
        let times: Vec<Duration> = times.iter().map(|time| millis(*time)).collect();
        Places::of(&times).0.into_vec()
    };
    assert!(places(&[]).is_empty());
    assert_eq!(places(&[50]), [0]);
    assert_eq!(places(&[200, 50, 100]), [2, 0, 1]);
    // A quarter farther, or 1 ms, than the nearest of the place, not than each other.
    assert_eq!(places(&[100, 125, 126, 150]), [0, 0, 1, 1]);
    assert_eq!(places(&[1, 2, 3]), [0, 0, 1]);
}

/// Backends of `us`, `eu` and `ap`, which is how near they are to clients in `sa` by position.
fn world(app: RawApp) -> World {
    let rows = [("us1", "us"), ("eu1", "eu"), ("ap1", "ap")];
    let rows = rows.map(|(id, region)| RawBackend { soft_limit: 1.into(), hard_limit: 2.into(), ..row(id, region) });
    World { snapshot: snapshot_of_app(&rows, &app, 1), rng: fastrand::Rng::with_seed(7) }
}

fn by_time() -> RawApp {
    RawApp { next_region: "rtt".into(), affinity: "none".into(), ..RawApp::named("web") }
}

fn measure(world: &World, times: &[(&str, u64)], now: Instant) {
    for (name, time) in times {
        let rtt = world.app().backend(&id(name)).unwrap().load.rtt();
        rtt.forget();
        rtt.sample(millis(*time), now);
    }
    world.app().rank(now);
}

/// Who is chosen for clients in `sa`, one after the other, until all are full.
fn order(world: &mut World, pop: &str) -> Vec<(String, PickReason)> {
    let mut held: Vec<Permit> = Vec::new();
    let mut order = Vec::new();
    while let Ok(pick) = world.route(Some("sa"), pop) {
        order.push((pick.backend.id.to_string(), pick.reason));
        held.push(pick.permit);
    }
    order
}

fn nearest<const N: usize>(names: [&str; N]) -> Vec<(String, PickReason)> {
    names.map(|name| (name.to_owned(), PickReason::NearestRegion)).to_vec()
}

#[test]
fn where_an_app_wants_it_the_next_region_is_the_nearest_by_measured_time() {
    let (mut world, now) = (world(by_time()), Instant::now());
    let by_position = nearest(["us1", "eu1", "ap1", "us1", "eu1", "ap1"]);
    assert_eq!(order(&mut world, "sa"), by_position, "nothing is measured");
    measure(&world, &[("us1", 80), ("ap1", 20)], now);
    assert_eq!(order(&mut world, "sa"), by_position, "one of the regions is not");
    assert!(world.app().places().is_none());
    measure(&world, &[("eu1", 50)], now);
    let times = nearest(["ap1", "eu1", "us1", "ap1", "eu1", "us1"]);
    assert_eq!(order(&mut world, "sa"), times, "below the soft limit first, whatever the way");
    // From there by position, since they are as near; then the third.
    measure(&world, &[("us1", 52), ("ap1", 90)], now);
    assert_eq!(order(&mut world, "sa"), nearest(["us1", "eu1", "ap1", "us1", "eu1", "ap1"]));
    // This POP's region goes first, whatever it takes.
    assert_eq!(order(&mut world, "ap")[0], ("ap1".into(), PickReason::PopRegion));
    // Times that are too old mean nothing.
    measure(&world, &[("us1", 80), ("ap1", 20)], now);
    assert_eq!(order(&mut world, "sa"), times);
    world.app().rank(now + RTT_FORGOTTEN);
    assert_eq!(order(&mut world, "sa"), by_position);
}

#[test]
fn a_region_that_is_down_as_a_whole_needs_no_time() {
    let (mut world, now) = (world(by_time()), Instant::now());
    measure(&world, &[("us1", 80), ("eu1", 20)], now);
    assert!(world.app().places().is_none());
    let backend = |world: &World, name| std::sync::Arc::clone(world.app().backend(&id(name)).unwrap());
    let ap = backend(&world, "ap1");
    turn(&ap, false);
    world.app().rank(now);
    assert_eq!(order(&mut world, "sa"), nearest(["eu1", "us1", "eu1", "us1"]));
    turn(&ap, true);
    ap.load.set_draining(true);
    world.app().rank(now);
    assert_eq!(order(&mut world, "sa"), nearest(["eu1", "us1", "eu1", "us1"]));
    ap.load.set_draining(false);
    // Until the next ranking it comes last.
    assert_eq!(order(&mut world, "sa"), nearest(["eu1", "us1", "ap1", "eu1", "us1", "ap1"]));
    world.app().rank(now);
    assert_eq!(order(&mut world, "sa"), nearest(["us1", "eu1", "ap1", "us1", "eu1", "ap1"]));
    // Nobody is measured, and nobody is there.
    for name in ["us1", "eu1", "ap1"] {
        backend(&world, name).load.rtt().forget();
        turn(&backend(&world, name), false);
    }
    world.app().rank(now);
    assert_eq!(world.route(Some("sa"), "sa").unwrap().reason, PickReason::FailOpen);
    assert!(world.app().places().is_none(), "there is nothing to go by");
}

#[test]
fn other_apps_go_by_position_whatever_was_measured() {
    let mut world = world(RawApp { affinity: "none".into(), ..RawApp::named("web") });
    measure(&world, &[("us1", 80), ("eu1", 50), ("ap1", 20)], Instant::now());
    assert_eq!(order(&mut world, "sa"), nearest(["us1", "eu1", "ap1", "us1", "eu1", "ap1"]));
}

#[test]
fn measured_times_place_regions_without_a_position() {
    let (rows, now) = ([row("one", "lab1"), row("two", "lab2")], Instant::now());
    let mut world = World { snapshot: snapshot_of_app(&rows, &by_time(), 1), rng: fastrand::Rng::with_seed(7) };
    measure(&world, &[("one", 80), ("two", 20)], now);
    // Neither does this POP's region have one.
    for pop in ["sa", "lab9"] {
        let pick = world.route(None, pop).unwrap();
        assert_eq!((pick.backend.id.as_str(), pick.reason), ("two", PickReason::NearestRegion), "{pop}");
    }
}

#[test]
fn a_reload_places_regions_by_what_is_known_and_a_plan_says_so() {
    let (world, now) = (world(by_time()), Instant::now());
    measure(&world, &[("us1", 80), ("eu1", 50), ("ap1", 20)], now);
    let spec = by_time().parse().unwrap();
    let rules = crate::domain::World { apps: [(spec.name.clone(), spec)].into(), ..Default::default() };
    // Another index, since a row has changed.
    let backends = world.app().backends().iter().take(2).cloned().collect();
    let snapshot = crate::domain::Snapshot::following(&world.snapshot, backends, rules);
    let mut world = World { snapshot, ..world };
    let (sa, pop) = (region("sa"), region("sa"));
    let request =
        Request { client_region: Some(&sa), client_position: None, pop_region: &pop, client: None, bound: None };
    let app = world.snapshot.app(&crate::domain::testing::app_name("web")).unwrap();
    let plan = explain(app, world.snapshot.regions(), &request, &Tried::new(), 8, &mut world.rng);
    assert_eq!(plan.next_region, NextRegion::Rtt);
    let order: Vec<_> = plan.order.iter().map(|(id, reason)| (id.as_str(), *reason)).collect();
    assert_eq!(order, [("eu1", PickReason::NearestRegion), ("us1", PickReason::NearestRegion)]);
    let entries: Vec<_> = plan.entries.iter().map(|entry| (entry.id.as_str(), entry.region_place)).collect();
    assert_eq!(entries, [("eu1", 0), ("us1", 1)]);
}
