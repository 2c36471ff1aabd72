//! The self-test at start: two pairs over loopback through the real programs, before the first client.
//!
//! Corruption can't be probed for in general; this proves that the programs forward here and now: in both directions,
//! with bytes queued before the insertion, with a burst beyond the send buffer, with the end of each stream, and with
//! counts that add up.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::TimeLimits;
use super::kernel::Kernel;
use super::lane::Both;
use super::sockmap::{Offload, Report};
use crate::application::drain::Cut;
use crate::application::flows::Flow;
use crate::domain::{AppName, BackendId, ByteCounts, Termination};

/// Beyond any default send buffer, so that the verdict has to spill.
const BURST: usize = 6 * 1024 * 1024;
const REPLY: usize = 300_000;
/// Less than the least `sockmap_backlog_kib`, so that it always fits.
const QUEUED: usize = 1_000;
/// The whole test takes about 20 ms; a kernel that hangs must not keep the daemon from starting.
const LIMIT: Duration = Duration::from_secs(5);

const TAKEN: &str = "another program takes this host's own connections: has a daemon a range of ports on loopback?";

#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    #[error("loopback connections could not be made: {0}")]
    Loopback(#[from] io::Error),
    #[error("{0} arrived differently from what was sent")]
    Corrupt(&'static str),
    #[error("the connection ended as \"{0}\"")]
    Ended(&'static str),
    #[error("the kernel counted {counted} bytes, {moved} were sent")]
    Counts { counted: u64, moved: u64 },
    #[error("nothing was forwarded in the kernel")]
    Idle,
    #[error("a connection was not taken over")]
    Refused,
    #[error("a thread of the test died")]
    Thread,
}

/// Runs the test; takes some 20 ms. Blocks its thread.
pub async fn run(kernel: &Arc<Kernel>) -> Result<(), SelfTestError> {
    let (client, proxy_client) = connected()?;
    let (proxy_backend, backend) = connected()?;
    let (sent, reply) = (Message::new(BURST, 1), Message::new(REPLY, 2));
    // Queued before the insertion. No more than that: how much of a burst the kernel forwards once it has queued up
    // depends on how busy the host is.
    (&client).write_all(sent.part(0..QUEUED))?;
    (&backend).write_all(reply.part(0..QUEUED))?;
    proxy_client.set_nonblocking(true)?;
    proxy_backend.set_nonblocking(true)?;
    let sockets = Both { client: proxy_client, backend: proxy_backend };
    let offload = Offload::begin(kernel, sockets, ByteCounts::default(), 0).map_err(|_| SelfTestError::Refused)?;
    let addr = client.local_addr()?;
    let sender = spawn_client(client, sent.clone(), reply.clone());
    let receiver = spawn_backend(backend, sent, reply);
    let limits = TimeLimits { idle: LIMIT, half_close: LIMIT };
    let report = Box::pin(offload.run(&limits, &Cut::default(), &nobodys(addr)?, &|| None)).await;
    sender.join().map_err(|_| SelfTestError::Thread)??;
    receiver.join().map_err(|_| SelfTestError::Thread)??;
    judge(&report)
}

/// A flow that no list shows.
pub(super) fn nobodys(client: SocketAddr) -> Result<Flow, SelfTestError> {
    match (AppName::parse("self-test"), BackendId::parse("self-test")) {
        (Ok(app), Ok(backend)) => Ok(Flow::new(0, client, app, backend)),
        _ => Err(SelfTestError::Refused),
    }
}

fn judge(report: &Report) -> Result<(), SelfTestError> {
    if report.termination != Termination::Normal {
        return Err(SelfTestError::Ended(report.termination.words()));
    }
    let bytes = report.bytes;
    for (counted, moved) in [(bytes.up, BURST as u64), (bytes.down, REPLY as u64)] {
        if counted != moved {
            return Err(SelfTestError::Counts { counted, moved });
        }
    }
    if bytes.kernel_up == 0 || bytes.kernel_down == 0 { Err(SelfTestError::Idle) } else { Ok(()) }
}

/// Two ends of one connection over loopback. Another program may take such connections, as a daemon does that has a range
/// of ports: then the connection is made, and nobody is there to be accepted.
pub(super) fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let near = TcpStream::connect_timeout(&listener.local_addr()?, LIMIT)?;
    let deadline = Instant::now() + LIMIT;
    let far = loop {
        match listener.accept() {
            Ok((far, from)) if from == near.local_addr()? => break far,
            // Somebody else's.
            Ok(_) => {}
            Err(why) if why.kind() != io::ErrorKind::WouldBlock => return Err(why),
            Err(_) if Instant::now() > deadline => return Err(io::Error::other(TAKEN)),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    };
    far.set_nonblocking(false)?;
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
    }
    Ok((near, far))
}

type Peer = JoinHandle<Result<(), SelfTestError>>;

fn spawn_client(mut client: TcpStream, sent: Message, reply: Message) -> Peer {
    thread::spawn(move || {
        sent.send_rest(&mut client)?;
        client.shutdown(Shutdown::Write)?;
        expect(&mut client, &reply, "the reply")
    })
}

fn spawn_backend(mut backend: TcpStream, sent: Message, reply: Message) -> Peer {
    thread::spawn(move || {
        reply.send_rest(&mut backend)?;
        // Lets the burst fill every buffer on the way.
        thread::sleep(Duration::from_millis(5));
        expect(&mut backend, &sent, "the request")
    })
}

fn expect(from: &mut TcpStream, want: &Message, what: &'static str) -> Result<(), SelfTestError> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        let mut got = match from.read(&mut buffer)? {
            0 if at == want.len => return Ok(()),
            0 => return Err(SelfTestError::Corrupt(what)),
            read => buffer.get(..read).unwrap_or_default(),
        };
        while !got.is_empty() {
            let part = want.part(at..at + got.len());
            got = got.strip_prefix(part).filter(|_| !part.is_empty()).ok_or(SelfTestError::Corrupt(what))?;
            at += part.len();
        }
    }
}

/// Bytes that repeat, so that the start of a daemon does not have to fill megabytes. Every shift and swap shows but that of
/// whole periods.
#[derive(Debug, Clone)]
struct Message {
    /// One period, and the beginning of the next.
    bytes: Arc<[u8]>,
    len: usize,
}

impl Message {
    /// A prime number: no number of packets, pages or parts has as many bytes.
    const PERIOD: usize = 65_521;
    const PART: usize = 64 * 1024;

    fn new(len: usize, seed: u64) -> Self {
        let mut bytes = vec![0; Self::PERIOD];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        let all = bytes.iter().cycle().take(Self::PERIOD + Self::PART);
        Self { bytes: all.copied().collect(), len }
    }

    /// What begins at the start of `range`, up to its end or as much as a part; nothing beyond the message.
    fn part(&self, range: Range<usize>) -> &[u8] {
        let (at, end) = (range.start % Self::PERIOD, range.end.min(self.len));
        let len = end.saturating_sub(range.start).min(Self::PART);
        self.bytes.get(at..at + len).unwrap_or_default()
    }

    /// All but what was queued.
    fn send_rest(&self, to: &mut TcpStream) -> io::Result<()> {
        let mut at = QUEUED;
        while at < self.len {
            let part = self.part(at..self.len);
            to.write_all(part)?;
            at += part.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What `expect` says of so many bytes, of which `change` has made others.
    fn judged(len: usize, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), SelfTestError> {
        let message = Message::new(len, 7);
        let mut bytes: Vec<u8> = message.bytes.iter().take(Message::PERIOD).copied().cycle().take(len).collect();
        change(&mut bytes);
        let (mut near, mut far) = connected().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || drop(near.write_all(&bytes)));
            let said = expect(&mut far, &message, "it");
            // Who has seen enough ends it for the sender, too.
            drop(far);
            said
        })
    }

    #[test]
    fn what_is_lost_swapped_or_too_much_shows() {
        let len = Message::PERIOD * 3 + 100;
        judged(len, |_| {}).unwrap();
        for what in 0..5 {
            let change = |bytes: &mut Vec<u8>| match what {
                0 => bytes.truncate(len - 1),
                1 => bytes.push(0),
                2 => drop(bytes.drain(70_000..70_000 + 16 * 4096)),
                3 => bytes.rotate_left(Message::PART),
                _ => bytes.swap(5, 100_000),
            };
            assert!(matches!(judged(len, change), Err(SelfTestError::Corrupt("it"))), "{what}");
        }
    }

    #[test]
    fn a_message_is_sent_whole() {
        let (near, mut far) = connected().unwrap();
        let message = Message::new(BURST / 2, 1);
        let sent = message.clone();
        let sender = thread::spawn(move || {
            let mut near = near;
            near.write_all(sent.part(0..QUEUED)).unwrap();
            sent.send_rest(&mut near).unwrap();
        });
        expect(&mut far, &message, "it").unwrap();
        sender.join().unwrap();
    }
}
