#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use crate::domain::HealthCheck;

const RULES: HealthRules = HealthRules {
    failures: 3,
    ejection: Duration::from_secs(10),
    longest: Duration::from_secs(60),
    max_percent: 50,
    slow_start: Duration::from_secs(32),
    untried: Duration::ZERO,
};

struct Patient {
    health: Health,
    now: Instant,
}

impl Patient {
    fn new() -> Self {
        Self { health: Health::default(), now: Instant::now() }
    }

    fn after(&mut self, secs: u64) -> Option<Transition> {
        self.now += Duration::from_secs(secs);
        self.health.tick(self.now, &RULES)
    }

    /// Complains and ejects if that is one too many: for how long.
    fn complain(&mut self, complaint: Complaint) -> Option<u64> {
        if !self.health.complain(complaint, &RULES) {
            return None;
        }
        match self.health.eject(complaint, self.now, &RULES) {
            Transition::Ejected { lasts, by: Witness::Client, .. } => Some(lasts.as_secs()),
            other => panic!("{other:?}"),
        }
    }
}

const fn back(why: Return) -> Option<Transition> {
    Some(Transition::Back { why })
}

#[test]
fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
    let mut patient = Patient::new();
    for _ in 0..5 {
        assert_eq!(patient.complain(Complaint::Refused), None);
        assert_eq!(patient.complain(Complaint::Unreachable), None);
        assert_eq!(patient.health.connected(patient.now), None);
    }
    assert!(patient.health.is_spotless());
    let ejected: Vec<_> = (0..4).map(|_| patient.complain(Complaint::Refused)).collect();
    assert_eq!(ejected, [None, None, Some(10), None]);
    assert_eq!(patient.health.phase(), Phase::Ejected(Complaint::Refused));
}

/// No client has to find out whether a backend is back.
#[test]
fn who_accepted_no_connections_is_tried_first() {
    let rules = HealthRules { untried: Duration::from_secs(30), ..RULES };
    let mut patient = Patient::new();
    assert_eq!(patient.complain(Complaint::TimedOut), Some(10));
    let after = |patient: &mut Patient, secs| {
        patient.now += Duration::from_secs(secs);
        patient.health.tick(patient.now, &rules)
    };
    assert_eq!(after(&mut patient, 9), None);
    assert!(!patient.health.is_to_be_tried(patient.now));
    assert_eq!(patient.health.tried(None, || true, patient.now, &rules), None, "it was not asked for");
    assert_eq!(after(&mut patient, 1), None);
    assert!(patient.health.is_to_be_tried(patient.now) && patient.health.is_ejected());
    let lasts = Duration::from_secs(20);
    let again = Transition::Ejected { why: Complaint::Refused, lasts, by: Witness::Trial };
    assert_eq!(patient.health.tried(Some(Complaint::Refused), || true, patient.now, &rules), Some(again));
    assert_eq!(after(&mut patient, 20), None);
    assert_eq!(patient.health.tried(None, || true, patient.now, &rules), back(Return::Tried));
    // Where too many are out already it may not stay so.
    assert_eq!(patient.complain(Complaint::TimedOut), Some(40));
    assert_eq!(after(&mut patient, 40), None);
    assert_eq!(patient.health.tried(Some(Complaint::TimedOut), || false, patient.now, &rules), back(Return::Spared));
    // Where nobody tries, clients do.
    assert_eq!(patient.complain(Complaint::TimedOut), Some(60));
    assert_eq!(after(&mut patient, 60), None);
    assert_eq!(after(&mut patient, 29), None);
    assert_eq!(after(&mut patient, 1), back(Return::Untried));
    // To connect says nothing about resets.
    let resets: Vec<_> = (0..3).filter_map(|_| patient.complain(Complaint::EarlyReset)).collect();
    assert_eq!(resets, [60]);
    assert_eq!(after(&mut patient, 60), back(Return::Over));
}

/// Checks don't see all that clients see, but they see what a trial sees.
#[test]
fn a_check_ends_what_only_trials_prolong() {
    let pace = CheckPace { interval: Duration::from_secs(1), timeout: Duration::from_secs(9), rise: 2, fall: 2 };
    let check = |patient: &mut Patient, spec: &str, result, took| {
        let report = CheckReport { result, detail: None, took: Duration::from_secs(took) };
        let spec = HealthCheck::parse(spec).unwrap();
        patient.health.check(report, spec.spec().unwrap(), patient.now, &pace)
    };
    let ejected = |by: Witness| {
        let mut patient = Patient::new();
        check(&mut patient, "tcp", CheckResult::Passed, 0);
        assert_eq!(patient.complain(Complaint::TimedOut), Some(10));
        patient.now += Duration::from_secs(10);
        if by == Witness::Trial {
            patient.health.tried(Some(Complaint::TimedOut), || true, patient.now, &RULES).unwrap();
        }
        patient.now += Duration::from_secs(5);
        patient
    };
    use CheckResult::{Passed, Refused};
    let mut by_client = ejected(Witness::Client);
    assert_eq!(check(&mut by_client, "tcp", Passed, 0), None, "its clients have said so");
    let mut by_trial = ejected(Witness::Trial);
    assert_eq!(check(&mut by_trial, "tcp", Refused, 0), None);
    assert_eq!(check(&mut by_trial, "tcp port=81", Passed, 0), None, "another port says nothing");
    assert_eq!(check(&mut by_trial, "tcp", Passed, 6), None, "it began before the trial had failed");
    assert_eq!(check(&mut by_trial, "tcp", Passed, 5), back(Return::Checked));
    assert_eq!(by_trial.health.phase(), Phase::SlowStart);
    assert_eq!(by_trial.complain(Complaint::Refused), Some(40), "its ejections are remembered");
    // One that is down, too, comes back when so many have passed as must.
    let mut down = ejected(Witness::Trial);
    check(&mut down, "tcp", Refused, 0);
    assert_eq!(check(&mut down, "tcp", Refused, 0), Some(Transition::Down { why: Refused, after: 2 }));
    assert_eq!(check(&mut down, "tcp", Passed, 0), None);
    assert_eq!(down.health.distrust(), Some(Distrust::Down));
    assert_eq!(check(&mut down, "tcp", Passed, 0), Some(Transition::Up { after: 2 }));
    assert_eq!(down.health.distrust(), None);
}

#[test]
fn one_timeout_is_enough() {
    assert_eq!(Patient::new().complain(Complaint::TimedOut), Some(10));
}

#[test]
fn early_resets_eject_though_connects_succeed() {
    let mut patient = Patient::new();
    let mut ejected = Vec::new();
    for _ in 0..3 {
        patient.health.connected(patient.now);
        ejected.push(patient.complain(Complaint::EarlyReset));
    }
    assert_eq!(ejected, [None, None, Some(10)]);
    assert_eq!(patient.health.connected(patient.now), None, "that it accepts says nothing against it");
    assert!(patient.health.is_ejected());
    let mut served = Patient::new();
    for _ in 0..9 {
        assert_eq!(served.complain(Complaint::EarlyReset), None);
        served.health.served();
    }
}

#[test]
fn ejections_grow_up_to_a_bound_and_are_forgotten_one_by_one() {
    let mut patient = Patient::new();
    for lasts in [10, 20, 40, 60, 60] {
        assert_eq!(patient.complain(Complaint::TimedOut), Some(lasts));
        assert_eq!(patient.after(lasts - 1), None);
        assert_eq!(patient.after(1), back(Return::Over));
    }
    assert_eq!(patient.after(32), Some(Transition::Recovered));
    // Four are remembered: 60, 40, 20 and 10 seconds. The fifth made it no longer.
    for secs in [60, 40, 20] {
        assert_eq!(patient.after(secs), None);
        assert!(patient.health.is_on_its_way());
    }
    patient.after(10);
    assert!(!patient.health.is_on_its_way());
    assert_eq!(patient.complain(Complaint::TimedOut), Some(10));
}

#[test]
fn who_comes_back_is_on_probation_and_gets_a_growing_share() {
    let mut patient = Patient::new();
    patient.complain(Complaint::TimedOut);
    patient.after(10);
    let mut shares = Vec::new();
    for secs in [0, 8, 8, 8] {
        patient.after(secs);
        shares.push(patient.health.warmth(patient.now, &RULES));
    }
    assert_eq!(shares, [16, 64, 128, 192]);
    assert_eq!(patient.complain(Complaint::Refused), Some(20), "one complaint is enough now");
    patient.after(20);
    patient.after(32);
    assert_eq!(patient.health.warmth(patient.now, &RULES), FULL);
    assert_eq!(patient.complain(Complaint::Refused), None);
}

#[test]
fn a_connect_that_succeeds_after_all_ends_the_ejection() {
    let mut patient = Patient::new();
    patient.complain(Complaint::TimedOut);
    assert_eq!(patient.health.connected(patient.now), back(Return::Connected));
    assert_eq!(patient.health.phase(), Phase::SlowStart);
}

#[test]
fn only_so_many_are_ejected_and_never_all() {
    let most = |backends, max_percent| HealthRules { max_percent, ..RULES }.most_ejected(backends);
    assert_eq!([0, 1, 2, 3, 4, 10].map(|backends| most(backends, 50)), [0, 0, 1, 2, 2, 5]);
    assert_eq!([1, 2, 10].map(|backends| most(backends, 100)), [0, 1, 9]);
    assert_eq!(most(10, 0), 0);
}

#[test]
fn zero_failures_never_eject() {
    let mut health = Health::default();
    let rules = HealthRules { failures: 0, ..RULES };
    assert!(Complaint::ALL.into_iter().all(|complaint| !health.complain(complaint, &rules)));
}

#[test]
fn blame_is_given_where_it_belongs() {
    assert_eq!(Complaint::of_connect(ConnectFailure::Local), None);
    let end = |termination, bytes, millis| Complaint::of_end(termination, bytes, Duration::from_millis(millis));
    assert_eq!(end(Termination::BackendReset, 0, 10), Some(Complaint::EarlyReset));
    assert_eq!(end(Termination::BackendReset, 1, 10), None);
    assert_eq!(end(Termination::BackendReset, 0, 1000), None);
    assert_eq!(end(Termination::ClientReset, 0, 10), None);
}
