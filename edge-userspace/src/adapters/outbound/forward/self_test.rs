//! The self-test at start: two pairs over loopback through the real programs, before the first client.
//!
//! Corruption can't be probed for in general; this proves that the programs forward here and now: in both directions,
//! with bytes queued before the insertion, with a burst beyond the send buffer, with the end of each stream, and with
//! counts that add up.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

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

/// Runs the test; takes some 20 ms.
pub async fn run(kernel: &Arc<Kernel>) -> Result<(), SelfTestError> {
    let (client, proxy_client) = connected()?;
    let (proxy_backend, backend) = connected()?;
    let (sent, reply): (Arc<[u8]>, Arc<[u8]>) = (pattern(BURST, 1).into(), pattern(REPLY, 2).into());
    // Queued before the insertion. No more than that: how much of a burst the kernel forwards once it has queued up
    // depends on how busy the host is.
    (&client).write_all(sent.get(..QUEUED).unwrap_or_default())?;
    (&backend).write_all(reply.get(..QUEUED).unwrap_or_default())?;
    proxy_client.set_nonblocking(true)?;
    proxy_backend.set_nonblocking(true)?;
    let sockets = Both { client: proxy_client, backend: proxy_backend };
    let offload = Offload::begin(kernel, sockets, ByteCounts::default(), 0).map_err(|_| SelfTestError::Refused)?;
    let addr = client.local_addr()?;
    let sender = spawn_client(client, Arc::clone(&sent), Arc::clone(&reply));
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

/// Two ends of one connection over loopback.
pub(super) fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect_timeout(&listener.local_addr()?, LIMIT)?;
    let (far, _) = listener.accept()?;
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
    }
    Ok((near, far))
}

type Peer = JoinHandle<Result<(), SelfTestError>>;

fn spawn_client(mut client: TcpStream, sent: Arc<[u8]>, reply: Arc<[u8]>) -> Peer {
    thread::spawn(move || {
        client.write_all(sent.get(QUEUED..).unwrap_or_default())?;
        client.shutdown(Shutdown::Write)?;
        expect(&mut client, &reply, "the reply")
    })
}

fn spawn_backend(mut backend: TcpStream, sent: Arc<[u8]>, reply: Arc<[u8]>) -> Peer {
    thread::spawn(move || {
        backend.write_all(reply.get(QUEUED..).unwrap_or_default())?;
        // Lets the burst fill every buffer on the way.
        thread::sleep(Duration::from_millis(5));
        expect(&mut backend, &sent, "the request")
    })
}

fn expect(from: &mut TcpStream, mut want: &[u8], what: &'static str) -> Result<(), SelfTestError> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let got = match from.read(&mut buffer)? {
            0 if want.is_empty() => return Ok(()),
            read => buffer.get(..read).unwrap_or_default(),
        };
        match want.strip_prefix(got) {
            Some(rest) if !got.is_empty() => want = rest,
            _ => return Err(SelfTestError::Corrupt(what)),
        }
    }
}

/// Bytes in which any shift or swap shows.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}
