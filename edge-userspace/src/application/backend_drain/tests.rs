#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use crate::application::events::EventsQuery;
use crate::application::flows::{Flow, Listed};
use crate::application::testing::watch;
use crate::domain::testing::{app_name, eject, id, row};
use crate::domain::{NoBackend, Pick, RawRouting, Region, Request, Tried, pick};

struct World {
    routing: Arc<RoutingTable>,
    flows: Arc<Flows>,
    events: Arc<Events>,
    drains: BackendDrains,
    start: Instant,
}

impl World {
    fn new(ids: &[&str]) -> Self {
        let (routing, flows, events) = (Arc::new(RoutingTable::new()), Arc::default(), Arc::default());
        let (listed, told) = (Arc::clone(&flows), Arc::clone(&events));
        let drains = BackendDrains::new(Arc::clone(&routing), listed, watch(&routing), told, vec![Arc::default()]);
        let world = Self { routing, flows, events, drains, start: Instant::now() };
        world.reload(ids);
        world
    }

    fn reload(&self, ids: &[&str]) {
        let backends = ids.iter().map(|id| row(id, "sa")).collect();
        self.routing.apply(&RawRouting { backends, ..RawRouting::default() }, true).unwrap();
    }

    fn flow(&self, number: u64, backend: &str) -> Listed {
        self.flows.list(Flow::new(number, ([192, 0, 2, 1], 4000).into(), app_name("web"), id(backend)))
    }

    fn pick(&self, bound: Option<&str>) -> Result<Pick, NoBackend> {
        let snapshot = self.routing.snapshot();
        let (pop, bound) = (Region::parse("sa").unwrap(), bound.map(id));
        let request = Request {
            client_region: None,
            client_position: None,
            pop_region: &pop,
            client: None,
            bound: bound.as_ref(),
        };
        let app = snapshot.app(&app_name("web")).unwrap();
        pick(app, snapshot.regions(), &request, &Tried::new(), &mut fastrand::Rng::with_seed(1))
    }
}

#[test]
fn a_draining_backend_gets_nobody_new_or_bound_until_it_is_ready_across_reloads() {
    let world = World::new(&["a", "b"]);
    let answer = world.drains.drain(&id("a"), None, world.start).unwrap();
    assert_eq!((answer.draining, answer.known, answer.deadline_secs), (true, true, None));
    // Gone for a moment, and back.
    for ids in [&["a", "b"][..], &["b"], &["a", "b"]] {
        world.reload(ids);
        for _ in 0..50 {
            assert_eq!(world.pick(None).unwrap().backend.id, id("b"));
        }
        assert_eq!(world.pick(Some("a")).unwrap().backend.id, id("b"));
    }
    world.drains.ready(&id("a"), world.start).unwrap();
    assert!((0..50).any(|_| world.pick(None).unwrap().backend.id == id("a")));
    assert_eq!(world.drains.ready(&id("a"), world.start), Err(BackendDrainError::NotDraining(id("a"))));
}

#[test]
fn who_is_ready_while_too_many_are_ejected_is_not_ejected_any_more() {
    let world = World::new(&["a", "b"]);
    let backend = |name| Arc::clone(world.routing.snapshot().backend(&id(name)).unwrap());
    world.drains.drain(&id("a"), None, world.start).unwrap();
    ["a", "b"].iter().for_each(|name| eject(&backend(name)));
    world.drains.ready(&id("a"), world.start).unwrap();
    assert_eq!(["a", "b"].map(|name| backend(name).load.is_ejected()), [false, true]);
}

#[test]
fn where_all_are_draining_none_is_eligible() {
    let world = World::new(&["a"]);
    world.drains.drain(&id("a"), None, world.start).unwrap();
    assert_eq!(world.pick(None).unwrap_err(), NoBackend::NoneEligible);
}

#[test]
fn the_deadline_cuts_the_flows_of_that_backend_and_those_that_come_later_each_once() {
    let world = World::new(&["a", "b"]);
    let (cut, spared) = (world.flow(1, "a"), world.flow(2, "b"));
    let answer = world.drains.drain(&id("a"), Some(Duration::from_secs(5)), world.start).unwrap();
    assert_eq!((answer.connections, answer.deadline_secs), (1, Some(5.0)));
    world.drains.tick(world.start + Duration::from_millis(4_900));
    assert!(!cut.is_cut());
    assert_eq!(world.drains.state(&id("a"), world.start + Duration::from_secs(4)), Some(Some(1.0)));
    world.drains.tick(world.start + Duration::from_secs(5));
    assert!(cut.is_cut() && !spared.is_cut());
    // The drain goes on; those that take a moment to end are not cut, nor told, again.
    world.drains.tick(world.start + Duration::from_secs(6));
    assert_eq!(world.drains.state(&id("a"), world.start + Duration::from_secs(6)), Some(Some(0.0)));
    assert_eq!(world.events.totals().get("backend_drain_cut"), Some(&1));
    // It was connecting when the deadline passed.
    let late = world.flow(3, "a");
    assert!(!late.is_cut());
    world.drains.tick(world.start + Duration::from_secs(7));
    world.drains.tick(world.start + Duration::from_secs(8));
    assert!(late.is_cut() && !spared.is_cut());
    assert_eq!(world.events.totals().get("backend_drain_cut"), Some(&2));
    world.drains.ready(&id("a"), world.start).unwrap();
    let back = world.flow(4, "a");
    world.drains.tick(world.start + Duration::from_secs(9));
    assert!(!back.is_cut());
}

#[test]
fn a_removed_backend_is_forgotten_when_it_has_been_without_connections_for_a_minute() {
    let world = World::new(&["a", "b"]);
    let after = |secs| world.start + Duration::from_secs(secs);
    let load = |of: &str| Arc::clone(&world.routing.snapshot().backend(&id(of)).unwrap().load);
    world.drains.drain(&id("a"), None, world.start).unwrap();
    let a = load("a");
    let permit = a.try_reserve(crate::domain::Limits::new(0, 0).unwrap()).unwrap();
    let weak = Arc::downgrade(&a);
    drop(a);
    world.reload(&["b"]);
    [0, 100].into_iter().for_each(|secs| world.drains.tick(after(secs)));
    assert!(world.drains.state(&id("a"), after(100)).is_some(), "it has a connection");
    drop(permit);
    [101, 160].into_iter().for_each(|secs| world.drains.tick(after(secs)));
    world.reload(&["a", "b"]);
    assert!(load("a").is_draining(), "it was away for a moment");
    world.drains.tick(after(161));
    world.reload(&["b"]);
    [162, 221].into_iter().for_each(|secs| world.drains.tick(after(secs)));
    assert!(world.drains.state(&id("a"), after(221)).is_some(), "the time counts anew");
    world.drains.tick(after(222));
    assert_eq!(world.drains.state(&id("a"), after(222)), None);
    assert_eq!(world.events.totals().get("backend_ready"), Some(&1), "it is told");
    world.routing.clear_away();
    assert!(weak.upgrade().is_none(), "its place among the counts is free");
    world.reload(&["a", "b"]);
    assert!(!load("a").is_draining(), "who comes with its name later is another one");
}

#[tokio::test]
async fn a_later_word_replaces_the_deadline_and_says_so() {
    let world = World::new(&["a", "b"]);
    let flow = world.flow(1, "a");
    world.drains.drain(&id("a"), Some(Duration::from_secs(5)), world.start).unwrap();
    world.drains.drain(&id("a"), None, world.start).unwrap();
    world.drains.tick(world.start + Duration::from_secs(600));
    assert!(!flow.is_cut());
    let told = world.events.answer(EventsQuery::default()).await.events;
    assert!(told[1].reason.ends_with("; the deadline before would have been in 5s"), "{told:?}");
    world.drains.drain(&id("a"), Some(Duration::ZERO), world.start).unwrap();
    world.drains.tick(world.start);
    assert!(flow.is_cut());
}

#[test]
fn connections_of_a_removed_backend_can_be_ended_and_unknown_ones_are_an_error() {
    let world = World::new(&["a", "b"]);
    let flow = world.flow(1, "gone");
    let answer = world.drains.drain(&id("gone"), Some(Duration::from_secs(1)), world.start).unwrap();
    assert!(!answer.known);
    world.drains.tick(world.start + Duration::from_secs(1));
    assert!(flow.is_cut());
    drop(flow);
    world.drains.tick(world.start + Duration::from_secs(2));
    assert_eq!(world.drains.state(&id("gone"), world.start), None, "forgotten with its last connection");
    let error = world.drains.drain(&id("gone"), None, world.start).unwrap_err();
    assert!(error.to_string().contains("there is no backend gone"), "{error}");
}

#[test]
fn deadlines_are_times_of_at_most_thirty_days() {
    let request = |deadline_secs| DrainRequest { backend: "a".into(), deadline_secs: Some(deadline_secs) };
    assert_eq!(request(0.0).deadline(), Ok(Some(Duration::ZERO)));
    assert_eq!(request(2_592_000.0).deadline(), Ok(Some(LONGEST_DEADLINE)));
    for wrong in [2_592_001.0, -1.0, f64::INFINITY, f64::NAN] {
        assert!(request(wrong).deadline().is_err(), "{wrong}");
    }
}
