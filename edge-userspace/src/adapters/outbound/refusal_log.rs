//! Refusals come in floods, and a line for each would cost more than the refusal. So many in a second are logged for
//! each reason; the others are only counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::domain::{Outcome, Pace, Rate, RejectReason};

/// Decides which refusals are logged.
#[derive(Debug)]
pub struct RefusalLog {
    /// Empty where all are.
    paces: Vec<(RejectReason, Pace)>,
    left_out: AtomicU64,
    started: Instant,
}

impl RefusalLog {
    /// `per_second` is for each reason; 0 is no limit.
    pub fn new(per_second: u32) -> Self {
        let rate = Rate::new(per_second, 0);
        let paces = rate.into_iter().flat_map(|rate| RejectReason::all().map(move |reason| (reason, Pace::new(rate))));
        Self { paces: paces.collect(), left_out: AtomicU64::new(0), started: Instant::now() }
    }

    /// Whether the outcome is to be logged: served connections always are.
    pub fn wants(&self, outcome: &Outcome, now: Instant) -> bool {
        let Some(reject) = outcome.reject else { return true };
        let Some((_, pace)) = self.paces.iter().find(|(reason, _)| *reason == reject) else { return true };
        let since_start = u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX);
        let wants = pace.admits(since_start);
        if !wants {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        wants
    }

    /// Refusals that were not logged.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::time::Duration;

    use super::*;
    use crate::adapters::outbound::observer::sample;

    #[test]
    fn refusals_are_logged_up_to_the_rate_and_served_connections_always() {
        let (log, now) = (RefusalLog::new(3), Instant::now());
        let (refused, served) = (sample::rejected(), sample::outcome());
        let other = Outcome { reject: Some(RejectReason::SourceRate), ..sample::rejected() };
        assert_eq!((0..10).filter(|_| log.wants(&refused, now)).count(), 3);
        assert_eq!((0..10).filter(|_| log.wants(&other, now)).count(), 3, "each reason has its own");
        assert!((0..10).all(|_| log.wants(&served, now)));
        assert_eq!(log.left_out(), 14);
        assert!(log.wants(&refused, now + Duration::from_secs(1)));
        assert!((0..10).all(|_| RefusalLog::new(0).wants(&refused, now)));
    }
}
