//! The settings in force with their origin, and how they are shown.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::error::{Origin, SettingError};
use super::sources::Sources;
use super::table::{KEYS, Key, Settings};
use crate::domain::{AcceptProxy, Place};

/// Settings together with where each came from.
#[derive(Debug, Clone)]
pub struct Effective {
    pub settings: Settings,
    /// In the order of the table.
    rows: Vec<(&'static Key, String, Origin)>,
}

impl Effective {
    /// Judges every value of every source, overridden ones too: a mistake that is hidden today bites tomorrow.
    pub fn load(sources: &Sources) -> Result<Self, Vec<SettingError>> {
        let mut errors = Vec::new();
        let mut rows: Vec<_> = KEYS.iter().map(|key| (key, key.default.to_owned(), Origin::Default)).collect();
        for given in sources.given(&mut errors) {
            match (given.key.check)(&given.text) {
                Ok(text) => {
                    if let Some(row) = rows.iter_mut().find(|row| std::ptr::eq(row.0, given.key)) {
                        *row = (given.key, text, given.origin);
                    }
                }
                Err(why) => errors.push(SettingError::new(given.origin, format!("{} {why}", given.key.name))),
            }
        }
        let origin_of = |rows: &[(&Key, String, Origin)], key: &Key| {
            rows.iter().find(|row| row.0.name == key.name).map_or(Origin::Default, |row| row.2.clone())
        };
        let text_of =
            |key: &Key| rows.iter().find(|row| row.0.name == key.name).map_or_else(String::new, |row| row.1.clone());
        match Settings::from_texts(text_of) {
            Ok(settings) => {
                errors.extend(contradictions(&settings, &|name| {
                    Key::named(name).map_or(Origin::Default, |key| origin_of(&rows, key))
                }));
                if errors.is_empty() { Ok(Self { settings, rows }) } else { Err(errors) }
            }
            Err(bad) => {
                let bad = bad
                    .into_iter()
                    .map(|(key, why)| SettingError::new(origin_of(&rows, key), format!("{} {why}", key.name)));
                errors.extend(bad);
                Err(errors)
            }
        }
    }

    /// A table for people: name, value, origin.
    pub fn text(&self) -> String {
        let name_width = self.rows.iter().map(|(key, ..)| key.name.len()).max().unwrap_or(0);
        let value_width = self.rows.iter().map(|(_, text, _)| text.chars().count()).max().unwrap_or(0).clamp(1, 40);
        let mut out = String::new();
        for (key, text, origin) in &self.rows {
            let value = if text.is_empty() { "-" } else { text };
            let _ = writeln!(out, "{:name_width$}  {value:value_width$}  {origin}", key.name);
        }
        out
    }

    /// `{"listen_addr": {"value": "…", "origin": "…"}, …}`; a value that is not set is null.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(key, text, origin)| {
            let value = if text.is_empty() { Value::Null } else { Value::from(text.as_str()) };
            (
                key.name.to_owned(),
                json!({ "value": value, "origin": origin.to_string(), "unit": key.rule.unit.as_str() }),
            )
        });
        Value::Object(rows.collect::<Map<_, _>>())
    }
}

/// Settings that are fine alone and not together.
fn contradictions(settings: &Settings, origin: &dyn Fn(&str) -> Origin) -> Vec<SettingError> {
    let mut errors = Vec::new();
    let admin = settings.admin_listen.map(super::LoopbackAddr::socket_addr);
    let taken = |admin: &SocketAddr| settings.listen_addr.as_slice().contains(&Place::of(*admin).into());
    if let Some(admin) = admin.filter(|admin| admin.port() != 0 && taken(admin)) {
        let problem = format!("admin_listen {admin} is also in listen_addr: choose another port");
        errors.push(SettingError::new(origin("admin_listen"), problem));
    }
    match settings.accept_proxy {
        AcceptProxy::Off if !settings.proxy_from.is_empty() => {
            let problem = "proxy_from has no effect while accept_proxy is off: set accept_proxy or leave it out";
            errors.push(SettingError::new(origin("proxy_from"), problem.to_owned()));
        }
        AcceptProxy::Optional | AcceptProxy::Required if settings.proxy_from.is_empty() => {
            let problem =
                "accept_proxy needs proxy_from, the prefixes whose word is taken for where a client comes from";
            errors.push(SettingError::new(origin("accept_proxy"), problem.to_owned()));
        }
        _ => {}
    }
    // One pair of sockets has two directions.
    let (cap, pair) = (u64::from(settings.sockmap_memory_mib) * 1024, u64::from(settings.sockmap_backlog_kib) * 2);
    if cap < pair {
        let problem = format!(
            "sockmap_memory_mib {} is less than the two directions of one connection may queue ({pair} KiB): \
             raise it or lower sockmap_backlog_kib",
            settings.sockmap_memory_mib
        );
        errors.push(SettingError::new(origin("sockmap_memory_mib"), problem));
    }
    errors
}

/// The reference of all settings, committed as docs/settings.md.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Settings\n\n\
         <!-- Written by `edgeproxy config --markdown`; a test fails when this file is not current. -->\n\n\
         Defaults < file (`--config FILE` or `EDGEPROXY_CONFIG`, TOML with the names below) < environment \
         (`EDGEPROXY_` and the name in capitals) < flags (`--` and the name with dashes). An empty variable counts \
         as not set. Lists are separated by commas; the file also takes an array. `DEBUG=1` is the same as \
         `EDGEPROXY_LOG_LEVEL=debug`.\n\n\
         Unknown names and bad values are errors; all are reported at once, and the exit code is 64. \
         `edgeproxy config` shows the values in force and where each came from.\n\n\
         | setting | default | value | meaning |\n|---|---|---|---|\n",
    );
    for key in KEYS {
        let default = if key.default.is_empty() { "not set".to_owned() } else { format!("`{}`", key.default) };
        let _ = writeln!(out, "| `{}` | {default} | {} | {} |", key.name, values(key), key.help);
    }
    out
}

/// E.g. "duration, s, 0.05 to 3600".
pub(crate) fn values(key: &Key) -> String {
    let mut words = key.kind.to_owned();
    let unit = key.rule.unit.as_str();
    if !unit.is_empty() {
        let _ = write!(words, ", {unit}");
    }
    if let Some((min, max)) = key.rule.range {
        let _ = write!(words, ", {min} to {max}");
    }
    words
}
