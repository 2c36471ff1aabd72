//! Marks `same_host` that can have no effect, as every connection of a listener begins with a PROXY header: what was read
//! from a client before it is paired can't be handed over.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::events::{EventKind, Events, Subject};
use crate::domain::{AcceptProxy, AppName, Endpoint, Endpoints, Snapshot, Spot};

/// Which listeners lead to marked backends.
#[derive(Debug, Clone)]
pub struct WaysToMarked {
    /// Those of the settings.
    pub endpoints: Arc<Endpoints>,
    /// Where listeners lead that name no app.
    pub app: Option<AppName>,
}

impl WaysToMarked {
    /// The listeners whose clients all begin with a header.
    pub fn in_vain(&self, snapshot: &Snapshot) -> BTreeSet<Spot> {
        self.all(snapshot)
            .filter(|endpoint| begins_with_header(endpoint))
            .map(|endpoint| endpoint.spot.clone())
            .collect()
    }

    /// Why no mark can have an effect, if that holds for all listeners that lead to a marked backend.
    pub fn why_not(&self, snapshot: &Snapshot) -> Option<String> {
        let mut ways = self.all(snapshot).peekable();
        (ways.peek().is_some() && ways.all(|endpoint| begins_with_header(endpoint))).then(|| WHY.to_owned())
    }

    fn all<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        let marked: BTreeSet<&AppName> = snapshot.same_host().map(|backend| &backend.app).collect();
        let default = self.app.as_ref().or_else(|| snapshot.sole_app());
        let endpoints = self.endpoints.iter().chain(snapshot.endpoints().iter());
        endpoints.filter(move |endpoint| {
            let mut apps = endpoint.listeners().filter_map(|listener| listener.app.as_ref().or(default));
            apps.any(|app| marked.contains(app))
        })
    }
}

fn begins_with_header(endpoint: &Endpoint) -> bool {
    endpoint.accept_proxy == AcceptProxy::Required
}

/// In words.
pub const WHY: &str = "accept_proxy = required: a connection that begins with a PROXY header can't be handed over; for local \
                   clients open a listener that takes none";

/// Tells of such listeners once.
#[derive(Debug)]
pub struct HeaderWatch {
    ways: WaysToMarked,
    events: Arc<Events>,
    told: BTreeSet<Spot>,
}

impl HeaderWatch {
    pub fn new(ways: WaysToMarked, events: Arc<Events>) -> Self {
        Self { ways, events, told: BTreeSet::new() }
    }

    /// To be called with each new snapshot.
    pub fn look_at(&mut self, snapshot: &Snapshot) {
        let in_vain = self.ways.in_vain(snapshot);
        for spot in in_vain.difference(&self.told) {
            self.events.emit(EventKind::SameHostOff, Subject::listener(spot), WHY);
        }
        self.told = in_vain;
    }
}
