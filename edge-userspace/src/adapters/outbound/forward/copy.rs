//! The userspace forwarder: recv and send, half-close, resets, and no memory for a connection that is quiet.

use std::future::poll_fn;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::lane::{Both, MAX_READ, Pending, Side, TURN, with_scratch};
use super::promotion::Promotion;
use super::sockmap::RESET_LINGER;
use super::{TimeLimits, socket};
use crate::application::drain::Cut;
use crate::domain::Termination;

/// The first reads are small: a slow receiver then keeps little. Full reads double it up to [`MAX_READ`].
const FIRST_READ: usize = 16 * 1024;

/// How often a socket that is not being read is asked whether it was reset.
const LOOK: Duration = Duration::from_secs(1);

/// How copying ended.
#[derive(Debug)]
pub(super) enum CopyEnd {
    /// Both sockets are closed.
    Finished(Termination),
    /// Nothing is pending: the kernel path may take over.
    Promote,
}

/// A pair that is being copied.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) sockets: Both<TcpStream>,
    /// Bytes moved, by the side where they began.
    pub(super) moved: Both<u64>,
    lanes: Both<Lane>,
    reset: Option<Reset>,
}

/// A side reset the connection.
#[derive(Debug, Clone, Copy)]
struct Reset {
    side: Side,
    /// Reading said so: there is nothing more to read. Otherwise writing did, and what it sent before may be there.
    drained: bool,
}

#[derive(Debug)]
struct Lane {
    pending: Pending,
    read_size: usize,
    /// The last read took everything there was.
    empty: bool,
    ended: bool,
    shut: bool,
}

impl Lane {
    fn unread(&self) -> bool {
        self.shut || !self.pending.is_empty()
    }
}

impl Copy {
    pub(super) fn new(sockets: Both<TcpStream>) -> Self {
        let lanes = Both::of(|_| Lane {
            pending: Pending::default(),
            read_size: FIRST_READ,
            empty: false,
            ended: false,
            shut: false,
        });
        Self { sockets, moved: Both::default(), lanes, reset: None }
    }

    /// Copies until both streams have ended, one is reset, a time limit is reached, or `promotion` wants the kernel
    /// path. The sockets are closed by dropping `self`, after a reset was arranged where the end was not a clean one.
    pub(super) async fn run(&mut self, limits: &TimeLimits, cut: &Cut, promotion: &mut Promotion) -> CopyEnd {
        let mut idle = pin!(sleep(limits.idle));
        let mut look = pin!(sleep(LOOK));
        let mut cut = pin!(cut.wait());
        let (mut active, mut current) = (Instant::now(), limits.idle);
        let end = poll_fn(|cx| {
            let before = self.moved;
            match self.poll_lanes(cx, promotion) {
                Poll::Ready(Some(end)) => return Poll::Ready(Ok(end)),
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
            if self.moved != before {
                active = Instant::now();
            }
            if cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(CopyEnd::Finished(Termination::KilledByDrain)));
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
                    return Poll::Ready(Ok(CopyEnd::Finished(self.idle_termination())));
                }
                idle.as_mut().reset(active + limit);
            }
            Poll::Pending
        })
        .await;
        match end {
            Ok(CopyEnd::Finished(Termination::Normal)) => CopyEnd::Finished(Termination::Normal),
            Ok(CopyEnd::Finished(other)) => {
                self.reset_both();
                CopyEnd::Finished(other)
            }
            Ok(CopyEnd::Promote) => CopyEnd::Promote,
            Err(reset) => {
                let _ = tokio::time::timeout(RESET_LINGER, self.deliver(reset)).await;
                self.reset_both();
                CopyEnd::Finished(if reset.side == Side::Client {
                    Termination::ClientReset
                } else {
                    Termination::BackendReset
                })
            }
        }
    }

    /// Moves both directions. Ready with `None` if there is more to do at once, but others should have their turn.
    fn poll_lanes(&mut self, cx: &mut Context<'_>, promotion: &mut Promotion) -> Poll<Option<CopyEnd>> {
        let mut more = false;
        for side in Side::BOTH {
            match self.poll_lane(cx, side, promotion) {
                Poll::Ready(Ok(unfinished)) => more |= unfinished,
                Poll::Ready(Err(at)) => {
                    self.reset = Some(Reset { side: at, drained: at == side });
                    return Poll::Pending;
                }
                Poll::Pending => {}
            }
        }
        if self.lanes.iter().all(|lane| lane.shut) {
            return Poll::Ready(Some(CopyEnd::Finished(Termination::Normal)));
        }
        let quiet = self.lanes.iter().all(|lane| lane.empty && lane.pending.is_empty() && !lane.ended);
        if quiet && promotion.wanted() {
            return Poll::Ready(Some(CopyEnd::Promote));
        }
        if more { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Moves one direction until it blocks (pending), is at its end (false) or has had its turn (true). An error is
    /// the side that was reset.
    fn poll_lane(&mut self, cx: &mut Context<'_>, side: Side, promotion: &mut Promotion) -> Poll<Result<bool, Side>> {
        let start = self.moved[side];
        while self.moved[side] - start < TURN as u64 {
            if !self.lanes[side].pending.is_empty() {
                ready!(self.poll_write_pending(cx, side))?;
            } else if self.lanes[side].ended {
                self.pass_on_end(side);
                return Poll::Ready(Ok(false));
            } else {
                ready!(self.poll_read_through(cx, side, promotion))?;
            }
        }
        Poll::Ready(Ok(true))
    }

    fn poll_write_pending(&mut self, cx: &mut Context<'_>, side: Side) -> Poll<Result<(), Side>> {
        let target = Pin::new(&mut self.sockets[side.other()]);
        let lane = &mut self.lanes[side];
        match ready!(target.poll_write(cx, lane.pending.rest())) {
            Ok(n) => {
                lane.pending.advance(n);
                self.moved[side] += n as u64;
                Poll::Ready(Ok(()))
            }
            Err(_) => Poll::Ready(Err(side.other())),
        }
    }

    /// One read, and one write of what it gave; what doesn't fit is kept.
    fn poll_read_through(
        &mut self,
        cx: &mut Context<'_>,
        side: Side,
        promotion: &mut Promotion,
    ) -> Poll<Result<(), Side>> {
        let lane = &mut self.lanes[side];
        let Both { client, backend } = &mut self.sockets;
        let (source, target) = if side == Side::Client { (client, backend) } else { (backend, client) };
        with_scratch(|buffer| {
            let room = lane.read_size.min(buffer.len());
            let mut read = ReadBuf::new(buffer.get_mut(..room).unwrap_or_default());
            lane.empty = true;
            match ready!(Pin::new(source).poll_read(cx, &mut read)) {
                Ok(()) => {}
                Err(_) => return Poll::Ready(Err(side)),
            }
            let bytes = read.filled();
            lane.empty = bytes.len() < room;
            lane.ended = bytes.is_empty();
            if lane.ended {
                return Poll::Ready(Ok(()));
            }
            if bytes.len() == room {
                lane.read_size = (room * 2).min(MAX_READ);
            }
            promotion.saw(side, bytes.len(), bytes.len() == room);
            let written = match Pin::new(target).poll_write(cx, bytes) {
                Poll::Ready(Ok(n)) => n,
                Poll::Pending => 0,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(side.other())),
            };
            self.moved[side] += written as u64;
            if let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
                lane.pending.keep(rest);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// A reset of a side that is not read from now, because its stream ended or its bytes wait for the other side.
    fn unread_reset(&self) -> Option<Reset> {
        let closed = |side| {
            let info = socket::tcp_info(AsFd::as_fd(&self.sockets[side]));
            // With its end and ours exchanged a socket is closed, too, and that is no reset.
            self.lanes[side].unread() && !self.lanes[side.other()].shut && info.is_ok_and(|info| info.closed)
        };
        Side::BOTH.into_iter().find(|side| closed(*side)).map(|side| Reset { side, drained: false })
    }

    fn pass_on_end(&mut self, side: Side) {
        if !self.lanes[side].shut {
            let _ = SockRef::from(&self.sockets[side.other()]).shutdown(Shutdown::Write);
            self.lanes[side].shut = true;
        }
    }

    fn time_limit(&self, limits: &TimeLimits) -> Duration {
        if self.lanes.iter().any(|lane| lane.shut) { limits.half_close } else { limits.idle }
    }

    fn idle_termination(&self) -> Termination {
        if self.lanes.client.shut { Termination::BackendIdle } else { Termination::ClientIdle }
    }

    /// One side reset the connection: the other gets what was received before.
    async fn deliver(&mut self, reset: Reset) {
        let (side, mut none) = (reset.side, Promotion::never());
        poll_fn(|cx| {
            loop {
                let lane = &self.lanes[side];
                if !lane.pending.is_empty() {
                    if ready!(self.poll_write_pending(cx, side)).is_err() {
                        return Poll::Ready(());
                    }
                } else if reset.drained || lane.ended || ready!(self.poll_read_through(cx, side, &mut none)).is_err() {
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
