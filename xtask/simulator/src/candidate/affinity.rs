//! Clients that return to their backend: the daemon's own table of bindings, on simulated time. All candidates have it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::edgeproxy::adapters::outbound::bindings::{BindingTable, Clock};
use ::edgeproxy::application::ports::Bindings as _;
use ::edgeproxy::domain::{AffinityPrefix, AppName, BackendId, BindingKey, ClientAddr, ClientPrefix, Rtt};

use crate::world::{self, World};

/// More than there are clients: which binding has to go when the table is full depends on random hashes.
const CAPACITY: usize = 1 << 20;

/// Simulated time, as the daemon's code wants it.
#[derive(Debug, Clone)]
pub(super) struct SimulatedClock {
    base: Instant,
    micros: Arc<AtomicU64>,
}

impl SimulatedClock {
    fn new() -> Self {
        // Estimates of round-trip times come to the same in each run only if their clock begins where they do.
        Self { base: Rtt::epoch(), micros: Arc::default() }
    }

    fn set(&self, now: Duration) {
        self.micros.store(u64::try_from(now.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn at(&self, now: Duration) -> Instant {
        self.base + now
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// Bindings of clients to backends, used in the order in which a connection uses them: looked up once before the first
/// choice, made when the backend accepts, renewed at the end.
pub(super) struct Affinity<'a> {
    world: &'a World,
    pub(super) clock: SimulatedClock,
    table: BindingTable<SimulatedClock>,
    apps: Vec<AppName>,
    ids: Vec<BackendId>,
    by_id: HashMap<BackendId, usize>,
    /// What was found for each connection.
    found: HashMap<usize, Option<usize>>,
}

impl<'a> Affinity<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        let clock = SimulatedClock::new();
        let ids: Vec<BackendId> = world.backends.iter().filter_map(|row| BackendId::parse(&row.id).ok()).collect();
        Self {
            table: BindingTable::with_clock(world.rules.binding_ttl, CAPACITY, clock.clone()),
            clock,
            apps: world.apps.iter().filter_map(|app| AppName::parse(app.name).ok()).collect(),
            by_id: ids.iter().cloned().zip(0..).collect(),
            ids,
            found: HashMap::new(),
            world,
        }
    }

    pub(super) fn app(&self, app: usize) -> &AppName {
        &self.apps[app]
    }

    pub(super) fn id(&self, backend: usize) -> &BackendId {
        &self.ids[backend]
    }

    pub(super) fn backend(&self, id: &BackendId) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// What stands for a client.
    pub(super) fn prefix(&self, client: usize) -> ClientPrefix {
        AffinityPrefix::default().prefix(ClientAddr::new(self.world.clients[client].address.into()))
    }

    fn key(&self, connection: usize) -> Option<BindingKey> {
        let arrival = &self.world.arrivals[connection];
        let client = ClientAddr::new(self.world.clients[arrival.client].address.into());
        let bound = self.world.apps[arrival.app].affinity != world::Affinity::No;
        let app = bound.then(|| self.app(arrival.app))?;
        Some(AffinityPrefix::default().key(app, client))
    }

    /// The backend that the connection's client is bound to.
    pub(super) fn bound(&mut self, connection: usize, now: Duration) -> Option<usize> {
        if let Some(found) = self.found.get(&connection) {
            return *found;
        }
        self.clock.set(now);
        let found = self.key(connection).and_then(|key| self.backend(&self.table.get(&key)?));
        self.found.insert(connection, found);
        found
    }

    pub(super) fn connected(&self, connection: usize, backend: usize, now: Duration) {
        self.clock.set(now);
        if let Some(key) = self.key(connection) {
            self.table.bind(key, &self.ids[backend]);
        }
    }

    pub(super) fn ended(&self, connection: usize, backend: usize, now: Duration) {
        self.clock.set(now);
        if let Some(key) = self.key(connection)
            && self.table.get(&key).is_none()
        {
            self.table.bind(key, &self.ids[backend]);
        }
    }

    pub(super) fn forget(&mut self, connection: usize) {
        self.found.remove(&connection);
    }
}
