//! How many lively conversations a worker has.
//!
//! A worker that finds many sockets ready at once spreads the cost of waking over all of them; the kernel path wakes a
//! kernel worker for each. So what pays for a few lively connections does not pay for many (`docs/benchmarks/`).
//!
//! Workers count in periods. A conversation is counted once in each period in which it was found to be lively, and
//! learns the number only when it was there in the period before, too: by then that one is complete, so that the first
//! of many that begin together see all the others.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Periods count from here.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    static CENSUS: Cell<Census> = const { Cell::new(Census { period: 0, now: 0, before: 0 }) };
}

/// What a worker has counted in the period under way, and in the one before it.
#[derive(Debug, Clone, Copy)]
struct Census {
    period: u128,
    now: u32,
    before: u32,
}

/// The periods in which a conversation was counted without a gap: the first and the last of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted(Option<(u128, u128)>);

impl Counted {
    /// The conversation is lively at `now`. How many there are on this worker; `None` while that can't be known.
    pub(super) fn count(&mut self, now: Instant, period: Duration) -> Option<u32> {
        let period = now.saturating_duration_since(*BEGINNING).as_nanos() / period.as_nanos().max(1);
        let mut census = CENSUS.get().at(period);
        let first = match self.0 {
            Some((first, last)) if last == period => first,
            Some((first, last)) if last + 1 == period => {
                census.now += 1;
                first
            }
            _ => {
                census.now += 1;
                period
            }
        };
        self.0 = Some((first, period));
        CENSUS.set(census);
        (first < period).then_some(census.now.max(census.before))
    }
}

impl Census {
    fn at(self, period: u128) -> Self {
        if self.period == period {
            return self;
        }
        let before = if self.period + 1 == period { self.now } else { 0 };
        Self { period, now: 0, before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(40);

    #[test]
    fn the_first_of_many_see_all_others_and_who_leaves_is_forgotten() {
        let start = *BEGINNING + PERIOD * 1_000;
        let mut all = [Counted::default(); 20];
        for counted in &mut all {
            assert_eq!(counted.count(start, PERIOD), None);
            assert_eq!(counted.count(start + PERIOD / 2, PERIOD), None, "counted once, and too early to know");
        }
        assert_eq!(all[0].count(start + PERIOD, PERIOD), Some(20));
        assert_eq!(all[1].count(start + PERIOD, PERIOD), Some(20));
        assert_eq!(all[0].count(start + PERIOD * 2, PERIOD), Some(2));
        assert_eq!(all[0].count(start + PERIOD * 3, PERIOD), Some(1));
        assert_eq!(all[2].count(start + PERIOD * 3, PERIOD), None, "it was away");
    }
}
