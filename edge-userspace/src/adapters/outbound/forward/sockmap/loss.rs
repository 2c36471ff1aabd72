//! Looking for bytes that were lost in the kernel while the pair still runs: without this one that lost its last bytes
//! would wait for them until a time limit.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::super::lane::{Both, Side};
use super::super::socket;
use super::{LOST_AFTER, Offload, Source};
use crate::domain::Termination;

/// A pair is looked at this often while events wake it, and after [`LOST_AFTER`] at the latest where none do.
const LOOK: Duration = Duration::from_secs(1);
/// At a time limit what is meant for a target has this long to arrive there. The kernel's worker takes microseconds; on a
/// machine that is short of processors it may be kept waiting.
const AT_A_LIMIT: Duration = Duration::from_secs(2);
/// And so many looks must see that nothing arrives: a whole machine that stood still lets two see the same.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What the last looks at a pair saw.
#[derive(Debug)]
pub(super) struct Watch {
    next: Instant,
    /// What each socket had dropped before the insertion.
    dropped_before: Both<u32>,
    /// What was counted since.
    dropped: u64,
    /// By the side where they began: bytes redirected when the target was seen to have taken over everything.
    settled: Both<u64>,
    untaken: Both<Option<Untaken>>,
}

/// A target has not taken over all that is meant for it, and has nothing to send.
#[derive(Debug, Clone, Copy)]
struct Untaken {
    /// This much it has.
    taken: u64,
    since: Instant,
    /// How often that was seen, some time apart, and when last.
    looks: u32,
    seen: Instant,
}

impl Untaken {
    /// One look alone says nothing: the kernel's worker may be about to give it the rest.
    fn lasts(&self, time: Duration) -> bool {
        self.looks >= LOOKS && self.since.elapsed() >= time
    }
}

impl Watch {
    pub(super) fn new(sockets: &Both<TcpStream>) -> Self {
        let dropped_before = Both::of(|side| socket::drops(sockets[side].as_fd()));
        let (settled, untaken) = (Both::default(), Both::default());
        Self { next: Instant::now() + LOOK, dropped_before, dropped: 0, settled, untaken }
    }

    /// How soon a pair that nothing wakes is to be looked at.
    pub(super) fn pause(&self) -> Duration {
        if self.untaken.iter().any(Option::is_some) { LOOK } else { LOST_AFTER }
    }
}

impl Offload {
    /// The look at a pair that runs. An error is its end: bytes were lost.
    pub(super) fn look_for_loss(&mut self) -> Result<(), Termination> {
        let now = Instant::now();
        if now < self.watch.next {
            return Ok(());
        }
        self.watch.next = now + LOOK;
        let dropped = self.note_drops();
        // After an end TCP drops bare acknowledgements, too. Before one it drops what was sent twice and probes of the
        // peer; and there the kernel counts what it was to hand over and did not.
        if dropped > 0 && self.lanes.iter().all(|lane| lane.source == Source::Open && !lane.hung_up && !lane.shut) {
            self.slot.note_drop_check();
            tracing::debug!(dropped, "packets dropped by the sockets of a pair in the kernel: its bytes are compared");
            self.audit();
        }
        for side in Side::BOTH {
            if let Some(untaken) = self.look_for_untaken(side).filter(|untaken| untaken.lasts(LOST_AFTER)) {
                self.lost(side, untaken.taken);
            }
        }
        if self.corrupt.is_some() { Err(Termination::InternalError) } else { Ok(()) }
    }

    /// At a time limit: how much longer to wait for what has not arrived at its target.
    pub(super) fn left_to_arrive(&mut self) -> Option<Duration> {
        let untaken = Side::BOTH.map(|side| self.look_for_untaken(side));
        let waits = untaken.into_iter().flatten().filter(|untaken| !untaken.lasts(AT_A_LIMIT));
        waits.map(|untaken| AT_A_LIMIT.saturating_sub(untaken.since.elapsed()).max(LOOK_AGAIN)).max()
    }

    /// Likewise, when that time is over.
    pub(super) fn audit_standstill(&mut self) {
        for side in Side::BOTH {
            let before = self.watch.untaken[side].filter(|untaken| untaken.lasts(AT_A_LIMIT));
            if let Some(Untaken { taken, .. }) = before.filter(|before| self.untaken(side) == Some(before.taken)) {
                self.lost(side, taken);
            }
        }
    }

    fn look_for_untaken(&mut self, side: Side) -> Option<Untaken> {
        let now = Instant::now();
        let before = self.watch.untaken[side];
        self.watch.untaken[side] =
            self.untaken(side).map(|taken| match before.filter(|before| before.taken == taken) {
                None => Untaken { taken, since: now, looks: 1, seen: now },
                Some(before) if now.duration_since(before.seen) < LOOK_AGAIN => before,
                Some(before) => Untaken { looks: before.looks.saturating_add(1), seen: now, ..before },
            });
        self.watch.untaken[side]
    }

    fn lost(&mut self, side: Side, taken: u64) {
        let given = self.slot.flow(side).redirected() + self.lanes[side].written;
        self.corrupt
            .get_or_insert(format!("{given} bytes were given to a socket that took {taken}, and waits for more"));
    }

    /// How much the target has taken over, if that is not all that is meant for it, and it has nothing to send: nothing keeps
    /// the kernel's worker from such a socket.
    fn untaken(&mut self, side: Side) -> Option<u64> {
        let (lane, target) = (&self.lanes[side], self.sockets[side.other()].as_fd());
        let redirected = self.slot.flow(side).redirected();
        // What was written since went to TCP directly.
        if lane.broken || lane.shut || [lane.drained_at, self.watch.settled[side]].contains(&redirected) {
            return None;
        }
        let taken = socket::taken_over(target).ok()??.saturating_sub(lane.target_base);
        if taken >= redirected + lane.written {
            // Whether it has more than that is looked at when its stream ends.
            self.watch.settled[side] = redirected;
            return None;
        }
        // The state last: a socket that is closed takes nothing more.
        let is_open = || self.info(side.other()).is_some_and(|info| !info.closed);
        (socket::unacknowledged(target) == 0 && is_open()).then_some(taken)
    }

    /// Counts the packets that TCP dropped since this was asked last.
    pub(super) fn note_drops(&mut self) -> u64 {
        let of = |side: Side| {
            // In this order: an end in between, which the program has TCP drop, makes it one too few for now.
            let dropped = socket::drops(self.sockets[side].as_fd()).wrapping_sub(self.watch.dropped_before[side]);
            u64::from(dropped).saturating_sub(self.slot.flow(side).fins())
        };
        let all: u64 = Side::BOTH.into_iter().map(of).sum();
        let new = all.saturating_sub(self.watch.dropped);
        self.watch.dropped += new;
        if new > 0 {
            self.slot.note_drops(new);
        }
        new
    }
}
