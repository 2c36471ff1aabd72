//! How the streams of an offloaded pair end: by a FIN, proved complete by TCP's own count, or by a reset.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Instant;

use super::super::lane::Side;
use super::super::socket;
use super::{Drained, LOST_AFTER, Offload, RESET_LINGER, Source, Wait};
use crate::domain::Termination;

/// How often counts that disagree are read before that is believed.
const LOOKS: usize = 3;

impl Offload {
    /// An event said that the stream of `side` may have ended; TCP's own count says whether everything came through.
    pub(super) fn examine_end(&mut self, side: Side) -> Result<Option<Wait>, Termination> {
        let flow = self.slot.flow(side);
        let counts = || (flow.redirected(), flow.passed());
        let (redirected, passed) = counts();
        let Some(info) = self.info(side) else { return Err(Termination::InternalError) };
        if passed != self.lanes[side].read || counts() != (redirected, passed) {
            // More came in meanwhile: that first.
            return Ok(if passed == self.lanes[side].read { Some(Wait::Soon) } else { None });
        }
        let lane = &mut self.lanes[side];
        let seen = lane.read_before + redirected + passed;
        // A FIN counts as one.
        if info.fin && info.received == seen + 1 {
            lane.source = Source::Ended;
            return Ok(None);
        }
        if info.received == seen {
            if info.closed {
                self.source_reset(side);
                return Ok(None);
            }
            // No FIN, no reset: the event was a stale one.
            lane.hung_up = false;
            lane.stuck = None;
            return Ok(None);
        }
        let since = *lane.stuck.get_or_insert_with(Instant::now);
        if info.received < seen || since.elapsed() > LOST_AFTER {
            self.corrupt = Some(format!("{seen} bytes passed the verdict, {} were received", info.received));
            return Err(Termination::InternalError);
        }
        socket::kick(self.sockets[side].as_fd());
        Ok(Some(Wait::Soon))
    }

    /// Passes the end of the stream on, once the target has taken over every byte before it.
    pub(super) fn pass_on_end(&mut self, side: Side) -> Result<Option<Wait>, Termination> {
        if let Some(instead) = self.hold_back(side) {
            return Ok(instead);
        }
        if self.corrupt.is_some() {
            return Err(Termination::InternalError);
        }
        let _ = self.sockets[side.other()].shutdown(Shutdown::Write);
        self.lanes[side].shut = true;
        Ok(None)
    }

    /// The stream that comes from `side` was cut by a reset: nothing can be sent there any more.
    pub(super) fn source_reset(&mut self, side: Side) {
        self.lanes[side].source = Source::Reset;
        self.lanes[side.other()].break_off();
        self.reset.get_or_insert((side, Instant::now()));
    }

    /// Sending to the target of `side` failed: it was reset, but what it sent before is still to be delivered.
    pub(super) fn target_gone(&mut self, side: Side) {
        self.lanes[side].break_off();
        let target = &mut self.lanes[side.other()];
        target.hung_up = true;
        self.reset.get_or_insert((side.other(), Instant::now()));
        if target.shut {
            target.source = Source::Reset;
        }
    }

    /// After the end of its stream was passed on, a side can still be reset.
    pub(super) fn look_for_late_reset(&mut self, side: Side) {
        let lane = &mut self.lanes[side];
        lane.hung_up = false;
        let reverse = &self.lanes[side.other()];
        if !reverse.shut && !reverse.broken && self.info(side).is_none_or(|info| info.closed) {
            self.target_gone(side.other());
        }
    }

    /// While its bytes wait for a slow target a side can be reset: they don't keep the pair for ever.
    pub(super) fn look_for_blocked_reset(&mut self, side: Side) {
        // With its end and ours exchanged a socket is closed, too, and that is no reset.
        let reset = self.lanes[side].hung_up && !self.lanes[side.other()].shut;
        if reset && self.info(side).is_none_or(|info| info.closed) {
            self.reset.get_or_insert((side, Instant::now()));
        }
    }

    /// The last look at a pair that does not end by the ends of both streams, which are proved complete one by one:
    /// nothing may have been forwarded that was not received, received that did not pass the verdict, or sent that was
    /// not forwarded. What is under way and will not arrive any more is no disagreement.
    pub(super) fn audit(&mut self) {
        for side in Side::BOTH {
            if self.corrupt.is_none() {
                self.corrupt = self.disagreement_at_source(side).or_else(|| self.disagreement_at_target(side));
            }
        }
    }

    /// A FIN that comes in between the reading of the state and of the count, which the kernel does one after the other, looks
    /// like a byte too many once.
    fn disagreement_at_source(&self, side: Side) -> Option<String> {
        // What is wrong stays so.
        let differences = (0..LOOKS).map_while(|_| self.difference_at_source(side));
        differences.enumerate().find_map(|(look, what)| (look + 1 == LOOKS).then_some(what))
    }

    fn difference_at_source(&self, side: Side) -> Option<String> {
        let (lane, flow, fd) = (&self.lanes[side], self.slot.flow(side), self.sockets[side].as_fd());
        if lane.plain {
            return None;
        }
        // Read before TCP's own count: it can only be too low. Read after it: it can't, because the verdict runs under
        // the socket's lock, as the reading of TCP's count does.
        let seen = || lane.read_before + flow.redirected() + flow.passed();
        let at_least = seen();
        // What waits in the queue passes the verdict now.
        socket::kick(fd);
        let info = self.info(side)?;
        let at_most = seen();
        // A FIN counts as one, and a closed socket doesn't tell whether one came.
        let disagree = info.received < at_least || info.received > at_most + u64::from(info.fin);
        disagree.then(|| format!("{at_most} bytes passed the verdict, {} were received", info.received))
    }

    fn disagreement_at_target(&self, side: Side) -> Option<String> {
        let lane = &self.lanes[side];
        let taken = socket::taken_over(self.sockets[side.other()].as_fd()).ok()??.saturating_sub(lane.target_base);
        // Ours counts as one, too.
        let given = self.slot.flow(side).redirected() + lane.written + u64::from(lane.shut);
        (taken > given).then(|| format!("{given} bytes were given to a socket that took {taken}"))
    }

    /// A side reset the connection. Ends with a reset of the other side, after it has everything that came before.
    pub(super) fn carry_reset(&mut self) -> Result<Wait, Termination> {
        let Some((side, since)) = self.reset else { return Ok(Wait::Event) };
        let termination = if side == Side::Client { Termination::ClientReset } else { Termination::BackendReset };
        if since.elapsed() >= RESET_LINGER {
            return Err(termination);
        }
        let lane = &self.lanes[side];
        let at_end = lane.shut || lane.broken || lane.source == Source::Reset && lane.pending.is_empty();
        if !at_end {
            return Ok(Wait::Soon);
        }
        let target_done = match self.drained(side) {
            Drained::Yes => socket::unacknowledged(self.sockets[side.other()].as_fd()) == 0,
            Drained::NotYet => false,
            Drained::TargetGone => true,
        };
        if target_done { Err(termination) } else { Ok(Wait::Soon) }
    }
}
