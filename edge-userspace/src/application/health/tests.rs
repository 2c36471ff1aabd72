#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::SocketAddr;

use super::*;
use crate::application::ports::GeoSource;
use crate::domain::testing::{app_name, id, region, row};
use crate::domain::{NoBackend, Outcome, Pick, PickReason, RawRouting, Request, Skip, Tried, pick};

const RULES: HealthRules = HealthRules {
    failures: 2,
    ejection: Duration::from_secs(10),
    longest: Duration::from_secs(60),
    max_percent: 50,
    slow_start: Duration::from_secs(10),
};

/// Writes down what it is told.
#[derive(Default)]
struct Diary(Mutex<Vec<(String, Transition)>>);

impl Observer for Diary {
    fn accepted(&self) {}
    fn located(&self, _: GeoSource) {}
    fn closed(&self, _: &Outcome) {}
    fn accept_failed(&self, _: SocketAddr, _: &'static str) {}
    fn health_changed(&self, backend: &Backend, transition: Transition) {
        self.0.lock().unwrap().push((backend.id.to_string(), transition));
    }
}

struct Ward {
    watch: Watch,
    routing: Arc<RoutingTable>,
    diary: Arc<Diary>,
    now: Instant,
    rng: fastrand::Rng,
}

impl Ward {
    fn new(backends: usize) -> Self {
        let routing = Arc::new(RoutingTable::new());
        let diary = Arc::new(Diary::default());
        let watch = Watch::new(RULES, Arc::clone(&routing), Arc::clone(&diary) as _);
        let ward = Self { watch, routing, diary, now: Instant::now(), rng: fastrand::Rng::with_seed(3) };
        ward.reload(backends);
        ward
    }

    fn reload(&self, backends: usize) {
        let backends = (0..backends).map(|at| row(&format!("b{at}"), "sa")).collect();
        self.routing.apply(&RawRouting { backends, ..RawRouting::default() }, true).unwrap();
    }

    fn backend(&self, name: &str) -> Arc<Backend> {
        Arc::clone(self.routing.load().backend(&id(name)).unwrap())
    }

    fn fail(&self, name: &str) {
        self.watch.connect_failed(&self.backend(name), ConnectFailure::TimedOut, self.now);
    }

    fn pick(&mut self, bound: Option<&str>, tried: &Tried) -> Result<Pick, NoBackend> {
        let (snapshot, sa, bound) = (self.routing.snapshot(), region("sa"), bound.map(id));
        let request = Request {
            client_region: None,
            client_position: None,
            pop_region: &sa,
            client: None,
            bound: bound.as_ref(),
        };
        let index = snapshot.app(&app_name("web")).unwrap();
        pick(index, snapshot.regions(), &request, tried, &mut self.rng)
    }

    /// How many of 1,000 picks each of two backends gets.
    fn shares(&mut self) -> [usize; 2] {
        let picks: Vec<_> = (0..1000).map(|_| self.pick(None, &Tried::new()).unwrap().backend.id.to_string()).collect();
        ["b0", "b1"].map(|name| picks.iter().filter(|pick| *pick == name).count())
    }
}

#[test]
fn an_ejected_backend_gets_nobody_comes_back_slowly_and_all_is_told() {
    let mut ward = Ward::new(2);
    ward.fail("b0");
    assert_eq!(ward.shares(), [0, 1000]);
    assert_eq!(ward.pick(Some("b0"), &Tried::new()).unwrap().binding_yielded, Some(Skip::Ejected));
    ward.reload(2);
    assert_eq!(ward.shares(), [0, 1000], "a reload changes nothing about it");

    ward.now += Duration::from_secs(10);
    ward.watch.tick(ward.now);
    let [first, _] = ward.shares();
    assert!((10..80).contains(&first), "a sixteenth of its share: {first}");
    ward.now += Duration::from_secs(5);
    ward.watch.tick(ward.now);
    let [half, _] = ward.shares();
    assert!((180..320).contains(&half), "half of its share: {half}");
    ward.now += Duration::from_secs(5);
    ward.watch.tick(ward.now);
    let [whole, _] = ward.shares();
    assert!((495..506).contains(&whole), "its whole share: {whole}");
    let told: Vec<_> = ward.diary.0.lock().unwrap().iter().map(|(_, transition)| *transition).collect();
    let lasts = Duration::from_secs(10);
    let ejected = Transition::Ejected { why: Complaint::TimedOut, lasts };
    assert_eq!(told, [ejected, Transition::Back, Transition::Recovered]);
    ward.now += Duration::from_secs(10);
    ward.watch.tick(ward.now);
    assert!(ward.watch.troubled.lock().unwrap().is_empty(), "all is forgotten");
}

#[test]
fn not_more_than_the_cap_are_ejected() {
    let ward = Ward::new(5);
    for name in ["b0", "b1", "b2", "b3", "b4"] {
        ward.fail(name);
    }
    let ejected = |name| ward.backend(name).load.is_ejected();
    assert_eq!(["b0", "b1", "b2", "b3", "b4"].map(ejected), [true, true, true, false, false]);
    assert_eq!(ward.diary.0.lock().unwrap().len(), 3);
    let alone = Ward::new(1);
    alone.fail("b0");
    assert!(!alone.backend("b0").load.is_ejected(), "the only one stays");
}

#[test]
fn who_was_ejected_is_asked_when_no_other_is_left() {
    let mut ward = Ward::new(2);
    ward.fail("b0");
    let mut tried = Tried::new();
    tried.push(&ward.backend("b1"));
    let pick = ward.pick(None, &tried).unwrap();
    assert_eq!((pick.backend.id.as_str(), pick.reason), ("b0", PickReason::LastResort));
    ward.watch.connected(&pick.backend, ward.now);
    assert!(!ward.backend("b0").load.is_ejected(), "it has accepted: it is back");
    drop(pick);
    tried.push(&ward.backend("b0"));
    assert_eq!(ward.pick(None, &tried).unwrap_err(), NoBackend::AllTried);
}

#[test]
fn connections_that_are_reset_at_once_eject_and_the_hosts_own_failures_don_t() {
    let ward = Ward::new(2);
    let backend = ward.backend("b0");
    let end = |termination| ward.watch.ended(&backend, termination, 0, Duration::from_millis(3), ward.now);
    end(Termination::BackendReset);
    end(Termination::Normal);
    end(Termination::BackendReset);
    (0..9).for_each(|_| ward.watch.connect_failed(&backend, ConnectFailure::Local, ward.now));
    assert!(!backend.load.is_ejected());
    end(Termination::BackendReset);
    assert!(backend.load.is_ejected());
}
