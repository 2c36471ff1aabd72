//! The self-test of the same-host path at start, on loopback connections of the daemon's own.
//!
//! Beyond forwarding both ways it tries what kernels differ in and what the rules rest on: that bytes handed over are
//! charged to the reader's memory, that its poll and FIONREAD know of them, and that they come before the end of the
//! stream.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::kernel::{KernelError, LocalPrograms, LocalSlot};
use super::super::lane::{Both, Side};
use super::super::self_test::nobodys;
use super::super::{TimeLimits, socket};
use super::marks::Marks;
use super::pair::{LocalPair, Report};
use crate::application::drain::Cut;
use crate::domain::{BackendId, Termination};

const BURST: usize = 3 * 1024 * 1024;
const REPLY: usize = 200_000;
/// What is sent while nobody reads.
const WORD: &[u8] = b"a word that waits";
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(super) enum SelfTestError {
    #[error("loopback connections could not be made: {0}")]
    Loopback(#[from] io::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("this process's own sockets were not seen being established: is it in a cgroup v2?")]
    Unseen,
    #[error("nothing was handed over")]
    Idle,
    #[error(
        "bytes handed over are not charged to their reader, so nothing would bound them: kernels before 6.13 have this"
    )]
    Uncharged,
    #[error("FIONREAD does not count bytes handed over, so servers that ask would stop reading: the kernel is too old")]
    Uncounted,
    #[error("{0} arrived differently from what was sent")]
    Corrupt(&'static str),
    #[error("the connection ended as \"{0}\", or its byte counts disagree")]
    Ended(&'static str),
    #[error("a task of the test died")]
    Task,
    #[error("nothing moved for 5 s")]
    Stuck,
}

pub(super) async fn run(programs: &Arc<LocalPrograms>, budget: u32) -> Result<(), SelfTestError> {
    let (client, own_client) = connected()?;
    let (own_backend, backend) = connected()?;
    let client_addr = client.local_addr()?;
    let own = |socket: &TcpStream| programs.own(socket.as_fd()).ok_or(SelfTestError::Unseen);
    let own = Both { client: own(&own_client)?, backend: own(&own_backend)? };
    let relays = Both { client: programs.adopt(own_client.as_fd())?, backend: programs.adopt(own_backend.as_fd())? };
    let ends = Both { client: programs.adopt(client.as_fd())?, backend: programs.adopt(backend.as_fd())? };
    let slot = programs.pair(own, relays, ends).ok_or(SelfTestError::Idle)?;
    what_waits(&slot, &client, &backend)?;

    let sockets = Both { client: into_tokio(own_client)?, backend: into_tokio(own_backend)? };
    let nobody = BackendId::parse("self-test").map_err(|_| SelfTestError::Unseen)?;
    let slot = Arc::new(slot);
    let mark = Arc::<Marks>::default().enter(&nobody, &slot);
    let pair = LocalPair::new(sockets, slot, mark, budget);
    let up = pattern(BURST + budget as usize, 3);
    let down = pattern(REPLY, 4);
    let sender = tokio::spawn(talk(into_tokio(client)?, up.clone(), down.clone(), "the reply"));
    let receiver = tokio::spawn(talk(into_tokio(backend)?, down, up.clone(), "the burst"));
    let limits = TimeLimits { idle: LIMIT, half_close: LIMIT };
    let flow = nobodys(client_addr).map_err(|_| SelfTestError::Unseen)?;
    let report = Box::pin(pair.run(&flow, &limits, &Cut::default())).await;
    for end in [sender, receiver] {
        end.await.map_err(|_| SelfTestError::Task)??;
    }
    judge(&report, Both { client: (WORD.len() + up.len()) as u64, backend: REPLY as u64 })
}

/// Hands over one message that nobody reads yet, and looks at what the kernel makes of it.
fn what_waits(slot: &LocalSlot, mut client: &TcpStream, mut backend: &TcpStream) -> Result<(), SelfTestError> {
    client.write_all(WORD)?;
    if slot.redirected(Side::Client) != WORD.len() as u64 {
        return Err(SelfTestError::Idle);
    }
    if slot.look(Side::Client).target.map(|target| target.bytes as usize) != Some(WORD.len()) {
        return Err(SelfTestError::Uncharged);
    }
    if socket::readable(backend.as_fd()) != WORD.len() as u64 {
        return Err(SelfTestError::Uncounted);
    }
    let mut word = [0; WORD.len()];
    backend.read_exact(&mut word)?;
    if word != WORD {
        return Err(SelfTestError::Corrupt("a word"));
    }
    if slot.look(Side::Client).target.map(|target| target.bytes) != Some(0) {
        return Err(SelfTestError::Uncharged);
    }
    Ok(())
}

fn judge(report: &Report, sent: Both<u64>) -> Result<(), SelfTestError> {
    if report.termination != Termination::Normal
        || report.fallback.is_some()
        || (report.bytes.up, report.bytes.down) != (sent.client, sent.backend)
    {
        return Err(SelfTestError::Ended(report.termination.words()));
    }
    if report.bytes.kernel_up == 0 || report.bytes.kernel_down == 0 { Err(SelfTestError::Idle) } else { Ok(()) }
}

/// Two ends of one connection over loopback.
fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let (near, far) = super::super::self_test::connected()?;
    for socket in [&near, &far] {
        socket.set_nonblocking(true)?;
    }
    Ok((near, far))
}

fn into_tokio(socket: TcpStream) -> io::Result<tokio::net::TcpStream> {
    tokio::net::TcpStream::from_std(socket)
}

/// Sends and half-closes, and expects what the other end sends until its end.
async fn talk(
    socket: tokio::net::TcpStream,
    sends: Vec<u8>,
    expects: Vec<u8>,
    what: &'static str,
) -> Result<(), SelfTestError> {
    let (mut reader, mut writer) = socket.into_split();
    let send = async {
        // Not all at once: a message beyond the budget is never handed over.
        for chunk in sends.chunks(10_000) {
            writer.write_all(chunk).await?;
        }
        writer.shutdown().await
    };
    let mut received = Vec::new();
    let both = async { tokio::try_join!(send, reader.read_to_end(&mut received)) };
    tokio::time::timeout(LIMIT, both).await.map_err(|_| SelfTestError::Stuck)??;
    if received == expects { Ok(()) } else { Err(SelfTestError::Corrupt(what)) }
}

/// Bytes in which any shift or swap shows.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}
