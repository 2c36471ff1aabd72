//! May a backend be trusted with clients? Two have a say. What their own connections tell: a backend that doesn't accept
//! them, or resets them at once, is ejected for a while, comes back with a small share of new clients, and is ejected for
//! longer if it fails again. And what the checks tell (`check/`): while they fail, the backend is down; when they pass
//! again, it comes back with a small share, too. Time is passed in.

mod vitals;

use std::time::{Duration, Instant};

pub(super) use self::vitals::{Distrust, Vitals};
use super::check::Checked;
use super::{CheckChange, CheckPace, CheckReport, CheckResult, CheckSpec, ConnectFailure, Termination};

/// When to eject, for how long, and how to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthRules {
    /// Complaints of one kind in a row that eject; 0 never ejects.
    pub failures: u32,
    /// The first ejection; each further one lasts twice as long as the one before, up to `longest`.
    pub ejection: Duration,
    pub longest: Duration,
    /// Part of an app's backends that may be ejected at once.
    pub max_percent: u32,
    /// How long a backend that came back gets less than its share.
    pub slow_start: Duration,
    /// How long the end of an ejection waits until the POP itself has tried a backend that accepted no connections, so that
    /// no client has to. 0: nobody tries.
    pub untried: Duration,
}

impl HealthRules {
    /// How many of an app's `backends` may be ejected at once: never all of them.
    pub fn most_ejected(&self, backends: usize) -> usize {
        let percent = usize::try_from(self.max_percent).unwrap_or(100).min(100);
        (backends * percent).div_ceil(100).min(backends.saturating_sub(1))
    }

    fn duration(&self, ejections: u32) -> Duration {
        let times = 1u32.checked_shl(ejections.saturating_sub(1)).unwrap_or(u32::MAX);
        self.ejection.saturating_mul(times).min(self.longest.max(self.ejection))
    }
}

/// What a connection has to say against its backend. A bounded set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Complaint {
    Refused,
    TimedOut,
    Unreachable,
    /// Accepted, and reset within a second without an answer.
    EarlyReset,
}

/// A reset later than this may have any reason.
const EARLY: Duration = Duration::from_secs(1);

impl Complaint {
    pub const ALL: [Self; 4] = [Self::Refused, Self::TimedOut, Self::Unreachable, Self::EarlyReset];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::EarlyReset => "early_reset",
        }
    }

    /// That it did not even accept the connection.
    pub const fn is_of_connect(self) -> bool {
        !matches!(self, Self::EarlyReset)
    }

    /// Of a check that only connects, if it did not. `None` where this host is to blame: then nothing is known.
    pub const fn of_trial(result: CheckResult) -> Option<Result<(), Self>> {
        match result {
            CheckResult::Refused => Some(Err(Self::Refused)),
            CheckResult::TimedOut => Some(Err(Self::TimedOut)),
            CheckResult::Unreachable => Some(Err(Self::Unreachable)),
            CheckResult::Local => None,
            // It was accepted, whatever came then.
            _ => Some(Ok(())),
        }
    }

    /// `None` where this host is to blame.
    pub fn of_connect(failure: ConnectFailure) -> Option<Self> {
        match failure {
            ConnectFailure::Refused => Some(Self::Refused),
            ConnectFailure::TimedOut => Some(Self::TimedOut),
            ConnectFailure::Unreachable => Some(Self::Unreachable),
            ConnectFailure::Local | ConnectFailure::Exhausted => None,
        }
    }

    /// Whether a connection shows that its backend serves: it brought an answer, or lasted.
    pub fn is_served(bytes_down: u64, age: Duration) -> bool {
        bytes_down > 0 || age >= EARLY
    }

    /// Of a connection that ended so, `age` after its backend had accepted it.
    pub fn of_end(termination: Termination, bytes_down: u64, age: Duration) -> Option<Self> {
        let early = termination == Termination::BackendReset && bytes_down == 0 && age < EARLY;
        early.then_some(Self::EarlyReset)
    }
}

/// Whose connection has shown that a backend is ill. A bounded set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Witness {
    Client,
    /// The POP itself has tried it when its ejection was over.
    Trial,
}

impl Witness {
    pub const ALL: [Self; 2] = [Self::Client, Self::Trial];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Trial => "trial",
        }
    }
}

/// What ended an ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// It has accepted a connection: it was asked because no other was left.
    Connected,
    /// It has accepted the POP's own.
    Tried,
    /// A check has passed, and only trials had kept it out.
    Checked,
    /// It has not accepted the POP's own, but no more of its app's backends may be out.
    Spared,
    /// It counts among its app's backends again, of which no more may be out.
    Surplus,
    /// Its time is over.
    Over,
    /// Likewise, and nobody was able to try it.
    Untried,
}

/// What a backend's health has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    Ejected {
        why: Complaint,
        lasts: Duration,
        by: Witness,
    },
    /// Takes clients again, few at first.
    Back {
        why: Return,
    },
    /// Has its whole share again.
    Recovered,
    /// So many checks in a row have failed, the last one so: it is out.
    Down {
        why: CheckResult,
        after: u32,
    },
    /// So many checks in a row have passed: takes clients again, few at first.
    Up {
        after: u32,
    },
    /// It is another one now: what was known of it is forgotten.
    Anew,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Up,
    Ejected {
        why: Complaint,
        by: Witness,
        since: Instant,
        until: Instant,
    },
    SlowStart {
        since: Instant,
    },
    /// Up, and the length of its next ejection still remembers the last ones.
    Remembered {
        since: Instant,
    },
}

/// The health of one backend, as its connections and the checks see it.
#[derive(Debug, Default)]
pub struct Health {
    state: State,
    /// In a row.
    failed_connects: u32,
    early_resets: u32,
    /// Ejections that are remembered: each doubles the length of the next.
    ejections: u32,
    checked: Checked,
}

impl Health {
    /// Takes a complaint; `true` if it is one too many. A timeout is: each costs a client the whole connect limit.
    /// One is also enough while the backend is on its way back.
    pub fn complain(&mut self, complaint: Complaint, rules: &HealthRules) -> bool {
        let count = match complaint {
            Complaint::EarlyReset => &mut self.early_resets,
            _ => &mut self.failed_connects,
        };
        *count = count.saturating_add(1);
        let enough = *count >= rules.failures
            || complaint == Complaint::TimedOut
            || matches!(self.state, State::SlowStart { .. });
        rules.failures > 0 && enough && self.may_be_ejected()
    }

    /// It is not out already.
    pub fn may_be_ejected(&self) -> bool {
        !self.is_ejected() && !self.checked.is_down()
    }

    /// Clients have complained too much.
    pub fn eject(&mut self, why: Complaint, now: Instant, rules: &HealthRules) -> Transition {
        self.eject_by(Witness::Client, why, now, rules)
    }

    fn eject_by(&mut self, by: Witness, why: Complaint, now: Instant, rules: &HealthRules) -> Transition {
        // What makes it no longer is not remembered: to forget takes time for each.
        if rules.duration(self.ejections) < rules.longest || self.ejections == 0 {
            self.ejections = self.ejections.saturating_add(1);
        }
        let lasts = rules.duration(self.ejections);
        self.state = State::Ejected { why, by, since: now, until: now + lasts };
        Transition::Ejected { why, lasts, by }
    }

    /// The backend has accepted a connection. If it was ejected because it did not, it is back: it was asked because no
    /// other was left.
    pub fn connected(&mut self, now: Instant) -> Option<Transition> {
        self.failed_connects = 0;
        match self.state {
            State::Ejected { why, .. } if why.is_of_connect() => Some(self.back(Return::Connected, now)),
            _ => None,
        }
    }

    /// A connection went on for longer than an early reset, or brought an answer.
    pub fn served(&mut self) {
        self.early_resets = 0;
    }

    fn back(&mut self, why: Return, now: Instant) -> Transition {
        self.start_slowly(now);
        Transition::Back { why }
    }

    fn start_slowly(&mut self, now: Instant) {
        (self.failed_connects, self.early_resets) = (0, 0);
        self.state = State::SlowStart { since: now };
    }

    /// Lets time do its work.
    pub fn tick(&mut self, now: Instant, rules: &HealthRules) -> Option<Transition> {
        match self.state {
            State::Up => None,
            State::Ejected { why, until, .. } => {
                let patience = if why.is_of_connect() { rules.untried } else { Duration::ZERO };
                let why = if patience.is_zero() { Return::Over } else { Return::Untried };
                (now >= until + patience).then(|| self.back(why, now))
            }
            State::SlowStart { since } if now.saturating_duration_since(since) >= rules.slow_start => {
                self.state = State::Remembered { since: now };
                Some(Transition::Recovered)
            }
            State::SlowStart { .. } => None,
            State::Remembered { since } => {
                // As long as its last ejection lasted: one is forgotten.
                if now.saturating_duration_since(since) >= rules.duration(self.ejections) {
                    self.ejections = self.ejections.saturating_sub(1);
                    self.state = if self.ejections == 0 { State::Up } else { State::Remembered { since: now } };
                }
                None
            }
        }
    }

    /// Whether it is only out because nobody has tried yet whether it accepts connections again.
    pub fn is_to_be_tried(&self, now: Instant) -> bool {
        matches!(self.state, State::Ejected { why, until, .. } if why.is_of_connect() && now >= until)
    }

    /// It was tried, and this is what there was to complain of; `may_eject` says whether it may stay out.
    pub fn tried(
        &mut self,
        complaint: Option<Complaint>,
        may_eject: impl FnOnce() -> bool,
        now: Instant,
        rules: &HealthRules,
    ) -> Option<Transition> {
        // Clients may have been quicker, where no other backend was left.
        self.is_to_be_tried(now).then(|| match complaint {
            Some(why) if may_eject() => self.eject_by(Witness::Trial, why, now, rules),
            Some(_) => self.back(Return::Spared, now),
            None => self.back(Return::Tried, now),
        })
    }

    /// It counts among its app's backends again, of which too many are ejected with it.
    pub fn spare(&mut self, now: Instant) -> Transition {
        self.back(Return::Surplus, now)
    }

    /// Takes the report of a check that was made as `spec` says and ended just now.
    pub fn check(
        &mut self,
        report: CheckReport,
        spec: &CheckSpec,
        now: Instant,
        pace: &CheckPace,
    ) -> Option<Transition> {
        let vouched = self.is_vouched_for(&report, spec, now);
        match self.checked.take(report, now, pace) {
            Some(CheckChange::Down { why, after }) => {
                if matches!(self.state, State::SlowStart { .. }) {
                    self.state = if self.ejections == 0 { State::Up } else { State::Remembered { since: now } };
                }
                Some(Transition::Down { why, after })
            }
            Some(CheckChange::Up { after }) => {
                // Whom clients have ejected meanwhile stays so until its time is over: checks don't see all that they see.
                if vouched || !self.is_ejected() {
                    self.start_slowly(now);
                }
                Some(Transition::Up { after })
            }
            None => (vouched && !self.checked.is_down()).then(|| self.back(Return::Checked, now)),
        }
    }

    /// Whether a check that ends `now` refutes all that keeps the backend out: that it did not accept a connection of the
    /// POP's, which began earlier.
    fn is_vouched_for(&self, report: &CheckReport, spec: &CheckSpec, now: Instant) -> bool {
        let State::Ejected { by: Witness::Trial, since, .. } = self.state else { return false };
        // Another port may be that of something else.
        report.result == CheckResult::Passed && spec.port.is_none() && now >= since + report.took
    }

    /// What the checks say, and the last one.
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    /// Nothing is known of the backend any more; whether something was that mattered.
    fn forget(&mut self) -> bool {
        let mattered = self.state != State::Up || self.checked.is_down();
        *self = Self::default();
        mattered
    }

    pub fn is_ejected(&self) -> bool {
        matches!(self.state, State::Ejected { .. })
    }

    fn distrust(&self) -> Option<Distrust> {
        match () {
            () if self.checked.is_down() => Some(Distrust::Down),
            () if self.is_ejected() => Some(Distrust::Ejected),
            () => None,
        }
    }

    /// Whether there is nothing to remember.
    fn is_spotless(&self) -> bool {
        self.state == State::Up && self.failed_connects == 0 && self.early_resets == 0
    }

    /// Whether time has work to do.
    fn is_on_its_way(&self) -> bool {
        self.state != State::Up
    }

    /// Its part of its share, in 256ths.
    fn warmth(&self, now: Instant, rules: &HealthRules) -> u32 {
        let State::SlowStart { since } = self.state else { return FULL };
        let part = now.saturating_duration_since(since).as_secs_f64() / rules.slow_start.as_secs_f64().max(1e-9);
        // At least a sixteenth: a backend that gets nobody shows nothing.
        ((part * f64::from(FULL)) as u32).clamp(FULL / 16, FULL)
    }

    pub fn phase(&self) -> Phase {
        if let (true, Some((report, _))) = (self.checked.is_down(), &self.checked.last) {
            return Phase::Down(report.result);
        }
        match self.state {
            State::Up | State::Remembered { .. } => Phase::Up,
            State::Ejected { why, .. } => Phase::Ejected(why),
            State::SlowStart { .. } => Phase::SlowStart,
        }
    }
}

/// For people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Up,
    Ejected(Complaint),
    SlowStart,
    /// The checks say so, the last one for this reason.
    Down(CheckResult),
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Ejected(_) => "ejected",
            Self::SlowStart => "slow_start",
            Self::Down(_) => "down",
        }
    }

    /// Why it is ejected or down.
    pub const fn why(self) -> Option<&'static str> {
        match self {
            Self::Ejected(why) => Some(why.as_str()),
            Self::Down(why) => Some(why.as_str()),
            Self::Up | Self::SlowStart => None,
        }
    }
}

/// The whole share, in 256ths.
const FULL: u32 = 256;

#[cfg(test)]
mod tests;
