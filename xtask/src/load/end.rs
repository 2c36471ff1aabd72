//! Plays one end of a checked connection: sends, receives, verifies, and says how it ended.
// System calls without a safe wrapper.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::scenario::{Finish, Script};
use super::stream::Checker;

/// A connection on which nothing moves for so long is stuck.
pub const STALL: Duration = Duration::from_secs(20);

/// What one end saw. `fault` is `None` where everything was as it had to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndReport {
    /// Bytes handed to the kernel, without the header.
    pub sent: u64,
    /// Bytes received and verified, without the header.
    pub received: u64,
    pub fault: Option<String>,
}

/// How the stream from the other end stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// End of stream.
    End,
    Reset,
}

/// Plays `script` on a connected socket and closes it.
pub(super) fn play(stream: TcpStream, script: Script) -> EndReport {
    let mut end = End::new(stream, script);
    let fault = end.play().err();
    end.leave();
    EndReport { sent: end.sent, received: end.checker.position(), fault }
}

struct End {
    stream: TcpStream,
    script: Script,
    checker: Checker,
    buffer: Vec<u8>,
    chunk: Vec<u8>,
    /// Part of `chunk` that the kernel took already.
    chunk_done: usize,
    sent: u64,
    half_closed: bool,
    stop: Option<Stop>,
    started: Instant,
    moved: Instant,
}

impl End {
    fn new(stream: TcpStream, mut script: Script) -> Self {
        let checker = Checker::new(script.incoming, script.receive);
        let buffer = vec![0; 1 << (9 + script.dice.below(8))];
        Self {
            stream,
            script,
            checker,
            buffer,
            chunk: Vec::new(),
            chunk_done: 0,
            sent: 0,
            half_closed: false,
            stop: None,
            started: Instant::now(),
            moved: Instant::now(),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        self.stream.set_nonblocking(true).map_err(|error| format!("set_nonblocking: {error}"))?;
        while !self.is_done()? {
            let (readable, writable) = self.wait()?;
            if writable {
                self.send()?;
            }
            if readable && self.stop.is_none() {
                self.receive()?;
            }
            if self.moved.elapsed() > STALL {
                return Err(self.describe("nothing moved for 20 s"));
            }
        }
        self.judge()
    }

    /// Whether this end has no more to do.
    fn is_done(&mut self) -> Result<bool, String> {
        if self.stop == Some(Stop::Reset) {
            return Ok(true);
        }
        let all_sent = self.sent == self.script.send && (self.stop.is_some() || !self.script.send_after_end);
        match self.script.finish {
            Finish::HalfClose => {
                if all_sent && !self.half_closed {
                    self.half_close()?;
                }
                Ok(self.half_closed && self.stop.is_some())
            }
            Finish::Close => Ok(all_sent),
            Finish::Reset => Ok(all_sent && self.checker.is_complete() && self.unacknowledged()? == 0),
            Finish::Abort => Ok((all_sent && self.checker.position() > 0) || self.stop.is_some()),
            Finish::AwaitReset | Finish::AwaitAbort => Ok(self.stop.is_some()),
        }
    }

    /// Whether the other end behaved as the scenario says.
    fn judge(&self) -> Result<(), String> {
        match (self.script.finish, self.stop) {
            (Finish::HalfClose, Some(Stop::End)) | (Finish::AwaitReset, Some(Stop::Reset)) => self.complete(),
            (Finish::AwaitAbort, Some(Stop::Reset)) | (Finish::Close | Finish::Reset | Finish::Abort, None) => Ok(()),
            (Finish::AwaitReset | Finish::AwaitAbort, _) => Err(self.describe("a reset arrived as a clean end")),
            (_, Some(Stop::Reset)) => Err(self.describe("reset")),
            (_, stop) => Err(self.describe(&format!("unexpected end {stop:?}"))),
        }
    }

    fn complete(&self) -> Result<(), String> {
        if self.checker.is_complete() { Ok(()) } else { Err(self.describe("the end came too early")) }
    }

    fn describe(&self, what: &str) -> String {
        format!(
            "{what}: sent {} of {}, received {} of {}",
            self.sent,
            self.script.send,
            self.checker.position(),
            self.script.receive
        )
    }

    /// Waits until the socket can do what the script wants next.
    fn wait(&mut self) -> Result<(bool, bool), String> {
        let late = self.script.read_after.saturating_sub(self.started.elapsed());
        let may_read = late.is_zero() && (!self.script.read_after_sent || self.sent == self.script.send);
        let wants_read = self.stop.is_none() && may_read;
        let wants_write = self.sent < self.allowed();
        if wants_read && let Some(pause) = self.script.read_pause {
            std::thread::sleep(pause);
        }
        let events = if wants_read { libc::POLLIN } else { 0 } | if wants_write { libc::POLLOUT } else { 0 };
        let wait = match self.script.finish {
            Finish::Reset => 1,
            _ if !late.is_zero() => 10,
            _ => 1000,
        };
        let ready = poll(&self.stream, events, wait).map_err(|error| format!("poll: {error}"))?;
        let broken = ready & (libc::POLLERR | libc::POLLHUP) != 0;
        Ok((ready & libc::POLLIN != 0 || (broken && self.stop.is_none()), ready & libc::POLLOUT != 0))
    }

    fn allowed(&self) -> u64 {
        self.script.allowed(self.checker.position(), self.stop.is_some()).min(self.script.send)
    }

    fn send(&mut self) -> Result<(), String> {
        if self.chunk_done == self.chunk.len() {
            let len = (1 + self.script.dice.below(self.script.chunk)).min(self.allowed() - self.sent);
            self.chunk.resize(usize::try_from(len).unwrap_or(0), 0);
            self.script.outgoing.fill(self.sent, &mut self.chunk);
            self.chunk_done = 0;
        }
        match self.stream.write(&self.chunk[self.chunk_done..]) {
            Ok(written) => {
                self.chunk_done += written;
                self.sent += written as u64;
                self.moved = Instant::now();
                Ok(())
            }
            Err(error) => self.on_error(&error),
        }
    }

    fn receive(&mut self) -> Result<(), String> {
        match self.stream.read(&mut self.buffer) {
            Ok(0) => self.stop = Some(Stop::End),
            Ok(read) => self.checker.take(&self.buffer[..read])?,
            Err(error) => return self.on_error(&error),
        }
        self.moved = Instant::now();
        Ok(())
    }

    fn on_error(&mut self, error: &io::Error) -> Result<(), String> {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(()),
            // Told by a write, whatever arrived before the reset can still be read.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => self.drain_after_reset(),
            _ => Err(self.describe(&error.to_string())),
        }
    }

    fn drain_after_reset(&mut self) -> Result<(), String> {
        while let Ok(read @ 1..) = self.stream.read(&mut self.buffer) {
            self.checker.take(&self.buffer[..read])?;
        }
        self.stop = Some(Stop::Reset);
        Ok(())
    }

    fn half_close(&mut self) -> Result<(), String> {
        self.half_closed = true;
        match self.stream.shutdown(std::net::Shutdown::Write) {
            // The other end has reset: the next read says so.
            Err(error) if error.kind() != ErrorKind::NotConnected => Err(format!("shutdown: {error}")),
            _ => Ok(()),
        }
    }

    /// Bytes in the send queue that the other end of this TCP connection has not acknowledged.
    fn unacknowledged(&self) -> Result<libc::c_int, String> {
        let mut count: libc::c_int = 0;
        // SAFETY: SIOCOUTQ (= TIOCOUTQ) writes one int.
        match unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) } {
            0 => Ok(count),
            _ => Err(format!("SIOCOUTQ: {}", io::Error::last_os_error())),
        }
    }

    /// Arranges for a reset where the script wants one; the socket closes when `self` goes.
    fn leave(&self) {
        if matches!(self.script.finish, Finish::Reset | Finish::Abort) {
            reset_on_close(&self.stream);
        }
    }
}

/// Makes the closing of `stream` send a reset.
pub(super) fn reset_on_close(stream: &TcpStream) {
    // Fails only where the socket is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Waits up to `millis` for `events`; errors and hang-ups are always reported.
pub fn poll(socket: &impl AsRawFd, events: i16, millis: i32) -> io::Result<i16> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid entry.
    match unsafe { libc::poll(&raw mut entry, 1, millis) } {
        -1 if io::Error::last_os_error().kind() != ErrorKind::Interrupted => Err(io::Error::last_os_error()),
        _ => Ok(entry.revents),
    }
}
