//! The userspace forwarder: recv and send, or splice where much is to be moved, half-close, resets, and no memory for
//! a connection that is quiet.

use std::future::poll_fn;
use std::net::Shutdown;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::time::{Instant, sleep};

use super::choice::Choice;
use super::delivery::Delivery;
use super::lane::{Both, MAX_READ, Pending, SMALL_READ, Side, TURN, with_scratch};
use super::pipe::Pipe;
use super::socket::Received;
use super::sockmap::RESET_LINGER;
use super::stream::Stream;
use super::{MEASURE_EVERY, TimeLimits, socket};
use crate::application::drain::Cut;
use crate::application::flows::Flow;
use crate::domain::{ByteCounts, ForwarderKind, Termination, Why};

/// The first reads are small: a slow receiver then keeps little. Full reads double it up to [`MAX_READ`].
const FIRST_READ: usize = SMALL_READ;
/// A direction that moves less than this at a time, so many times in a row, copies again.
const SPLICE_LEAST: usize = 16 * 1024;
const SMALL_FILLS: u8 = 4;

/// How often a socket that is not being read is asked whether it was reset.
const LOOK: Duration = Duration::from_secs(1);

/// How pumping ended.
#[derive(Debug)]
pub(super) enum PumpEnd {
    /// Both sockets are closed.
    Finished(Termination),
    /// Nothing is pending, and the kernel path should take over.
    Promote(Why),
}

/// A pair that is forwarded by the daemon.
#[derive(Debug)]
pub(super) struct Pump<'a, S> {
    pub(super) sockets: Both<S>,
    /// Bytes moved, by the side where they began.
    pub(super) moved: Both<u64>,
    /// The part of `moved` that was spliced.
    spliced: Both<u64>,
    lanes: Both<Lane>,
    reset: Option<Reset>,
    /// Whether the flow is on record as spliced.
    splices: bool,
    flow: &'a Flow,
}

/// A side reset the connection.
#[derive(Debug, Clone, Copy)]
struct Reset {
    side: Side,
    /// Reading said so: there is nothing more to read. Otherwise writing did, and what it sent before may be there.
    drained: bool,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    /// What was read and not written yet, if it was copied.
    pending: Pending,
    /// And if it was spliced; empty pipes are kept while the direction is busy.
    pipe: Option<Pipe>,
    read_size: usize,
    /// Much comes at a time: splice it.
    large: bool,
    small_fills: u8,
    /// Full reads in a row of what counts as much.
    full_reads: u8,
    /// The last fill of the pipe was less than was asked for, and it is not known yet whether there was more.
    cut_short: bool,
    /// The last read took everything there was.
    empty: bool,
    ended: bool,
    shut: bool,
    /// The target did not take what was read.
    broken: bool,
}

impl Lane {
    fn new() -> Self {
        Self {
            pending: Pending::default(),
            pipe: None,
            read_size: FIRST_READ,
            large: false,
            small_fills: 0,
            full_reads: 0,
            cut_short: false,
            empty: false,
            ended: false,
            shut: false,
            broken: false,
        }
    }

    fn in_pipe(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    /// So many of them.
    fn held(&self) -> u64 {
        let in_pipe = self.pipe.as_ref().map_or(0, Pipe::held);
        (self.pending.rest().len() + in_pipe) as u64
    }

    /// Bytes were read and not written yet.
    fn holds(&self) -> bool {
        !self.pending.is_empty() || self.in_pipe()
    }

    /// Its source is not read from now.
    fn unread(&self) -> bool {
        self.shut || self.holds()
    }

    fn let_pipe_go(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
    }

    /// Adapts to what one fill brought: a bigger pipe, or copying again.
    fn filled(&mut self, n: usize, pipe: &mut Pipe) {
        self.empty = false;
        self.small_fills = if n < SPLICE_LEAST { self.small_fills.saturating_add(1) } else { 0 };
        self.large = self.small_fills < SMALL_FILLS;
        // There was more at once: the last fill had run out of slots.
        if self.cut_short {
            pipe.grow();
        }
        self.cut_short = n < MAX_READ;
    }
}

impl<'a, S: Stream> Pump<'a, S> {
    /// `before` was moved by other forwarders.
    pub(super) fn new(sockets: Both<S>, flow: &'a Flow, before: ByteCounts) -> Self {
        let moved = Both { client: before.up, backend: before.down };
        let spliced = Both { client: before.kernel_up, backend: before.kernel_down };
        Self { sockets, moved, spliced, lanes: Both::of(|_| Lane::new()), reset: None, splices: false, flow }
    }

    pub(super) fn bytes(&self) -> ByteCounts {
        let (Both { client: up, backend: down }, spliced) = (self.moved, self.spliced);
        ByteCounts { up, down, kernel_up: spliced.client, kernel_down: spliced.backend }
    }

    /// What is wrong if TCP has received other amounts than were moved, are held, or were not read. `header` bytes of the
    /// client's were read before, and went nowhere.
    pub(super) fn audit(&self, header: u64, termination: Termination) -> Option<String> {
        let from = Both { client: header, backend: 0 };
        Side::BOTH.into_iter().find_map(|side| {
            let (lane, fd) = (&self.lanes[side], self.sockets[side].as_fd());
            let moved = self.moved[side] + from[side] + lane.held();
            // After the end of both streams there is nothing that was not read.
            let (info, unread) = match termination {
                Termination::Normal => (socket::tcp_info(fd).ok()?, 0),
                _ => socket::received_and_unread(fd)?,
            };
            let read = info.received.saturating_sub(unread);
            // A FIN counts as one. A closed socket does not tell whether one came; after a normal end each has. What a
            // target that is gone did not take is on nobody's account.
            let no_fin = info.closed && termination != Termination::Normal && read == moved;
            let agrees = no_fin || read == moved + u64::from(info.fin) || lane.broken && read > moved;
            (!agrees).then(|| format!("{read} bytes were received ({side:?}), {moved} were moved"))
        })
    }

    /// Pumps until both streams have ended, one is reset, a time limit is reached, or `choice` wants the kernel path.
    /// The sockets are closed by dropping `self`, after a reset was arranged where the end was not a clean one.
    pub(super) async fn run(&mut self, limits: &TimeLimits, cut: &Cut, choice: &mut Choice<'_>) -> PumpEnd {
        let mut idle = pin!(sleep(limits.idle));
        let mut look = pin!(sleep(LOOK));
        let flow = self.flow;
        let mut cut = pin!(cut.wait(flow));
        let (mut active, mut current) = (Instant::now(), limits.idle);
        let mut delivery = Delivery::default();
        let mut measure_at = active + MEASURE_EVERY;
        let end = poll_fn(|cx| {
            let before = self.progress();
            match self.poll_lanes(cx, choice) {
                Poll::Ready(Some(end)) => {
                    self.flow.publish(self.bytes());
                    return Poll::Ready(Ok(end));
                }
                Poll::Ready(None) => cx.waker().wake_by_ref(),
                Poll::Pending => {}
            }
            if let Some(reset) = self.reset {
                return Poll::Ready(Err(reset));
            }
            // Polled, and with it set, only where reading would not tell.
            while self.lanes.iter().any(Lane::unread) && look.as_mut().poll(cx).is_ready() {
                if let Some(reset) = self.unread_reset() {
                    return Poll::Ready(Err(reset));
                }
                look.as_mut().reset(Instant::now() + LOOK);
            }
            if self.progress() != before {
                active = Instant::now();
                self.flow.publish(self.bytes());
                if active >= measure_at {
                    self.measure();
                    measure_at = active + MEASURE_EVERY;
                }
            }
            if cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(PumpEnd::Finished(Termination::KilledByDrain)));
            }
            // Moving the timer at every read would cost more than the read: it is looked at when it fires, and when
            // the limit changes.
            let limit = self.time_limit(limits);
            if limit != current {
                current = limit;
                idle.as_mut().reset(active + limit);
            }
            while idle.as_mut().poll(cx).is_ready() {
                if active.elapsed() >= limit {
                    if !delivery.goes_on(&self.sockets) {
                        return Poll::Ready(Ok(PumpEnd::Finished(self.idle_termination())));
                    }
                    active = Instant::now();
                }
                idle.as_mut().reset(active + limit);
            }
            Poll::Pending
        })
        .await;
        self.measure();
        match end {
            Ok(PumpEnd::Finished(Termination::Normal)) => PumpEnd::Finished(Termination::Normal),
            Ok(PumpEnd::Finished(other)) => {
                self.reset_both();
                PumpEnd::Finished(other)
            }
            Ok(PumpEnd::Promote(why)) => PumpEnd::Promote(why),
            Err(reset) => {
                // On the heap: most connections never come here.
                let _ = tokio::time::timeout(RESET_LINGER, Box::pin(self.deliver(reset, choice))).await;
                self.flow.publish(self.bytes());
                self.reset_both();
                PumpEnd::Finished(if reset.side == Side::Client {
                    Termination::ClientReset
                } else {
                    Termination::BackendReset
                })
            }
        }
    }

    /// Tells how far the backend is.
    fn measure(&self) {
        self.flow.measure(|| socket::round_trip(self.sockets.backend.as_fd()));
    }

    /// Moves both directions. Ready with `None` if there is more to do at once, but others should have their turn.
    fn poll_lanes(&mut self, cx: &mut Context<'_>, choice: &mut Choice<'_>) -> Poll<Option<PumpEnd>> {
        let mut more = false;
        for side in Side::BOTH {
            match self.poll_lane(cx, side, choice) {
                Poll::Ready(Ok(unfinished)) => more |= unfinished,
                Poll::Ready(Err(at)) => {
                    self.reset = Some(Reset { side: at, drained: at == side });
                    return Poll::Pending;
                }
                Poll::Pending => {}
            }
        }
        if self.lanes.iter().all(|lane| lane.shut) {
            return Poll::Ready(Some(PumpEnd::Finished(Termination::Normal)));
        }
        let quiet = self.lanes.iter().all(|lane| lane.empty && !lane.holds() && !lane.ended);
        if quiet && let Some(why) = choice.kernel_wanted() {
            Side::BOTH.into_iter().for_each(|side| self.lanes[side].let_pipe_go());
            return Poll::Ready(Some(PumpEnd::Promote(why)));
        }
        if more { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Moves one direction until it blocks (pending), is at its end (false) or has had its turn (true). An error is
    /// the side that was reset.
    fn poll_lane(&mut self, cx: &mut Context<'_>, side: Side, choice: &mut Choice<'_>) -> Poll<Result<bool, Side>> {
        let start = self.moved[side];
        while self.moved[side] - start < TURN as u64 {
            let lane = &self.lanes[side];
            if lane.holds() {
                ready!(self.poll_write_out(cx, side))?;
            } else if lane.ended {
                self.pass_on_end(side);
                return Poll::Ready(Ok(false));
            } else if lane.large && choice.may_splice() {
                ready!(self.poll_splice(cx, side, choice))?;
            } else {
                ready!(self.poll_read_through(cx, side, choice))?;
            }
        }
        Poll::Ready(Ok(true))
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>, side: Side) -> Poll<Result<(), Side>> {
        let target = &mut self.sockets[side.other()];
        let lane = &mut self.lanes[side];
        let written = match &mut lane.pipe {
            Some(pipe) if pipe.held() > 0 => ready!(target.poll_drain(cx, pipe)).inspect(|n| {
                self.spliced[side] += *n as u64;
            }),
            _ => ready!(target.poll_send(cx, lane.pending.rest())).inspect(|n| lane.pending.advance(*n)),
        };
        let Ok(n) = written else { return Poll::Ready(Err(side.other())) };
        self.moved[side] += n as u64;
        Poll::Ready(Ok(()))
    }

    /// One read, and one write of what it gave; what doesn't fit is kept.
    fn poll_read_through(
        &mut self,
        cx: &mut Context<'_>,
        side: Side,
        choice: &mut Choice<'_>,
    ) -> Poll<Result<(), Side>> {
        if self.splices && !choice.may_splice() {
            self.splices = false;
            self.flow.step(ForwarderKind::Copy, Why::Switched);
        }
        let lane = &mut self.lanes[side];
        let Both { client, backend } = &mut self.sockets;
        let (source, target) = if side == Side::Client { (client, backend) } else { (backend, client) };
        lane.let_pipe_go();
        lane.cut_short = false;
        with_scratch(|buffer| {
            let room = lane.read_size.min(buffer.len());
            lane.empty = true;
            let received = ready!(source.poll_receive(cx, buffer.get_mut(..room).unwrap_or_default()));
            let Ok(Received { len, more }) = received else { return Poll::Ready(Err(side)) };
            let bytes = buffer.get(..len).unwrap_or_default();
            lane.empty = !more;
            lane.ended = bytes.is_empty();
            if lane.ended {
                return Poll::Ready(Ok(()));
            }
            if len == room {
                (lane.full_reads, lane.large) = choice.full_read(room, lane.full_reads);
                lane.small_fills = 0;
                lane.read_size = (room * 2).min(MAX_READ);
            } else {
                lane.full_reads = 0;
            }
            choice.saw(side, len);
            let written = match target.poll_send(cx, bytes) {
                Poll::Ready(Ok(n)) => n,
                Poll::Pending => 0,
                Poll::Ready(Err(_)) => {
                    lane.broken = true;
                    return Poll::Ready(Err(side.other()));
                }
            };
            self.moved[side] += written as u64;
            if let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
                choice.blocked();
                lane.pending.keep(rest);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Moves what there is into a pipe. Where that can't be done it is read instead.
    fn poll_splice(&mut self, cx: &mut Context<'_>, side: Side, choice: &mut Choice<'_>) -> Poll<Result<(), Side>> {
        let lane = &mut self.lanes[side];
        let Some(mut pipe) = lane.pipe.take().or_else(Pipe::take) else {
            return self.poll_read_through(cx, side, choice);
        };
        lane.empty = true;
        let filled = match self.sockets[side].poll_fill(cx, &mut pipe, MAX_READ) {
            Poll::Pending => {
                pipe.give_back();
                return Poll::Pending;
            }
            Poll::Ready(filled) => filled,
        };
        match filled {
            Err(_) => return Poll::Ready(Err(side)),
            Ok(None) => {
                pipe.give_back();
                return self.poll_read_through(cx, side, choice);
            }
            Ok(Some(n)) => {
                lane.filled(n, &mut pipe);
                choice.saw(side, n);
                if !self.splices
                    && let Some(why) = choice.why_splice()
                {
                    self.splices = true;
                    self.flow.step(ForwarderKind::Splice, why);
                }
            }
        }
        let n = pipe.held();
        lane.pipe = Some(pipe);
        if n > 0 && self.poll_write_out(cx, side)?.is_pending() {
            choice.blocked();
        }
        Poll::Ready(Ok(()))
    }

    /// A reset of a side that is not read from now, because its stream ended or its bytes wait for the other side.
    fn unread_reset(&self) -> Option<Reset> {
        let closed = |side| {
            let info = socket::tcp_info(self.sockets[side].as_fd());
            // With its end and ours exchanged a socket is closed, too, and that is no reset.
            self.lanes[side].unread() && !self.lanes[side.other()].shut && info.is_ok_and(|info| info.closed)
        };
        Side::BOTH.into_iter().find(|side| closed(*side)).map(|side| Reset { side, drained: false })
    }

    fn pass_on_end(&mut self, side: Side) {
        if self.lanes[side].shut {
            return;
        }
        // With the other direction at its end, too, both sockets are about to be closed, which says the same.
        if !self.lanes[side.other()].shut {
            let _ = SockRef::from(&self.sockets[side.other()].as_fd()).shutdown(Shutdown::Write);
        }
        self.lanes[side].shut = true;
    }

    /// Changes whenever something was achieved: the end of a stream is, too, so that who closes after a long quiet has the
    /// whole limit for what is still to come.
    fn progress(&self) -> (Both<u64>, usize) {
        (self.moved, self.lanes.iter().filter(|lane| lane.shut).count())
    }

    fn time_limit(&self, limits: &TimeLimits) -> Duration {
        if self.lanes.iter().any(|lane| lane.shut) { limits.half_close } else { limits.idle }
    }

    fn idle_termination(&self) -> Termination {
        if self.lanes.client.shut { Termination::BackendIdle } else { Termination::ClientIdle }
    }

    /// One side reset the connection: the other gets what was received before.
    async fn deliver(&mut self, reset: Reset, choice: &mut Choice<'_>) {
        let side = reset.side;
        poll_fn(|cx| {
            loop {
                let lane = &self.lanes[side];
                if lane.holds() {
                    if ready!(self.poll_write_out(cx, side)).is_err() {
                        return Poll::Ready(());
                    }
                } else if reset.drained || lane.ended || ready!(self.poll_read_through(cx, side, choice)).is_err() {
                    // An end that is read after a reset is none: it is not passed on.
                    return Poll::Ready(());
                }
            }
        })
        .await;
        while socket::unacknowledged(self.sockets[side.other()].as_fd()) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn reset_both(&self) {
        self.sockets.iter().for_each(|socket| socket::reset_on_close(socket.as_fd()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::super::choice::OF_TESTS;
    use super::super::self_test::{connected, nobodys};
    use super::super::{KernelPath, Policy};
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let tokio = |stream: std::net::TcpStream| {
            stream.set_nonblocking(true).unwrap();
            TcpStream::from_std(stream).unwrap()
        };
        let (near, far) = connected().unwrap();
        (tokio(near), tokio(far))
    }

    /// What the audit says of a client that sends twelve bytes, of which four were read before.
    async fn audit(header: u64) -> Option<String> {
        let ((mut client, mut near), (far, mut backend)) = (pair(), pair());
        client.write_all(b"headpayload!").await.unwrap();
        near.read_exact(&mut [0; 4]).await.unwrap();
        let flow = nobodys(client.local_addr().unwrap()).unwrap();
        let path = KernelPath::not_wanted(Policy::Copy);
        let limits = TimeLimits { idle: Duration::from_secs(10), half_close: Duration::from_secs(10) };
        let (cut, mut choice) = (Cut::default(), Choice::new(&path, &OF_TESTS));
        let mut pump = Pump::new(Both { client: near, backend: far }, &flow, ByteCounts::default());
        let talk = async {
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            backend.read_to_end(&mut got).await.unwrap();
            backend.write_all(b"answer").await.unwrap();
            backend.shutdown().await.unwrap();
            // The last end is passed on by closing.
            client.read_exact(&mut [0; 6]).await.unwrap();
            got
        };
        let (end, got) = tokio::join!(pump.run(&limits, &cut, &mut choice), talk);
        assert!(matches!(end, PumpEnd::Finished(Termination::Normal)) && got == b"payload!", "{end:?} {got:?}");
        pump.audit(header, Termination::Normal)
    }

    #[tokio::test]
    async fn what_was_received_and_not_moved_is_noticed() {
        assert_eq!(audit(4).await, None);
        let found = audit(0).await.unwrap();
        assert!(found.contains("(Client)"), "{found}");
    }
}
