//! The forwarder for tests: sockets that fail, stall and take or give less than they could.
//!
//! It finds out what the pump and those around it do when the unlikely happens. Bytes are never changed: what arrives
//! is a prefix of what was sent, and all of it where nothing failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::pipe::Pipe;
use super::socket::Received;
use super::stream::Stream;

/// How long an operation stalls at most.
const LONGEST_DELAY: Duration = Duration::from_millis(20);

/// How often an operation goes wrong, each in 1,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Odds {
    /// The connection fails as if the peer had reset it.
    pub fail: u32,
    /// The operation has to wait, up to 20 ms.
    pub delay: u32,
}

/// A stream on which operations go wrong at random; every third one is cut short, too.
#[derive(Debug)]
pub(super) struct Chaos<S> {
    stream: S,
    odds: Odds,
    receiving: Stall,
    sending: Stall,
}

/// One direction's delay under way.
type Stall = Option<Pin<Box<Sleep>>>;

impl<S: Stream> Chaos<S> {
    pub(super) fn new(stream: S, odds: Odds) -> Self {
        Self { stream, odds, receiving: None, sending: None }
    }
}

/// Decides about one operation; ready when it may go on.
fn roll(cx: &mut Context<'_>, odds: Odds, stall: &mut Stall) -> Poll<io::Result<()>> {
    if stall.is_none() {
        let dice = fastrand::u32(..1_000);
        if dice < odds.fail {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if dice >= odds.fail.saturating_add(odds.delay) {
            return Poll::Ready(Ok(()));
        }
        *stall = Some(Box::pin(sleep(LONGEST_DELAY.mul_f64(fastrand::f64()))));
    }
    if let Some(sleep) = stall {
        ready!(sleep.as_mut().poll(cx));
    }
    *stall = None;
    Poll::Ready(Ok(()))
}

/// Less than there is, in one of three cases.
fn shorten(len: usize) -> usize {
    if fastrand::u32(..3) == 0 { fastrand::usize(1..=len.max(1)) } else { len }
}

impl<S: AsFd> AsFd for Chaos<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<S: Stream> Stream for Chaos<S> {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<Received>> {
        ready!(roll(cx, self.odds, &mut self.receiving))?;
        let len = shorten(buffer.len());
        self.stream.poll_receive(cx, buffer.get_mut(..len).unwrap_or_default())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(roll(cx, self.odds, &mut self.sending))?;
        self.stream.poll_send(cx, bytes.get(..shorten(bytes.len())).unwrap_or_default())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe, most: usize) -> Poll<io::Result<Option<usize>>> {
        ready!(roll(cx, self.odds, &mut self.receiving))?;
        self.stream.poll_fill(cx, pipe, shorten(most))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        ready!(roll(cx, self.odds, &mut self.sending))?;
        self.stream.poll_drain(cx, pipe)
    }
}
