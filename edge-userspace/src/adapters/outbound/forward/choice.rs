//! Which forwarder suits a connection, by what it does (`auto`) and by what the operator wants now.
//!
//! Putting a pair into the sockmap costs as much as some ten small requests, and the kernel path does not pay for
//! quiet connections, so every connection starts in copy and is judged by what it does (`docs/kernel-path.md`).

use std::time::{Duration, Instant};

use super::crowd::Counted;
use super::lane::Side;
use super::state::{KernelPath, Policy};
use crate::domain::Why;

/// What makes a connection worth another forwarder than copy (settings `auto_…` and `splice_…`).
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Bytes a second, both directions together, of a bulk transfer; 0: such transfers are spliced.
    pub bytes_per_sec: u64,
    /// Reads a second, both directions together, of a lively conversation.
    pub messages_per_sec: u64,
    /// Changes of direction within a window that make a conversation.
    pub turns: u32,
    /// Messages of a conversation are no larger on average: beyond that it is two transfers, which are spliced.
    pub largest_message: u64,
    /// From this mean on a crowd does not matter; 0: it always does. Measured with messages of 16 KB and 32 and 256
    /// conversations for each worker: 0.9 to 1.1 of the CPU that copy takes, by the machine.
    pub sizeable_message: u64,
    /// Conversations go to the kernel only while a worker has no more than so many, those that it gave away included.
    /// Measured: with 4 connections for each worker the kernel path takes up to a tenth less CPU than copy, with 32 a
    /// tenth more.
    pub conversations: u32,
    /// A connection whose receiver blocks the sender in more than one of so many reads saturates it: the kernel path
    /// would leave most of that to userspace.
    pub reads_per_block: u64,
    /// Rates are taken over at least this long.
    pub window: Duration,
    /// So many full reads of so much, in a row, make a direction splice what follows.
    pub splice_read: usize,
    pub splice_reads: u8,
    pub spill: SpillLimits,
}

/// What makes a connection leave the kernel path for life.
#[derive(Debug, Clone, Copy)]
pub struct SpillLimits {
    /// Of its bytes more than so many in a hundred are left to userspace,
    pub percent: u8,
    /// in each of so many seconds in a row.
    pub seconds: u32,
}

/// Conversations are counted in periods of so many windows, so that each is judged at least once in one.
const WINDOWS: u32 = 2;
/// A connection that found no free record asks again after so long, and each time it finds none after twice as long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Doublings at most: a connection that lives for days asks every eight minutes.
const DOUBLINGS: u32 = 9;

/// Whether the kernel path may be wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bar {
    Open,
    /// It was full.
    Until(Instant),
    /// It refused the connection, or gave it up.
    ForLife,
}

/// Watches one connection.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    path: &'a KernelPath,
    thresholds: &'a Thresholds,
    /// The policy when the connection began.
    began_with: Policy,
    bar: Bar,
    window: Window,
    counted: Counted,
}

/// What happened since its start.
#[derive(Debug)]
struct Window {
    since: Instant,
    bytes: u64,
    messages: u64,
    turns: u32,
    blocked: u64,
    last: Option<Side>,
}

impl Window {
    fn new(since: Instant) -> Self {
        Self { since, bytes: 0, messages: 0, turns: 0, blocked: 0, last: None }
    }
}

impl<'a> Choice<'a> {
    pub(super) fn new(path: &'a KernelPath, thresholds: &'a Thresholds) -> Self {
        let (window, counted) = (Window::new(Instant::now()), Counted::default());
        Self { path, thresholds, began_with: path.policy(), bar: Bar::Open, window, counted }
    }

    /// The kernel path is not for this connection.
    pub(super) fn bar(&mut self) {
        self.bar = Bar::ForLife;
    }

    /// The kernel path was full, for the `times`-th time that this connection asked.
    pub(super) fn postpone(&mut self, times: u32) {
        let doublings = times.saturating_sub(1).min(DOUBLINGS);
        self.bar = Bar::Until(Instant::now() + ASK_AGAIN * 2_u32.pow(doublings));
    }

    /// A read took all of `room`, after `before` such reads in a row. How many there are now that count as large, and
    /// whether they are enough to splice what follows.
    pub(super) fn full_read(&self, room: usize, before: u8) -> (u8, bool) {
        let limits = self.thresholds;
        let reads = if room >= limits.splice_read { before.saturating_add(1) } else { 0 };
        (reads, reads >= limits.splice_reads)
    }

    /// Whether large amounts may be spliced, by the policy of now.
    pub(super) fn may_splice(&self) -> bool {
        self.path.may_splice()
    }

    /// A read of `len` bytes from `side`.
    pub(super) fn saw(&mut self, side: Side, len: usize) {
        let window = &mut self.window;
        window.bytes += len as u64;
        window.messages += 1;
        if window.last != Some(side) {
            window.turns += 1;
            window.last = Some(side);
        }
    }

    /// The receiver did not take all of a read at once.
    pub(super) fn blocked(&mut self) {
        self.window.blocked += 1;
    }

    /// Why the kernel path should have the connection now, if it should.
    pub(super) fn kernel_wanted(&mut self) -> Option<Why> {
        if self.bar == Bar::ForLife || !self.path.is_open() {
            return None;
        }
        // The clock is looked at by those only that need it.
        let asks = |bar: Bar, now: Instant| !matches!(bar, Bar::Until(then) if now < then);
        match self.path.policy() {
            Policy::Sockmap if self.bar == Bar::Open => Some(Why::Switched),
            Policy::Sockmap => asks(self.bar, Instant::now()).then(|| self.why_sockmap()),
            Policy::Auto => {
                let now = Instant::now();
                self.judge(now, self.path.pairs_per_worker()).filter(|_| asks(self.bar, now))
            }
            _ => None,
        }
    }

    fn why_sockmap(&self) -> Why {
        if self.began_with == Policy::Sockmap { Why::Configured } else { Why::Switched }
    }

    /// Why a connection is spliced from now on; `None` where that is nothing new.
    pub(super) fn why_splice(&self) -> Option<Why> {
        match self.path.policy() {
            Policy::Auto => Some(Why::Bulk),
            Policy::Chaos => None,
            policy if policy == self.began_with => Some(Why::Configured),
            _ => Some(Why::Switched),
        }
    }

    /// `given` is what each worker gave to the kernel already.
    fn judge(&mut self, now: Instant, given: u32) -> Option<Why> {
        let (window, limits) = (&self.window, self.thresholds);
        let time = now.duration_since(window.since);
        if time < limits.window {
            return None;
        }
        let per_second = |count: u64| u128::from(count) * 1_000_000 / time.as_micros().max(1);
        let flowing = window.blocked.saturating_mul(limits.reads_per_block) <= window.messages;
        let bulk = limits.bytes_per_sec > 0 && per_second(window.bytes) >= u128::from(limits.bytes_per_sec);
        let talk =
            window.turns >= limits.turns && window.bytes <= window.messages.saturating_mul(limits.largest_message);
        let lively = talk && per_second(window.messages) >= u128::from(limits.messages_per_sec);
        let crowd = if lively { self.counted.count(now, limits.window * WINDOWS) } else { None };
        let sizeable =
            limits.sizeable_message > 0 && window.bytes >= window.messages.saturating_mul(limits.sizeable_message);
        let lively = crowd.is_some_and(|here| sizeable || here.saturating_add(given) <= limits.conversations);
        self.window = Window::new(now);
        match (lively, bulk) {
            (true, _) => Some(Why::Lively),
            (_, true) => Some(Why::Bulk),
            _ => None,
        }
        .filter(|_| flowing)
    }
}

/// For tests of this and of who asks it.
#[cfg(test)]
pub(super) const OF_TESTS: Thresholds = Thresholds {
    bytes_per_sec: 1_000_000,
    messages_per_sec: 500,
    turns: 10,
    largest_message: 64 * 1024,
    sizeable_message: 8 * 1024,
    conversations: 8,
    reads_per_block: 8,
    window: Duration::from_millis(20),
    splice_read: 64 * 1024,
    splice_reads: 1,
    spill: SpillLimits { percent: 50, seconds: 3 },
};

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Thresholds = OF_TESTS;

    fn talk(choice: &mut Choice<'_>, messages: usize, len: usize) {
        (0..messages).for_each(|i| choice.saw(if i % 2 == 0 { Side::Client } else { Side::Backend }, len));
    }

    /// Talks for `windows` windows, and says what came of the last.
    fn judged(choice: &mut Choice<'_>, windows: u32, messages: usize, len: usize, given: u32) -> Option<Why> {
        let start = choice.window.since;
        let mut why = None;
        for n in 1..=windows {
            talk(choice, messages, len);
            why = choice.judge(start + LIMITS.window * n, given);
        }
        why
    }

    #[test]
    fn rates_count_over_a_window_and_quiet_connections_stay() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let mut choice = Choice::new(&path, &LIMITS);
        let start = choice.window.since;
        talk(&mut choice, 100, 64);
        assert_eq!(choice.judge(start + LIMITS.window / 2, 0), None, "window not over");
        // 5,000 messages a second; in the third window it was there in the period before for sure.
        assert_eq!(judged(&mut choice, 3, 100, 64, 0), Some(Why::Lively));
        let faster = Thresholds { messages_per_sec: 5_001, ..LIMITS };
        let mut quiet = Choice::new(&path, &faster);
        assert_eq!(judged(&mut quiet, 3, 100, 64, 0), None);
    }

    #[test]
    fn in_a_crowd_a_conversation_stays() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let mut choice = Choice::new(&path, &LIMITS);
        assert_eq!(judged(&mut choice, 3, 100, 64, 7), Some(Why::Lively));
        assert_eq!(judged(&mut choice, 3, 100, 64, 8), None);
        assert_eq!(judged(&mut choice, 3, 100, LIMITS.sizeable_message as usize, 8), Some(Why::Lively), "not small");
    }

    #[test]
    fn large_messages_make_no_conversation() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let no_bulk = Thresholds { bytes_per_sec: 0, ..LIMITS };
        let mut choice = Choice::new(&path, &no_bulk);
        let largest = no_bulk.largest_message as usize;
        assert_eq!(judged(&mut choice, 3, 100, largest + 1, 0), None);
        assert_eq!(judged(&mut choice, 3, 100, largest, 0), Some(Why::Lively));
    }

    #[test]
    fn each_threshold_counts() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let judge = |limits: Thresholds| {
            let mut choice = Choice::new(&path, &limits);
            judged(&mut choice, 3, 100, 64, 0)
        };
        assert_eq!(judge(Thresholds { turns: 100, ..LIMITS }), Some(Why::Lively));
        assert_eq!(judge(Thresholds { turns: 101, ..LIMITS }), None);
        assert_eq!(judge(Thresholds { largest_message: 63, ..LIMITS }), None);
        assert_eq!(judge(Thresholds { conversations: 0, ..LIMITS }), None);
        assert_eq!(judge(Thresholds { conversations: 0, sizeable_message: 0, ..LIMITS }), None);
        assert_eq!(judge(Thresholds { conversations: 0, sizeable_message: 64, ..LIMITS }), Some(Why::Lively));
    }

    #[test]
    fn splicing_begins_after_as_many_full_reads_in_a_row_as_are_asked_for() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let limits = Thresholds { splice_reads: 3, ..LIMITS };
        let choice = Choice::new(&path, &limits);
        assert_eq!(choice.full_read(32 * 1024, 2), (0, false), "not large");
        assert_eq!(choice.full_read(64 * 1024, 0), (1, false));
        assert_eq!(choice.full_read(256 * 1024, 2), (3, true));
        assert_eq!(Choice::new(&path, &LIMITS).full_read(64 * 1024, 0), (1, true));
    }

    /// A connection may live for weeks: where it found no record once, it asks again, but less and less often.
    #[test]
    fn what_was_full_is_asked_again_later() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let mut choice = Choice::new(&path, &LIMITS);
        let wait = |choice: &Choice<'_>| match choice.bar {
            Bar::Until(then) => then.saturating_duration_since(Instant::now()),
            other => panic!("{other:?}"),
        };
        choice.postpone(1);
        assert!(wait(&choice) <= ASK_AGAIN);
        choice.postpone(3);
        assert!(wait(&choice) > ASK_AGAIN * 3 && wait(&choice) <= ASK_AGAIN * 4);
        choice.postpone(u32::MAX);
        assert!(wait(&choice) <= ASK_AGAIN * 512);
    }

    #[test]
    fn a_transfer_is_bulk_unless_its_receiver_blocks() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let mut choice = Choice::new(&path, &LIMITS);
        let start = choice.window.since;
        (0..10).for_each(|_| choice.saw(Side::Backend, 100_000));
        assert_eq!(choice.judge(start + LIMITS.window, 1), Some(Why::Bulk));
        (0..10).for_each(|_| choice.saw(Side::Backend, 100_000));
        (0..5).for_each(|_| choice.blocked());
        assert_eq!(choice.judge(start + LIMITS.window * 2, 1), None);
    }

    #[test]
    fn without_a_kernel_path_it_is_never_wanted() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let mut choice = Choice::new(&path, &LIMITS);
        talk(&mut choice, 1_000, 64);
        std::thread::sleep(LIMITS.window);
        assert_eq!(choice.kernel_wanted(), None);
        assert!(choice.may_splice());
        path.set_policy(Policy::Copy).unwrap();
        assert!(!choice.may_splice());
    }
}
