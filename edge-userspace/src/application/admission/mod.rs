//! Who may have a connection at all: limits by source, by listener and of the whole daemon in a second.

mod listeners;
mod sources;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::domain::{ClientAddr, ClientPrefix, ListenerSpec, Pace, Rate, RejectReason};

pub use listeners::{ListenerHeld, Listeners};
pub use sources::{SourceHeld, SourceLook, SourceRules, Sources};

/// The limits of this daemon and what is counted for them. Shared by all workers.
#[derive(Debug)]
pub struct Admission {
    sources: Arc<Sources>,
    listeners: Arc<Listeners>,
    /// Of all connections.
    pace: Option<Pace>,
    pauses: AtomicU64,
    started: Instant,
}

impl Admission {
    /// `rate` is of all connections; `None` is no limit.
    pub fn new(sources: SourceRules, rate: Option<Rate>) -> Self {
        Self {
            sources: Arc::new(Sources::new(sources)),
            listeners: Arc::default(),
            pace: rate.map(Pace::new),
            pauses: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// How long to leave clients in the listen queue after one was accepted at `now`.
    pub fn pause(&self, now: Instant) -> Duration {
        let pause = self.pace.as_ref().map_or(Duration::ZERO, |pace| pace.charge(self.nanos(now)));
        if !pause.is_zero() {
            self.pauses.fetch_add(1, Ordering::Relaxed);
        }
        pause
    }

    /// How long a client that comes at `now` stays in the listen queue; `None` where there is no limit. Counts nothing.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.pace.as_ref().map(|pace| pace.wait(self.nanos(now)))
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Pauses that were made since the start.
    pub fn pauses(&self) -> u64 {
        self.pauses.load(Ordering::Relaxed)
    }

    /// Takes a place among those of the client's source; `None` where sources have no limits.
    pub fn source(&self, client: ClientAddr, now: Instant) -> Result<Option<SourceHeld>, RejectReason> {
        self.sources.admit(client, now)
    }

    /// Takes a place among those of the listener.
    pub fn listener(&self, listener: &ListenerSpec) -> Result<ListenerHeld, RejectReason> {
        let held = self.listeners.hold(&listener.id, listener.max_connections);
        held.ok_or(RejectReason::ListenerConnections)
    }

    /// What clients are told apart by.
    pub fn prefix(&self, client: ClientAddr) -> ClientPrefix {
        self.sources.prefix(client)
    }

    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }
}
