//! One pair of local applications: from before the first byte to the end.
//!
//! The verdict hands bytes over by itself whenever nothing that came before them is still on its way. What is left to
//! do here is to carry what went through TCP, the ends of the streams and resets. What came through TCP is handed over
//! to its reader, too, never written to its TCP: an application under the verdict has one queue only, so that nothing
//! can wait in another one where it does not look.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use edge_common::{LocalSocket, MESSAGE_OVERHEAD, OwnSocket};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::super::kernel::{LocalPrograms, LocalSlot};
use super::super::lane::{Both, Pending, Side, TURN, with_scratch};
use super::super::sockmap::RESET_LINGER;
use super::super::{TimeLimits, socket};
use super::audit::Counts;
use super::marks::Mark;
use crate::application::drain::Cut;
use crate::application::flows::Flow;
use crate::domain::{ByteCounts, Fallback, ForwarderKind, Termination, Why};

/// How soon to look again for what the kernel gives no event for, the longer the more often nothing had changed.
const RETRY_MILLIS: [u64; 9] = [1, 1, 2, 4, 8, 16, 32, 64, 100];
/// For so long the backend's end of a new connection may be on its way. Nothing is written to it meanwhile.
const SEARCH: Duration = Duration::from_millis(10);
/// An application that has not accepted, or reads with blocking calls, for so long is not suited. Some accept a
/// connection before they make it non-blocking.
const PROBATION: Duration = Duration::from_millis(100);
/// A verdict that was begun before a gate closed is over after so long: it takes microseconds.
const UNDER_WAY: Duration = Duration::from_millis(2);
/// The largest piece handed over at once.
const PIECE: usize = 64 * 1024;
/// How often a socket that is not read is asked whether it was reset.
const LOOK: Duration = Duration::from_secs(1);
/// A pair is looked after this often at least, and at most eight times within its time limit.
const SWEEP: Duration = Duration::from_secs(30);

/// What became of a pair.
#[derive(Debug)]
pub(in super::super) struct Report {
    pub(in super::super) bytes: ByteCounts,
    pub(in super::super) termination: Termination,
    /// The backend lost its mark meanwhile.
    pub(in super::super) fallback: Option<Fallback>,
    /// Byte counts of this pair disagreed, and so it did.
    pub(in super::super) disagreed: bool,
}

/// A client and a backend on this host.
#[derive(Debug)]
pub(super) struct LocalPair {
    sockets: Both<TcpStream>,
    slot: Arc<LocalSlot>,
    mark: Mark,
    lanes: Both<Lane>,
    /// What the applications' TCP had acknowledged before the first byte.
    acknowledged_before: Both<u64>,
    /// Byte counts disagreed.
    disagreed: bool,
    /// The largest piece handed over at once.
    piece: usize,
    /// What may wait for one reader.
    budget: usize,
    /// The backend lost its mark: the daemon hands over everything.
    gated: bool,
    /// The operator wants userspace only: likewise, meanwhile.
    off: bool,
    /// An application has come to read in a way in which bytes can't be handed to it: likewise.
    unsuited: bool,
    /// Bytes that waited for each side's reader when it was looked at last.
    waiting: Both<u32>,
}

/// What went through TCP in one direction.
#[derive(Debug, Default)]
struct Lane {
    read: u64,
    written: u64,
    pending: Pending,
    /// Messages handed over since nothing was seen waiting.
    messages: usize,
    /// The source's stream ended.
    ended: bool,
    /// That was passed on.
    shut: bool,
}

/// What a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wait {
    Event,
    /// The kernel gives no event for it.
    Soon,
    /// Nothing, but others should have their turn.
    Turn,
}

/// A side reset the connection.
#[derive(Debug, Clone, Copy)]
struct Reset {
    side: Side,
    /// Reading said so: there is nothing more to read.
    drained: bool,
}

/// Waits for the other end of a connection to a marked backend, if it is one of the named applications.
pub(super) async fn find_backend(programs: &LocalPrograms, own: OwnSocket) -> Option<LocalSocket> {
    let until = Instant::now() + SEARCH;
    loop {
        let found = programs.application(own);
        if found.is_some() || Instant::now() >= until {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl LocalPair {
    pub(super) fn new(sockets: Both<TcpStream>, slot: Arc<LocalSlot>, mark: Mark, budget: u32) -> Self {
        let budget = budget as usize;
        let acknowledged_before = Both::of(|side| acknowledged(&sockets[side]));
        Self {
            sockets,
            slot,
            mark,
            lanes: Both::of(|_| Lane::default()),
            acknowledged_before,
            disagreed: false,
            piece: PIECE.min(budget / 4),
            budget,
            gated: false,
            off: false,
            unsuited: false,
            waiting: Both::of(|_| 0),
        }
    }

    /// Whether both applications have accepted and read without blocking. The verdict hands nothing to one that does
    /// not, and under it the kernel does not keep all that is promised to blocking calls.
    pub(super) async fn is_suited(&self) -> bool {
        let until = Instant::now() + PROBATION;
        let mut tries = 0;
        loop {
            if Side::BOTH.into_iter().all(|side| self.reads_without_blocking(side)) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.has_begun().await;
            }
            let retry = RETRY_MILLIS.get(tries).or(RETRY_MILLIS.last()).copied().unwrap_or(1);
            tokio::time::sleep(Duration::from_millis(retry).min(left)).await;
            tries += 1;
        }
    }

    /// Or no more: one that is gone shows itself by its end of stream, and has no owner.
    fn reads_without_blocking(&self, side: Side) -> bool {
        let look = self.slot.look(side);
        let is_gone =
            || look.written.is_none() || socket::tcp_info(self.sockets[side].as_fd()).is_ok_and(|info| info.fin);
        if look.accepted { !look.blocks } else { is_gone() }
    }

    /// Whether bytes were handed over after all. What is under way at this moment is waited for: sockets to which
    /// something was handed must not leave the map, or it would be lost.
    async fn has_begun(&self) -> bool {
        self.slot.set_gate(true);
        tokio::time::sleep(UNDER_WAY).await;
        let begun = self.redirected() != Both::default();
        if begun {
            self.mark.reopen(&self.slot);
        }
        begun
    }

    /// The sockets, for the ordinary way.
    pub(super) fn into_sockets(self) -> Both<TcpStream> {
        self.sockets
    }

    /// Sees the pair through to its end.
    pub(super) async fn run(self, flow: &Flow, limits: &TimeLimits, cut: &Cut) -> Report {
        flow.count_in_kernel(Some(self.slot.counts()));
        let report = self.see_through(flow, limits, cut).await;
        flow.count_in_kernel(None);
        // It may have ended before the next look for it.
        let told = |why| flow.steps().last().is_some_and(|step| step.why == Why::Fallback(why));
        report.fallback.filter(|why| !told(*why)).into_iter().for_each(|why| {
            flow.step(ForwarderKind::Copy, Why::Fallback(why));
        });
        flow.publish(report.bytes);
        report
    }

    async fn see_through(mut self, flow: &Flow, limits: &TimeLimits, cut: &Cut) -> Report {
        let mut timer = pin!(tokio::time::sleep(limits.idle));
        let mut cut = pin!(cut.wait(flow));
        let (mut fruitless, mut active, mut looked) = (0, Instant::now(), Instant::now());
        loop {
            let before = self.progress();
            let wait = match self.step() {
                Ok(wait) => wait,
                Err(reset) => return self.carry_reset(reset).await,
            };
            if self.lanes.iter().all(|lane| lane.shut) {
                return self.finish(Termination::Normal);
            }
            if wait == Wait::Turn {
                tokio::task::yield_now().await;
            }
            let moved = self.progress() != before;
            if moved {
                flow.publish(self.through_tcp());
            }
            fruitless = if moved { 0 } else { fruitless + 1 };
            let limit = self.time_limit(limits);
            let pause = self.pause(wait, fruitless, limit);
            timer.as_mut().reset(tokio::time::Instant::now() + pause);
            match poll_fn(|cx| self.poll_wake(cx, wait, timer.as_mut(), cut.as_mut())).await {
                Some(()) => {}
                None => return self.finish(Termination::KilledByDrain),
            }
            // What was handed over meanwhile shows in the counters only.
            if moved || self.progress() != before || self.is_read() {
                active = Instant::now();
            } else if active.elapsed() >= limit {
                let by = self.idle_termination();
                return self.finish(by);
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Err(reset) = self.examine() {
                    return self.carry_reset(reset).await;
                }
                self.look_for_gates(flow);
            }
        }
    }

    /// Does everything that can be done now.
    fn step(&mut self) -> Result<Wait, Reset> {
        let up = self.advance(Side::Client)?;
        Ok(up.max(self.advance(Side::Backend)?))
    }

    /// Moves one direction as far as it goes.
    fn advance(&mut self, side: Side) -> Result<Wait, Reset> {
        let turn = self.lanes[side].written + TURN as u64;
        while self.lanes[side].written < turn {
            let lane = &mut self.lanes[side];
            if lane.shut {
                return Ok(Wait::Event);
            }
            if !lane.pending.is_empty() {
                if !self.hand_over(side)? {
                    return Ok(Wait::Soon);
                }
            } else if lane.ended {
                let _ = SockRef::from(&self.sockets[side.other()]).shutdown(Shutdown::Write);
                lane.shut = true;
            } else if !self.read_in(side)? {
                return Ok(Wait::Event);
            }
        }
        Ok(Wait::Turn)
    }

    /// Compares the byte counts. `over`: both streams have ended, and all that came was passed on.
    fn audit(&mut self, over: bool) {
        let what = |side| self.counts(side).disagreement(over).map(|what| format!("{what} ({side:?})"));
        if let Some(what) = Side::BOTH.into_iter().find_map(what) {
            self.disagreed = true;
            self.mark.withdraw(&what);
        }
    }

    fn counts(&self, side: Side) -> Counts {
        let (look, lane, reader) = (self.slot.look(side), &self.lanes[side], side.other());
        Counts {
            given: look.written,
            received: socket::tcp_info(self.sockets[side].as_fd()).ok(),
            read: lane.read,
            written: lane.written,
            handed_over: self.slot.handed_over(side),
            by_tcp: self.slot.by_tcp(side),
            acknowledged: acknowledged(&self.sockets[reader]).saturating_sub(self.acknowledged_before[reader]),
            taken: look.target.map(|target| target.copied),
            shut: lane.shut,
        }
    }

    /// Whether the mark is gone, be it for the trouble of another connection, or the operator has switched: then nothing
    /// is handed over any more but by the daemon, and that is on record.
    fn look_for_gates(&mut self, flow: &Flow) {
        let off = self.slot.kernel_is_off();
        if self.gated {
            // For life.
        } else if Side::BOTH.into_iter().any(|side| self.slot.by_tcp(side) > 0) {
            (self.gated, self.unsuited) = (true, true);
            self.slot.set_gate(true);
            flow.step(ForwarderKind::Copy, Why::Fallback(Fallback::Blocking));
        } else if self.mark.is_withdrawn() {
            self.gated = true;
            flow.step(ForwarderKind::Copy, Why::Fallback(Fallback::Withdrawn));
        } else if off != self.off {
            let now = if off { ForwarderKind::Copy } else { ForwarderKind::SkMsg };
            flow.step(now, Why::Switched);
        }
        self.off = off;
    }

    /// Hands over pending bytes; false if the reader has no room for them now, of which there is no event.
    fn hand_over(&mut self, side: Side) -> Result<bool, Reset> {
        let mut pending = std::mem::take(&mut self.lanes[side].pending);
        let given = self.give(side, pending.rest());
        pending.advance(*given.as_ref().unwrap_or(&0));
        self.lanes[side].pending = pending;
        self.publish_consumed(side);
        given.map(|given| given > 0)
    }

    /// Gives the reader one piece of these bytes; how much it took.
    fn give(&mut self, side: Side, bytes: &[u8]) -> Result<usize, Reset> {
        let waiting = self.slot.look(side).target.map_or(0, |target| target.bytes);
        let lane = &mut self.lanes[side];
        let piece = bytes.get(..self.piece).unwrap_or(bytes);
        if waiting == 0 {
            lane.messages = 0;
        } else if waiting as usize + piece.len() + (lane.messages + 1) * MESSAGE_OVERHEAD as usize > self.budget {
            return Ok(0);
        }
        match self.sockets[side.other()].try_write(piece) {
            Ok(n) => {
                lane.messages += 1;
                lane.written += n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(Reset { side: side.other(), drained: false }),
        }
    }

    /// Once everything that was read is handed over the verdict may go on by itself.
    fn publish_consumed(&self, side: Side) {
        let lane = &self.lanes[side];
        if lane.pending.is_empty() {
            self.slot.publish_consumed(side, lane.read);
        }
    }

    /// Reads once, and hands over at once as much as there is room for; false if there was nothing to read.
    fn read_in(&mut self, side: Side) -> Result<bool, Reset> {
        with_scratch(|buffer| match self.sockets[side].try_read(buffer) {
            Ok(n) => {
                self.lanes[side].read += n as u64;
                self.lanes[side].ended = n == 0;
                let mut rest = buffer.get(..n).unwrap_or_default();
                let mut refused = None;
                while !rest.is_empty() {
                    match self.give(side, rest) {
                        Ok(0) => break,
                        Ok(given) => rest = rest.get(given..).unwrap_or_default(),
                        Err(reset) => {
                            refused = Some(reset);
                            break;
                        }
                    }
                }
                self.lanes[side].pending.keep(rest);
                self.publish_consumed(side);
                refused.map_or(Ok(true), Err)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err(Reset { side, drained: true }),
        })
    }

    /// What no event tells: counts that disagree, and a reset of a side that is not read.
    fn examine(&mut self) -> Result<(), Reset> {
        self.audit(false);
        for side in Side::BOTH {
            let lane = &self.lanes[side];
            let unread = lane.shut || !lane.pending.is_empty();
            let closed = || socket::tcp_info(self.sockets[side].as_fd()).is_ok_and(|info| info.closed);
            // With its end and ours exchanged a socket is closed, too, and that is no reset.
            if unread && !self.lanes[side.other()].shut && closed() {
                return Err(Reset { side, drained: false });
            }
        }
        Ok(())
    }

    /// Whether a reader has taken of what waits for it since this was asked last: a slow one is not idle.
    fn is_read(&mut self) -> bool {
        let now = Both::of(|side| self.slot.look(side).target.map_or(0, |target| target.bytes));
        let before = std::mem::replace(&mut self.waiting, now);
        Side::BOTH.into_iter().any(|side| self.waiting[side] < before[side])
    }

    /// Everything that has moved, to see whether anything has.
    fn progress(&self) -> (Both<u64>, Both<u64>, bool) {
        let lanes = &self.lanes;
        let tcp = Both::of(|side| lanes[side].read + lanes[side].written);
        (tcp, self.redirected(), lanes.iter().any(|lane| lane.shut))
    }

    /// Bytes that went through TCP and the daemon.
    fn through_tcp(&self) -> ByteCounts {
        let (up, down) = (self.lanes.client.written, self.lanes.backend.written);
        ByteCounts { up, down, ..ByteCounts::default() }
    }

    fn redirected(&self) -> Both<u64> {
        Both::of(|side| self.slot.redirected(side))
    }

    fn time_limit(&self, limits: &TimeLimits) -> Duration {
        if self.lanes.iter().any(|lane| lane.shut) { limits.half_close } else { limits.idle }
    }

    fn idle_termination(&self) -> Termination {
        if self.lanes.client.shut { Termination::BackendIdle } else { Termination::ClientIdle }
    }

    fn pause(&self, wait: Wait, fruitless: usize, limit: Duration) -> Duration {
        let sweep = (limit / 8).clamp(Duration::from_millis(20), SWEEP);
        let unread = self.lanes.iter().any(|lane| lane.shut || !lane.pending.is_empty());
        let sweep = if unread { sweep.min(LOOK) } else { sweep };
        match wait {
            Wait::Turn => Duration::ZERO,
            Wait::Event => sweep,
            Wait::Soon => {
                let retry = RETRY_MILLIS.get(fruitless.saturating_sub(1)).or(RETRY_MILLIS.last());
                Duration::from_millis(retry.copied().unwrap_or(1)).min(sweep)
            }
        }
    }

    /// `None` is the end of a drain.
    fn poll_wake(
        &self,
        cx: &mut Context<'_>,
        wait: Wait,
        timer: Pin<&mut tokio::time::Sleep>,
        cut: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Option<()>> {
        if cut.poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        let mut ready = wait == Wait::Turn;
        for side in Side::BOTH {
            let lane = &self.lanes[side];
            if lane.shut || lane.ended {
                continue;
            }
            ready |= lane.pending.is_empty() && self.sockets[side].poll_read_ready(cx).is_ready();
        }
        if ready { Poll::Ready(Some(())) } else { timer.poll(cx).map(Some) }
    }

    /// One side reset the connection: the other gets what came before, then a reset, too.
    async fn carry_reset(mut self, reset: Reset) -> Report {
        let _ = tokio::time::timeout(RESET_LINGER, self.deliver(reset)).await;
        let by = match reset.side {
            Side::Client => Termination::ClientReset,
            Side::Backend => Termination::BackendReset,
        };
        self.finish(by)
    }

    async fn deliver(&mut self, reset: Reset) {
        let (side, mut tries, mut asked_again) = (reset.side, 0, false);
        loop {
            let lane = &self.lanes[side];
            let more = if !lane.pending.is_empty() {
                match self.hand_over(side) {
                    Ok(more) => more,
                    Err(_) => return,
                }
            } else if reset.drained || lane.ended {
                break;
            } else {
                match self.read_in(side) {
                    Ok(true) => {
                        asked_again = false;
                        true
                    }
                    // What came with the reset may not have been announced yet, and until then tokio does not ask the
                    // kernel.
                    Ok(false) if !asked_again => {
                        asked_again = true;
                        tokio::task::yield_now().await;
                        continue;
                    }
                    // The reader is gone, too: nothing can reach it any more.
                    Err(gone) if gone.side != side => return,
                    Ok(false) | Err(_) => break,
                }
            };
            tries = if more { 0 } else { tries + 1 };
            if !more {
                let retry = RETRY_MILLIS.get(tries).or(RETRY_MILLIS.last()).copied().unwrap_or(1);
                tokio::time::sleep(Duration::from_millis(retry)).await;
            }
        }
        while socket::unacknowledged(self.sockets[side.other()].as_fd()) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Closes both sockets, with a reset where the end is not a clean one.
    fn finish(mut self, termination: Termination) -> Report {
        self.audit(termination == Termination::Normal);
        self.slot.set_gate(true);
        let in_kernel = self.redirected();
        if termination != Termination::Normal {
            self.sockets.iter().for_each(|socket| socket::reset_on_close(socket.as_fd()));
        }
        let Both { client: up, backend: down } = in_kernel;
        let bytes = self.through_tcp() + ByteCounts { up, down, kernel_up: up, kernel_down: down };
        let unsuited = self.unsuited || Side::BOTH.into_iter().any(|side| self.slot.by_tcp(side) > 0);
        let withdrawn = self.mark.is_withdrawn().then_some(Fallback::Withdrawn);
        let fallback = withdrawn.or(unsuited.then_some(Fallback::Blocking));
        Report { bytes, termination, fallback, disagreed: self.disagreed }
    }
}

/// What the application's TCP has acknowledged; 0 where that can't be told.
fn acknowledged(socket: &TcpStream) -> u64 {
    socket::tcp_info(socket.as_fd()).map_or(0, |info| info.acked)
}
