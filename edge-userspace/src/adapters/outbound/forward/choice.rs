//! Which forwarder suits a connection, by what it does (`auto`) and by what the operator wants now.
//!
//! Putting a pair into the sockmap costs as much as some ten small requests, and the kernel path does not pay for
//! quiet connections, so every connection starts in copy and is judged by what it does (`docs/kernel-path.md`).

use std::time::{Duration, Instant};

use super::crowd::Counted;
use super::lane::Side;
use super::state::{KernelPath, Policy};
use crate::domain::Why;

/// What makes a connection worth the kernel path.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Bytes a second, both directions together, of a bulk transfer; 0: such transfers are spliced.
    pub bytes_per_sec: u64,
    /// Reads a second, both directions together, of a lively conversation.
    pub messages_per_sec: u64,
    /// Conversations of small messages go to the kernel only while a worker has no more than so many, those that it
    /// gave away included. Measured: with 4 connections for each worker the kernel path takes a tenth less CPU than
    /// copy, with 32 a tenth more.
    pub conversations: u32,
    /// Rates are taken over at least this long.
    pub window: Duration,
}

/// Changes of direction that make a conversation.
const LIVELY_TURNS: u32 = 10;
/// Messages of a conversation are no larger on average: beyond that it is two transfers, which are spliced.
const LARGEST_MESSAGE: u64 = 64 * 1024;
/// From this mean on messages are not small: what the kernel path saves by not copying outweighs a crowd. Measured at
/// 16 KB: a tenth less CPU than copy with 1 to 512 connections.
const SIZEABLE_MESSAGE: u64 = 8 * 1024;
/// Conversations are counted in periods of so many windows, so that each is judged at least once in one.
const WINDOWS: u32 = 2;
/// A bulk transfer whose receiver blocks the sender in more than one of so many reads saturates it: the kernel path
/// would leave most of that to userspace.
const READS_PER_BLOCK: u64 = 8;

/// Watches one connection.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    path: &'a KernelPath,
    thresholds: Thresholds,
    /// The policy when the connection began.
    began_with: Policy,
    /// The kernel path refused it, or it is left for life.
    barred: bool,
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
    pub(super) fn new(path: &'a KernelPath, thresholds: Thresholds) -> Self {
        let (window, counted) = (Window::new(Instant::now()), Counted::default());
        Self { path, thresholds, began_with: path.policy(), barred: false, window, counted }
    }

    /// The kernel path is not for this connection.
    pub(super) fn bar(&mut self) {
        self.barred = true;
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
        if self.barred || !self.path.is_open() {
            return None;
        }
        match self.path.policy() {
            Policy::Sockmap => Some(Why::Switched),
            Policy::Auto => self.judge(Instant::now(), self.path.pairs_per_worker()),
            _ => None,
        }
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
        let (window, limits) = (&self.window, &self.thresholds);
        let time = now.duration_since(window.since);
        if time < limits.window {
            return None;
        }
        let per_second = |count: u64| u128::from(count) * 1_000_000 / time.as_micros().max(1);
        let flowing = window.blocked * READS_PER_BLOCK <= window.messages;
        let bulk = limits.bytes_per_sec > 0 && per_second(window.bytes) >= u128::from(limits.bytes_per_sec);
        let talk = window.turns >= LIVELY_TURNS && window.bytes <= window.messages * LARGEST_MESSAGE;
        let lively = talk && per_second(window.messages) >= u128::from(limits.messages_per_sec);
        let crowd = if lively { self.counted.count(now, limits.window * WINDOWS) } else { None };
        let sizeable = window.bytes >= window.messages * SIZEABLE_MESSAGE;
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Thresholds = Thresholds {
        bytes_per_sec: 1_000_000,
        messages_per_sec: 500,
        conversations: 8,
        window: Duration::from_millis(20),
    };

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
        let mut choice = Choice::new(&path, LIMITS);
        let start = choice.window.since;
        talk(&mut choice, 100, 64);
        assert_eq!(choice.judge(start + LIMITS.window / 2, 0), None, "window not over");
        // 5,000 messages a second; in the third window it was there in the period before for sure.
        assert_eq!(judged(&mut choice, 3, 100, 64, 0), Some(Why::Lively));
        let mut quiet = Choice::new(&path, Thresholds { messages_per_sec: 5_001, ..LIMITS });
        assert_eq!(judged(&mut quiet, 3, 100, 64, 0), None);
    }

    #[test]
    fn in_a_crowd_a_conversation_stays() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let mut choice = Choice::new(&path, LIMITS);
        assert_eq!(judged(&mut choice, 3, 100, 64, 7), Some(Why::Lively));
        assert_eq!(judged(&mut choice, 3, 100, 64, 8), None);
        assert_eq!(judged(&mut choice, 3, 100, SIZEABLE_MESSAGE as usize, 8), Some(Why::Lively), "not small");
    }

    #[test]
    fn large_messages_make_no_conversation() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let mut choice = Choice::new(&path, Thresholds { bytes_per_sec: 0, ..LIMITS });
        assert_eq!(judged(&mut choice, 3, 100, LARGEST_MESSAGE as usize + 1, 0), None);
    }

    #[test]
    fn a_transfer_is_bulk_unless_its_receiver_blocks() {
        let path = KernelPath::not_wanted(Policy::Auto);
        let mut choice = Choice::new(&path, LIMITS);
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
        let mut choice = Choice::new(&path, LIMITS);
        talk(&mut choice, 1_000, 64);
        std::thread::sleep(LIMITS.window);
        assert_eq!(choice.kernel_wanted(), None);
        assert!(choice.may_splice());
        path.set_policy(Policy::Copy).unwrap();
        assert!(!choice.may_splice());
    }
}
