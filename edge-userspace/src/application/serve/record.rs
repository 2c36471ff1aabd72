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
            connect: None,
            duration: Duration::ZERO,
            // What stays if the task is cancelled.
            termination: Termination::KilledByDrain,
            reject: None,
            reject_detail: None,
        };
        Self { observer, accepted: Instant::now(), outcome, position: None }
    }

    pub(super) fn connected(&mut self, backend: ChosenBackend) {
        self.outcome.backend = Some(backend);
        self.outcome.connect = Some(self.accepted.elapsed());
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.outcome.duration = self.accepted.elapsed();
        self.observer.closed(&self.outcome);
    }
}
