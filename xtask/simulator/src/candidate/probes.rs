//! The daemon's active checks on simulated time: when a backend is asked and what it answers is simulated here, what
//! the answers mean is the daemon's own code.

use std::sync::Arc;
use std::time::Duration;

use ::edgeproxy::domain::{Backend, CheckReport, CheckResult, CheckSpec, Snapshot};

use super::checks::Truth;
use crate::dice::Dice;
use crate::world::{Condition, World};

/// A check that has come to an end.
pub(super) struct Answer {
    pub(super) backend: Arc<Backend>,
    pub(super) spec: Arc<CheckSpec>,
    pub(super) report: CheckReport,
}

pub(super) struct Probes<'a> {
    world: &'a World,
    truth: Truth<'a>,
    dice: Dice,
    running: Vec<Running>,
}

/// A backend that is checked.
struct Running {
    at: usize,
    backend: Arc<Backend>,
    spec: Arc<CheckSpec>,
    /// When the next check begins, or the one under way ends with a result.
    due: Duration,
    /// When that one began, and what comes of it.
    asked: Option<(Duration, CheckResult)>,
}

impl<'a> Probes<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        Self { truth: Truth::new(world), dice: Dice::new(world.seed, 20), running: Vec::new(), world }
    }

    /// Checks of backends that are gone end, also those under way; new ones begin soon.
    pub(super) fn reload(&mut self, snapshot: &Snapshot, place: &dyn Fn(&Backend) -> Option<usize>, now: Duration) {
        let mut before = std::mem::take(&mut self.running);
        for app in snapshot.apps() {
            for (backend, spec) in app.backends().iter().filter_map(|backend| Some((backend, app.check_of(backend)?))) {
                let Some(at) = place(backend) else { continue };
                let same = before.iter().position(|one| Arc::ptr_eq(&one.backend.load, &backend.load));
                let first = self.world.rules.pace.interval.mul_f64(self.dice.unit());
                let new =
                    Running { at, backend: Arc::clone(backend), spec: Arc::clone(spec), due: now + first, asked: None };
                self.running.push(same.map_or(new, |same| before.swap_remove(same)));
            }
        }
    }

    /// The checks that have ended by now.
    pub(super) fn tick(&mut self, now: Duration) -> Vec<Answer> {
        self.truth.advance(now);
        let pace = self.world.rules.pace;
        let mut answers = Vec::new();
        for one in self.running.iter_mut().filter(|one| one.due <= now) {
            match one.asked.take() {
                None => {
                    let (result, took) = match self.truth.condition(one.at) {
                        Condition::Works | Condition::Resets => (CheckResult::Passed, Duration::ZERO),
                        Condition::Refuses => (CheckResult::Refused, Duration::ZERO),
                        Condition::Silent => (CheckResult::TimedOut, pace.timeout),
                    };
                    (one.asked, one.due) = (Some((now, result)), now + took);
                }
                Some((began, result)) => {
                    let report = CheckReport { result, detail: None, took: now - began };
                    answers.push(Answer { backend: Arc::clone(&one.backend), spec: Arc::clone(&one.spec), report });
                    one.due = now + pace.interval.mul_f64(self.dice.between(0.9, 1.1));
                }
            }
        }
        answers
    }
}
