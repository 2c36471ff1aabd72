//! A file server as it is often written: one thread, poll(2), level-triggered, one read or write at a time.
//!
//! Unlike nginx it never drains a socket. It takes what one call gives and trusts poll to report the rest again, so
//! that bytes of which poll does not know would stay where they are for ever.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};

/// Bytes of one read: far less than what is often there.
const READ: usize = 4096;
/// Bytes of one write at most.
const WRITE: usize = 32 * 1024;
/// A client that has so many bytes coming is not read from.
const ENOUGH: usize = 64 * 1024;

/// Serves (GET) and takes (PUT) files below `root`, for ever.
///
/// # Errors
/// Where poll or the listener fails. What goes wrong with one client ends that client.
pub fn serve(listener: &TcpListener, root: &Path) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut peers: HashMap<u64, Peer> = HashMap::new();
    let mut next = 0;
    loop {
        let (knocking, ready) = wait(listener, &peers)?;
        for (id, flags) in ready {
            let gone = peers.get_mut(&id).is_some_and(|peer| peer.step(flags, root).is_err() || peer.is_done());
            if gone {
                peers.remove(&id);
            }
        }
        if knocking && let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            peers.insert(next, Peer::new(stream));
            next += 1;
        }
    }
}

/// Waits until something can be done: whether somebody connects, and which clients are ready for what.
fn wait(listener: &TcpListener, peers: &HashMap<u64, Peer>) -> io::Result<(bool, Vec<(u64, PollFlags)>)> {
    let (ids, peers): (Vec<u64>, Vec<&Peer>) = peers.iter().map(|(id, peer)| (*id, peer)).unzip();
    let mut entries = vec![PollFd::new(listener, PollFlags::IN)];
    entries.extend(peers.iter().map(|peer| PollFd::new(&peer.stream, peer.wants())));
    poll(&mut entries, None)?;
    let flags: Vec<PollFlags> = entries.iter().map(PollFd::revents).collect();
    let ready = ids.into_iter().zip(flags[1..].iter().copied()).filter(|(_, flags)| !flags.is_empty());
    Ok((!flags[0].is_empty(), ready.collect()))
}

/// One client.
struct Peer {
    stream: TcpStream,
    /// Received and not yet understood.
    input: Vec<u8>,
    /// To be sent, from `sent` on.
    output: Vec<u8>,
    sent: usize,
    /// The client has sent all it will.
    ended: bool,
}

/// The first request of the input, if it is whole: its length, method, path and body.
struct Request {
    len: usize,
    method: String,
    path: PathBuf,
    body: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        Self { stream, input: Vec::new(), output: Vec::new(), sent: 0, ended: false }
    }

    fn is_done(&self) -> bool {
        self.ended && self.output.is_empty()
    }

    fn wants(&self) -> PollFlags {
        let mut wants = PollFlags::empty();
        wants.set(PollFlags::IN, !self.ended && self.output.len() - self.sent < ENOUGH);
        wants.set(PollFlags::OUT, !self.output.is_empty());
        wants
    }

    fn step(&mut self, ready: PollFlags, root: &Path) -> io::Result<()> {
        // Errors and hang-ups are told by a read.
        if !self.ended && ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.receive(root)?;
        }
        if ready.contains(PollFlags::OUT) {
            self.send()?;
        }
        Ok(())
    }

    fn receive(&mut self, root: &Path) -> io::Result<()> {
        let mut buffer = [0; READ];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(n) => self.input.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        while let Some(request) = self.request()? {
            self.input.drain(..request.len);
            self.answer(&request, root);
        }
        Ok(())
    }

    fn request(&self) -> io::Result<Option<Request>> {
        let Some(head) = self.input.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let body_at = head + 4;
        let text = String::from_utf8_lossy(&self.input[..head]);
        let mut words = text.split([' ', '\r']);
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            return Err(ErrorKind::InvalidData.into());
        };
        let length = text.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.map_or(Ok(0), str::parse).map_err(|_| ErrorKind::InvalidData)?;
        let body = self.input.get(body_at..body_at + length);
        Ok(body.map(|body| Request {
            len: body_at + length,
            method: method.to_owned(),
            path: path.trim_start_matches('/').into(),
            body: body.to_vec(),
        }))
    }

    fn answer(&mut self, request: &Request, root: &Path) {
        let path = root.join(&request.path);
        let done =
            if request.method == "PUT" { fs::write(path, &request.body).map(|()| Vec::new()) } else { fs::read(path) };
        let (code, body) = done.map_or((404, Vec::new()), |body| (200, body));
        let head = format!("HTTP/1.1 {code} as it is\r\nContent-Length: {}\r\n\r\n", body.len());
        self.output.extend_from_slice(head.as_bytes());
        self.output.extend_from_slice(&body);
    }

    fn send(&mut self) -> io::Result<()> {
        let rest = &self.output[self.sent..];
        match self.stream.write(&rest[..rest.len().min(WRITE)]) {
            Ok(n) => self.sent += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.sent == self.output.len() {
            (self.output, self.sent) = (Vec::new(), 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::thread;

    use super::*;

    #[test]
    fn files_are_taken_and_served() {
        let root = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let directory = root.path().to_owned();
        thread::spawn(move || serve(&listener, &directory));
        let mut client = TcpStream::connect(addr).unwrap();
        let body = vec![7; 300_000];
        client.write_all(format!("PUT /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes()).unwrap();
        client.write_all(&body).unwrap();
        client.write_all(b"GET /x HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).unwrap();
        assert_eq!(fs::read(root.path().join("x")).unwrap(), body);
        let heads = String::from_utf8_lossy(&answers).matches("HTTP/1.1 ").count();
        assert_eq!((heads, answers.iter().filter(|byte| **byte == 7).count()), (3, body.len()));
        assert!(String::from_utf8_lossy(&answers).contains("HTTP/1.1 404"));
    }
}
