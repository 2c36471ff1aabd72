#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::HashMap;

use super::*;
use crate::domain::testing::{app_name, backends, eject, region, row};
use crate::domain::{
    AppSpec, Backend, NoBackend, Permit, Pick, RTT_FORGOTTEN, RawBackend, Selection, Snapshot, Tried, World, explain,
    pick,
};

const PICKS: usize = 3_200;

/// An app that chooses by time, and the moment of the test.
struct Lab {
    snapshot: Snapshot,
    rng: fastrand::Rng,
    now: Instant,
}

impl Lab {
    /// Backends of the region `sa` with these times in ms; 0 is one that nobody has measured.
    fn new(times: &[u64]) -> Self {
        let rows = times.iter().enumerate().map(|(at, _)| row(&format!("b{at}"), "sa"));
        Self::of(&rows.collect::<Vec<_>>(), times)
    }

    fn of(rows: &[RawBackend], times: &[u64]) -> Self {
        let (backends, now) = (backends(rows), Instant::now());
        for (backend, time) in backends.iter().zip(times).filter(|(_, time)| **time > 0) {
            backend.load.rtt().sample(Duration::from_millis(*time), now);
        }
        // What is known already counts from the load on.
        Self { snapshot: Snapshot::new(1, backends, by_rtt()), rng: fastrand::Rng::with_seed(7), now }
    }

    fn app(&self) -> &AppIndex {
        self.snapshot.app(&app_name("web")).unwrap()
    }

    fn backend(&self, at: usize) -> &Arc<Backend> {
        &self.app().backends()[at]
    }

    fn after(&mut self, time: Duration) {
        self.now += time;
        self.app().rank(self.now);
    }

    fn pick(&mut self, tried: &Tried) -> Result<Pick, NoBackend> {
        let pop = region("sa");
        let request =
            Request { client_region: None, client_position: None, pop_region: &pop, client: None, bound: None };
        let app = self.snapshot.app(&app_name("web")).unwrap();
        pick(app, self.snapshot.regions(), &request, tried, &mut self.rng)
    }

    fn hold(&mut self, at: usize, connections: usize) -> Vec<Permit> {
        let backend = Arc::clone(self.backend(at));
        (0..connections).map(|_| backend.load.try_reserve(backend.limits).unwrap()).collect()
    }

    /// How many of so many clients each backend gets, by reason; nobody stays.
    fn shares(&mut self) -> HashMap<(String, &'static str), usize> {
        let mut shares = HashMap::new();
        for _ in 0..PICKS {
            let pick = self.pick(&Tried::new()).unwrap();
            *shares.entry((pick.backend.id.to_string(), pick.reason.as_str())).or_default() += 1;
        }
        shares
    }
}

fn by_rtt() -> World {
    let app = AppSpec { selection: Selection::NearestRtt, ..AppSpec::new(app_name("web")) };
    World { apps: [(app.name.clone(), app)].into(), ..World::default() }
}

fn of(shares: &HashMap<(String, &'static str), usize>, backend: &str, why: &'static str) -> usize {
    shares.get(&(backend.to_owned(), why)).copied().unwrap_or(0)
}

#[test]
fn the_nearest_gets_all_and_retries_go_on_in_order() {
    let mut lab = Lab::new(&[40, 10, 80, 20]);
    assert_eq!(of(&lab.shares(), "b1", "nearest_rtt"), PICKS);
    let mut tried = Tried::new();
    for expected in ["b1", "b3", "b0", "b2"] {
        let pick = lab.pick(&tried).unwrap();
        assert_eq!((pick.backend.id.as_str(), pick.reason), (expected, PickReason::NearestRtt));
        tried.push(&pick.backend);
    }
    assert_eq!(lab.pick(&tried).unwrap_err(), NoBackend::AllTried);
}

#[test]
fn those_as_near_share_by_weight_and_load() {
    // Within a quarter of 100 ms: b0, b1; b2 is farther.
    let heavy = RawBackend { weight: 3.into(), ..row("b1", "sa") };
    let mut lab = Lab::of(&[row("b0", "sa"), heavy, row("b2", "sa")], &[100, 124, 126]);
    let shares = lab.shares();
    let (light, heavy) = (of(&shares, "b0", "nearest_rtt"), of(&shares, "b1", "nearest_rtt"));
    assert_eq!(light + heavy, PICKS, "{shares:?}");
    assert!((PICKS / 5..PICKS * 3 / 10).contains(&light), "{shares:?}");
    // Who is busy is relieved by the equal, whatever its weight.
    let _held = lab.hold(1, 50);
    let shares = lab.shares();
    assert!(of(&shares, "b0", "nearest_rtt") > PICKS * 3 / 5, "{shares:?}");
    // A millisecond makes no difference where all are near.
    let shares = Lab::new(&[1, 2, 4]).shares();
    assert!(of(&shares, "b0", "nearest_rtt") > 0 && of(&shares, "b1", "nearest_rtt") > 0, "{shares:?}");
    assert_eq!(of(&shares, "b2", "nearest_rtt"), 0, "{shares:?}");
}

#[test]
fn the_next_is_taken_at_the_soft_limit_and_the_nearest_again_up_to_the_hard_one() {
    let limited = |id: &str| RawBackend { soft_limit: 1.into(), hard_limit: 2.into(), ..row(id, "sa") };
    let mut lab = Lab::of(&[limited("b0"), limited("b1"), limited("b2")], &[30, 10, 20]);
    let mut held = Vec::new();
    for expected in ["b1", "b2", "b0", "b1", "b2", "b0"] {
        let pick = lab.pick(&Tried::new()).unwrap();
        assert_eq!(pick.backend.id.as_str(), expected);
        held.push(pick);
    }
    assert_eq!(lab.pick(&Tried::new()).unwrap_err(), NoBackend::AllFull);
    held.retain(|pick| pick.backend.id.as_str() != "b2");
    assert_eq!(lab.pick(&Tried::new()).unwrap().backend.id.as_str(), "b2");
}

#[test]
fn who_is_ejected_or_draining_is_passed_over() {
    let mut lab = Lab::new(&[10, 20, 30]);
    eject(lab.backend(0));
    lab.backend(1).load.set_draining(true);
    assert_eq!(of(&lab.shares(), "b2", "nearest_rtt"), PICKS);
    lab.backend(1).load.set_draining(false);
    assert_eq!(of(&lab.shares(), "b1", "nearest_rtt"), PICKS);
    [1, 2].into_iter().for_each(|at| lab.backend(at).load.set_draining(true));
    assert_eq!(lab.pick(&Tried::new()).unwrap().reason, PickReason::LastResort);
}

#[test]
fn one_that_nobody_knows_is_measured_by_one_client_of_a_ranking() {
    let mut lab = Lab::new(&[10, 20, 0]);
    let shares = lab.shares();
    assert_eq!(of(&shares, "b2", "rtt_probe"), 1, "{shares:?}");
    assert_eq!(of(&shares, "b0", "nearest_rtt"), PICKS - 1, "{shares:?}");
    // It turns out to be the nearest.
    lab.backend(2).load.rtt().sample(Duration::from_millis(2), lab.now);
    lab.after(Duration::from_secs(1));
    assert_eq!(of(&lab.shares(), "b2", "nearest_rtt"), PICKS);
}

#[test]
fn who_is_passed_over_for_a_nearer_one_is_asked_next() {
    // Regions are in the order of their names: the far one comes before.
    let rows = [row("b0", "sa"), row("b1", "sa"), row("b2", "ap"), row("b3", "ap"), row("b4", "sa")];
    let shares = Lab::of(&rows, &[10, 20, 0, 0, 0]).shares();
    assert_eq!(["b4", "b2", "b3"].map(|id| of(&shares, id, "rtt_probe")), [1, 1, 1], "{shares:?}");
}

#[test]
fn who_had_no_room_is_asked_when_it_has() {
    let limited = |id: &str| RawBackend { soft_limit: 1.into(), hard_limit: 9.into(), ..row(id, "sa") };
    let mut lab = Lab::of(&[limited("b0"), limited("b1"), limited("b2")], &[10, 20, 0]);
    let (_known, busy) = ([lab.hold(0, 1), lab.hold(1, 1)], lab.hold(2, 1));
    let over_soft = lab.pick(&Tried::new()).unwrap();
    assert_eq!((over_soft.backend.id.as_str(), over_soft.reason), ("b0", PickReason::NearestRtt));
    drop(busy);
    let unknown = lab.pick(&Tried::new()).unwrap();
    assert_eq!((unknown.backend.id.as_str(), unknown.reason), ("b2", PickReason::RttProbe));
}

#[test]
fn before_two_are_known_the_usual_order_counts() {
    let rows = [row("b0", "sa"), row("b1", "sa"), row("b2", "us")];
    let shares = Lab::of(&rows, &[10, 0, 0]).shares();
    let near = of(&shares, "b0", "pop_region") + of(&shares, "b1", "pop_region");
    assert_eq!(near, PICKS, "{shares:?}");
    assert_eq!(of(&Lab::new(&[10]).shares(), "b0", "nearest_rtt"), PICKS);
}

#[test]
fn what_is_old_is_measured_again_and_then_forgotten() {
    let mut lab = Lab::new(&[10, 20]);
    lab.after(STALE - Duration::from_secs(1));
    assert_eq!(of(&lab.shares(), "b0", "nearest_rtt"), PICKS);
    lab.backend(0).load.rtt().sample(Duration::from_millis(10), lab.now);
    lab.after(Duration::from_secs(2));
    let shares = lab.shares();
    assert_eq!(of(&shares, "b1", "rtt_probe"), 1, "{shares:?}");
    lab.after(RTT_FORGOTTEN);
    let shares = lab.shares();
    assert_eq!(of(&shares, "b0", "pop_region") + of(&shares, "b1", "pop_region"), PICKS, "{shares:?}");
}

#[test]
fn who_takes_no_clients_is_forgotten_in_time_too() {
    let drained = RawBackend { state: "drain".into(), ..row("b2", "sa") };
    let mut lab = Lab::of(&[row("b0", "sa"), row("b1", "sa"), drained], &[10, 20, 5]);
    lab.after(RTT_FORGOTTEN + Duration::from_secs(1));
    assert_eq!(lab.backend(2).load.rtt().last(), None);
}

#[test]
fn a_crowd_of_full_ones_before_the_first_with_room_is_walked_once() {
    let full = |at: usize| RawBackend { soft_limit: 1.into(), hard_limit: 1.into(), ..row(&format!("b{at}"), "sa") };
    let times: Vec<u64> = (0..1_000).map(|at| 1 + 2 * at).collect();
    let mut lab = Lab::of(&(0..1_000).map(full).collect::<Vec<_>>(), &times);
    let held: Vec<_> = (0..500).flat_map(|at| lab.hold(at, 1)).collect();
    // The first choices leave it to the usual order, and each comes further.
    let found: Vec<_> = (0..20).map(|_| lab.pick(&Tried::new()).unwrap()).collect();
    assert_eq!((found[0].reason, found[19].reason), (PickReason::PopRegion, PickReason::NearestRtt));
    // The next ranking knows where to start.
    lab.after(Duration::from_secs(1));
    assert_eq!(lab.pick(&Tried::new()).unwrap().reason, PickReason::NearestRtt);
    drop((found, held));
    lab.after(Duration::from_secs(1));
    let pick = lab.pick(&Tried::new()).unwrap();
    assert_eq!((pick.reason, pick.backend.id.as_str()), (PickReason::NearestRtt, "b0"));
}

#[test]
fn the_plan_shows_the_times_and_puts_the_nearest_first() {
    let mut lab = Lab::new(&[40, 10, 0, 20]);
    let pop = region("sa");
    let request = Request { client_region: None, client_position: None, pop_region: &pop, client: None, bound: None };
    let app = lab.snapshot.app(&app_name("web")).unwrap();
    let plan = explain(app, lab.snapshot.regions(), &request, &Tried::new(), 3, &mut lab.rng);
    let entries: Vec<_> = plan.entries.iter().map(|entry| (entry.id.as_str(), entry.rtt)).collect();
    let ms = |time| Some(Duration::from_millis(time));
    assert_eq!(entries, [("b1", ms(10)), ("b3", ms(20)), ("b0", ms(40)), ("b2", None)]);
    let order: Vec<_> = plan.order.iter().map(|(id, why)| (id.as_str(), *why)).collect();
    let nearest = PickReason::NearestRtt;
    assert_eq!(order, [("b1", nearest), ("b3", nearest), ("b0", nearest)]);
}
