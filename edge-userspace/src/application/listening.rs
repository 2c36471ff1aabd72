//! What has become of the spots that clients are expected at: written by the adapter that opens sockets, read by the
//! status and the metrics.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::routing::RoutingTable;
use super::serve::Rules;
use crate::domain::{Endpoints, ListenerSpec, Spot};

/// How connections to a spot come to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By sockets that are bound there.
    Bind,
    /// By the `sk_lookup` program.
    SkLookup,
    /// By sockets that the service manager handed over.
    Fd,
}

impl How {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::SkLookup => "sk_lookup",
            Self::Fd => "fd",
        }
    }
}

/// The state of one spot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpotState {
    pub how: How,
    /// Connections are accepted.
    pub open: bool,
    /// Why they are not, or not everywhere.
    pub why: Option<String>,
}

/// The `sk_lookup` program's state. The shape of `steering` in `GET /api/v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteeringStatus {
    /// Whether prefixes and ranges of ports can be had without binding each.
    pub available: bool,
    /// Why not.
    pub why: Option<String>,
    /// Prefixes in the kernel's table.
    pub prefixes: u64,
    /// Lookups by what the program decided: `steered`, `left`, `no_socket`.
    pub verdicts: BTreeMap<String, u64>,
}

/// One listener, in the shape of `GET /api/v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub id: String,
    /// An address and port, a prefix, a range of ports, or the name of a socket that is handed over.
    pub place: String,
    /// `settings` or `database`.
    pub source: String,
    /// `bind`, `sk_lookup` or `fd`; `None` where nothing is open.
    pub how: Option<String>,
    /// The app the listener leads to now; `None` where it leads to none.
    pub app: Option<String>,
    /// TLS server names that lead here; empty: all that no other listener of the place names.
    pub server_names: Vec<String>,
    /// Whether connections are accepted.
    pub open: bool,
    /// Why they are not, or not everywhere.
    pub why: Option<String>,
}

/// The states of all spots.
#[derive(Debug, Default)]
pub struct Listening(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    spots: HashMap<Spot, SpotState>,
    steering: SteeringStatus,
}

impl Listening {
    pub fn set(&self, spots: HashMap<Spot, SpotState>, steering: SteeringStatus) {
        *self.lock() = State { spots, steering };
    }

    pub fn steering(&self) -> SteeringStatus {
        self.lock().steering.clone()
    }

    pub fn of(&self, spot: &Spot) -> Option<SpotState> {
        self.lock().spots.get(spot).cloned()
    }

    /// All listeners, those of the settings first.
    pub fn status(&self, routing: &RoutingTable, rules: &Rules) -> Vec<ListenerStatus> {
        let snapshot = routing.snapshot();
        let describe = |source: &str, spec: &ListenerSpec| {
            let state = self.of(&spec.spot);
            ListenerStatus {
                id: spec.id.to_string(),
                place: spec.spot.to_string(),
                source: source.to_owned(),
                how: state.as_ref().filter(|state| state.open).map(|state| state.how.as_str().to_owned()),
                app: rules.app(Some(spec), &snapshot).map(|app| app.to_string()),
                server_names: spec.server_names.iter().map(ToString::to_string).collect(),
                open: state.as_ref().is_some_and(|state| state.open),
                why: state.map_or_else(|| Some("about to be opened".to_owned()), |state| state.why),
            }
        };
        let settings = listeners(&rules.listeners).into_iter().map(|spec| describe("settings", spec));
        let database = listeners(snapshot.endpoints()).into_iter().map(|spec| describe("database", spec));
        settings.chain(database).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each listener once, by spot and id.
fn listeners(endpoints: &Endpoints) -> Vec<&ListenerSpec> {
    let mut all: Vec<&ListenerSpec> =
        endpoints.iter().flat_map(|endpoint| endpoint.listeners()).map(|l| &**l).collect();
    all.sort_by(|a, b| (&a.spot, &a.id).cmp(&(&b.spot, &b.id)));
    all.dedup_by(|a, b| a.id == b.id);
    all
}
