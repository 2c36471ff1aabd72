//! Streams of bytes, as fast as they go or at a pace, up, down or both ways.

use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::Outcome;
use super::control::Control;
use super::message::{CHUNK, Header, Kind, is_stream_at, pattern, read};
use super::reactor::{Interest, Reactor, Ready};
use super::rpc::{LOOK, PATIENCE, established};
use super::socket;
use crate::bench::workload::Way;

/// Writes in a row on one stream before others get their turn.
const WRITES: usize = 4;

/// One end of a connection that carries streams.
#[derive(Debug)]
pub(super) struct Stream {
    stream: TcpStream,
    token: usize,
    sending: bool,
    receiving: bool,
    sent: u64,
    received: u64,
    interest: Interest,
}

impl Stream {
    pub(super) fn new(stream: TcpStream, token: usize, sends: bool, receives: bool, interest: Interest) -> Self {
        Self { stream, token, sending: sends, receiving: receives, sent: 0, received: 0, interest }
    }

    /// Both directions have ended.
    pub(super) fn is_done(&self) -> bool {
        !self.sending && !self.receiving
    }

    /// Goes on where the socket is ready. Ends the sending direction once the stop has come.
    pub(super) fn step(
        &mut self,
        ready: Ready,
        buffer: &mut [u8],
        control: &Control,
        reactor: &Reactor,
    ) -> io::Result<()> {
        if ready.read && self.interest.read {
            self.receive(buffer, control)?;
        }
        if ready.write && self.sending {
            self.send(control)?;
        }
        self.watch(control, reactor)?;
        if self.is_done() {
            control.settle(self.sent, self.received);
        }
        Ok(())
    }

    /// What came together with the header, before there was a stream.
    pub(super) fn take(&mut self, bytes: &[u8], control: &Control) -> io::Result<()> {
        if !is_stream_at(bytes, self.received) {
            return Err(io::Error::other(format!("the stream is not as it was sent, near byte {}", self.received)));
        }
        self.received += bytes.len() as u64;
        control.received(bytes.len() as u64);
        Ok(())
    }

    pub(super) fn watch(&mut self, control: &Control, reactor: &Reactor) -> io::Result<()> {
        // A stream that is only sent is watched for its end, too.
        let interest = Interest { read: control.is_reading(), write: self.sending };
        if interest != self.interest && !self.is_done() {
            self.interest = interest;
            reactor.change(&self.stream, self.token, interest)?;
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8], control: &Control) -> io::Result<()> {
        let Some(bytes) = read(&mut self.stream, buffer)? else { return Ok(()) };
        if bytes.is_empty() {
            if self.sending && !control.is_stopping() {
                return Err(io::Error::other("the stream ended before its time"));
            }
            self.receiving = false;
            return Ok(());
        }
        self.take(bytes, control)
    }

    fn send(&mut self, control: &Control) -> io::Result<()> {
        if control.is_stopping() {
            self.sending = false;
            return self.stream.shutdown(Shutdown::Write);
        }
        for _ in 0..WRITES {
            match self.stream.write(&pattern(self.sent)[..CHUNK]) {
                Ok(written) => {
                    self.sent += written as u64;
                    if written < CHUNK {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The clients' end.
pub(super) fn run(to: SocketAddr, way: Way, streams: u32, pace: u64, control: &Arc<Control>) -> io::Result<Outcome> {
    let (mut reactor, mut buffer) = (Reactor::new()?, vec![0; CHUNK]);
    let mut all = Vec::new();
    for token in 0..streams as usize {
        all.push(Some(open(to, way, pace, token, &reactor, control)?));
    }
    let mut deadline = None;
    let mut was_reading = control.is_reading();
    while all.iter().any(Option::is_some) {
        for ready in reactor.wait(LOOK)? {
            let Some(stream) = &mut all[ready.token] else { continue };
            let result = stream.step(ready, &mut buffer, control, &reactor);
            if let Err(error) = &result {
                control.fault(format!("stream {}: {error}", ready.token));
            }
            if result.is_err() || stream.is_done() {
                all[ready.token] = None;
            }
        }
        if control.is_reading() != was_reading {
            was_reading = true;
            all.iter_mut().flatten().try_for_each(|stream| stream.watch(control, &reactor))?;
        }
        if control.is_stopping() && *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) < Instant::now() {
            control.fault(format!("streams did not end within {PATIENCE:?}"));
            break;
        }
    }
    Outcome::new()
}

fn open(to: SocketAddr, way: Way, pace: u64, token: usize, reactor: &Reactor, control: &Control) -> io::Result<Stream> {
    let mut stream = socket::connect(to)?;
    established(&stream)?;
    let (kind, sends) = match way {
        Way::Up => (Kind::Up, true),
        Way::Down => (Kind::Down, false),
        Way::Both => (Kind::Both, true),
    };
    // A new socket has room for 16 bytes.
    stream.write_all(&Header { kind, size: 16, value: pace }.encode())?;
    if pace > 0 && sends {
        socket::pace(&stream, pace)?;
    }
    let interest = Interest { read: control.is_reading(), write: sends };
    reactor.add(&stream, token, interest)?;
    control.establish();
    // Also where only the client sends, the end of the other direction is waited for.
    Ok(Stream::new(stream, token, sends, true, interest))
}
