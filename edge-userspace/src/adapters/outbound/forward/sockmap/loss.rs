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

/// What the last looks at a pair saw.
#[derive(Debug)]
pub(super) struct Watch {
    next: Instant,
    /// What each socket had dropped before the insertion.
    dropped_before: Both<u32>,
    /// What was counted since.
    dropped: u64,
    /// By the side where they began: how much the target had taken over when not all was, and since when.
    untaken: Both<Option<(u64, Instant)>>,
}

impl Watch {
    pub(super) fn new(sockets: &Both<TcpStream>) -> Self {
        let dropped_before = Both::of(|side| socket::drops(sockets[side].as_fd()));
        Self { next: Instant::now() + LOOK, dropped_before, dropped: 0, untaken: Both::default() }
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
        // After an end TCP drops bare acknowledgements, too. Before one nothing is dropped that was not sent twice, or
        // that would not be sent again; unless the kernel dropped what it was to hand over.
        if dropped > 0 && self.lanes.iter().all(|lane| lane.source == Source::Open && !lane.hung_up && !lane.shut) {
            self.slot.note_alarm();
            tracing::debug!(dropped, "packets dropped by the sockets of a pair in the kernel: its bytes are compared");
            self.audit();
        }
        for side in Side::BOTH {
            self.look_for_untaken(side, now);
        }
        if self.corrupt.is_some() { Err(Termination::InternalError) } else { Ok(()) }
    }

    /// Nothing keeps the kernel's worker from a socket that has nothing to send. What is meant for it and has not
    /// arrived there for long is lost.
    fn look_for_untaken(&mut self, side: Side, now: Instant) {
        let untaken = self.untaken(side);
        let since = match (untaken, self.watch.untaken[side]) {
            (Some(now), Some((before, since))) if now == before => since,
            _ => now,
        };
        self.watch.untaken[side] = untaken.map(|taken| (taken, since));
        if let Some(taken) = untaken.filter(|_| now.duration_since(since) >= LOST_AFTER) {
            self.lost(side, taken);
        }
    }

    /// Likewise, at a time limit: nothing has moved for as long as that.
    pub(super) fn audit_standstill(&mut self) {
        for side in Side::BOTH {
            if let Some(taken) = self.untaken(side) {
                self.lost(side, taken);
            }
        }
    }

    fn lost(&mut self, side: Side, taken: u64) {
        let given = self.slot.flow(side).redirected() + self.lanes[side].written;
        self.corrupt
            .get_or_insert(format!("{given} bytes were given to a socket that took {taken}, and waits for more"));
    }

    /// How much the target has taken over, if that is not all that is meant for it, and it has nothing to send.
    fn untaken(&self, side: Side) -> Option<u64> {
        let (lane, target) = (&self.lanes[side], self.sockets[side.other()].as_fd());
        let given = self.slot.flow(side).redirected() + lane.written;
        if lane.broken || lane.shut || lane.drained_at == given - lane.written {
            return None;
        }
        let taken = socket::taken_over(target).ok()??.saturating_sub(lane.target_base);
        // The state last: a socket that is closed takes nothing more.
        let is_open = || self.info(side.other()).is_some_and(|info| !info.closed);
        (taken < given && socket::unacknowledged(target) == 0 && is_open()).then_some(taken)
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
        self.slot.note_drops(new);
        new
    }
}
