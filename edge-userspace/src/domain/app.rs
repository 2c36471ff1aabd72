//! How an app wants its clients to be spread, and what happens when it is full.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{AppName, HealthCheck};

/// How a backend is chosen among those that geography makes equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// By load and weight.
    #[default]
    LeastLoad,
    /// By a consistent hash of the client: the same client gets the same backend, as long as it is there.
    Maglev,
    /// By measured round-trip time.
    NearestRtt,
}

/// By what the regions are ordered that are neither the client's nor this POP's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NextRegion {
    /// Great-circle distance from the client.
    #[default]
    Position,
    /// Measured round-trip time from this POP, while each of the app's regions with a backend to be trusted
    /// has one; else position.
    Rtt,
}

/// Whether a client comes back to its backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// Until the backend is at its hard limit.
    #[default]
    Strict,
    /// Until the backend is at its soft limit: a crowd behind one address doesn't overload it.
    Soft,
    /// No binding is made.
    None,
}

/// Connections that may wait for a place on a backend while all are at their hard limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueRules {
    /// 0: nobody waits.
    pub length: u32,
    /// Who has waited for so long is turned away.
    pub timeout: Duration,
}

impl Default for QueueRules {
    fn default() -> Self {
        Self { length: 0, timeout: Duration::from_secs(5) }
    }
}

/// An app, as the routing database describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppSpec {
    pub name: AppName,
    pub selection: Selection,
    pub next_region: NextRegion,
    pub affinity: Affinity,
    pub queue: QueueRules,
    /// How its backends are checked, where they say nothing themselves.
    pub health_check: Option<HealthCheck>,
}

impl Affinity {
    /// What counts where nothing is said: a hash of the client needs no bindings beside it.
    pub const fn default_for(selection: Selection) -> Self {
        match selection {
            Selection::Maglev => Self::None,
            Selection::LeastLoad | Selection::NearestRtt => Self::Strict,
        }
    }
}

impl AppSpec {
    /// An app of which nothing but the name is said.
    pub fn new(name: AppName) -> Self {
        Self {
            name,
            selection: Selection::default(),
            next_region: NextRegion::default(),
            affinity: Affinity::default(),
            queue: QueueRules::default(),
            health_check: None,
        }
    }
}

/// Why a text says nothing about an app.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppError {
    #[error("selection {0:?} is unknown: use least_load, maglev or nearest_rtt")]
    Selection(String),
    #[error("next_region {0:?} is unknown: use position or rtt")]
    NextRegion(String),
    #[error("affinity {0:?} is unknown: use strict, soft or none")]
    Affinity(String),
}

impl Selection {
    pub const ALL: [Self; 3] = [Self::LeastLoad, Self::Maglev, Self::NearestRtt];

    pub fn parse(text: &str) -> Result<Self, AppError> {
        let found = Self::ALL.into_iter().find(|selection| selection.as_str() == text);
        found.ok_or_else(|| AppError::Selection(text.chars().take(60).collect()))
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeastLoad => "least_load",
            Self::Maglev => "maglev",
            Self::NearestRtt => "nearest_rtt",
        }
    }
}

impl NextRegion {
    pub const ALL: [Self; 2] = [Self::Position, Self::Rtt];

    pub fn parse(text: &str) -> Result<Self, AppError> {
        let found = Self::ALL.into_iter().find(|next| next.as_str() == text);
        found.ok_or_else(|| AppError::NextRegion(text.chars().take(60).collect()))
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Position => "position",
            Self::Rtt => "rtt",
        }
    }
}

impl Affinity {
    pub const ALL: [Self; 3] = [Self::Strict, Self::Soft, Self::None];

    pub fn parse(text: &str) -> Result<Self, AppError> {
        let found = Self::ALL.into_iter().find(|affinity| affinity.as_str() == text);
        found.ok_or_else(|| AppError::Affinity(text.chars().take(60).collect()))
    }

    /// Whether clients are bound at all.
    pub const fn binds(self) -> bool {
        !matches!(self, Self::None)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Soft => "soft",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for NextRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
