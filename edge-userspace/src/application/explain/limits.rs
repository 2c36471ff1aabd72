//! What the limits say to a client's next connection. To ask takes no place and counts against no rate.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Oracle;
use crate::application::admission::SourceLook;
use crate::application::status::millis;
use crate::domain::{ClientAddr, ListenerSpec, RejectReason};

/// The limits that a connection meets before a backend is chosen for it, in their order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientLimits {
    /// How long it would be left in the listen queue for `max_connection_rate`; `None` where there is no such limit.
    pub accept_wait_ms: Option<f64>,
    pub daemon: Places,
    /// `None` where sources have no limits.
    pub source: Option<SourcePlaces>,
    /// `None` where the question names no listener.
    pub listener: Option<Places>,
}

/// How many connections there are, and may be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub held: u64,
    /// 0 = unlimited.
    pub limit: u64,
    /// The reject reason, if it would be refused for this.
    pub refuses: Option<String>,
}

/// The same for the client's source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourcePlaces {
    /// Who counts as one with the client.
    pub prefix: String,
    #[serde(flatten)]
    pub places: Places,
    /// How long until the next one is within `source_rate`; `None` where there is no such limit.
    pub rate_wait_ms: Option<f64>,
}

impl ClientLimits {
    pub(super) fn of(oracle: &Oracle<'_>, client: ClientAddr, listener: Option<&ListenerSpec>, now: Instant) -> Self {
        let (admission, limit) = (oracle.admission, oracle.rules.max_connections);
        let of_listener = |listener: &ListenerSpec| {
            let held = admission.listeners().active(&listener.id);
            Places::of(held.into(), listener.max_connections.into(), RejectReason::ListenerConnections)
        };
        Self {
            accept_wait_ms: admission.wait(now).map(millis),
            daemon: Places::of(oracle.connections.active() as u64, limit as u64, RejectReason::MaxConnections),
            source: admission.sources().look(client, now).as_ref().map(SourcePlaces::from),
            listener: listener.map(of_listener),
        }
    }

    /// Why the connection would be refused before anything is known but where it comes from.
    pub(super) fn refuse_first(&self) -> Option<&String> {
        let of_source = || self.source.as_ref().and_then(|source| source.places.refuses.as_ref());
        self.daemon.refuses.as_ref().or_else(of_source)
    }

    /// Why it would be refused at its listener.
    pub(super) fn refuse_last(&self) -> Option<&String> {
        self.listener.as_ref().and_then(|listener| listener.refuses.as_ref())
    }
}

impl Places {
    fn of(held: u64, limit: u64, reason: RejectReason) -> Self {
        Self { held, limit, refuses: (limit != 0 && held >= limit).then(|| reason.as_str().to_owned()) }
    }
}

impl From<&SourceLook> for SourcePlaces {
    fn from(look: &SourceLook) -> Self {
        Self {
            prefix: look.source.to_string(),
            places: Places {
                held: look.connections.into(),
                limit: look.max_connections.into(),
                refuses: look.refused.map(|why| why.as_str().to_owned()),
            },
            rate_wait_ms: look.wait.map(millis),
        }
    }
}
