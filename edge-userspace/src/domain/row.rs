//! From database rows to backends: parse, don't validate. A row that can't become a backend is named and refused
//! alone. The loader and the `db` commands use this same code.

use std::fmt;
use std::net::IpAddr;

use super::{
    AddrError, AppName, BackendAddr, BackendId, BackendSpec, BackendState, CountryCode, CountryError,
    DEFAULT_SOFT_LIMIT, LimitError, Limits, NameError, Position, Region, RegionSpec, StateError, Weight,
};

/// A value as SQLite stores it: any column may hold any of these.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum RawValue {
    /// NULL, or a column the table doesn't have.
    #[default]
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    /// Bytes, or text that isn't UTF-8.
    Blob,
}

impl fmt::Display for RawValue {
    /// Enough to recognise the value; a row may hold megabytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.pad("NULL"),
            Self::Integer(number) => number.fmt(f),
            Self::Real(number) => number.fmt(f),
            Self::Text(text) => f.pad(&format!("{:?}", text.chars().take(40).collect::<String>())),
            Self::Blob => f.pad("a blob"),
        }
    }
}

impl From<&str> for RawValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for RawValue {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

/// A row of the table `backends`, not validated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawBackend {
    pub id: RawValue,
    pub app: RawValue,
    pub region: RawValue,
    /// Address of the backend; the seed's name for it.
    pub wg_ip: RawValue,
    pub port: RawValue,
    pub healthy: RawValue,
    pub weight: RawValue,
    pub soft_limit: RawValue,
    pub hard_limit: RawValue,
    pub deleted: RawValue,
    pub country: RawValue,
    pub state: RawValue,
    pub same_host: RawValue,
}

/// A row of the table `regions`, not validated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawRegion {
    pub name: RawValue,
    pub latitude: RawValue,
    pub longitude: RawValue,
    /// Country codes separated by commas or spaces.
    pub countries: RawValue,
    pub deleted: RawValue,
}

/// All routing rows of one moment, not validated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawRouting {
    pub backends: Vec<RawBackend>,
    pub regions: Vec<RawRegion>,
}

/// Why a row is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RowError {
    #[error("{column} is missing: give it a value")]
    Missing { column: &'static str },
    #[error("{column} is {found}: it must be {expected}")]
    Type { column: &'static str, found: String, expected: &'static str },
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
    State(#[from] StateError),
    #[error(transparent)]
    Country(#[from] CountryError),
    #[error("id occurs twice: only the first row counts")]
    Duplicate,
    #[error("no counter is left: at most {capacity} backends are supported")]
    NoSlot { capacity: u32 },
}

impl RawBackend {
    /// All columns by name.
    pub fn columns(&self) -> [(&'static str, &RawValue); 13] {
        [
            ("id", &self.id),
            ("app", &self.app),
            ("region", &self.region),
            ("wg_ip", &self.wg_ip),
            ("port", &self.port),
            ("healthy", &self.healthy),
            ("weight", &self.weight),
            ("soft_limit", &self.soft_limit),
            ("hard_limit", &self.hard_limit),
            ("deleted", &self.deleted),
            ("country", &self.country),
            ("state", &self.state),
            ("same_host", &self.same_host),
        ]
    }

    /// One column by name.
    pub fn column_mut(&mut self, name: &str) -> Option<&mut RawValue> {
        Some(match name {
            "id" => &mut self.id,
            "app" => &mut self.app,
            "region" => &mut self.region,
            "wg_ip" => &mut self.wg_ip,
            "port" => &mut self.port,
            "healthy" => &mut self.healthy,
            "weight" => &mut self.weight,
            "soft_limit" => &mut self.soft_limit,
            "hard_limit" => &mut self.hard_limit,
            "deleted" => &mut self.deleted,
            "country" => &mut self.country,
            "state" => &mut self.state,
            "same_host" => &mut self.same_host,
            _ => return None,
        })
    }

    /// The id, if it is one.
    pub fn id(&self) -> Result<BackendId, RowError> {
        Ok(BackendId::parse(text("id", &self.id)?)?)
    }

    /// A tombstone: the row counts as absent, whatever else it holds. NULL means not deleted.
    pub fn is_deleted(&self) -> bool {
        matches!(self.deleted, RawValue::Integer(n) if n != 0)
    }

    /// The backend the row describes. NULL or absent columns mean: healthy 1, weight 1, soft_limit 100 (or
    /// hard_limit, if that is lower), hard_limit 0 (unlimited), state `ready`, no country, same_host 0.
    pub fn parse(&self) -> Result<BackendSpec, RowError> {
        flag("deleted", &self.deleted)?;
        Ok(BackendSpec {
            id: self.id()?,
            app: AppName::parse(text("app", &self.app)?)?,
            region: Region::parse(text("region", &self.region)?)?,
            addr: BackendAddr::new(address(text("wg_ip", &self.wg_ip)?)?, self.port()?)?,
            country: optional_text("country", &self.country)?.map(CountryCode::parse).transpose()?,
            healthy: flag("healthy", &self.healthy)?.unwrap_or(true),
            state: optional_text("state", &self.state)?.map_or(Ok(BackendState::Ready), BackendState::parse)?,
            weight: Weight(count("weight", &self.weight)?.unwrap_or(1)),
            limits: self.limits()?,
            same_host: flag("same_host", &self.same_host)?.unwrap_or(false),
        })
    }

    fn port(&self) -> Result<u16, RowError> {
        let wrong =
            || RowError::Type { column: "port", found: self.port.to_string(), expected: "an integer from 1 to 65535" };
        match self.port {
            RawValue::Null => Err(RowError::Missing { column: "port" }),
            RawValue::Integer(port) => u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }

    fn limits(&self) -> Result<Limits, RowError> {
        let hard = count("hard_limit", &self.hard_limit)?.unwrap_or(0);
        let default = if hard == 0 { DEFAULT_SOFT_LIMIT } else { DEFAULT_SOFT_LIMIT.min(hard) };
        Ok(Limits::new(count("soft_limit", &self.soft_limit)?.unwrap_or(default), hard)?)
    }
}

impl RawRegion {
    /// The name, if it is one.
    pub fn name(&self) -> Option<Region> {
        Region::parse(text("name", &self.name).ok()?).ok()
    }

    pub fn is_deleted(&self) -> bool {
        matches!(self.deleted, RawValue::Integer(n) if n != 0)
    }

    pub fn parse(&self) -> Result<RegionSpec, RowError> {
        let countries = optional_text("countries", &self.countries)?.unwrap_or_default();
        let codes = countries.split([',', ' ']).filter(|code| !code.is_empty());
        Ok(RegionSpec {
            name: Region::parse(text("name", &self.name)?)?,
            position: self.position()?,
            countries: codes.map(CountryCode::parse).collect::<Result<_, _>>()?,
        })
    }

    fn position(&self) -> Result<Option<Position>, RowError> {
        match (degrees(&self.latitude)?, degrees(&self.longitude)?) {
            (None, None) => Ok(None),
            (Some(latitude), Some(longitude)) => Position::new(latitude, longitude).map(Some).ok_or(RowError::Position),
            _ => Err(RowError::Position),
        }
    }
}

fn degrees(value: &RawValue) -> Result<Option<f64>, RowError> {
    match value {
        RawValue::Null => Ok(None),
        RawValue::Real(degrees) => Ok(Some(*degrees)),
        // 53 bits are plenty: the range is checked later.
        RawValue::Integer(degrees) => i32::try_from(*degrees).map(|n| Some(n.into())).map_err(|_| RowError::Position),
        _ => Err(RowError::Position),
    }
}

fn optional_text<'a>(column: &'static str, value: &'a RawValue) -> Result<Option<&'a str>, RowError> {
    match value {
        RawValue::Null => Ok(None),
        RawValue::Text(text) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
        other => Err(RowError::Type { column, found: other.to_string(), expected: "text" }),
    }
}

fn text<'a>(column: &'static str, value: &'a RawValue) -> Result<&'a str, RowError> {
    optional_text(column, value)?.ok_or(RowError::Missing { column })
}

fn count(column: &'static str, value: &RawValue) -> Result<Option<u32>, RowError> {
    let wrong = || RowError::Type { column, found: value.to_string(), expected: "an integer from 0 to 4294967295" };
    match value {
        RawValue::Null => Ok(None),
        RawValue::Integer(n) => u32::try_from(*n).map(Some).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

fn flag(column: &'static str, value: &RawValue) -> Result<Option<bool>, RowError> {
    match value {
        RawValue::Null => Ok(None),
        RawValue::Integer(n) => Ok(Some(*n != 0)),
        other => Err(RowError::Type { column, found: other.to_string(), expected: "0 or 1" }),
    }
}

fn address(text: &str) -> Result<IpAddr, RowError> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| RowError::Address(text.chars().take(60).collect()))
}

#[cfg(test)]
mod tests;
