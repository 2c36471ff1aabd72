//! What is open for one spot.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::sync::watch;

use super::super::Job;
use crate::application::arrival::Door;
use crate::application::listening::{How, SpotState};
use crate::domain::{Endpoints, SocketName};

/// The sockets of a spot, which the workers have. Dropping it closes them, as [`Open::close`] does.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) door: Arc<Door>,
    closed: watch::Sender<bool>,
    pub(super) bound: HashSet<SocketAddr>,
    pub(super) why: Option<String>,
}

impl Open {
    pub(super) fn new(expected: Endpoints) -> Self {
        Self::with(Door::new(expected))
    }

    pub(super) fn handed(name: SocketName, expected: Endpoints) -> Self {
        Self::with(Door::handed(name, expected))
    }

    fn with(door: Door) -> Self {
        Self { door: Arc::new(door), closed: watch::Sender::new(false), bound: HashSet::new(), why: None }
    }

    pub(super) fn job(&self, listener: TcpListener, address: Option<SocketAddr>) -> Job {
        Job { listener, address, door: Arc::clone(&self.door), closed: self.closed.subscribe() }
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(super) fn state(&self, how: How) -> SpotState {
        SpotState { how, open: !self.bound.is_empty(), why: self.why.clone() }
    }
}
