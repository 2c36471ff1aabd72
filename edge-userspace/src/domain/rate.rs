//! So many in a second, and so many at once.
//!
//! The generic cell rate algorithm in its form of virtual scheduling (ITU-T I.371, annex A): one number is kept, the time
//! at which the next arrival is due if arrivals are spaced evenly. Who comes earlier than that by more than the tolerance
//! comes too early. A token bucket that needs no refilling, and no arithmetic but of whole numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Arrivals in a second, and how many may come at once. Times are nanoseconds since some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Between two arrivals.
    interval: u64,
    /// How much too early one may come.
    tolerance: u64,
}

impl Rate {
    /// `None` where `per_second` is 0: there is no limit. Without a burst, as many at once as in a second.
    pub fn new(per_second: u32, burst: u32) -> Option<Self> {
        let interval = 1_000_000_000_u64.checked_div(per_second.into())?.max(1);
        let burst = if burst == 0 { per_second } else { burst };
        Some(Self { interval, tolerance: interval * u64::from(burst - 1) })
    }

    /// When the next one is due after an arrival at `now`; `None` where that comes too early and does not count.
    pub fn arrive(self, due: u64, now: u64) -> Option<u64> {
        (due <= now.saturating_add(self.tolerance)).then(|| self.charge(due, now))
    }

    /// The same for an arrival that counts however early it comes.
    fn charge(self, due: u64, now: u64) -> u64 {
        due.max(now).saturating_add(self.interval)
    }

    /// How long after `now` the next one would not be too early.
    pub fn wait(self, due: u64, now: u64) -> Duration {
        Duration::from_nanos(due.saturating_sub(self.tolerance).saturating_sub(now))
    }
}

/// A rate of the whole daemon, shared without a lock.
#[derive(Debug)]
pub struct Pace {
    rate: Rate,
    due: AtomicU64,
}

impl Pace {
    pub fn new(rate: Rate) -> Self {
        Self { rate, due: AtomicU64::new(0) }
    }

    /// Whether an arrival at `now` is within the rate; only then it counts.
    pub fn admits(&self, now: u64) -> bool {
        self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| self.rate.arrive(due, now)).is_ok()
    }

    /// How long after `now` the next one would be within the rate. Counts nothing.
    pub fn wait(&self, now: u64) -> Duration {
        self.rate.wait(self.due.load(Ordering::Relaxed), now)
    }

    /// Counts an arrival that has come already, and says how long the next one should be kept waiting.
    pub fn charge(&self, now: u64) -> Duration {
        let charge = |due| Some(self.rate.charge(due, now));
        let before = self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge).unwrap_or_else(|due| due);
        self.rate.wait(self.rate.charge(before, now), now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Those of `arrivals` that are admitted.
    fn admitted(rate: Rate, arrivals: &[u64]) -> Vec<u64> {
        let mut due = 0;
        let admit = |now: &&u64| rate.arrive(due, **now).inspect(|next| due = *next).is_some();
        arrivals.iter().filter(admit).copied().collect()
    }

    #[test]
    fn no_rate_is_no_limit() {
        assert_eq!(Rate::new(0, 7), None);
    }

    #[test]
    fn a_burst_comes_at_once_and_then_the_rate_counts() {
        let rate = Rate::new(10, 3).unwrap();
        assert_eq!(admitted(rate, &[5, 5, 5, 5, 5]).len(), 3);
        let steady: Vec<u64> = (0..100).map(|n| n * SECOND / 20).collect();
        assert_eq!(admitted(rate, &steady).len(), 52, "10 a second for 5 s, and the rest of the burst");
        assert_eq!(admitted(Rate::new(10, 0).unwrap(), &[5; 20]).len(), 10);
    }

    #[test]
    fn who_is_turned_away_pays_nothing() {
        let rate = Rate::new(1, 1).unwrap();
        let arrivals: Vec<u64> = (0..=20).map(|n| n * SECOND / 10).collect();
        assert_eq!(admitted(rate, &arrivals), [0, SECOND, 2 * SECOND]);
    }

    #[test]
    fn a_pace_says_how_long_the_next_has_to_wait() {
        let pace = Pace::new(Rate::new(10, 2).unwrap());
        assert_eq!(pace.charge(0), Duration::ZERO);
        assert_eq!(pace.charge(0), Duration::from_millis(100));
        assert_eq!(pace.charge(0), Duration::from_millis(200), "who has come already counts, too");
        assert_eq!(pace.charge(SECOND), Duration::ZERO);
        assert!(pace.admits(SECOND) && !pace.admits(SECOND));
        assert_eq!([pace.wait(SECOND), pace.wait(SECOND)], [Duration::from_millis(100); 2], "to ask counts nothing");
    }

    proptest! {
        /// In any window there are no more than the burst and what the rate adds meanwhile.
        #[test]
        fn no_window_holds_too_many(per_second in 1u32..2000, burst in 1u32..20, gaps in prop::collection::vec(0u64..SECOND / 50, 1..200)) {
            let rate = Rate::new(per_second, burst).unwrap();
            let arrivals: Vec<u64> = gaps.iter().scan(0, |now, gap| { *now += gap; Some(*now) }).collect();
            let got = admitted(rate, &arrivals);
            prop_assert!(!got.is_empty());
            for (at, from) in got.iter().enumerate() {
                for (more, to) in got.iter().enumerate().skip(at) {
                    let allowed = u64::from(burst) + (to - from) / rate.interval;
                    prop_assert!((more - at + 1) as u64 <= allowed);
                }
            }
        }
    }
}
