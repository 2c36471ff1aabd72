//! Asks backends whether they are well: TCP, TCP with an exchange, HTTP, HTTPS. Its connections are its own: they are in no
//! count of clients' connections and against no limit.

mod http;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use self::tls::TlsConfigs;
use super::connector::classify;
use super::forward::round_trip;
use crate::application::ports::Prober;
use crate::domain::proxy::local;
use crate::domain::{Backend, CheckReport, CheckResult, CheckSpec, ConnectFailure, Probe};

/// What is expected must be among the first bytes of an answer.
const MAX_ANSWER: usize = 16 * 1024;

/// Checks over TCP.
#[derive(Debug, Default)]
pub struct TcpProber {
    tls: TlsConfigs,
}

/// Why a check did not pass.
#[derive(Debug)]
struct Failure {
    result: CheckResult,
    detail: Option<String>,
}

impl Failure {
    fn new(result: CheckResult, detail: impl ToString) -> Self {
        Self { result, detail: Some(detail.to_string()) }
    }

    /// Of a connection that was established.
    fn of_stream(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self { result: CheckResult::Closed, detail: None }
            }
            io::ErrorKind::TimedOut => Self { result: CheckResult::TimedOut, detail: None },
            _ => Self::new(CheckResult::Closed, error),
        }
    }
}

impl From<ConnectFailure> for Failure {
    fn from(failure: ConnectFailure) -> Self {
        let result = match failure {
            ConnectFailure::Refused => CheckResult::Refused,
            ConnectFailure::TimedOut => CheckResult::TimedOut,
            ConnectFailure::Unreachable => CheckResult::Unreachable,
            ConnectFailure::Local | ConnectFailure::Exhausted => CheckResult::Local,
        };
        Self { result, detail: None }
    }
}

/// Where a check goes, and who learns how far that is.
#[derive(Debug, Clone, Copy)]
struct Target<'a> {
    addr: SocketAddr,
    backend: &'a Backend,
}

impl Prober for TcpProber {
    async fn probe(&self, backend: &Backend, spec: &CheckSpec, limit: Duration) -> CheckReport {
        // A port of its own is that of something else, which need not expect a header.
        let header = backend.send_proxy.filter(|_| spec.port.is_none()).map(local).unwrap_or_default();
        let target = Target { addr: spec.addr_of(backend), backend };
        self.check(target, &header, spec, limit).await
    }
}

impl TcpProber {
    async fn check(&self, target: Target<'_>, header: &[u8], spec: &CheckSpec, limit: Duration) -> CheckReport {
        let started = Instant::now();
        let outcome = timeout(limit, self.ask(target, header, spec)).await;
        let Failure { result, detail } = match outcome {
            Ok(Ok(())) => Failure { result: CheckResult::Passed, detail: None },
            Ok(Err(failure)) => failure,
            Err(_) => Failure { result: CheckResult::TimedOut, detail: None },
        };
        CheckReport { result, detail: detail.map(short), took: started.elapsed() }
    }

    /// `header` is sent first: the PROXY header of a connection that is nobody's but the POP's.
    async fn ask(&self, target: Target<'_>, header: &[u8], spec: &CheckSpec) -> Result<(), Failure> {
        let addr = target.addr;
        let mut stream = connect(addr).await?;
        // So an app that chooses by time knows backends that have no clients.
        if let Some(time) = round_trip(stream.as_fd()).filter(|_| target.backend.is_in_place()) {
            target.backend.load.rtt().sample(time, Instant::now());
        }
        stream.write_all(header).await.map_err(|why| Failure::of_stream(&why))?;
        match &spec.probe {
            Probe::Connect => Ok(()),
            Probe::Exchange { send, expect } => exchange(stream, send, expect).await,
            Probe::Http(check) => match &check.tls {
                None => http::get(stream, addr, check).await,
                Some(tls) => http::get(self.tls.handshake(stream, addr, check, tls).await?, addr, check).await,
            },
        }
    }
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|why| Failure::from(classify(&why)))?;
    let _ = socket.set_nodelay(true);
    // Closed with a reset: thousands of checks a second would leave as many sockets in TIME_WAIT.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    socket.connect(addr).await.map_err(|why| Failure::from(classify(&why)))
}

async fn exchange(mut stream: TcpStream, send: &[u8], expect: &[u8]) -> Result<(), Failure> {
    stream.write_all(send).await.map_err(|why| Failure::of_stream(&why))?;
    let mut answer = Vec::new();
    loop {
        if answer.windows(expect.len()).any(|part| part == expect) {
            return Ok(());
        }
        let room = MAX_ANSWER.saturating_sub(answer.len());
        let mut chunk = [0; 1024];
        let read = match room {
            0 => 0,
            _ => stream.read(&mut chunk).await.map_err(|why| Failure::of_stream(&why))?,
        };
        match chunk.get(..read) {
            Some([]) | None if answer.is_empty() => return Err(Failure { result: CheckResult::Closed, detail: None }),
            Some([]) | None => return Err(Failure::new(CheckResult::WrongAnswer, shown(&answer))),
            Some(bytes) => answer.extend_from_slice(bytes),
        }
    }
}

/// The beginning of an answer, for people.
fn shown(answer: &[u8]) -> String {
    let start = answer.get(..answer.len().min(60)).unwrap_or_default();
    format!("answered \"{}\"", start.escape_ascii())
}

fn short(text: String) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
