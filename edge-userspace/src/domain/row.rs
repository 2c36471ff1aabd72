//! From database rows to backends: parse, don't validate. A row that can't become a backend is named and refused
//! alone. The loader and the `db` commands use this same code.

mod acl;
mod app;
mod backend;
mod geo_override;
mod listener;
mod region;
mod table;
mod value;

use super::{
    AccessError, AddrError, AppError, CheckError, CountryError, LimitError, ListenerError, NameError, OverrideError,
    SendProxyError, StateError,
};

pub use acl::RawAcl;
pub use app::RawApp;
pub use backend::RawBackend;
pub use geo_override::RawGeoOverride;
pub use listener::RawListener;
pub use region::RawRegion;
pub use table::RawRow;
use table::raw_row;
pub use value::RawValue;

/// All routing rows of one moment, not validated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawRouting {
    pub backends: Vec<RawBackend>,
    pub regions: Vec<RawRegion>,
    pub apps: Vec<RawApp>,
    pub listeners: Vec<RawListener>,
    pub geo_overrides: Vec<RawGeoOverride>,
    pub acl: Vec<RawAcl>,
    /// Tables that are not there at all.
    pub missing: Vec<&'static str>,
}

/// Why a row is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RowError {
    #[error("{column} is missing: give it a value")]
    Missing { column: &'static str },
    #[error("{column} is {found}: it must be {expected}")]
    Type { column: &'static str, found: String, expected: &'static str },
    #[error("{column} is {found}: it must be an integer from {least} to {most}")]
    Range { column: &'static str, found: String, least: u32, most: u32 },
    #[error("wg_ip {0:?} is not an IPv4 or IPv6 address")]
    Address(String),
    #[error("latitude and longitude are not a position: use degrees within ±90 and ±180, or leave both out")]
    Position,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Dial(#[from] AddrError),
    #[error(transparent)]
    Limits(#[from] LimitError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    SendProxy(#[from] SendProxyError),
    #[error(
        "same_host and send_proxy exclude each other: bytes that are handed over without TCP leave no place for a header; \
         set same_host to 0 or send_proxy to off"
    )]
    HeaderWithoutTcp,
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Listener(#[from] ListenerError),
    #[error(transparent)]
    Override(#[from] OverrideError),
    #[error(transparent)]
    Country(#[from] CountryError),
    #[error("id occurs twice: only one row counts, that in force or else the first")]
    Duplicate,
    #[error("another row has the same name: only one counts, that in force or else the first")]
    DuplicateName,
    #[error("another row has the same prefix: only one counts, that in force or else the first")]
    DuplicatePrefix,
    #[error("there are {most} regions already, and more are not supported: remove one that is not needed")]
    TooManyRegions { most: usize },
    #[error("no counter is left: at most {capacity} backends are supported")]
    NoSlot { capacity: u32 },
}

#[cfg(test)]
mod tests;
