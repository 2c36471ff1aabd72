//! Noticing a connection whose receiver is too slow for the kernel path again and again.

use std::time::{Duration, Instant};

use super::super::SpillLimits;
use super::super::lane::Both;

/// Shares are taken over this long.
const WINDOW: Duration = Duration::from_secs(1);

/// Watches one connection.
#[derive(Debug)]
pub(super) struct Spilling {
    since: Instant,
    /// Bytes at the start of the window: through the verdict in all, and left to userspace.
    all: u64,
    passed: u64,
    bad_windows: u32,
}

impl Spilling {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, all: 0, passed: 0, bad_windows: 0 }
    }

    /// Begins anew: what was left to userspace until now was no spill.
    pub(super) fn restart(&mut self, now: Instant, redirected: Both<u64>, passed: Both<u64>) {
        (self.since, self.bad_windows) = (now, 0);
        self.passed = passed.client + passed.backend;
        self.all = redirected.client + redirected.backend + self.passed;
    }

    /// Whether the connection should leave the kernel path, by its bytes redirected and passed so far.
    ///
    /// Only the share counts, however slow the connection is: what trickles to a receiver that takes little is as badly
    /// served as a torrent. A window without a byte says nothing, and is not counted.
    pub(super) fn too_often(
        &mut self,
        now: Instant,
        redirected: Both<u64>,
        passed: Both<u64>,
        limits: SpillLimits,
    ) -> bool {
        if now.duration_since(self.since) < WINDOW {
            return false;
        }
        let sum = |both: Both<u64>| both.client + both.backend;
        let (passed, all) = (sum(passed), sum(redirected) + sum(passed));
        let (in_window, left) = (all - self.all, passed - self.passed);
        (self.since, self.all, self.passed) = (now, all, passed);
        if in_window > 0 {
            let bad = left * 100 > in_window * u64::from(limits.percent);
            self.bad_windows = if bad { self.bad_windows.saturating_add(1) } else { 0 };
        }
        self.bad_windows >= limits.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const LIMITS: SpillLimits = SpillLimits { percent: 50, seconds: 3 };

    /// What each second redirects and leaves to userspace; whether it was too often at the end of one of them.
    fn seconds(spilling: &mut Spilling, each: impl IntoIterator<Item = (u64, u64)>, limits: SpillLimits) -> Vec<bool> {
        let (mut now, mut redirected, mut passed) = (spilling.since, 0, 0);
        let both = |client| Both { client, backend: 0 };
        let mut second = |(more, left): (u64, u64)| {
            (now, redirected, passed) = (now + WINDOW, redirected + more, passed + left);
            spilling.too_often(now, both(redirected), both(passed), limits)
        };
        each.into_iter().map(&mut second).collect()
    }

    fn new() -> Spilling {
        Spilling::new(Instant::now())
    }

    #[test]
    fn three_windows_of_mostly_spilled_bytes_are_too_often() {
        let mut spilling = new();
        let early = spilling.since + WINDOW / 2;
        assert!(!spilling.too_often(early, Both::default(), Both { client: 10 * MIB, backend: 0 }, LIMITS));
        assert_eq!(seconds(&mut spilling, [(0, 10 * MIB); 3], LIMITS), [false, false, true]);
    }

    #[test]
    fn a_slow_connection_that_spills_nearly_everything_is_no_exception() {
        assert_eq!(seconds(&mut new(), [(20_000, 480_000); 3], LIMITS), [false, false, true]);
        assert_eq!(seconds(&mut new(), [(0, 100), (0, 0), (0, 100), (0, 0), (0, 100)], LIMITS)[3..], [false, true]);
    }

    #[test]
    fn the_limits_are_settable() {
        let (mild, strict) = (SpillLimits { percent: 90, seconds: 3 }, SpillLimits { percent: 10, seconds: 1 });
        assert_eq!(seconds(&mut new(), [(2 * MIB, 8 * MIB); 9], mild), [false; 9]);
        assert_eq!(seconds(&mut new(), [(8 * MIB, 2 * MIB)], strict), [true]);
    }

    #[test]
    fn what_was_switched_off_does_not_count() {
        let mut spilling = new();
        assert_eq!(seconds(&mut spilling, [(0, 10 * MIB); 2], LIMITS), [false; 2]);
        let now = spilling.since + WINDOW;
        spilling.restart(now, Both::default(), Both { client: 100 * MIB, backend: 0 });
        assert!(!spilling.too_often(now + WINDOW, Both::default(), Both { client: 110 * MIB, backend: 0 }, LIMITS));
    }

    #[test]
    fn a_window_that_flows_begins_anew() {
        let flows_in_the_third = |n: u32| (if n.is_multiple_of(3) { 10 * MIB } else { 0 }, 5 * MIB);
        assert_eq!(seconds(&mut new(), (1..20).map(flows_in_the_third), LIMITS), [false; 19]);
        assert_eq!(seconds(&mut new(), [(0, 0); 10], LIMITS), [false; 10]);
    }
}
