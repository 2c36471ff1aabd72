//! A client's connection for requests and answers.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};

use super::message::{CHUNK, Header, Inbox, Kind, Outbox, read, scratch};
use super::reactor::{Interest, Reactor, Ready};
use super::socket;

/// Memory that all connections of a thread share.
#[derive(Debug)]
pub(super) struct Buffers {
    message: Vec<u8>,
    received: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { message: scratch(), received: vec![0; CHUNK] }
    }
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) stream: TcpStream,
    token: usize,
    inbox: Inbox,
    outbox: Outbox,
    /// What the next answers must carry, in order.
    expected: VecDeque<u64>,
    interest: Interest,
    pub(super) closed: bool,
}

impl Call {
    pub(super) fn connect(to: SocketAddr, token: usize, reactor: &Reactor) -> io::Result<Self> {
        let stream = socket::connect(to)?;
        reactor.add(&stream, token, Interest::WRITE)?;
        let (inbox, outbox, expected) = (Inbox::default(), Outbox::default(), VecDeque::new());
        Ok(Self { stream, token, inbox, outbox, expected, interest: Interest::WRITE, closed: false })
    }

    /// Sends a request, as far as the socket takes it now.
    pub(super) fn send(
        &mut self,
        kind: Kind,
        size: u32,
        when: u64,
        buffers: &mut Buffers,
        reactor: &Reactor,
    ) -> io::Result<()> {
        self.expected.push_back(when);
        self.outbox.push(Header { kind, size, value: when });
        self.flush(buffers, reactor)
    }

    /// Requests without an answer.
    pub(super) fn outstanding(&self) -> usize {
        self.expected.len()
    }

    /// Goes on where the socket is ready; `answered` gets the moment each answered request was to be sent.
    pub(super) fn on_ready(
        &mut self,
        ready: Ready,
        buffers: &mut Buffers,
        reactor: &Reactor,
        mut answered: impl FnMut(u64),
    ) -> io::Result<()> {
        if ready.write && self.interest.write {
            self.flush(buffers, reactor)?;
        }
        if !ready.read {
            return Ok(());
        }
        let Some(bytes) = read(&mut self.stream, &mut buffers.received)? else { return Ok(()) };
        if bytes.is_empty() {
            self.closed = true;
            return self.check_end();
        }
        let Self { inbox, expected, .. } = self;
        let mut stray = None;
        let taken = inbox.take(bytes, |header| match expected.pop_front() {
            Some(when) if when == header.value => answered(when),
            other => stray = Some((other, header)),
        });
        taken.map_err(io::Error::other)?;
        match stray {
            None => Ok(()),
            Some((expected, got)) => Err(io::Error::other(format!("expected the answer {expected:?} and got {got:?}"))),
        }
    }

    fn check_end(&self) -> io::Result<()> {
        if self.inbox.is_inside() || !self.expected.is_empty() {
            return Err(io::Error::other(format!("closed with {} answers outstanding", self.expected.len())));
        }
        Ok(())
    }

    fn flush(&mut self, buffers: &mut Buffers, reactor: &Reactor) -> io::Result<()> {
        self.outbox.flush(&mut self.stream, &mut buffers.message)?;
        let interest = Interest { read: true, write: !self.outbox.is_empty() };
        if interest != self.interest {
            self.interest = interest;
            reactor.change(&self.stream, self.token, interest)?;
        }
        Ok(())
    }
}
