//! An HTTP client that never blocks in a read or write, and reads as fast or as slowly as it is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use xtask::load::{connect_from, poll};

/// On a connection on which nothing moves for so long something was lost.
const STALL: Duration = Duration::from_secs(15);

/// How a body is read.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    Fast,
    /// So many bytes at a time, with a pause after each.
    Slow(usize, Duration),
}

/// A connection that is kept alive.
#[derive(Debug)]
pub struct Http {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Http {
    pub fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<Self> {
        let stream = connect_from(from, to)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, received: Vec::new() })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Sends requests for files, one after the other without waiting for answers. `padding` bytes lengthen the head.
    pub fn ask(&mut self, paths: &[&str], padding: usize) -> std::io::Result<()> {
        let pad = "x".repeat(padding);
        let head = |path: &&str| format!("GET /{path} HTTP/1.1\r\nHost: pop\r\nX-Pad: {pad}\r\n\r\n");
        self.send(paths.iter().map(head).collect::<String>().as_bytes())
    }

    /// Stores a file; the body is sent in pieces of `chunk`.
    pub fn put(&mut self, path: &str, body: &[u8], chunk: usize) -> std::io::Result<()> {
        let head = format!("PUT /{path} HTTP/1.1\r\nHost: pop\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send(head.as_bytes())?;
        body.chunks(chunk).try_for_each(|piece| self.send(piece))?;
        self.answer(Pace::Fast).map(drop)
    }

    /// The body of the next answer.
    pub fn answer(&mut self, pace: Pace) -> std::io::Result<Vec<u8>> {
        let end = loop {
            if let Some(at) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.receive(pace)?;
        };
        let head = String::from_utf8_lossy(&self.received[..end]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 20"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
        while self.received.len() < end + length {
            self.receive(pace)?;
        }
        let rest = self.received.split_off(end + length);
        let body = std::mem::replace(&mut self.received, rest).split_off(end);
        Ok(body)
    }

    fn send(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(libc::POLLOUT)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, pace: Pace) -> std::io::Result<()> {
        let (size, pause) = match pace {
            Pace::Fast => (64 * 1024, Duration::ZERO),
            Pace::Slow(size, pause) => (size, pause),
        };
        thread::sleep(pause);
        let mut buffer = vec![0; size];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.received.extend_from_slice(&buffer[..n]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(libc::POLLIN)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn wait(&self, events: i16) -> std::io::Result<()> {
        let deadline = Instant::now() + STALL;
        while poll(&self.stream, events, 1000)? == 0 {
            if Instant::now() > deadline {
                return Err(std::io::Error::other(format!("nothing moved for {STALL:?}")));
            }
        }
        Ok(())
    }
}
