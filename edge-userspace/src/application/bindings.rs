//! What operators see of the bindings, and which of them they end. The shapes of `/api/v1/bindings`.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::domain::{BackendId, BadPrefix, BindingKey, parse_client_prefix};

/// One binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    pub key: BindingKey,
    pub backend: BackendId,
    /// How long ago it was used.
    pub idle: Duration,
}

/// Which bindings are meant; all of what is given must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingFilter {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// An address or a prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// Why a filter is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("client {0}")]
pub struct FilterError(#[from] BadPrefix);

/// The same, ready for use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    app: Option<String>,
    backend: Option<String>,
    client: Option<IpNet>,
}

impl BindingFilter {
    pub fn parse(&self) -> Result<Wanted, FilterError> {
        let client = self.client.as_deref().map(parse_client_prefix).transpose()?;
        Ok(Wanted { app: self.app.clone(), backend: self.backend.clone(), client })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = |what: &Option<String>| what.clone().unwrap_or_else(|| "any".to_owned());
        let client = self.client.map(|net| net.to_string());
        write!(f, "app {}, backend {}, client {}", all(&self.app), all(&self.backend), all(&client))
    }
}

impl Wanted {
    #[cfg(test)]
    pub(crate) fn of_backend(name: &str) -> Self {
        Self { backend: Some(name.to_owned()), ..Self::default() }
    }

    pub fn has(&self, key: &BindingKey, backend: &BackendId) -> bool {
        let overlaps = |client: &IpNet| {
            let bound = key.client.net();
            client.contains(&bound.addr()) || bound.contains(&client.network())
        };
        self.app.as_ref().is_none_or(|app| app == key.app.as_str())
            && self.backend.as_ref().is_none_or(|wanted| wanted == backend.as_str())
            && self.client.as_ref().is_none_or(overlaps)
    }
}

/// What `GET /api/v1/bindings` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingsQuery {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// At least so many are sought; there may be some more, so that pages don't overlap.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Where the last page said that the next one begins.
    #[serde(default)]
    pub from: usize,
}

impl BindingsQuery {
    pub fn filter(&self) -> BindingFilter {
        BindingFilter { app: self.app.clone(), backend: self.backend.clone(), client: self.client.clone() }
    }
}

/// A part of the bindings. One that lives while all pages are fetched is on exactly one of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BindingPage {
    pub bindings: Vec<BindingStatus>,
    /// Where to go on; `None` on the last page.
    pub next: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindingStatus {
    pub app: String,
    /// The address or prefix that counts as one client.
    pub client: String,
    pub backend: String,
    pub idle_secs: f64,
    /// Until it ends if it isn't used.
    pub left_secs: f64,
}

impl BindingStatus {
    pub fn of(bound: &Bound, ttl: Duration) -> Self {
        Self {
            app: bound.key.app.to_string(),
            client: bound.key.client.to_string(),
            backend: bound.backend.to_string(),
            idle_secs: bound.idle.as_secs_f64(),
            left_secs: ttl.saturating_sub(bound.idle).as_secs_f64(),
        }
    }
}

/// What `POST /api/v1/bindings/clear` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearRequest {
    #[serde(flatten)]
    pub filter: BindingFilter,
    /// Without a filter: says that really all are meant.
    #[serde(default)]
    pub all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearAnswer {
    pub cleared: u64,
}

/// How saving the bindings goes; part of the status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BindingFileStatus {
    pub path: String,
    /// Taken over from an earlier daemon at the start.
    pub restored: u64,
    pub saves_ok: u64,
    pub saves_failed: u64,
    /// Of the last save that succeeded.
    pub age_secs: Option<f64>,
    pub took_secs: f64,
    pub bindings: u64,
    pub bytes: u64,
    /// Why the last one failed; `None` if it didn't.
    pub error: Option<String>,
}

/// Notes how saves went.
#[derive(Debug)]
pub struct SaveRecord(Mutex<(BindingFileStatus, Option<SystemTime>)>);

impl SaveRecord {
    pub fn new(path: String, restored: u64) -> Self {
        Self(Mutex::new((BindingFileStatus { path, restored, ..BindingFileStatus::default() }, None)))
    }

    /// Notes a save of so many bindings and bytes; returns a reason for failure that is worth a line in the log, since
    /// the last save did not fail for it.
    pub fn note(&self, result: Result<(u64, u64), String>, now: SystemTime, took: Duration) -> Option<String> {
        let mut record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, saved_at) = &mut *record;
        let error = match result {
            Ok((bindings, bytes)) => {
                (status.bindings, status.bytes, status.took_secs) = (bindings, bytes, took.as_secs_f64());
                status.saves_ok += 1;
                *saved_at = Some(now);
                None
            }
            Err(why) => {
                status.saves_failed += 1;
                Some(why)
            }
        };
        let news = error.clone().filter(|_| error != status.error);
        status.error = error;
        news
    }

    pub fn status(&self, now: SystemTime) -> BindingFileStatus {
        let record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = record.1.map(|at| now.duration_since(at).unwrap_or_default().as_secs_f64());
        BindingFileStatus { age_secs: age, ..record.0.clone() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::domain::testing::{app_name, id};
    use crate::domain::{AffinityPrefix, ClientAddr};

    #[test]
    fn a_failure_that_lasts_is_told_once() {
        let record = SaveRecord::new("f".into(), 3);
        let note = |result| record.note(result, SystemTime::UNIX_EPOCH, Duration::from_secs(1));
        assert_eq!(note(Err("full".into())), Some("full".into()));
        assert_eq!(note(Err("full".into())), None);
        assert_eq!(note(Ok((7, 700))), None);
        assert_eq!(note(Err("full".into())), Some("full".into()));
        let status = record.status(SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!((status.restored, status.saves_ok, status.saves_failed), (3, 1, 3));
        assert_eq!((status.bindings, status.bytes, status.age_secs), (7, 700, Some(5.0)));
        assert_eq!(status.error.as_deref(), Some("full"));
    }

    #[test]
    fn a_filter_finds_what_fits_in_all() {
        let key = |client: &str| {
            AffinityPrefix::new(24, 64).unwrap().key(&app_name("web"), ClientAddr::new(client.parse().unwrap()))
        };
        let has = |filter: BindingFilter, client| filter.parse().unwrap().has(&key(client), &id("b1"));
        let client = |client: &str| BindingFilter { client: Some(client.to_owned()), ..BindingFilter::default() };
        assert!(has(BindingFilter::default(), "198.51.100.7"));
        for fits in ["198.51.100.9", "198.51.0.0/16", "198.51.100.128/25", "0.0.0.0/0"] {
            assert!(has(client(fits), "198.51.100.7"), "{fits}");
        }
        assert!(!has(client("198.51.101.7"), "198.51.100.7"));
        assert!(!has(client("::/0"), "198.51.100.7"));
        assert!(has(client("2001:4860::/32"), "2001:4860::1"));
        let web = BindingFilter { app: Some("web".into()), backend: Some("b1".into()), client: None };
        assert!(has(web.clone(), "198.51.100.7"));
        assert!(!has(BindingFilter { backend: Some("b2".into()), ..web.clone() }, "198.51.100.7"));
        assert!(!has(BindingFilter { app: Some("we".into()), ..web }, "198.51.100.7"));
        assert!(client("everybody").parse().unwrap_err().to_string().contains("everybody"));
    }
}
