//! Configuration: defaults < file < environment < flags.
//!
//! [`table`] declares every setting once; everything that names a setting (parsing, flags, `edgeproxy config`,
//! docs/settings.md) is driven by it. Parsing is pure: [`Sources`] carries the texts, [`Settings::load`] judges
//! them, and all that is wrong is reported at once.

mod error;
mod file;
mod kinds;
mod report;
mod sources;
mod table;
mod value;

#[cfg(test)]
mod tests;

pub use error::{Origin, SettingError};
pub use kinds::{ForwarderChoice, ListenSpots, LogFormat, LogLevel, LoopbackAddr};
pub(crate) use report::values;
pub use report::{Effective, markdown};
pub use sources::Sources;
pub use table::{KEYS, Key, Settings};
pub use value::{Rule, Unit};

use crate::domain::{ListenerId, ListenerSpec, NameError, Spot};

impl Settings {
    /// The settings in force, or everything that is wrong with the sources.
    pub fn load(sources: Sources) -> Result<Self, Vec<SettingError>> {
        Effective::load(&sources).map(|effective| effective.settings)
    }

    /// The listener of one of the places in `listen_addr`.
    pub fn listener(&self, spot: Spot) -> Result<ListenerSpec, NameError> {
        Ok(ListenerSpec {
            id: ListenerId::parse(&spot.to_string())?,
            app: self.app.clone(),
            spot,
            server_names: Vec::new(),
            accept_proxy: self.accept_proxy,
            proxy_from: self.proxy_from.clone(),
            max_connections: 0,
        })
    }
}
