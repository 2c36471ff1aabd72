//! Metrics: counted on the way of each connection, written as OpenMetrics text when someone asks.
//!
//! Label values come from fixed sets or from the routing database, never from a client.

mod counters;
mod names;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use counters::{Labelled, Times};
use dashmap::DashMap;

use crate::application::ports::GeoSource;
use crate::application::status::{ConnectionStatus, Status};
use crate::domain::{
    ByteCounts, CheckReport, CheckResult, Complaint, ConnectFailure, Fallback, ForwarderKind, ListenerId, Outcome,
    PickReason, ProxyVersion, RejectReason, Skip, Termination, Why, Witness,
};

/// Upper bounds in seconds: a LAN connect takes 0.1 ms, one around the world 0.3 s, a lost SYN 1 s, 3 s, 7 s.
const CONNECT_BOUNDS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0];
/// From a health check to a connection that is held for days.
const DURATION_BOUNDS: [f64; 10] = [0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0];

/// All counters of the daemon.
#[derive(Debug)]
pub struct Metrics {
    accepted: AtomicU64,
    closed: Labelled,
    rejected: Labelled,
    connect: Times,
    queue: Times,
    duration: Times,
    bytes: Bytes,
    /// The counts of bytes that were last shown, in the order of [`Bytes`].
    shown: [AtomicU64; 4],
    connect_failures: Labelled,
    retries: AtomicU64,
    picks: Labelled,
    yielded: Labelled,
    proxy_in: Labelled,
    proxy_out: Labelled,
    ejections: Ejections,
    checks: Labelled,
    check_seconds: Times,
    geo: Labelled,
    flows: Labelled,
    chosen: Chosen,
    fallbacks: Labelled,
    accept_errors: Labelled,
    /// Connections that have ended, by listener. As many entries as there are listeners, and those that were removed
    /// since the metrics were last asked for.
    by_listener: DashMap<ListenerId, u64>,
    /// Name of each log and the count of records it lost.
    lost: Vec<(&'static str, Arc<AtomicU64>)>,
}

/// How often each forwarder took a connection over, by why.
type Chosen = [(ForwarderKind, Labelled); ForwarderKind::ALL.len()];

/// How often backends were ejected, by whose connection showed what.
type Ejections = [(Witness, Labelled); Witness::ALL.len()];

/// Payload of ended connections: direction, then who moved it.
#[derive(Debug, Default)]
struct Bytes {
    up_user: AtomicU64,
    up_kernel: AtomicU64,
    down_user: AtomicU64,
    down_kernel: AtomicU64,
}

impl Metrics {
    /// `lost` names each log writer and its count of records lost (`LineWriter::lost`).
    pub fn new(lost: Vec<(&'static str, Arc<AtomicU64>)>) -> Self {
        Self {
            accepted: AtomicU64::new(0),
            closed: Labelled::new(Termination::ALL.into_iter().map(Termination::letters)),
            rejected: Labelled::new(RejectReason::all().map(RejectReason::as_str)),
            connect: Times::new(&CONNECT_BOUNDS),
            queue: Times::new(&CONNECT_BOUNDS),
            duration: Times::new(&DURATION_BOUNDS),
            bytes: Bytes::default(),
            shown: Default::default(),
            connect_failures: Labelled::new(ConnectFailure::ALL.into_iter().map(ConnectFailure::as_str)),
            retries: AtomicU64::new(0),
            picks: Labelled::new(PickReason::ALL.into_iter().map(PickReason::as_str)),
            yielded: Labelled::new(Skip::ALL.into_iter().map(Skip::as_str)),
            proxy_in: Labelled::new(ProxyVersion::ALL.into_iter().map(ProxyVersion::as_str)),
            proxy_out: Labelled::new(ProxyVersion::ALL.into_iter().map(ProxyVersion::as_str)),
            ejections: Witness::ALL.map(|by| (by, Labelled::new(Complaint::ALL.into_iter().map(Complaint::as_str)))),
            checks: Labelled::new(CheckResult::ALL.into_iter().map(CheckResult::as_str)),
            check_seconds: Times::new(&CONNECT_BOUNDS),
            geo: Labelled::new(GeoSource::ALL.into_iter().map(GeoSource::as_str)),
            flows: Labelled::new(ForwarderKind::ALL.into_iter().map(ForwarderKind::as_str)),
            chosen: ForwarderKind::ALL.map(|kind| (kind, Labelled::new(Why::all().map(Why::as_str)))),
            fallbacks: Labelled::new(Fallback::ALL.into_iter().map(Fallback::as_str)),
            accept_errors: Labelled::new(["emfile", "enfile", "nomem"]),
            by_listener: DashMap::new(),
            lost,
        }
    }

    /// A client's connection was accepted.
    pub fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// A client was located.
    pub fn located(&self, source: GeoSource) {
        self.geo.add(source.as_str(), 1);
    }

    /// A backend was ejected.
    pub fn ejected(&self, why: Complaint, by: Witness) {
        if let Some((_, by_why)) = self.ejections.iter().find(|(witness, _)| *witness == by) {
            by_why.add(why.as_str(), 1);
        }
    }

    /// A backend was checked.
    pub fn checked(&self, report: &CheckReport) {
        self.checks.add(report.result.as_str(), 1);
        self.check_seconds.observe(report.took);
    }

    /// `accept(2)` failed.
    pub fn accept_failed(&self, kind: &str) {
        self.accept_errors.add(kind, 1);
    }

    /// A connection ended.
    pub fn closed(&self, outcome: &Outcome) {
        self.closed.add(outcome.termination.letters(), 1);
        self.duration.observe(outcome.duration);
        if let Some(listener) = &outcome.listener {
            self.count_listener(listener);
        }
        if let Some(reject) = outcome.reject {
            self.rejected.add(reject.as_str(), 1);
        }
        if let Some(queued) = outcome.queued {
            self.queue.observe(queued);
        }
        if let Some(connect) = outcome.connect {
            self.connect.observe(connect);
        }
        if let Some(header) = &outcome.proxied {
            self.proxy_in.add(header.version.as_str(), 1);
        }
        if let Some(version) = outcome.announced {
            self.proxy_out.add(version.as_str(), 1);
        }
        self.count_backend(outcome);
        self.count_forwarders(outcome);
        if let Some(fallback) = &outcome.fallback {
            self.fallbacks.add(fallback.as_str(), 1);
        }
        let bytes = outcome.bytes;
        self.bytes.up_user.fetch_add(bytes.up.saturating_sub(bytes.kernel_up), Ordering::Relaxed);
        self.bytes.up_kernel.fetch_add(bytes.kernel_up, Ordering::Relaxed);
        self.bytes.down_user.fetch_add(bytes.down.saturating_sub(bytes.kernel_down), Ordering::Relaxed);
        self.bytes.down_kernel.fetch_add(bytes.kernel_down, Ordering::Relaxed);
    }

    fn count_listener(&self, listener: &ListenerId) {
        match self.by_listener.get_mut(listener) {
            Some(mut count) => *count += 1,
            None => *self.by_listener.entry(listener.clone()).or_default() += 1,
        }
    }

    fn count_forwarders(&self, outcome: &Outcome) {
        if let Some(last) = outcome.forwarders.last() {
            self.flows.add(last.forwarder.as_str(), 1);
        }
        for step in &outcome.forwarders {
            if let Some((_, by_why)) = self.chosen.iter().find(|(kind, _)| *kind == step.forwarder) {
                by_why.add(step.why.as_str(), 1);
            }
        }
    }

    /// Payload of ended connections, in the order of [`Bytes`].
    pub fn ended_bytes(&self) -> [u64; 4] {
        let Bytes { up_user, up_kernel, down_user, down_kernel } = &self.bytes;
        [up_user, up_kernel, down_user, down_kernel].map(|count| count.load(Ordering::Relaxed))
    }

    /// Payload of connections that have `ended`, and of those that run. Never less than the last time.
    fn all_bytes(&self, ended: [u64; 4], running: ByteCounts) -> [u64; 4] {
        let running = [
            running.up.saturating_sub(running.kernel_up),
            running.kernel_up,
            running.down.saturating_sub(running.kernel_down),
            running.kernel_down,
        ];
        let mut shown = ended;
        for ((shown, running), highest) in shown.iter_mut().zip(running).zip(&self.shown) {
            *shown += running;
            *shown = highest.fetch_max(*shown, Ordering::Relaxed).max(*shown);
        }
        shown
    }

    fn count_backend(&self, outcome: &Outcome) {
        for attempt in &outcome.failed {
            self.connect_failures.add(attempt.failure.as_str(), 1);
        }
        let connects = outcome.failed.len() + usize::from(outcome.backend.is_some());
        let retries = u64::try_from(connects.saturating_sub(1)).unwrap_or(u64::MAX);
        self.retries.fetch_add(retries, Ordering::Relaxed);
        if let Some(backend) = &outcome.backend {
            self.picks.add(backend.reason.as_str(), 1);
            if let Some(skip) = backend.binding_yielded {
                self.yielded.add(skip.as_str(), 1);
            }
        }
    }

    /// The connection counts, for `Status`. Active is derived, so that it cannot drift from the counters.
    pub fn connections(&self) -> ConnectionStatus {
        // Closed is read first: a connection that ends in between then counts as active, not as minus one.
        let closed = self.closed.total();
        let accepted = self.accepted.load(Ordering::Acquire);
        let rejected = self.rejected.counts().filter(|(_, count)| *count > 0);
        ConnectionStatus {
            active: accepted.saturating_sub(closed),
            accepted,
            closed,
            rejected: rejected.map(|(reason, count)| (reason.to_owned(), count)).collect::<BTreeMap<_, _>>(),
        }
    }

    /// All metrics as OpenMetrics text. `ended` are the bytes of [`Self::ended_bytes`], taken before those of
    /// the flows that run. What is derived from live objects is taken from `status`.
    pub fn render(
        self: &Arc<Self>,
        status: Status,
        ended: [u64; 4],
        running: ByteCounts,
    ) -> Result<String, std::fmt::Error> {
        text::render(Arc::clone(self), status, self.all_bytes(ended, running))
    }
}

#[cfg(test)]
mod tests;
