//! The access log: one JSON line for each connection, on standard output. Ordinary messages go to standard error.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use super::line_writer::LineWriter;
use super::timestamp::rfc3339;
use crate::domain::{Fallback, Outcome, ProxyVersion, Step};

/// Writes outcomes. Never blocks; what its reader is too slow for is lost and counted.
#[derive(Debug, Clone)]
pub struct AccessLog {
    writer: LineWriter,
}

impl AccessLog {
    pub fn new(writer: LineWriter) -> Self {
        Self { writer }
    }

    pub fn record(&self, outcome: &Outcome) {
        // Writing plain data as JSON into memory cannot fail.
        if let Ok(mut line) = serde_json::to_vec(&Record::of(outcome)) {
            line.push(b'\n');
            self.writer.line(line);
        }
    }
}

/// The fields of a line, in its order. Absent facts are null, so that every line has every field.
#[derive(Debug, Serialize)]
struct Record<'a> {
    target: &'static str,
    /// When the connection was accepted.
    ts: String,
    id: u64,
    /// The same for those who see connections of several daemons.
    conn_id: String,
    client_ip: IpAddr,
    client_port: u16,
    /// The PROXY header that came in: version, who sent it, and what else it said.
    proxy_in: Option<&'static str>,
    proxied_by: Option<SocketAddr>,
    proxied_to: Option<SocketAddr>,
    proxied_id: Option<&'a str>,
    proxied_name: Option<&'a str>,
    to: SocketAddr,
    listener: Option<&'a str>,
    /// The TLS server name, where it decides between listeners.
    server_name: Option<&'a str>,
    app: Option<&'a str>,
    country: Option<&'a str>,
    client_region: Option<&'a str>,
    backend: Option<&'a str>,
    backend_addr: Option<SocketAddr>,
    backend_region: Option<&'a str>,
    /// The PROXY header that the backend got.
    proxy_out: Option<&'static str>,
    /// Why this backend.
    why: Option<&'static str>,
    binding_yielded: Option<&'static str>,
    /// Connects tried, the good one included.
    attempts: usize,
    failed: Vec<FailedAttempt<'a>>,
    /// The forwarder that carried it last.
    forwarder: Option<&'static str>,
    /// All that carried it, one after the other.
    forwarders: Vec<StepRecord>,
    fallback: Option<&'static str>,
    bytes_up: u64,
    bytes_down: u64,
    kernel_up: u64,
    kernel_down: u64,
    /// Waiting for a place on a backend.
    queue_ms: Option<f64>,
    connect_ms: Option<f64>,
    duration_ms: f64,
    termination: &'static str,
    termination_words: &'static str,
    reject: Option<&'static str>,
    reject_detail: Option<&'a str>,
    denied_by: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct StepRecord {
    forwarder: &'static str,
    why: &'static str,
    /// Since the backend was connected.
    at_ms: f64,
}

impl StepRecord {
    fn of(step: &Step) -> Self {
        Self { forwarder: step.forwarder.as_str(), why: step.why.as_str(), at_ms: millis(step.at) }
    }
}

#[derive(Debug, Serialize)]
struct FailedAttempt<'a> {
    backend: &'a str,
    failure: &'static str,
    took_ms: f64,
}

impl<'a> Record<'a> {
    fn of(outcome: &'a Outcome) -> Self {
        let (backend, proxied) = (outcome.backend.as_ref(), outcome.proxied.as_ref());
        let failed = outcome.failed.iter().map(|attempt| FailedAttempt {
            backend: attempt.backend.as_str(),
            failure: attempt.failure.as_str(),
            took_ms: millis(attempt.took),
        });
        Self {
            target: "access",
            ts: rfc3339(outcome.started),
            id: outcome.id,
            conn_id: outcome.connection_id().to_string(),
            client_ip: outcome.client.ip().to_canonical(),
            client_port: outcome.client.port(),
            proxy_in: proxied.map(|header| header.version.as_str()),
            proxied_by: proxied.map(|_| outcome.peer),
            proxied_to: proxied.and_then(|header| header.addresses).map(|addresses| addresses.to),
            proxied_id: proxied.and_then(|header| header.unique_id.as_deref()),
            proxied_name: proxied.and_then(|header| header.server_name.as_deref()),
            to: outcome.to,
            listener: outcome.listener.as_ref().map(|listener| listener.as_str()),
            server_name: outcome.server_name.as_ref().map(|name| name.as_str()),
            app: outcome.app.as_ref().map(|app| app.as_str()),
            country: outcome.country.as_ref().map(|country| country.as_str()),
            client_region: outcome.client_region.as_ref().map(|region| region.as_str()),
            backend: backend.map(|backend| backend.id.as_str()),
            backend_addr: backend.map(|backend| backend.addr.socket_addr()),
            backend_region: backend.map(|backend| backend.region.as_str()),
            proxy_out: outcome.announced.map(ProxyVersion::as_str),
            why: backend.map(|backend| backend.reason.as_str()),
            binding_yielded: backend.and_then(|backend| backend.binding_yielded).map(|skip| skip.as_str()),
            attempts: outcome.failed.len() + usize::from(backend.is_some()),
            failed: failed.collect(),
            forwarder: outcome.forwarders.last().map(|step| step.forwarder.as_str()),
            forwarders: outcome.forwarders.iter().map(StepRecord::of).collect(),
            fallback: outcome.fallback.map(Fallback::as_str),
            bytes_up: outcome.bytes.up,
            bytes_down: outcome.bytes.down,
            kernel_up: outcome.bytes.kernel_up,
            kernel_down: outcome.bytes.kernel_down,
            queue_ms: outcome.queued.map(millis),
            connect_ms: outcome.connect.map(millis),
            duration_ms: millis(outcome.duration),
            termination: outcome.termination.letters(),
            termination_words: outcome.termination.words(),
            reject: outcome.reject.map(|reject| reject.as_str()),
            reject_detail: outcome.reject_detail.as_deref(),
            denied_by: outcome.denied_by.as_ref().map(|rule| rule.as_str()),
        }
    }
}

/// Milliseconds with three decimals.
fn millis(time: Duration) -> f64 {
    // 2^53 µs are 285 years.
    time.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::adapters::outbound::observer::sample;

    #[test]
    fn a_line_says_who_where_why_and_how_it_ended() {
        let line = serde_json::to_value(Record::of(&sample::outcome())).unwrap();
        let expected = serde_json::json!({
            "target": "access", "ts": "1970-01-01T00:00:01.500Z", "id": 7,
            "conn_id": "00000000000000ab-7",
            "proxy_in": "v2", "proxied_by": "192.0.2.33:999", "proxied_to": "198.51.100.1:443",
            "proxied_id": "lb-5", "proxied_name": "www.example.com", "proxy_out": "v1",
            "client_ip": "203.0.113.9", "client_port": 4444, "to": "192.0.2.80:8080",
            "listener": "0.0.0.0:8080", "server_name": "www.example.com",
            "app": "web", "country": "BR", "client_region": "sa",
            "backend": "sa-1", "backend_addr": "10.0.0.1:80", "backend_region": "sa",
            "why": "client_region", "binding_yielded": "at_hard_limit", "attempts": 2,
            "failed": [{"backend": "sa-2", "failure": "refused", "took_ms": 0.25}],
            "forwarder": "sockmap", "fallback": "entangled",
            "forwarders": [
                { "forwarder": "copy", "why": "start", "at_ms": 0.0 },
                { "forwarder": "sockmap", "why": "lively", "at_ms": 21.5 },
            ],
            "bytes_up": 100, "bytes_down": 2000, "kernel_up": 40, "kernel_down": 1500,
            "queue_ms": 0.5, "connect_ms": 1.5, "duration_ms": 2500.0,
            "termination": "CD", "termination_words": "client reset the connection", "reject": null,
            "reject_detail": null, "denied_by": null,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_mapped_client_is_shown_as_ipv4_and_absent_facts_are_null() {
        let line = serde_json::to_value(Record::of(&sample::rejected())).unwrap();
        assert_eq!(line["client_ip"], "203.0.113.9");
        assert_eq!(line["reject"], "all_full");
        assert_eq!(line["attempts"], 0);
        assert!(line["backend"].is_null() && line["connect_ms"].is_null());
        assert_eq!(line.as_object().unwrap().len(), 40);
    }

    #[test]
    fn every_field_is_in_the_documentation() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/observability.md");
        let page = std::fs::read_to_string(page).unwrap();
        let line = serde_json::to_value(Record::of(&sample::outcome())).unwrap();
        for field in line.as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{field}`")), "{field}");
        }
    }
}
