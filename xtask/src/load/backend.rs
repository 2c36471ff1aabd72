//! Backends that verify every byte they are sent.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::end::{EndReport, STALL, play, poll};
use super::scenario::{HEADER, Scenario};
use super::server::{Gauge, Server};
use crate::lab::Namespace;

/// What a backend saw of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendReport {
    /// Name of the backend.
    pub backend: String,
    pub end: EndReport,
}

/// Where backends leave their reports, by the number of the connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pages: Arc<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    reports: Mutex<HashMap<u64, BackendReport>>,
    /// Headers that could not be read.
    strays: Mutex<Vec<String>>,
    written: Condvar,
}

impl Ledger {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the report of connection `id`, waiting up to `limit` for it.
    pub fn take(&self, id: u64, limit: Duration) -> Option<BackendReport> {
        let deadline = Instant::now() + limit;
        let mut reports = lock(&self.pages.reports);
        loop {
            if let Some(report) = reports.remove(&id) {
                return Some(report);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            (reports, _) = self.pages.written.wait_timeout(reports, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What went wrong on connections that could not be told apart.
    pub fn strays(&self) -> Vec<String> {
        lock(&self.pages.strays).clone()
    }

    fn write(&self, id: u64, report: BackendReport) {
        lock(&self.pages.reports).insert(id, report);
        self.pages.written.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A backend that plays its part of every scenario it is sent.
#[derive(Debug)]
pub struct CheckedBackend {
    server: Server,
}

impl CheckedBackend {
    pub fn start(namespace: &Namespace, name: &str, addr: SocketAddr, ledger: &Ledger) -> io::Result<Self> {
        let (name, ledger) = (name.to_owned(), ledger.clone());
        let server = Server::start(namespace, addr, move |stream| serve(stream, &name, &ledger))?;
        Ok(Self { server })
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    pub fn gauge(&self) -> &Gauge {
        &self.server.gauge
    }
}

fn serve(mut stream: TcpStream, name: &str, ledger: &Ledger) {
    match read_header(&mut stream) {
        Ok(Some(scenario)) => {
            let end = play(stream, scenario.backend());
            ledger.write(scenario.id, BackendReport { backend: name.to_owned(), end });
        }
        Ok(None) => {}
        Err(fault) => lock(&ledger.pages.strays).push(format!("{name}: {fault}")),
    }
}

/// The scenario of a connection; `None` where the connection brought nothing at all.
fn read_header(stream: &mut TcpStream) -> Result<Option<Scenario>, String> {
    let mut header = [0; HEADER];
    let mut filled = 0;
    // Never blocking, as servers with an event loop are: the same-host path is for those only.
    stream.set_nonblocking(true).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + STALL;
    while filled < HEADER {
        match stream.read(&mut header[filled..]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                poll(stream, libc::POLLIN, 1000).map_err(|error| format!("poll: {error}"))?;
            }
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(format!("the header ended after {filled} bytes")),
            Ok(read) => filled += read,
            Err(error) => return Err(format!("after {filled} bytes of header: {error}")),
        }
    }
    Scenario::parse(&header).map(Some)
}
