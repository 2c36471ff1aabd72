//! How a connection came in: which socket it was accepted on, and what is expected there.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::domain::{Endpoint, Endpoints, SocketName};

/// An accepted connection's addresses, and its way in.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The client, or who speaks for it.
    pub from: SocketAddr,
    /// The address that it connected to.
    pub to: SocketAddr,
    pub door: Arc<Door>,
}

/// One or several listening sockets that mean the same.
#[derive(Debug)]
pub struct Door {
    handed: Option<SocketName>,
    /// What was last expected here: a listener that is removed still serves those who were in its queue.
    last: ArcSwap<Endpoints>,
}

impl Door {
    /// Sockets that the daemon opened.
    pub fn new(expected: Endpoints) -> Self {
        Self { handed: None, last: ArcSwap::from_pointee(expected) }
    }

    /// Sockets that were handed over under a name.
    pub fn handed(name: SocketName, expected: Endpoints) -> Self {
        Self { handed: Some(name), ..Self::new(expected) }
    }

    /// Remembers what is expected here from now on.
    pub fn expect(&self, expected: Endpoints) {
        self.last.store(Arc::new(expected));
    }

    /// The name under which the sockets were handed over, if they were.
    pub fn name(&self) -> Option<&SocketName> {
        self.handed.as_ref()
    }

    /// What was last expected of a connection to `to`.
    pub fn last(&self, to: SocketAddr) -> Option<Arc<Endpoint>> {
        let last = self.last.load();
        match &self.handed {
            Some(name) => last.handed(name).cloned(),
            None => last.at(to).cloned(),
        }
    }
}
