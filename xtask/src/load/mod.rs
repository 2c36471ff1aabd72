//! Load whose every byte is verified at both ends, and simpler load for questions of balance and limits.
//!
//! Each direction of a checked connection is a seeded stream of a known length; the receiver makes the same stream and
//! compares every byte, the total, and how the stream ended (end, or reset).
#![allow(clippy::indexing_slicing, reason = "test apparatus: a panic is a failed test, not an outage")]

mod backend;
mod end;
#[cfg(test)]
mod faulty;
mod poll_server;
mod scenario;
mod server;
mod simple;
mod stream;

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub use backend::{BackendReport, CheckedBackend, Ledger};
pub use end::{EndReport, STALL, poll};
pub use poll_server::serve as serve_by_poll;
pub use scenario::{Behaviour, HEADER, Scenario};
pub use server::Gauge;
pub use simple::{Manner, NamedBackend, Visit, connect_from};

use crate::lab::Namespace;

/// Many checked connections.
#[derive(Debug, Clone)]
pub struct Load {
    pub connections: u64,
    /// Connections open at the same time.
    pub at_once: usize,
    /// Largest number of bytes each way; sizes are log-uniform.
    pub max_bytes: u64,
    /// Same seed, same connections.
    pub seed: u64,
    /// Behaviours, taken in turns.
    pub behaviours: Vec<Behaviour>,
    /// What each connection begins with.
    pub preamble: Option<fn(u64) -> Preamble>,
}

/// What comes before the first byte of a connection, and the client that it names.
#[derive(Debug, Clone)]
pub struct Preamble {
    pub client: SocketAddr,
    pub bytes: Vec<u8>,
}

impl Load {
    /// `connections` of all behaviours, up to 1 MiB each way, 64 at once.
    pub fn mixed(connections: u64, seed: u64) -> Self {
        Self { connections, at_once: 64, max_bytes: 1 << 20, seed, behaviours: Behaviour::ALL.to_vec(), preamble: None }
    }

    /// Runs all connections from inside `clients`; `route` gives the source and destination of each.
    pub fn run(
        &self,
        clients: &Namespace,
        ledger: &Ledger,
        route: impl Fn(u64) -> (IpAddr, SocketAddr) + Sync,
    ) -> LoadReport {
        let (next, done) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if id >= self.connections {
                    return;
                }
                let scenario = Scenario::nth(self.seed, id, self.max_bytes, &self.behaviours);
                let (from, to) = route(id);
                let preamble = self.preamble.map(|make| make(id));
                let checked = Checked::run(scenario, from, to, preamble, ledger);
                done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(checked);
            }
        };
        clients.run(|| {
            // Threads started by a thread are in its namespace.
            thread::scope(|scope| {
                for _ in 0..self.at_once {
                    scope.spawn(work);
                }
            });
        });
        let connections = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        LoadReport { connections, strays: ledger.strays() }
    }
}

/// One connection, as both ends saw it.
#[derive(Debug, Clone)]
pub struct Checked {
    pub scenario: Scenario,
    /// Source address of the client, or the one that its preamble names; `None` where it could not connect.
    pub client_addr: Option<SocketAddr>,
    pub client: EndReport,
    /// `None` where the connection never reached a backend.
    pub backend: Option<BackendReport>,
}

impl Checked {
    /// Plays the client's part in the namespace of the calling thread and collects the backend's report.
    pub fn run(scenario: Scenario, from: IpAddr, to: SocketAddr, preamble: Option<Preamble>, ledger: &Ledger) -> Self {
        let first = preamble.as_ref().map_or(&[][..], |preamble| &preamble.bytes);
        match open(&scenario, from, to, first) {
            Ok((stream, addr)) => {
                let addr = preamble.map_or(addr, |preamble| preamble.client);
                let client = end::play(stream, scenario.client());
                let backend = ledger.take(scenario.id, STALL + Duration::from_secs(5));
                Self { scenario, client_addr: Some(addr), client, backend }
            }
            Err(error) => {
                let client = EndReport { fault: Some(format!("connect: {error}")), ..EndReport::default() };
                Self { scenario, client_addr: None, client, backend: None }
            }
        }
    }

    /// Payload that the backend received, header included.
    pub fn bytes_up(&self) -> u64 {
        self.backend.as_ref().map_or(0, |report| report.end.received + HEADER as u64)
    }

    /// Payload that the client received.
    pub fn bytes_down(&self) -> u64 {
        self.client.received
    }

    /// What was wrong, if anything.
    pub fn fault(&self) -> Option<String> {
        let Self { scenario: Scenario { id, behaviour, .. }, client, backend, .. } = self;
        let name = format!("connection {id} ({behaviour:?}, {:?})", self.client_addr);
        if let Some(fault) = &client.fault {
            return Some(format!("{name}: client: {fault}"));
        }
        let Some(report) = backend else { return Some(format!("{name}: no backend saw it")) };
        report.end.fault.as_ref().map(|fault| format!("{name}: backend {}: {fault}", report.backend))
    }
}

#[derive(Debug)]
pub struct LoadReport {
    pub connections: Vec<Checked>,
    /// Faults of connections that a backend could not tell apart.
    pub strays: Vec<String>,
}

impl LoadReport {
    pub fn faults(&self) -> Vec<String> {
        self.connections.iter().filter_map(Checked::fault).chain(self.strays.iter().cloned()).collect()
    }

    /// # Panics
    /// Where a byte or an end was not as it had to be; names the first ten faults.
    pub fn assert_clean(&self) {
        let faults = self.faults();
        let first: Vec<_> = faults.iter().take(10).map(String::as_str).collect();
        assert!(
            faults.is_empty(),
            "{} of {} connections failed:\n{}",
            faults.len(),
            self.connections.len(),
            first.join("\n")
        );
    }

    pub fn bytes_up(&self) -> u64 {
        self.connections.iter().map(Checked::bytes_up).sum()
    }

    pub fn bytes_down(&self) -> u64 {
        self.connections.iter().map(Checked::bytes_down).sum()
    }

    /// Connections by the backend that served them.
    pub fn by_backend(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for report in self.connections.iter().filter_map(|checked| checked.backend.as_ref()) {
            *counts.entry(report.backend.clone()).or_default() += 1;
        }
        counts
    }
}

/// Connects and sends the header at once, before the POP can have a backend.
fn open(
    scenario: &Scenario,
    from: IpAddr,
    to: SocketAddr,
    preamble: &[u8],
) -> std::io::Result<(TcpStream, SocketAddr)> {
    let mut stream = connect_from(from, to)?;
    stream.set_nonblocking(true)?;
    // In one packet: whoever takes the preamble must not take the header with it.
    stream.write_all(&[preamble, &scenario.header()].concat())?;
    let addr = stream.local_addr()?;
    Ok((stream, addr))
}

#[cfg(test)]
mod tests;
