//! What is asked of a backend, how often, and how many answers count.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::parse::{self, CheckError};
use crate::domain::BackendSpec;

/// The operator's word on the checks of a backend or of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// Not checked.
    Off,
    On(Arc<CheckSpec>),
}

impl HealthCheck {
    /// Reads a column `health_check`; the words are in `docs/health.md`.
    pub fn parse(text: &str) -> Result<Self, CheckError> {
        if text == "none" {
            return Ok(Self::Off);
        }
        parse::spec(text).map(|spec| Self::On(Arc::new(spec)))
    }

    pub fn spec(&self) -> Option<&Arc<CheckSpec>> {
        match self {
            Self::Off => None,
            Self::On(spec) => Some(spec),
        }
    }
}

/// One kind of check with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckSpec {
    /// As the operator wrote it.
    pub text: String,
    pub probe: Probe,
    /// Where to, if not the backend's own port.
    pub port: Option<NonZero<u16>>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub rise: Option<NonZero<u32>>,
    pub fall: Option<NonZero<u32>>,
}

impl CheckSpec {
    /// Asks a backend to accept a connection, and nothing else.
    pub fn connect() -> Self {
        let (interval, timeout, rise, fall) = (None, None, None, None);
        Self { text: "tcp".to_owned(), probe: Probe::Connect, port: None, interval, timeout, rise, fall }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// It accepts connections.
    Connect,
    /// It is sent something (or nothing), and its answer contains something.
    Exchange {
        send: Vec<u8>,
        expect: Vec<u8>,
    },
    Http(HttpCheck),
}

/// A GET and the status that is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    pub path: String,
    /// The header `Host`; without it the address.
    pub host: Option<String>,
    pub status: StatusRanges,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub verify: Verify,
    /// The server name that is asked for and that the certificate must have; without it, that of `host`.
    pub sni: Option<String>,
}

/// Who is believed about a backend's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verify {
    /// Anybody: the check asks whether the backend is well, not who it is.
    None,
    /// The authorities of this host.
    System,
    /// Those in a file (PEM).
    File(PathBuf),
}

/// Status codes, in ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRanges(pub(super) Vec<(u16, u16)>);

impl StatusRanges {
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&status))
    }
}

impl Default for StatusRanges {
    /// A success, or a redirection to where one may be.
    fn default() -> Self {
        Self(vec![(200, 399)])
    }
}

/// What holds where a check says nothing else: the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckDefaults {
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
}

/// How often a backend is checked, and how many answers in a row change its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckPace {
    /// From the beginning of one check to that of the next.
    pub interval: Duration,
    /// For one check, from the first packet to the last.
    pub timeout: Duration,
    /// Checks in a row that pass and bring a backend back.
    pub rise: u32,
    /// Checks in a row that fail and take a backend out.
    pub fall: u32,
}

impl CheckSpec {
    /// Where a backend is checked.
    pub fn addr_of(&self, backend: &BackendSpec) -> SocketAddr {
        let addr = backend.addr.socket_addr();
        self.port.map_or(addr, |port| SocketAddr::new(addr.ip(), port.get()))
    }

    pub fn pace(&self, defaults: &CheckDefaults) -> CheckPace {
        CheckPace {
            interval: self.interval.unwrap_or(defaults.interval),
            timeout: self.timeout.unwrap_or(defaults.timeout),
            rise: self.rise.map_or(defaults.rise, NonZero::get).max(1),
            fall: self.fall.map_or(defaults.fall, NonZero::get).max(1),
        }
    }
}

impl fmt::Display for CheckSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
