//! The backend: answers requests, and is the other end of streams.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::bulk::Stream;
use super::control::Control;
use super::message::{CHUNK, Header, Inbox, Kind, Outbox, read, scratch};
use super::reactor::{Interest, Reactor, Ready};
use super::rpc::{LOOK, PATIENCE};
use super::socket;
use crate::lab::Namespace;

const LISTENER: usize = usize::MAX;

/// The backend of one cell, running.
#[derive(Debug)]
pub(in crate::bench) struct Backend {
    thread: JoinHandle<io::Result<()>>,
}

impl Backend {
    pub(in crate::bench) fn start(namespace: &Namespace, on: SocketAddr, control: &Arc<Control>) -> io::Result<Self> {
        let listener = namespace.run(|| socket::listen(on))?;
        let control = Arc::clone(control);
        Ok(Self { thread: namespace.spawn(move || Server::new(listener, &control)?.run()) })
    }

    /// Waits for the end, which [`Control::end`] asks for.
    pub(in crate::bench) fn join(self) -> io::Result<()> {
        self.thread.join().map_err(|_| io::Error::other("the thread of the backend panicked"))?
    }
}

/// A connection; what it carries shows with its first message.
enum Conn {
    Calls(Answering),
    Stream(Stream),
}

struct Answering {
    stream: TcpStream,
    inbox: Inbox,
    outbox: Outbox,
    closes: bool,
    waits: bool,
}

struct Server<'a> {
    listener: TcpListener,
    reactor: Reactor,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    message: Vec<u8>,
    buffer: Vec<u8>,
    control: &'a Control,
}

/// What becomes of a connection after an event.
enum Next {
    Stays,
    Ends,
    /// A stream, which begins with these bytes.
    Becomes(Header, Vec<u8>),
}

impl<'a> Server<'a> {
    fn new(listener: TcpListener, control: &'a Control) -> io::Result<Self> {
        let reactor = Reactor::new()?;
        reactor.add(&listener, LISTENER, Interest::READ)?;
        let (message, buffer) = (scratch(), vec![0; CHUNK]);
        Ok(Self { listener, reactor, conns: Vec::new(), free: Vec::new(), message, buffer, control })
    }

    fn run(mut self) -> io::Result<()> {
        let mut deadline = None;
        loop {
            if self.control.has_ended() {
                // The clients may have gone before the last of what they sent was read here.
                let late = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) < Instant::now();
                let left = self.conns.iter().filter(|conn| matches!(conn, Some(Conn::Stream(_)))).count();
                if left == 0 || late {
                    return Ok(());
                }
            }
            for ready in self.reactor.wait(LOOK)? {
                if ready.token == LISTENER { self.accept()? } else { self.step(ready) }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let token = self.free.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            self.reactor.add(&stream, token, Interest::READ)?;
            let (inbox, outbox) = (Inbox::default(), Outbox::default());
            self.conns[token] = Some(Conn::Calls(Answering { stream, inbox, outbox, closes: false, waits: false }));
        }
    }

    fn step(&mut self, ready: Ready) {
        let next = match self.conns[ready.token].as_mut() {
            None => return,
            Some(Conn::Stream(stream)) => {
                let step = stream.step(ready, &mut self.buffer, self.control, &self.reactor);
                step.map(|()| if stream.is_done() { Next::Ends } else { Next::Stays })
            }
            Some(Conn::Calls(calls)) => calls.step(ready, &mut self.message, &mut self.buffer, &self.reactor),
        };
        match next {
            Ok(Next::Stays) => {}
            Ok(Next::Becomes(hello, first)) => {
                let result = self.become_stream(ready.token, hello, &first);
                self.check(ready.token, result);
            }
            Ok(Next::Ends) => self.close(ready.token),
            Err(error) => self.check(ready.token, Err(error)),
        }
    }

    fn check(&mut self, token: usize, result: io::Result<()>) {
        if let Err(error) = result {
            self.control.fault(format!("backend: {error}"));
            self.close(token);
        }
    }

    fn become_stream(&mut self, token: usize, hello: Header, first: &[u8]) -> io::Result<()> {
        let Some(Conn::Calls(Answering { stream, .. })) = self.conns[token].take() else { return Ok(()) };
        let sends = hello.kind != Kind::Up;
        if hello.value > 0 && sends {
            socket::pace(&stream, hello.value)?;
        }
        let interest = Interest { read: true, write: sends };
        self.reactor.change(&stream, token, interest)?;
        let mut stream = Stream::new(stream, token, sends, true, interest);
        stream.take(first, self.control)?;
        self.conns[token] = Some(Conn::Stream(stream));
        Ok(())
    }

    fn close(&mut self, token: usize) {
        self.conns[token] = None;
        self.free.push(token);
    }
}

impl Answering {
    fn step(&mut self, ready: Ready, message: &mut [u8], buffer: &mut [u8], reactor: &Reactor) -> io::Result<Next> {
        if ready.read && !self.closes {
            let Some(bytes) = read(&mut self.stream, buffer)? else { return Ok(Next::Stays) };
            if bytes.is_empty() {
                return self.ended();
            }
            let Self { inbox, outbox, closes, .. } = self;
            let mut hello = None;
            let rest = inbox.take(bytes, |header| {
                *closes |= header.kind == Kind::LastCall;
                if header.is_stream() { hello = Some(header) } else { outbox.push(header) }
            });
            let rest = rest.map_err(io::Error::other)?;
            if let Some(hello) = hello {
                return Ok(Next::Becomes(hello, rest.to_vec()));
            }
        }
        self.outbox.flush(&mut self.stream, message)?;
        if self.waits == self.outbox.is_empty() {
            self.waits = !self.waits;
            reactor.change(&self.stream, ready.token, Interest { read: !self.closes, write: self.waits })?;
        }
        Ok(if self.closes && self.outbox.is_empty() { Next::Ends } else { Next::Stays })
    }

    fn ended(&self) -> io::Result<Next> {
        if self.inbox.is_inside() || !self.outbox.is_empty() {
            return Err(io::Error::other("a client ended within a message"));
        }
        Ok(Next::Ends)
    }
}
