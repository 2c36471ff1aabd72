//! One upstream address of an app, and what the operator says about it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{AppName, BackendAddr, BackendId, BackendLoad, CountryCode, HealthCheck, ProxyVersion, Region};

/// Soft limit of a row that names none, and the yardstick for the load of a backend whose soft limit is 0.
pub const DEFAULT_SOFT_LIMIT: u32 = 100;

/// Share of new clients relative to the other backends; 0 takes no new clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Weight(pub u32);

/// Connection limits of one backend.
///
/// At `soft` connections others of the same region score are preferred; 0 means that this backend is never counted
/// as being over it (its load is then measured against [`DEFAULT_SOFT_LIMIT`]). At `hard` it takes none; 0 means
/// unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    soft: u32,
    hard: u32,
}

/// Why two numbers aren't limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("soft_limit {soft} is above hard_limit {hard}: lower it, or set hard_limit to 0 for unlimited")]
pub struct LimitError {
    soft: u32,
    hard: u32,
}

impl Limits {
    pub fn new(soft: u32, hard: u32) -> Result<Self, LimitError> {
        if hard != 0 && soft > hard {
            return Err(LimitError { soft, hard });
        }
        Ok(Self { soft, hard })
    }

    pub fn soft(self) -> u32 {
        self.soft
    }

    pub fn hard(self) -> u32 {
        self.hard
    }

    /// No further connection may be admitted.
    pub fn is_full(self, active: u32) -> bool {
        self.hard != 0 && active >= self.hard
    }

    /// Others are to be preferred.
    pub fn is_over_soft(self, active: u32) -> bool {
        self.soft != 0 && active >= self.soft
    }

    /// Connections ÷ soft limit.
    pub fn load_factor(self, active: u32) -> f64 {
        f64::from(active) / self.yardstick()
    }

    pub(super) fn yardstick(self) -> f64 {
        f64::from(if self.soft == 0 { DEFAULT_SOFT_LIMIT } else { self.soft })
    }
}

/// The operator's word on a backend; outranks what probes see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Takes clients.
    Ready,
    /// Takes no new connections; existing ones live on.
    Drain,
    /// Out of service.
    Maint,
}

/// Why a text is not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("state {0:?} is unknown: use ready, drain or maint")]
pub struct StateError(String);

impl BackendState {
    pub fn parse(text: &str) -> Result<Self, StateError> {
        match text {
            "ready" => Ok(Self::Ready),
            "drain" => Ok(Self::Drain),
            "maint" => Ok(Self::Maint),
            other => Err(StateError(other.to_owned())),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a backend is out for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The app has no such backend (any more).
    Gone,
    Drain,
    Maint,
    Unhealthy,
    /// Weight 0: serves the clients it has, takes no new ones.
    WeightZero,
    AtHardLimit,
    /// Of a binding that yields there, while another backend is below its soft limit.
    AtSoftLimit,
    /// It failed other connections lately; asked only when no other is left.
    Ejected,
    /// Its checks fail; asked only when all that are in service are out.
    CheckFailed,
    /// This connection has tried it already.
    Tried,
}

impl Skip {
    pub const ALL: [Self; 10] = [
        Self::Gone,
        Self::Drain,
        Self::Maint,
        Self::Unhealthy,
        Self::WeightZero,
        Self::AtHardLimit,
        Self::AtSoftLimit,
        Self::Ejected,
        Self::CheckFailed,
        Self::Tried,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Drain => "drain",
            Self::Maint => "maint",
            Self::Unhealthy => "unhealthy",
            Self::WeightZero => "weight_zero",
            Self::AtHardLimit => "at_hard_limit",
            Self::AtSoftLimit => "at_soft_limit",
            Self::Ejected => "ejected",
            Self::CheckFailed => "check_failed",
            Self::Tried => "tried",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One upstream address of an app, as the routing database describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendSpec {
    pub id: BackendId,
    pub app: AppName,
    pub region: Region,
    pub addr: BackendAddr,
    pub country: Option<CountryCode>,
    pub healthy: bool,
    pub state: BackendState,
    pub weight: Weight,
    pub limits: Limits,
    /// The operator says that it runs on this host and may be handed bytes without TCP (`docs/same-host.md`).
    pub same_host: bool,
    /// How this POP checks it; `None`: as the app says.
    pub health_check: Option<HealthCheck>,
    /// The PROXY header that begins each of its connections.
    pub send_proxy: Option<ProxyVersion>,
}

/// A backend in service: its description and the load it carries. Reads like its description.
#[derive(Debug, Clone)]
pub struct Backend {
    pub spec: BackendSpec,
    pub load: Arc<BackendLoad>,
}

impl Deref for Backend {
    type Target = BackendSpec;

    fn deref(&self) -> &BackendSpec {
        &self.spec
    }
}

impl Backend {
    /// Whether it is still where this version of its row says. What connections to a former address have to say is no
    /// longer about it.
    pub fn is_in_place(&self) -> bool {
        self.load.is_at(self.addr)
    }

    /// Measures how far it is, if that would count for anything now.
    pub fn measure(&self, now: Instant, round_trip: impl FnOnce() -> Option<Duration>) {
        if self.is_in_place() {
            self.load.rtt().measure(now, round_trip);
        }
    }
}

impl BackendSpec {
    pub fn with_load(self, load: Arc<BackendLoad>) -> Backend {
        load.begin_at(self.addr);
        Backend { spec: self, load }
    }

    /// Why the operator's settings keep even a bound client away.
    pub fn out_of_service(&self) -> Option<Skip> {
        match self.state {
            BackendState::Drain => Some(Skip::Drain),
            BackendState::Maint => Some(Skip::Maint),
            BackendState::Ready if !self.healthy => Some(Skip::Unhealthy),
            BackendState::Ready => None,
        }
    }

    /// Why the operator's settings keep new clients away.
    pub fn closed_to_new(&self) -> Option<Skip> {
        self.out_of_service().or((self.weight.0 == 0).then_some(Skip::WeightZero))
    }

    /// Load factor ÷ weight: the part of the score that isn't geography. Weight 0 counts as 1, for bound clients.
    pub fn relative_load(&self, active: u32) -> f64 {
        self.limits.load_factor(active) / f64::from(self.weight.0.max(1))
    }
}
