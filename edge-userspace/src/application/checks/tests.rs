#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::application::health::FailedConnect;
use crate::application::testing::Deaf;
use crate::domain::testing::row;
use crate::domain::{CheckReport, CheckResult, ConnectFailure, HealthRules, RawApp, RawBackend, RawRouting};

const RULES: HealthRules = HealthRules {
    failures: 3,
    ejection: Duration::from_secs(10),
    longest: Duration::from_secs(60),
    max_percent: 50,
    slow_start: Duration::ZERO,
    untried: Duration::ZERO,
};
const DEFAULTS: CheckDefaults =
    CheckDefaults { interval: Duration::from_millis(20), timeout: Duration::from_secs(1), rise: 1, fall: 1 };

/// Writes down whom it was sent to; each check takes 5 ms.
#[derive(Default)]
struct Scribe {
    asked: Mutex<Vec<(u16, String)>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Prober for Arc<Scribe> {
    async fn probe(&self, backend: &Backend, spec: &CheckSpec, _: Duration) -> CheckReport {
        let addr = spec.addr_of(backend);
        self.asked.lock().unwrap().push((addr.port(), spec.text.clone()));
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        sleep(Duration::from_millis(5)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        let result = match addr.port() {
            1 => CheckResult::Refused,
            2 => CheckResult::Local,
            _ => CheckResult::Passed,
        };
        CheckReport { result, detail: None, took: Duration::ZERO }
    }
}

struct Clinic {
    scribe: Arc<Scribe>,
    routing: Arc<RoutingTable>,
    checker: Checker<Arc<Scribe>>,
}

impl Clinic {
    fn new(at_once: usize) -> Self {
        let (scribe, routing) = (Arc::new(Scribe::default()), Arc::new(RoutingTable::new()));
        let watch = Arc::new(Watch::new(RULES, Arc::clone(&routing), Arc::new(Deaf)));
        let checker =
            Checker::new(Arc::clone(&scribe), Arc::clone(&routing), watch, DEFAULTS, at_once, DEFAULTS.timeout, || {
                fastrand::u64(..)
            });
        Self { scribe, routing, checker }
    }

    /// Puts backends with these names, ports and checks into the app `web`, and has the checker follow.
    fn load(&mut self, app_check: &str, backends: &[(&str, i64, &str)]) {
        let backend = |(id, port, check): &(&str, i64, &str)| RawBackend {
            port: (*port).into(),
            health_check: (*check).into(),
            ..row(id, "sa")
        };
        let apps = vec![RawApp { health_check: app_check.into(), ..RawApp::named("web") }];
        let backends = backends.iter().map(backend).collect();
        self.routing.apply(&RawRouting { backends, apps, ..RawRouting::default() }, true).unwrap();
        self.checker.follow(&self.routing.snapshot());
    }

    /// Who is asked from now on, each once, in order: at least `enough` of them, and who else comes in the next moments.
    async fn asked(&self, enough: usize) -> Vec<(u16, String)> {
        self.scribe.asked.lock().unwrap().clear();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            sleep(Duration::from_millis(100)).await;
            let mut asked = self.scribe.asked.lock().unwrap().clone();
            asked.sort();
            asked.dedup();
            if asked.len() >= enough || Instant::now() > deadline {
                return asked;
            }
        }
    }

    fn is_down(&self, id: &str) -> bool {
        self.routing.snapshot().backend(&crate::domain::testing::id(id)).unwrap().load.is_down()
    }
}

fn said(list: &[(u16, &str)]) -> Vec<(u16, String)> {
    list.iter().map(|(port, check)| (*port, (*check).to_owned())).collect()
}

#[tokio::test]
async fn backends_are_checked_as_they_or_their_app_say() {
    let mut clinic = Clinic::new(10);
    clinic.load("http", &[("a", 80, ""), ("b", 81, "tcp"), ("c", 82, "none"), ("d", 83, "tcp port=1")]);
    assert_eq!(clinic.asked(3).await, said(&[(1, "tcp port=1"), (80, "http"), (81, "tcp")]));
    assert_eq!(["a", "b", "c", "d"].map(|id| clinic.is_down(id)), [false, false, false, true]);
}

#[tokio::test]
async fn a_reload_changes_the_checks_of_those_that_changed_and_no_others() {
    let mut clinic = Clinic::new(10);
    clinic.load("", &[("a", 80, "tcp"), ("b", 1, "tcp"), ("c", 82, "tcp")]);
    clinic.asked(3).await;
    assert!(clinic.is_down("b"));
    let task = clinic.checker.running[&crate::domain::testing::id("a")].task.id();
    clinic.load("", &[("a", 80, "tcp"), ("b", 90, "tcp"), ("d", 83, "")]);
    assert!(!clinic.is_down("b"), "at its new address nothing is known of it");
    assert_eq!(clinic.checker.running[&crate::domain::testing::id("a")].task.id(), task);
    assert_eq!(clinic.asked(2).await, said(&[(80, "tcp"), (90, "tcp")]));
    clinic.load("", &[("a", 80, "tcp fall=2"), ("b", 90, "none")]);
    assert_eq!(clinic.asked(1).await, said(&[(80, "tcp fall=2")]));
    assert_eq!(clinic.checker.running.len(), 1);
}

#[tokio::test]
async fn who_was_ejected_is_tried_once_and_returns_if_it_accepts() {
    let rules =
        HealthRules { untried: Duration::from_secs(30), ejection: Duration::ZERO, longest: Duration::ZERO, ..RULES };
    let mut clinic = Clinic::new(10);
    clinic.load("", &[("a", 80, ""), ("b", 1, ""), ("c", 82, ""), ("d", 83, "")]);
    let watch = Arc::new(Watch::new(rules, Arc::clone(&clinic.routing), Arc::new(Deaf)));
    let backend = |id: &str| Arc::clone(clinic.routing.snapshot().backend(&crate::domain::testing::id(id)).unwrap());
    let now = std::time::Instant::now();
    let silent = FailedConnect { failure: ConnectFailure::TimedOut, began: now, shortened: false };
    ["a", "b"].into_iter().for_each(|id| watch.connect_failed(&backend(id), silent, now));
    assert!(["a", "b"].into_iter().all(|id| backend(id).load.is_ejected()));
    let random = || fastrand::u64(..);
    let checker = Checker::new(
        Arc::clone(&clinic.scribe),
        Arc::clone(&clinic.routing),
        Arc::clone(&watch),
        DEFAULTS,
        1,
        LOOK,
        random,
    );
    let due = watch.to_try(now);
    assert_eq!((due.len(), watch.to_try(now).len()), (2, 0), "each is tried by one");
    for backend in due {
        try_once(Arc::clone(&checker.kit), backend).await;
    }
    assert_eq!(["a", "b"].map(|id| backend(id).load.is_ejected()), [false, true]);
    let again = watch.to_try(std::time::Instant::now());
    assert_eq!(again.iter().map(|backend| backend.id.as_str()).collect::<Vec<_>>(), ["b"]);
    let mut asked = clinic.scribe.asked.lock().unwrap().clone();
    asked.sort();
    assert_eq!(asked, said(&[(1, "tcp"), (80, "tcp")]));
    watch.tried(&again[0], Some(Err(Complaint::Refused)), std::time::Instant::now());
    // Out of service for good, but for that somebody asks.
    clinic.load("", &[("a", 80, ""), ("c", 82, ""), ("d", 83, "")]);
    assert!(watch.to_try(std::time::Instant::now()).is_empty(), "its address may be another's by now");
}

#[tokio::test]
async fn who_could_not_be_tried_stays_out_and_who_may_not_stay_out_returns() {
    let rules =
        HealthRules { untried: Duration::from_secs(30), ejection: Duration::ZERO, longest: Duration::ZERO, ..RULES };
    let mut clinic = Clinic::new(10);
    clinic.load("", &[("a", 2, ""), ("b", 81, ""), ("c", 82, "")]);
    let watch = Arc::new(Watch::new(rules, Arc::clone(&clinic.routing), Arc::new(Deaf)));
    let backend =
        |clinic: &Clinic| Arc::clone(clinic.routing.snapshot().backend(&crate::domain::testing::id("a")).unwrap());
    let now = std::time::Instant::now();
    let silent = FailedConnect { failure: ConnectFailure::TimedOut, began: now, shortened: false };
    watch.connect_failed(&backend(&clinic), silent, now);
    let random = || fastrand::u64(..);
    let (scribe, routing) = (Arc::clone(&clinic.scribe), Arc::clone(&clinic.routing));
    let checker = Checker::new(scribe, routing, Arc::clone(&watch), DEFAULTS, 1, LOOK, random);
    let due = watch.to_try(now).remove(0);
    try_once(Arc::clone(&checker.kit), due).await;
    assert!(backend(&clinic).load.is_ejected(), "this host was to blame");
    let due = watch.to_try(std::time::Instant::now()).remove(0);
    watch.tried(&due, Some(Err(Complaint::TimedOut)), std::time::Instant::now());
    assert!(backend(&clinic).load.is_ejected());
    // Never all of them are out by ejection.
    clinic.load("", &[("a", 2, "")]);
    let due = watch.to_try(std::time::Instant::now()).remove(0);
    watch.tried(&due, Some(Err(Complaint::TimedOut)), std::time::Instant::now());
    assert!(!backend(&clinic).load.is_ejected());
}

#[tokio::test]
async fn not_more_are_checked_at_once_than_may_be() {
    let mut clinic = Clinic::new(3);
    let names: Vec<_> = (0..20).map(|n| format!("b{n}")).collect();
    let backends: Vec<_> = names.iter().zip(100..).map(|(name, port)| (name.as_str(), port, "tcp")).collect();
    clinic.load("", &backends);
    assert_eq!(clinic.asked(20).await.len(), 20, "they wait for each other, and nobody is left out");
    assert_eq!(clinic.scribe.most.load(Ordering::SeqCst), 3);
}

#[test]
fn jitter_is_a_tenth_and_parts_are_below_one() {
    let second = Duration::from_secs(1);
    assert_eq!((part(|| 0), jittered(second, || 0)), (0.0, Duration::from_millis(900)));
    let most = jittered(second, || u64::MAX);
    assert!(part(|| u64::MAX) < 1.0 && most > Duration::from_millis(1099) && most <= Duration::from_millis(1100));
}

#[tokio::test]
async fn a_task_that_waits_is_small() {
    let clinic = Clinic::new(1);
    clinic.routing.apply(&RawRouting { backends: vec![row("a", "sa")], ..RawRouting::default() }, true).unwrap();
    let backend = Arc::clone(clinic.routing.snapshot().backend(&crate::domain::testing::id("a")).unwrap());
    let spec = Arc::clone(crate::domain::HealthCheck::parse("tcp").unwrap().spec().unwrap());
    let task = keep_checking(Arc::clone(&clinic.checker.kit), backend, spec, Duration::ZERO);
    assert!(size_of_val(&task) < 1024, "{} bytes for each backend", size_of_val(&task));
}
