//! Backends and clients for questions of balance and limits: who answered, how many at once.
// System calls without a safe wrapper.
#![allow(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::server::{Gauge, Server};
use crate::lab::Namespace;

/// What a [`NamedBackend`] does after saying its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Closes.
    Close,
    /// Sends back what it is sent until the client half-closes.
    Echo,
}

/// A backend that says its name, one line, to whoever connects.
#[derive(Debug)]
pub struct NamedBackend {
    server: Server,
}

impl NamedBackend {
    pub fn start(namespace: &Namespace, name: &str, addr: SocketAddr, manner: Manner) -> io::Result<Self> {
        let greeting = format!("{name}\n");
        let serve = move |stream: TcpStream| {
            // A client that hangs up early is no news to a backend.
            let _ = greet(&stream, &greeting, manner);
        };
        Ok(Self { server: Server::start(namespace, addr, serve)? })
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    pub fn gauge(&self) -> &Gauge {
        &self.server.gauge
    }
}

fn greet(mut stream: &TcpStream, greeting: &str, manner: Manner) -> io::Result<()> {
    stream.write_all(greeting.as_bytes())?;
    if manner == Manner::Echo {
        let mut buffer = [0; 16 << 10];
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                read => stream.write_all(&buffer[..read])?,
            }
        }
    }
    Ok(())
}

/// A client of a [`NamedBackend`] that has been told its name.
#[derive(Debug)]
pub struct Visit {
    /// Name of the backend.
    pub backend: String,
    pub local: SocketAddr,
    stream: TcpStream,
}

impl Visit {
    /// Connects from `from` to `to` in the namespace of the calling thread and reads the name.
    pub fn start(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let stream = connect_from(from, to)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut line = Vec::new();
        // One byte of buffer, so that nothing after the line is read too early.
        BufReader::with_capacity(1, &stream).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before a backend said its name"));
        }
        let backend = String::from_utf8_lossy(&line).into_owned();
        Ok(Self { backend, local: stream.local_addr()?, stream })
    }

    /// Sends `bytes` to an echoing backend and reads them back.
    pub fn echo(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        let mut back = vec![0; bytes.len()];
        self.stream.read_exact(&mut back)?;
        if back == bytes { Ok(()) } else { Err(io::Error::other("the echo differs")) }
    }

    /// Half-closes and reads to the end of the stream.
    pub fn finish(mut self) -> io::Result<()> {
        // A socket that was reset meanwhile has no connection to end: that it was a reset, reading says.
        let ended = self.stream.shutdown(std::net::Shutdown::Write);
        match self.stream.read(&mut [0; 64])? {
            0 => ended,
            _ => Err(io::Error::other("bytes after the end")),
        }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Connects to `to` with source address `from`, in the namespace of the calling thread.
pub fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    // The port is chosen when connecting, by destination: one address may use the same port towards two POPs.
    choose_port_late(&socket)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.connect_timeout(&to.into(), Duration::from_secs(20))?;
    Ok(socket.into())
}

fn choose_port_late(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    let (level, option) = (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
    // SAFETY: the option reads one int, whose size is given. IPv6 sockets take it at this level, too.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
