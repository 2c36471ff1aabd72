//! What a daemon writes: access records on standard output, messages on standard error.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

/// One connection in the access log.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record {
    pub id: u64,
    client_ip: IpAddr,
    client_port: u16,
    /// The address that it connected to.
    pub to: SocketAddr,
    pub listener: Option<String>,
    pub server_name: Option<String>,
    pub app: Option<String>,
    /// Of all daemons.
    pub conn_id: String,
    pub proxy_in: Option<String>,
    pub proxied_by: Option<SocketAddr>,
    pub proxied_to: Option<SocketAddr>,
    pub proxied_id: Option<String>,
    pub proxied_name: Option<String>,
    pub proxy_out: Option<String>,
    pub country: Option<String>,
    pub client_region: Option<String>,
    pub backend: Option<String>,
    pub backend_region: Option<String>,
    /// Why this backend.
    pub why: Option<String>,
    pub binding_yielded: Option<String>,
    /// Connects tried, the good one included.
    pub attempts: u64,
    pub forwarder: Option<String>,
    /// All that carried it, one after the other.
    pub forwarders: Vec<Step>,
    pub fallback: Option<String>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// The part of `bytes_up` that the kernel forwarded.
    pub kernel_up: u64,
    pub kernel_down: u64,
    /// Waiting for a place on a backend.
    pub queue_ms: Option<f64>,
    pub duration_ms: f64,
    /// Two letters: who ended it, and in which phase.
    pub termination: String,
    pub reject: Option<String>,
    pub reject_detail: Option<String>,
    pub denied_by: Option<String>,
}

/// A forwarder took over a connection.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Step {
    pub forwarder: String,
    pub why: String,
    pub at_ms: f64,
}

impl Record {
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.client_ip, self.client_port)
    }
}

/// The access log and the messages of a daemon, as they come in.
#[derive(Debug, Clone, Default)]
pub(super) struct Logs {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    records: Vec<Record>,
    messages: Vec<String>,
}

impl Logs {
    /// Reads `stdout` and `stderr` to their ends, each in a thread.
    pub(super) fn collect(
        &self,
        stdout: impl Read + Send + 'static,
        stderr: impl Read + Send + 'static,
    ) -> [JoinHandle<()>; 2] {
        let (access, messages) = (self.clone(), self.clone());
        [
            thread::spawn(move || each_line(stdout, |line| access.add(line))),
            thread::spawn(move || each_line(stderr, |line| messages.add(line))),
        ]
    }

    fn add(&self, line: String) {
        let is_access = |value: &Value| value.get("target").and_then(Value::as_str) == Some("access");
        let value = serde_json::from_str::<Value>(&line).ok().filter(is_access);
        let record = value.map(Record::deserialize);
        let mut lines = self.lock();
        match record {
            Some(Ok(record)) => lines.records.push(record),
            Some(Err(error)) => lines.messages.push(format!("bad access record ({error}): {line}")),
            None => lines.messages.push(line),
        }
        drop(lines);
        self.inner.grown.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.inner.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn messages(&self) -> String {
        self.lock().messages.join("\n")
    }

    /// The records so far, once `enough` says that they suffice, or `limit` has passed.
    pub(super) fn records(&self, limit: Duration, enough: impl Fn(&[Record]) -> bool) -> Vec<Record> {
        let deadline = Instant::now() + limit;
        let mut lines = self.lock();
        while !enough(&lines.records)
            && let Some(left) = deadline.checked_duration_since(Instant::now())
        {
            (lines, _) = self.inner.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner);
        }
        lines.records.clone()
    }
}

fn each_line(source: impl Read, mut use_line: impl FnMut(String)) {
    for line in BufReader::new(source).split(b'\n') {
        let Ok(line) = line else { return };
        use_line(String::from_utf8_lossy(&line).into_owned());
    }
}
