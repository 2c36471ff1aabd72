//! What answers make of a backend: rise and fall. Time is passed in.
//!
//! A backend that was never checked is trusted, so that a new one serves at once; its first check is made at once, too,
//! and decides alone. From then on `fall` checks in a row that fail take it out, and `rise` in a row that pass bring it
//! back. What this host is to blame for counts neither way.

use std::time::{Duration, Instant};

use super::CheckPace;

/// How a check ended. A bounded set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckResult {
    Passed,
    Refused,
    TimedOut,
    Unreachable,
    /// Accepted, and closed or reset before the answer was there.
    Closed,
    /// Not what was expected, or no HTTP.
    WrongAnswer,
    /// An HTTP status that was not expected.
    WrongStatus,
    /// The TLS handshake failed, or the certificate is not to be believed.
    Tls,
    /// This host could not check: no fault of the backend's.
    Local,
}

impl CheckResult {
    pub const ALL: [Self; 9] = [
        Self::Passed,
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::Closed,
        Self::WrongAnswer,
        Self::WrongStatus,
        Self::Tls,
        Self::Local,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::WrongAnswer => "wrong_answer",
            Self::WrongStatus => "wrong_status",
            Self::Tls => "tls",
            Self::Local => "local",
        }
    }
}

/// One check that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    pub result: CheckResult,
    /// More in words, such as the status or what TLS found wrong.
    pub detail: Option<String>,
    pub took: Duration,
}

impl CheckReport {
    /// Result and detail, for people.
    pub fn words(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.result.as_str()),
            None => self.result.as_str().to_owned(),
        }
    }
}

/// What the checks say of a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CheckVerdict {
    /// Not checked, or not yet: trusted.
    #[default]
    Unknown,
    Up,
    Down,
}

impl CheckVerdict {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// A verdict that changed what becomes of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckChange {
    /// So many checks in a row have failed, the last one so.
    Down { why: CheckResult, after: u32 },
    /// So many in a row have passed.
    Up { after: u32 },
}

/// The checks of one backend so far.
#[derive(Debug, Clone, Default)]
pub struct Checked {
    pub verdict: CheckVerdict,
    /// When the verdict was given.
    pub since: Option<Instant>,
    /// Checks in a row that speak against the verdict.
    pub against: u32,
    /// The last one, and when it ended.
    pub last: Option<(CheckReport, Instant)>,
}

impl Checked {
    /// Takes the report of one more check.
    pub(in crate::domain) fn take(
        &mut self,
        report: CheckReport,
        now: Instant,
        pace: &CheckPace,
    ) -> Option<CheckChange> {
        let result = report.result;
        self.last = Some((report, now));
        if result == CheckResult::Local {
            return None;
        }
        let passed = result == CheckResult::Passed;
        let needed = match (self.verdict, passed) {
            (CheckVerdict::Up, true) | (CheckVerdict::Down, false) => {
                self.against = 0;
                return None;
            }
            (CheckVerdict::Unknown, _) => 1,
            (CheckVerdict::Up, false) => pace.fall,
            (CheckVerdict::Down, true) => pace.rise,
        };
        self.against = self.against.saturating_add(1);
        if self.against < needed {
            return None;
        }
        let after = std::mem::take(&mut self.against);
        let was_down = self.verdict == CheckVerdict::Down;
        self.verdict = if passed { CheckVerdict::Up } else { CheckVerdict::Down };
        self.since = Some(now);
        match passed {
            false => Some(CheckChange::Down { why: result, after }),
            true => was_down.then_some(CheckChange::Up { after }),
        }
    }

    pub(in crate::domain) fn is_down(&self) -> bool {
        self.verdict == CheckVerdict::Down
    }
}

#[cfg(test)]
mod tests;
