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
    /// The PROXY header that the connection began with.
    pub announced: Option<Vec<u8>>,
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
        Ok(Some(Opening { announced, scenario })) => {
            let end = play(stream, scenario.backend());
            ledger.write(scenario.id, BackendReport { backend: name.to_owned(), announced, end });
        }
        Ok(None) => {}
        Err(fault) => lock(&ledger.pages.strays).push(format!("{name}: {fault}")),
    }
}

/// How a connection began.
struct Opening {
    /// The PROXY header.
    announced: Option<Vec<u8>>,
    scenario: Scenario,
}

/// The first bytes of a connection; `None` where it brought nothing at all.
fn read_header(stream: &mut TcpStream) -> Result<Option<Opening>, String> {
    // No PROXY header is shorter than this, and none as long as a scenario's header and this.
    let mut first = [0; PROXY_START];
    if !read_exact(stream, &mut first)? {
        return Ok(None);
    }
    let mut header = [0; HEADER];
    let announced = announced(stream, first)?;
    if announced.is_none() {
        header[..PROXY_START].copy_from_slice(&first);
    }
    let done = if announced.is_none() { PROXY_START } else { 0 };
    if !read_exact(stream, &mut header[done..])? {
        return Err("nothing came after the first bytes".to_owned());
    }
    Ok(Some(Opening { announced, scenario: Scenario::parse(&header)? }))
}

/// The shortest header of either version: `PROXY UNKNOWN` and its line end, and the fixed part of version 2 less one.
const PROXY_START: usize = 15;

/// The whole of the PROXY header that begins with `first`, read as its specification says, and no further.
fn announced(stream: &mut TcpStream, first: [u8; PROXY_START]) -> Result<Option<Vec<u8>>, String> {
    let mut header = first.to_vec();
    let mut more = |header: &mut Vec<u8>, bytes: usize| {
        let at = header.len();
        header.resize(at + bytes, 0);
        match read_exact(stream, &mut header[at..])? {
            true => Ok(()),
            false => Err("the PROXY header ended early".to_owned()),
        }
    };
    if first.starts_with(b"PROXY ") {
        while !header.ends_with(b"\r\n") {
            more(&mut header, 1)?;
        }
        return Ok(Some(header));
    }
    if first.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
        more(&mut header, 1)?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if length > 0 {
            more(&mut header, length)?;
        }
        return Ok(Some(header));
    }
    Ok(None)
}

/// Fills the buffer; `false` where nothing came at all.
fn read_exact(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<bool, String> {
    let mut filled = 0;
    // Never blocking, as servers with an event loop are: the same-host path is for those only.
    stream.set_nonblocking(true).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + STALL;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                poll(stream, libc::POLLIN, 1000).map_err(|error| format!("poll: {error}"))?;
            }
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(format!("the header ended after {filled} bytes")),
            Ok(read) => filled += read,
            Err(error) => return Err(format!("after {filled} bytes of header: {error}")),
        }
    }
    Ok(true)
}
