//! When a copied connection is worth the kernel path.
//!
//! Putting a pair into the sockmap costs as much as some ten small requests, and the kernel path does not pay for
//! quiet connections, so every connection starts in copy and is judged by what it does (`docs/kernel-path.md`).

use std::time::{Duration, Instant};

use super::lane::Side;

/// Full reads in a row that make a bulk transfer.
const BULK_READS: u32 = 4;
/// Sustained bytes a second that make a bulk transfer.
const BULK_RATE: u64 = 1_000_000;
/// Changes of direction, and messages a second, that make a lively conversation.
const LIVELY_TURNS: u32 = 10;
const LIVELY_RATE: u64 = 500;
/// Rates are taken over at least this long.
const WINDOW: Duration = Duration::from_millis(20);

/// Watches one connection.
#[derive(Debug)]
pub(super) struct Promotion {
    mode: Mode,
    full_reads: u32,
    turns: u32,
    last: Option<Side>,
    since: Instant,
    bytes: u64,
    messages: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Never,
    Measured,
}

impl Promotion {
    pub(super) fn never() -> Self {
        Self::new(Mode::Never)
    }

    pub(super) fn measured() -> Self {
        Self::new(Mode::Measured)
    }

    fn new(mode: Mode) -> Self {
        Self { mode, full_reads: 0, turns: 0, last: None, since: Instant::now(), bytes: 0, messages: 0 }
    }

    /// A read of `len` bytes from `side`; `full` if there may have been more.
    pub(super) fn saw(&mut self, side: Side, len: usize, full: bool) {
        if self.mode == Mode::Never || len == 0 {
            return;
        }
        // What was reached stays reached: the fourth full read is followed by a short one before anybody asks.
        if full {
            self.full_reads += 1;
        } else if self.full_reads < BULK_READS {
            self.full_reads = 0;
        }
        self.bytes += len as u64;
        self.messages += 1;
        if self.last != Some(side) {
            self.turns += 1;
            self.last = Some(side);
        }
    }

    /// Whether the kernel path would pay now.
    pub(super) fn wanted(&mut self) -> bool {
        self.mode == Mode::Measured && (self.full_reads >= BULK_READS || self.rates_say_so(Instant::now()))
    }

    fn rates_say_so(&mut self, now: Instant) -> bool {
        let window = now.duration_since(self.since);
        if window < WINDOW {
            return false;
        }
        let per_second = |count: u64| u128::from(count) * 1_000 / window.as_millis().max(1);
        let bulk = per_second(self.bytes) > u128::from(BULK_RATE);
        let lively = self.turns >= LIVELY_TURNS && per_second(self.messages) >= u128::from(LIVELY_RATE);
        (self.since, self.bytes, self.messages) = (now, 0, 0);
        bulk || lively
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_reads_in_a_row_are_a_bulk_transfer() {
        let mut promotion = Promotion::measured();
        for _ in 0..BULK_READS {
            assert!(!promotion.wanted());
            promotion.saw(Side::Client, 65_536, true);
        }
        assert!(promotion.wanted());
        assert!(!Promotion::never().wanted());
    }

    #[test]
    fn rates_count_over_a_window_and_quiet_connections_stay() {
        let mut promotion = Promotion::measured();
        let start = promotion.since;
        for i in 0..100 {
            promotion.saw(if i % 2 == 0 { Side::Client } else { Side::Backend }, 64, false);
        }
        assert!(!promotion.rates_say_so(start + WINDOW / 2), "window not over");
        assert!(promotion.rates_say_so(start + WINDOW), "1,000 messages a second");
        for i in 0..10 {
            promotion.saw(if i % 2 == 0 { Side::Client } else { Side::Backend }, 64, false);
        }
        assert!(!promotion.rates_say_so(start + WINDOW + Duration::from_secs(1)), "10 messages a second");
    }
}
