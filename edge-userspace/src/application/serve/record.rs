//! The record of a connection while it lives.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::Proxy;
use crate::application::ports::Observer;
use crate::domain::{ByteCounts, ChosenBackend, Outcome, Position, Termination};

/// The outcome in the making. It is handed over exactly once, also when the task is cancelled.
pub(super) struct Record<'a> {
    observer: &'a dyn Observer,
    accepted: Instant,
    /// When it began to wait for a place on a backend, while it does.
    waits_since: Option<Instant>,
    pub(super) outcome: Outcome,
    /// Where the client is, as exactly as the geo data knows.
    pub(super) position: Option<Position>,
}

impl<'a> Record<'a> {
    pub(super) fn start<C, F>(proxy: &'a Proxy<C, F>, peer: SocketAddr, to: SocketAddr) -> Self {
        let observer = &*proxy.observer;
        observer.accepted();
        let outcome = Outcome {
            id: proxy.ids.fetch_add(1, Ordering::Relaxed) + 1,
            instance: proxy.instance,
            peer,
            client: peer,
            proxied: None,
            to,
            listener: None,
            server_name: None,
            app: None,
            country: None,
            client_region: None,
            backend: None,
            announced: None,
            failed: Vec::new(),
            forwarders: Vec::new(),
            fallback: None,
            bytes: ByteCounts::default(),
            started: SystemTime::now(),
            queued: None,
            connect: None,
            duration: Duration::ZERO,
            // What stays if the task is cancelled.
            termination: Termination::KilledByDrain,
            reject: None,
            reject_detail: None,
            denied_by: None,
        };
        Self { observer, accepted: Instant::now(), waits_since: None, outcome, position: None }
    }

    pub(super) fn waits_since(&mut self, now: Instant) {
        self.waits_since = Some(now);
    }

    /// Whether it waits for a place on a backend.
    pub(super) fn waits(&self) -> bool {
        self.waits_since.is_some()
    }

    /// Adds up: after a failed connect it may have to wait again.
    pub(super) fn waits_no_more(&mut self) {
        if let Some(since) = self.waits_since.take() {
            *self.outcome.queued.get_or_insert_default() += since.elapsed();
        }
    }

    pub(super) fn connected(&mut self, backend: ChosenBackend) {
        self.outcome.backend = Some(backend);
        self.outcome.connect = Some(self.accepted.elapsed());
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.waits_no_more();
        self.outcome.duration = self.accepted.elapsed();
        self.observer.closed(&self.outcome);
    }
}
