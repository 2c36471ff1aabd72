//! Where an address is, by a country or city database: the embedded one, or a file of the operator's.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use maxminddb::{LookupResult, MaxMindDbError, PathElement, Reader};
use serde::Serialize;

use super::file_identity::FileIdentity;
use crate::application::ports::{GeoAnswer, GeoResolver};
use crate::domain::{CountryCode, Position};

/// The public-domain `iptoasn-country` database.
static EMBEDDED: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/geo/iptoasn-country.mmdb"));

/// Licence of the embedded database, for `doctor` and `--version`.
pub const EMBEDDED_LICENCE: &str = "iptoasn.com country data, public domain (PDDL 1.0)";

/// Why a geo database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GeoError {
    #[error("geo database {path} can't be read: {why}; check EDGEPROXY_GEOIP_PATH")]
    File { path: String, why: std::io::Error },
    #[error("geo database {origin} is not a usable mmdb file: {why}")]
    Format { origin: String, why: MaxMindDbError },
}

/// What `status` and `doctor` say about the database in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GeoInfo {
    /// The file; `None` for the embedded database.
    pub path: Option<PathBuf>,
    pub database_type: String,
    /// Seconds since 1970 when the database was built.
    pub build_epoch: u64,
}

/// Resolves clients to countries. Lookups take no lock; a new file takes the old one's place at once.
#[derive(Debug)]
pub struct Geo {
    current: ArcSwap<Database>,
    /// The operator's file and its identity when it was last tried, usable or not.
    file: Option<(PathBuf, Mutex<Option<FileIdentity>>)>,
}

#[derive(Debug)]
enum Database {
    Embedded(Reader<&'static [u8]>),
    File(Reader<Vec<u8>>),
}

impl Geo {
    /// `path` names the operator's database; without one the embedded database is used.
    pub fn open(path: Option<&Path>) -> Result<Self, GeoError> {
        let (database, file) = match path {
            None => (Database::embedded()?, None),
            Some(path) => {
                let (database, identity) = Database::open(path)?;
                (database, Some((path.to_owned(), Mutex::new(Some(identity)))))
            }
        };
        Ok(Self { current: ArcSwap::from_pointee(database), file })
    }

    /// Takes a changed file over and says whether it did. A file that can't be used leaves the old database in use
    /// and is reported once; it is tried again when it changes.
    pub fn maybe_reload(&self) -> Result<bool, GeoError> {
        let Some((path, tried)) = &self.file else { return Ok(false) };
        let mut tried = tried.lock().unwrap_or_else(PoisonError::into_inner);
        let found = FileIdentity::of(path).ok();
        if found == *tried {
            return Ok(false);
        }
        *tried = found;
        let (database, identity) = Database::open(path)?;
        *tried = Some(identity);
        self.current.store(database.into());
        Ok(true)
    }

    pub fn info(&self) -> GeoInfo {
        let current = self.current.load();
        let metadata = match &**current {
            Database::Embedded(reader) => reader.metadata(),
            Database::File(reader) => reader.metadata(),
        };
        GeoInfo {
            path: self.file.as_ref().map(|(path, _)| path.clone()),
            database_type: metadata.database_type.clone(),
            build_epoch: metadata.build_epoch,
        }
    }
}

impl GeoInfo {
    /// When the database was built.
    pub fn built(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(self.build_epoch))
    }
}

impl GeoResolver for Geo {
    /// A database that is damaged at an address counts as not knowing it.
    fn locate(&self, ip: IpAddr) -> GeoAnswer {
        match &**self.current.load() {
            Database::Embedded(reader) => reader.lookup(ip).map(|found| answer_in(&found)),
            Database::File(reader) => reader.lookup(ip).map(|found| answer_in(&found)),
        }
        .unwrap_or_default()
    }
}

impl Database {
    fn embedded() -> Result<Self, GeoError> {
        let format = |why| GeoError::Format { origin: "(embedded)".into(), why };
        Reader::from_source(EMBEDDED).map(Self::Embedded).map_err(format)
    }

    fn open(path: &Path) -> Result<(Self, FileIdentity), GeoError> {
        let origin = || path.display().to_string();
        let file = |why| GeoError::File { path: origin(), why };
        // Taken before reading: a change while reading is seen by the next look.
        let identity = FileIdentity::of(path).map_err(file)?;
        let bytes = std::fs::read(path).map_err(file)?;
        let reader = Reader::from_source(bytes).map_err(|why| GeoError::Format { origin: origin(), why })?;
        Ok((Self::File(reader), identity))
    }
}

/// Reads either schema: flat (`country_code`, `latitude`, `longitude`), or as MaxMind's databases have it
/// (`country.iso_code`, `location.latitude`, `location.longitude`).
fn answer_in<S: AsRef<[u8]>>(found: &LookupResult<'_, S>) -> GeoAnswer {
    let text = |path: &[PathElement<'_>]| found.decode_path::<&str>(path).ok().flatten();
    let code = text(&[key("country_code")]).or_else(|| text(&[key("country"), key("iso_code")]));
    let degrees = |name| {
        let flat = || found.decode_path::<f64>(&[key(name)]).ok().flatten();
        found.decode_path::<f64>(&[key("location"), key(name)]).ok().flatten().or_else(flat)
    };
    GeoAnswer {
        country: code.and_then(|code| CountryCode::parse(code).ok()),
        position: degrees("latitude").zip(degrees("longitude")).and_then(|(lat, lon)| Position::new(lat, lon)),
    }
}

fn key(name: &str) -> PathElement<'_> {
    PathElement::Key(name)
}

#[cfg(test)]
mod tests;
