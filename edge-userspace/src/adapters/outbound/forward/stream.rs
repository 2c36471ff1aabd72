//! What the pump needs of a socket, so that a faulty one can take its place in tests.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;

use super::pipe::Pipe;
use super::socket::{self, Received};

/// A connected socket. A ready read of nothing is the end of its stream.
pub(super) trait Stream: AsFd {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<Received>>;
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    /// Moves up to `most` bytes into the empty `pipe`. `None`: there was nothing to move that way; a read tells why,
    /// and arranges to be woken.
    fn poll_fill(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe, most: usize) -> Poll<io::Result<Option<usize>>>;
    /// Moves bytes out of `pipe`.
    fn poll_drain(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>>;
}

impl Stream for TcpStream {
    /// tokio's own read takes a short one for all there was and waits for the next event. But a read also stops short
    /// at an urgent byte, and for what came behind it there is no other event: so the kernel is asked.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<Received>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            let mut received = None;
            let result = self.try_io(Interest::READABLE, || {
                let all = *received.insert(socket::receive_counted(self.as_fd(), buffer)?);
                // For tokio "would block" means to wait for the next event, as is right when nothing is left.
                if all.more || all.len == 0 { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
            match (received, result) {
                (Some(received), _) => return Poll::Ready(Ok(received)),
                (None, Err(why)) if !is_to_be_tried_again(&why) => return Poll::Ready(Err(why)),
                _ => {}
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe, most: usize) -> Poll<io::Result<Option<usize>>> {
        ready!(self.poll_read_ready(cx))?;
        // Not by `try_io`: what splice can't move (an urgent byte) a read can, and readiness must stay until then.
        match pipe.fill(self.as_fd(), most) {
            // Nor does 0 prove the end: behind an urgent byte splice moves nothing, too, once the end has come.
            Ok(0) => Poll::Ready(Ok(None)),
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(None)),
            filled => Poll::Ready(filled.map(Some)),
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match self.try_io(Interest::WRITABLE, || pipe.drain(self.as_fd())) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                drained => return Poll::Ready(drained),
            }
        }
    }
}

fn is_to_be_tried_again(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
