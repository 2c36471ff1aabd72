//! Two ends that never wait in a read or a write: others are not forwarded by `sk_msg`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use xtask::lab::Ns;
use xtask::load::{connect_from, poll};

use super::{SOON, World};

/// What the server does at the end of the client's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtTheEnd {
    Close,
    /// Lets the connection stand until it is reset.
    Stay,
}

/// Accepts one connection and sends back what comes.
pub fn serve_one(world: &World, addr: SocketAddr, at_the_end: AtTheEnd) {
    let listener = listen(world, addr);
    thread::spawn(move || send_back(unblocked(listener.accept().unwrap().0), at_the_end));
}

/// Accepts all connections and sends back what comes.
pub fn serve(world: &World, addr: SocketAddr) {
    let listener = listen(world, addr);
    let each = |stream| _ = thread::spawn(move || send_back(stream, AtTheEnd::Close));
    thread::spawn(move || listener.incoming().flatten().map(unblocked).for_each(each));
}

/// Accepts all connections, and never reads, answers nor closes.
pub fn be_mute(world: &World, addr: SocketAddr) {
    let listener = listen(world, addr);
    thread::spawn(move || listener.incoming().flatten().map(unblocked).collect::<Vec<_>>());
}

fn listen(world: &World, addr: SocketAddr) -> TcpListener {
    world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap()
}

/// At once: one that blocks for a tenth of a second is taken for one that always does.
fn unblocked(stream: TcpStream) -> TcpStream {
    stream.set_nonblocking(true).unwrap();
    stream
}

fn send_back(mut stream: TcpStream, at_the_end: AtTheEnd) {
    let (mut buffer, mut events) = ([0; 4096], libc::POLLIN);
    while poll(&stream, events, 60_000).is_ok_and(|ready| ready != 0 && ready & libc::POLLERR == 0) {
        match stream.read(&mut buffer) {
            Ok(0) if at_the_end == AtTheEnd::Close => return,
            Ok(0) => events = 0,
            // The client may be gone, or say what it missed.
            Ok(read) => _ = stream.write_all(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// A client whose socket does not block either.
#[derive(Debug)]
pub struct Client(pub TcpStream);

impl Client {
    /// The `n`-th client, connected.
    pub fn connect(world: &World, n: u16, to: SocketAddr) -> Self {
        let stream = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(n), to)).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self(stream)
    }

    pub fn local(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Sends, and expects the same back.
    pub fn echo(&mut self, message: &[u8]) {
        let mut left = message;
        while !left.is_empty() {
            match self.0.write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => _ = poll(&self.0, libc::POLLOUT, 1_000).unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
        self.expect(message);
    }

    /// Reads that, and no more.
    pub fn expect(&mut self, message: &[u8]) {
        let mut back = vec![0; message.len()];
        let mut got = 0;
        while got < back.len() {
            match self.read(&mut back[got..]).unwrap() {
                0 => panic!("it ended after {got} bytes"),
                read => got += read,
            }
        }
        assert_eq!(back, message);
    }

    /// As `Read::read`, but waits for it.
    pub fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let deadline = Instant::now() + SOON;
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    poll(&self.0, libc::POLLIN, 100)?;
                }
                result => return result,
            }
        }
    }
}
