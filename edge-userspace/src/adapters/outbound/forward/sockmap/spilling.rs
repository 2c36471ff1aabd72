//! Noticing a connection whose receiver is too slow for the kernel path again and again.

use std::time::{Duration, Instant};

use super::super::lane::Both;

/// Shares are taken over this long.
const WINDOW: Duration = Duration::from_secs(1);
/// A window in which less was forwarded says nothing.
const LEAST: u64 = 1024 * 1024;
/// So many windows in a row, in each of which most bytes were left to userspace, are enough.
const WINDOWS: u32 = 3;

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
    pub(super) fn too_often(&mut self, now: Instant, redirected: Both<u64>, passed: Both<u64>) -> bool {
        if now.duration_since(self.since) < WINDOW {
            return false;
        }
        let sum = |both: Both<u64>| both.client + both.backend;
        let (passed, all) = (sum(passed), sum(redirected) + sum(passed));
        let (in_window, left) = (all - self.all, passed - self.passed);
        self.bad_windows = if in_window >= LEAST && left * 2 > in_window { self.bad_windows + 1 } else { 0 };
        (self.since, self.all, self.passed) = (now, all, passed);
        self.bad_windows >= WINDOWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn both(client: u64) -> Both<u64> {
        Both { client, backend: 0 }
    }

    #[test]
    fn three_windows_of_mostly_spilled_bytes_are_too_often() {
        let start = Instant::now();
        let mut spilling = Spilling::new(start);
        assert!(!spilling.too_often(start + WINDOW / 2, both(0), both(10 * MIB)), "window not over");
        for n in 1..WINDOWS {
            assert!(!spilling.too_often(start + WINDOW * n, both(0), both(10 * MIB * u64::from(n))));
        }
        assert!(spilling.too_often(start + WINDOW * WINDOWS, both(0), both(10 * MIB * u64::from(WINDOWS))));
    }

    #[test]
    fn what_was_switched_off_does_not_count() {
        let start = Instant::now();
        let mut spilling = Spilling::new(start);
        (1..WINDOWS).for_each(|n| _ = spilling.too_often(start + WINDOW * n, both(0), both(10 * MIB * u64::from(n))));
        spilling.restart(start + WINDOW * WINDOWS, both(0), both(100 * MIB));
        assert!(!spilling.too_often(start + WINDOW * (WINDOWS + 1), both(0), both(110 * MIB)));
    }

    #[test]
    fn a_window_that_flows_or_is_quiet_begins_anew() {
        let start = Instant::now();
        let mut spilling = Spilling::new(start);
        let (mut redirected, mut passed) = (0, 0);
        for n in 1..20 {
            let flows = n % 3 == 0;
            redirected += if flows { 10 * MIB } else { 0 };
            passed += 5 * MIB;
            assert!(!spilling.too_often(start + WINDOW * n, both(redirected), both(passed)));
        }
        let quiet = (20..30).any(|n| spilling.too_often(start + WINDOW * n, both(redirected), both(passed)));
        assert!(!quiet);
    }
}
