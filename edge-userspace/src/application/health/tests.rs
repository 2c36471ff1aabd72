#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::SocketAddr;

use super::*;
use crate::application::ports::GeoSource;
use crate::application::testing::RULES;
use crate::domain::testing::{app_name, id, region, row};
use crate::domain::{
    CheckResult, HealthCheck, NoBackend, Outcome, Phase, Pick, PickReason, RawBackend, RawRouting, Request, Return,
    Skip, Tried, Witness, pick,
};

/// Writes down what it is told.
#[derive(Default)]
struct Diary(Mutex<Vec<(String, Transition)>>, Mutex<Vec<(String, bool)>>, Mutex<Vec<Option<Skip>>>);

impl Observer for Diary {
    fn accepted(&self) {}
    fn located(&self, _: GeoSource) {}
    fn closed(&self, _: &Outcome) {}
    fn accept_failed(&self, _: SocketAddr, _: &'static str) {}
    fn checked(&self, _: &CheckReport) {}
    fn fail_open(&self, app: &AppName, begins: bool) {
        self.1.lock().unwrap().push((app.to_string(), begins));
    }
    fn health_changed(&self, backend: &Backend, transition: Transition) {
        self.0.lock().unwrap().push((backend.id.to_string(), transition));
        self.2.lock().unwrap().push(backend.closed_to_new());
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
        self.silent(name, self.now, false);
    }

    fn silent(&self, name: &str, began: Instant, shortened: bool) {
        let failed = FailedConnect { failure: ConnectFailure::TimedOut, began, shortened };
        self.watch.connect_failed(&self.backend(name), failed, self.now);
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
    let ejected = Transition::Ejected { why: Complaint::TimedOut, lasts, by: Witness::Client };
    assert_eq!(told, [ejected, Transition::Back { why: Return::Over }, Transition::Recovered]);
    ward.now += Duration::from_secs(10);
    ward.watch.tick(ward.now);
    assert!(ward.watch.troubled.lock().unwrap().is_empty(), "all is forgotten");
}

#[test]
fn a_timeout_says_nothing_if_the_backend_has_accepted_meanwhile_or_had_no_time() {
    let mut ward = Ward::new(2);
    let began = ward.now;
    // Before the attempt, or in the moment in which it began, is not meanwhile.
    ward.watch.connected(&ward.backend("b1"), began);
    ward.now += Duration::from_millis(1);
    ward.watch.connected(&ward.backend("b0"), ward.now);
    ward.now += Duration::from_secs(3);
    (0..9).for_each(|_| ward.silent("b0", began, false));
    assert!(ward.backend("b0").load.is_spotless(), "packets get lost");
    (0..9).for_each(|_| ward.silent("b1", began, true));
    assert!(ward.backend("b1").load.is_spotless(), "a millisecond is no connect limit");
    ward.silent("b1", began, false);
    assert!(ward.backend("b1").load.is_ejected());

    // What it did at another address is no excuse, and another failure needs none.
    let mut ward = Ward::new(3);
    let began = ward.now;
    ward.now += Duration::from_secs(1);
    ["b0", "b1"].iter().for_each(|name| ward.watch.connected(&ward.backend(name), ward.now));
    let moved = RawBackend { port: 9.into(), ..row("b0", "sa") };
    ward.load([moved, row("b1", "sa"), row("b2", "sa")].into_iter());
    ward.silent("b0", began, false);
    let refused = FailedConnect { failure: ConnectFailure::Refused, began, shortened: true };
    (0..2).for_each(|_| ward.watch.connect_failed(&ward.backend("b1"), refused, ward.now));
    assert!(["b0", "b1"].iter().all(|name| ward.backend(name).load.is_ejected()));
}

#[test]
fn a_backend_that_accepted_a_trial_is_not_ejected_for_a_handshake_lost_meanwhile() {
    let mut ward = Ward::new(3);
    ward.fail("b0");
    ward.now += RULES.ejection;
    let began = ward.now;
    ward.now += Duration::from_secs(1);
    ward.watch.tried(&ward.backend("b0"), Some(Ok(())), ward.now);
    ward.silent("b0", began, false);
    assert_eq!(ward.backend("b0").load.phase(), Phase::SlowStart);
    ward.silent("b0", ward.now, false);
    assert!(ward.backend("b0").load.is_ejected());
}

/// Live connections to where a backend was say nothing about where it is.
#[test]
fn what_a_former_address_says_does_not_count() {
    let mut ward = Ward::new(3);
    let former = ward.backend("b0");
    former.measure(ward.now, || Some(Duration::from_millis(1)));
    assert!(former.load.rtt().estimate(ward.now).is_some());
    let moved = RawBackend { port: 9.into(), ..row("b0", "sa") };
    ward.load([moved, row("b1", "sa"), row("b2", "sa")].into_iter());
    former.measure(ward.now, || Some(Duration::from_millis(1)));
    assert_eq!(former.load.rtt().estimate(ward.now), None);
    ward.backend("b0").measure(ward.now, || Some(Duration::from_millis(200)));
    assert!(former.load.rtt().estimate(ward.now).is_some());

    // Resets in a row are not interrupted by one that goes on elsewhere.
    let age = Duration::from_millis(5);
    let reset = |ward: &Ward| ward.watch.ended(&ward.backend("b0"), Termination::BackendReset, 0, age, ward.now);
    for _ in 0..RULES.failures {
        reset(&ward);
        ward.watch.ended(&former, Termination::Normal, 1, age, ward.now);
    }
    assert_eq!(ward.backend("b0").load.phase(), Phase::Ejected(Complaint::EarlyReset));

    // And nobody is back because of one that was accepted elsewhere.
    ward.now += Duration::from_secs(60);
    ward.watch.tick(ward.now);
    let began = ward.now;
    ward.fail("b0");
    ward.watch.connected(&former, ward.now);
    assert_eq!(ward.backend("b0").load.phase(), Phase::Ejected(Complaint::TimedOut));
    assert!(!former.load.has_accepted_since(began - Duration::from_secs(1)));
    assert!(!former.is_in_place() && ward.backend("b0").is_in_place());
}

#[test]
fn what_is_told_is_true_of_the_row_as_it_is_now() {
    let mut ward = Ward::new(4);
    ward.fail("b0");
    ward.fail("b1");
    let maint = RawBackend { state: "maint".into(), ..row("b0", "sa") };
    ward.load([maint, row("b2", "sa"), row("b3", "sa")].into_iter());
    for _ in 0..2 {
        ward.now += Duration::from_secs(10);
        ward.watch.tick(ward.now);
    }
    let told: Vec<_> = ward.diary.0.lock().unwrap().split_off(2);
    let of = |transition| ("b0".to_owned(), transition);
    assert_eq!(
        told,
        [of(Transition::Back { why: Return::Over }), of(Transition::Recovered)],
        "of one that was removed nothing is told"
    );
    assert_eq!(ward.diary.2.lock().unwrap().split_off(2), [Some(Skip::Maint); 2]);
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
    let ends = |termination, down| ward.watch.ended(&backend, termination, down, Duration::from_millis(3), ward.now);
    let end = |termination| ends(termination, 0);
    end(Termination::BackendReset);
    ends(Termination::Normal, 1);
    end(Termination::BackendReset);
    // A client that went at once has seen nothing of the backend.
    end(Termination::ClientReset);
    let local = FailedConnect { failure: ConnectFailure::Local, began: ward.now, shortened: false };
    (0..9).for_each(|_| ward.watch.connect_failed(&backend, local, ward.now));
    assert!(!backend.load.is_ejected());
    end(Termination::BackendReset);
    assert!(backend.load.is_ejected());
}

const PACE: CheckPace =
    CheckPace { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 };

impl Ward {
    /// A ward whose backends are checked as `check` says.
    fn checked(backends: usize, check: &str) -> Self {
        let ward = Self::new(0);
        ward.load((0..backends).map(|at| RawBackend { health_check: check.into(), ..row(&format!("b{at}"), "sa") }));
        ward.watch.tick(ward.now);
        ward
    }

    fn load(&self, rows: impl Iterator<Item = RawBackend>) {
        self.routing.apply(&RawRouting { backends: rows.collect(), ..RawRouting::default() }, true).unwrap();
    }

    /// So many checks of a backend in a row end so; `spec` is how they were made.
    fn check_as(&self, spec: &str, name: &str, result: CheckResult, times: usize) {
        let check = HealthCheck::parse(spec).unwrap();
        for _ in 0..times {
            let report = CheckReport { result, detail: Some("in detail".to_owned()), took: Duration::ZERO };
            self.watch.checked(&self.backend(name), check.spec().unwrap(), report, self.now, &PACE);
        }
    }

    fn check(&self, name: &str, result: CheckResult, times: usize) {
        self.check_as("tcp", name, result, times);
    }

    /// Of some backends, which are ejected.
    fn ejected<const N: usize>(&self, names: [&str; N]) -> [bool; N] {
        names.map(|name| self.backend(name).load.look(Health::is_ejected))
    }

    fn told(&self) -> Vec<Transition> {
        self.diary.0.lock().unwrap().iter().map(|(_, transition)| *transition).collect()
    }
}

#[test]
fn checks_take_a_backend_out_and_bring_it_back_slowly() {
    let mut ward = Ward::checked(2, "tcp");
    ward.check("b0", CheckResult::Passed, 1);
    ward.check("b0", CheckResult::TimedOut, 2);
    assert_eq!(ward.backend("b0").load.phase(), Phase::Up);
    ward.check("b0", CheckResult::Refused, 1);
    assert_eq!(ward.shares(), [0, 1000]);
    assert_eq!(ward.backend("b0").load.phase(), Phase::Down(CheckResult::Refused));
    ward.check("b0", CheckResult::Passed, 2);
    let [first, _] = ward.shares();
    assert!((10..80).contains(&first), "a sixteenth of its share: {first}");
    ward.now += Duration::from_secs(10);
    ward.watch.tick(ward.now);
    let [whole, _] = ward.shares();
    assert!((495..506).contains(&whole), "its whole share: {whole}");
    let down = Transition::Down { why: CheckResult::Refused, after: 3 };
    assert_eq!(ward.told(), [down, Transition::Up { after: 2 }, Transition::Recovered]);
}

#[test]
fn an_ejection_outlasts_checks_that_pass_and_nobody_is_ejected_who_would_be_the_last() {
    let ward = Ward::checked(2, "tcp");
    ward.check("b0", CheckResult::Refused, 1);
    ward.fail("b1");
    assert!(!ward.backend("b1").load.is_ejected(), "the other one is down");
    ward.check("b0", CheckResult::Passed, 2);
    ward.fail("b1");
    ward.check("b1", CheckResult::Passed, 9);
    assert!(ward.backend("b1").load.is_ejected(), "a check does not see all that a client sees");
    ward.check("b1", CheckResult::Refused, 3);
    ward.check("b1", CheckResult::Passed, 2);
    assert!(ward.backend("b1").load.is_ejected());
}

const SURPLUS: Transition = Transition::Back { why: Return::Surplus };

/// Others were ejected without regard to those that were out by other words.
#[test]
fn an_ejection_ends_when_its_backend_counts_again_and_is_one_too_many() {
    // Down, while two of the three that are left are ejected.
    let ward = Ward::checked(4, "tcp");
    ["b0", "b1"].into_iter().for_each(|name| ward.fail(name));
    ward.check("b0", CheckResult::Refused, 1);
    ward.fail("b2");
    assert_eq!(ward.ejected(["b0", "b1", "b2", "b3"]), [true, true, true, false]);
    ward.check("b0", CheckResult::Passed, 2);
    assert_eq!(ward.ejected(["b0", "b1", "b2"]), [false, true, true]);
    assert_eq!(ward.backend("b0").load.phase(), Phase::SlowStart);
    assert_eq!(ward.told()[4..], [Transition::Up { after: 2 }, SURPLUS]);
    // With room for it an ejection stays.
    ward.check("b1", CheckResult::Refused, 1);
    ward.check("b1", CheckResult::Passed, 2);
    assert_eq!(ward.told().split_off(7), [Transition::Up { after: 2 }]);
    assert!(ward.backend("b1").load.is_ejected());
}

#[test]
fn a_backend_that_the_operator_puts_back_counts_again_once_nothing_else_keeps_it_out() {
    let ward = Ward::checked(4, "tcp");
    ["b0", "b1"].into_iter().for_each(|name| ward.fail(name));
    ward.backend("b0").load.set_draining(true);
    ward.fail("b2");
    let rows = |of_first: RawBackend| {
        let row = |name| RawBackend { health_check: "tcp".into(), ..row(name, "sa") };
        [RawBackend { health_check: "tcp".into(), ..of_first }].into_iter().chain(["b1", "b2", "b3"].map(row))
    };
    let reload = |first: RawBackend| {
        let raw = RawRouting { backends: rows(first).collect(), ..RawRouting::default() };
        ward.watch.reloaded(&ward.routing.apply(&raw, true).unwrap(), ward.now);
    };
    reload(RawBackend { state: "maint".into(), ..row("b0", "sa") });
    ward.backend("b0").load.set_draining(false);
    ward.watch.put_back(&[id("b0")], ward.now);
    assert_eq!(ward.ejected(["b0", "b1", "b2"]), [true; 3], "its row keeps it out");
    ward.check("b0", CheckResult::Refused, 1);
    reload(row("b0", "sa"));
    assert_eq!(ward.ejected(["b0", "b1", "b2"]), [true; 3], "its checks fail");
    reload(RawBackend { weight: 0.into(), ..row("b0", "sa") });
    ward.check("b0", CheckResult::Passed, 2);
    assert_eq!(ward.ejected(["b0", "b1", "b2"]), [true; 3], "it takes no new clients");
    reload(row("b0", "sa"));
    assert_eq!(ward.ejected(["b0", "b1", "b2"]), [false, true, true]);
    assert_eq!(ward.told().last(), Some(&SURPLUS));

    // Nobody else is ejected beside those that stay so.
    ward.fail("b3");
    assert_eq!(ward.ejected(["b3"]), [false]);
}

#[test]
fn an_app_that_fails_open_says_when_it_begins_and_ends() {
    let ward = Ward::checked(2, "tcp");
    ward.check("b0", CheckResult::Refused, 1);
    ward.watch.tick(ward.now);
    assert!(ward.watch.failing_open().is_empty());
    ward.check("b1", CheckResult::Refused, 1);
    ward.watch.tick(ward.now);
    ward.watch.tick(ward.now);
    assert_eq!(ward.watch.failing_open(), [app_name("web")]);
    ward.check("b1", CheckResult::Passed, 2);
    ward.watch.tick(ward.now);
    let fails_open = |begins| ("web".to_owned(), begins);
    assert_eq!(*ward.diary.1.lock().unwrap(), [fails_open(true), fails_open(false)]);
    // A reload that takes the last trusted one away, and one that takes all away.
    let checked = |name: &str| RawBackend { health_check: "tcp".into(), ..row(name, "sa") };
    ward.load([RawBackend { state: "maint".into(), ..checked("b1") }, checked("b0")].into_iter());
    ward.watch.tick(ward.now);
    assert_eq!(ward.watch.failing_open(), [app_name("web")]);
    ward.load([].into_iter());
    ward.watch.tick(ward.now);
    assert!(ward.watch.failing_open().is_empty());
}

#[test]
fn another_address_or_check_begins_anew_and_reports_about_the_former_one_do_not_count() {
    let ward = Ward::checked(3, "tcp");
    ward.check("b0", CheckResult::Refused, 1);
    ward.fail("b1");
    let former = ward.backend("b0");
    let rows = |port: i64, check: &'static str| {
        let moved = RawBackend { port: port.into(), health_check: "tcp".into(), ..row("b0", "sa") };
        let others = ["b1", "b2"].map(|name| RawBackend { health_check: check.into(), ..row(name, "sa") });
        [moved].into_iter().chain(others)
    };
    ward.load(rows(8080, "tcp"));
    assert!(ward.backend("b0").load.is_down() && ward.backend("b1").load.is_ejected(), "nothing has changed");
    ward.load(rows(9, "tcp fall=1"));
    let known = |name| ward.backend(name).load.phase();
    assert_eq!(["b0", "b1"].map(known), [Phase::Up, Phase::Up]);
    let check = HealthCheck::parse("tcp").unwrap();
    let report = CheckReport { result: CheckResult::Refused, detail: None, took: Duration::ZERO };
    ward.watch.checked(&former, check.spec().unwrap(), report, ward.now, &PACE);
    let failed = FailedConnect { failure: ConnectFailure::TimedOut, began: ward.now, shortened: false };
    ward.watch.connect_failed(&former, failed, ward.now);
    ward.check_as("tcp", "b1", CheckResult::Refused, 9);
    assert_eq!(["b0", "b1"].map(known), [Phase::Up, Phase::Up]);
    ward.check_as("tcp fall=1", "b1", CheckResult::Refused, 1);
    assert_eq!(known("b1"), Phase::Down(CheckResult::Refused));
    ward.load([row("b2", "sa")].into_iter());
    ward.load(rows(9, "tcp fall=1"));
    assert_eq!(known("b1"), Phase::Up, "who was removed and returns begins anew");
}

#[test]
fn a_reload_that_forgets_is_told_after_what_it_has_forgotten_and_before_what_comes_then() {
    let ward = Ward::checked(3, "tcp");
    let eject = |health: &mut Health| Some(health.eject(Complaint::Refused, ward.now, &RULES));
    // As by another thread that has not come to telling it.
    let (ejected, _) = ward.watch.change(&ward.backend("b0"), ward.now, eject);
    ward.load((0..3).map(|at| RawBackend { health_check: "tcp fall=1".into(), ..row(&format!("b{at}"), "sa") }));
    ward.check_as("tcp fall=1", "b0", CheckResult::Refused, 1);
    let down = Transition::Down { why: CheckResult::Refused, after: 1 };
    assert_eq!(ward.told(), [ejected.unwrap(), Transition::Anew, down], "nothing was held against the others");

    // And at once.
    ward.load((0..3).map(|at| row(&format!("b{at}"), "sa")));
    ward.watch.reloaded(&ReloadReport::default(), ward.now);
    assert_eq!(ward.told()[3..], [Transition::Anew]);
}
