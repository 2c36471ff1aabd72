//! The current routing table, and how a new one takes its place.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use edge_common::MAX_BACKENDS;

use crate::domain::{
    AccessList, AccessRule, AppName, AppSpec, Backend, BackendId, BackendLoad, BackendSpec, Endpoints, ListenerId,
    ListenerSpec, Lobby, RawAcl, RawApp, RawBackend, RawListener, RawRegion, RawRouting, RawRow, Region, RegionSpec,
    Regions, RowError, RuleId, SlotPool, Snapshot, World,
};

/// Holds the snapshot that routes. Readers never wait; a new snapshot takes the place of the old one at once.
#[derive(Debug)]
pub struct RoutingTable {
    current: ArcSwap<Snapshot>,
    status: ArcSwap<ReloadStatus>,
    writer: Mutex<Writer>,
    /// Who waits for a place on a backend, whatever the snapshot.
    lobby: Arc<Lobby>,
}

/// What outlives snapshots. Used by one reload at a time.
#[derive(Debug)]
struct Writer {
    slots: Arc<SlotPool>,
    /// Loads by backend, also of removed backends that still carry connections.
    loads: HashMap<BackendId, Weak<BackendLoad>>,
    /// Operator regions as last accepted.
    regions: HashMap<Region, RegionSpec>,
    /// Likewise apps and listeners.
    apps: HashMap<AppName, AppSpec>,
    listeners: HashMap<ListenerId, ListenerSpec>,
    /// Likewise rules about who may connect.
    rules: HashMap<RuleId, AccessRule>,
}

/// What one load of the rows did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadReport {
    pub generation: u64,
    /// Backends in the snapshot, kept ones included.
    pub accepted: usize,
    /// Rows that were refused, and why.
    pub rejected: Vec<(String, String)>,
    /// Backends whose new row was refused and whose last good version stays.
    pub kept: usize,
    pub apps: usize,
}

/// How the last reloads went, for `status`, logs and metrics.
#[derive(Debug, Clone, Default)]
pub struct ReloadStatus {
    /// The last load that was accepted.
    pub report: ReloadReport,
    pub loaded_at: Option<SystemTime>,
    /// The last attempt, accepted or not.
    pub tried_at: Option<SystemTime>,
    /// Why the last attempt was refused; `None` if it was accepted.
    pub error: Option<String>,
    /// Attempts since the start.
    pub accepted_total: u64,
    pub refused_total: u64,
}

/// An empty table where there was a full one: a POP is emptied by accident that way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the routing database has no backends where there were {had}: the last good table stays; \
     confirm with `edgeproxy reload --allow-empty`"
)]
pub struct Emptied {
    pub had: usize,
}

impl Default for RoutingTable {
    fn default() -> Self {
        Self::new()
    }
}

impl RoutingTable {
    /// An empty table with as many slots as the kernel counts backends.
    pub fn new() -> Self {
        Self::with_slots(MAX_BACKENDS)
    }

    fn with_slots(capacity: u32) -> Self {
        let writer = Writer {
            slots: SlotPool::new(capacity),
            loads: HashMap::new(),
            regions: HashMap::new(),
            apps: HashMap::new(),
            listeners: HashMap::new(),
            rules: HashMap::new(),
        };
        Self {
            current: ArcSwap::from_pointee(Snapshot::empty()),
            status: ArcSwap::default(),
            writer: Mutex::new(writer),
            lobby: Arc::default(),
        }
    }

    /// The current snapshot, without touching its reference count. Not to be held across an `.await`.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The current snapshot, to keep.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    pub fn lobby(&self) -> &Arc<Lobby> {
        &self.lobby
    }

    pub fn status(&self) -> Arc<ReloadStatus> {
        self.status.load_full()
    }

    /// Validates `raw` row by row and makes it the current snapshot. A refused row keeps its last good version.
    /// Loads are kept by backend id, so counts are right across reloads.
    pub fn apply(&self, raw: &RawRouting, allow_empty: bool) -> Result<ReloadReport, Emptied> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.snapshot();
        let mut intake = Intake { last: &last, writer: &mut writer, report: ReloadReport::default() };
        let backends = intake.backends(&raw.backends);
        let had = last.backends().count();
        if backends.is_empty() && had > 0 && !allow_empty {
            return Err(Emptied { had });
        }
        let world = World {
            regions: intake.regions(&raw.regions),
            apps: intake.apps(&raw.apps),
            endpoints: intake.endpoints(&raw.listeners),
            access: intake.access(&raw.acl),
            lobby: Arc::clone(&self.lobby),
        };
        let mut report = intake.report;
        writer.loads.retain(|_, load| load.strong_count() > 0);
        let snapshot = Snapshot::new(last.generation() + 1, backends, world);
        report.generation = snapshot.generation();
        report.accepted = snapshot.backends().count();
        report.apps = snapshot.apps().len();
        self.current.store(Arc::new(snapshot));
        // Limits may be higher now, or backends more.
        self.lobby.reconsider();
        self.lobby.tidy();
        Ok(report)
    }

    /// Notes how an attempt went.
    pub(super) fn record(&self, now: SystemTime, result: Result<&ReloadReport, String>) {
        self.status.rcu(|status| {
            let mut status = ReloadStatus::clone(status);
            status.tried_at = Some(now);
            match &result {
                Ok(report) => {
                    status.report = ReloadReport::clone(report);
                    status.loaded_at = Some(now);
                    status.error = None;
                    status.accepted_total += 1;
                }
                Err(error) => {
                    status.error = Some(error.clone());
                    status.refused_total += 1;
                }
            }
            status
        });
    }
}

/// One load on its way from rows to a snapshot.
struct Intake<'a> {
    last: &'a Snapshot,
    writer: &'a mut Writer,
    report: ReloadReport,
}

impl Intake<'_> {
    fn backends(&mut self, rows: &[RawBackend]) -> Vec<Arc<Backend>> {
        let mut seen = HashSet::with_capacity(rows.len());
        let mut backends = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            let id = row.id();
            let result = match &id {
                Ok(id) if !seen.insert(id.clone()) => Err(RowError::Duplicate),
                _ => row.parse().and_then(|spec| self.admit(spec)),
            };
            match result {
                Ok(backend) => backends.push(Arc::new(backend)),
                Err(error) => {
                    let name = id.as_ref().map_or_else(|_| format!("row {}", at + 1), ToString::to_string);
                    self.report.rejected.push((name, error.to_string()));
                    let known = id.ok().filter(|_| error != RowError::Duplicate);
                    if let Some(last) = known.and_then(|id| self.last.backend(&id)) {
                        self.report.kept += 1;
                        backends.push(Arc::clone(last));
                    }
                }
            }
        }
        backends
    }

    fn admit(&mut self, spec: BackendSpec) -> Result<Backend, RowError> {
        let known = self.writer.loads.get(&spec.id).and_then(Weak::upgrade);
        let load = match known {
            Some(load) => {
                let former = self.last.app(&spec.app).and_then(|app| app.backend(&spec.id));
                if former.is_some_and(|former| former.addr != spec.addr) {
                    load.rtt().forget();
                }
                load
            }
            None => {
                let slots = &self.writer.slots;
                let slot = slots.take().ok_or(RowError::NoSlot { capacity: slots.capacity() })?;
                let load = BackendLoad::new(slot);
                self.writer.loads.insert(spec.id.clone(), Arc::downgrade(&load));
                load
            }
        };
        Ok(spec.with_load(load))
    }

    fn regions(&mut self, rows: &[RawRegion]) -> Regions {
        let mut specs: Vec<RegionSpec> = Vec::new();
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            match row.parse() {
                Ok(spec) => specs.push(spec),
                Err(error) => {
                    let name = row.name();
                    self.reject("region", name.as_ref().map(Region::as_str), at, &error);
                    specs.extend(name.and_then(|name| self.writer.regions.get(&name)).cloned());
                }
            }
        }
        self.writer.regions = specs.iter().map(|spec| (spec.name.clone(), spec.clone())).collect();
        Regions::new(&specs)
    }

    fn apps(&mut self, rows: &[RawApp]) -> HashMap<AppName, AppSpec> {
        let mut specs = HashMap::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            let name = row.name();
            let known = name.as_ref().ok().and_then(|name| self.writer.apps.get(name)).cloned();
            let result = match &name {
                Ok(name) if specs.contains_key(name) => Err(RowError::Duplicate),
                _ => row.parse(),
            };
            match result {
                Ok(spec) => _ = specs.insert(spec.name.clone(), spec),
                Err(error) => {
                    self.reject("app", name.ok().as_ref().map(AppName::as_str), at, &error);
                    let kept = known.filter(|_| error != RowError::Duplicate);
                    specs.extend(kept.map(|spec| (spec.name.clone(), spec)));
                }
            }
        }
        self.writer.apps = specs.clone();
        specs
    }

    /// A listener that contradicts one before it is refused like one that can't be parsed: its last good version counts,
    /// where that fits in.
    fn endpoints(&mut self, rows: &[RawListener]) -> Endpoints {
        let mut endpoints = Endpoints::default();
        let mut accepted: HashMap<ListenerId, ListenerSpec> = HashMap::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            let id = row.id();
            let result = match &id {
                Ok(id) if accepted.contains_key(id) => Err(RowError::Duplicate),
                _ => row.parse().and_then(|spec| {
                    endpoints.add(spec.clone())?;
                    Ok(spec)
                }),
            };
            match result {
                Ok(spec) => _ = accepted.insert(spec.id.clone(), spec),
                Err(error) => {
                    self.reject("listener", id.as_ref().ok().map(ListenerId::as_str), at, &error);
                    let known = id.ok().filter(|_| error != RowError::Duplicate);
                    let last = known.and_then(|id| self.writer.listeners.get(&id)).cloned();
                    if let Some(last) = last.filter(|last| endpoints.add(last.clone()).is_ok()) {
                        accepted.insert(last.id.clone(), last);
                    }
                }
            }
        }
        self.writer.listeners = accepted;
        endpoints
    }

    /// As [`Self::endpoints`].
    fn access(&mut self, rows: &[RawAcl]) -> AccessList {
        let mut list = AccessList::default();
        let mut accepted: HashMap<RuleId, AccessRule> = HashMap::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            let id = row.id();
            let result = match &id {
                Ok(id) if accepted.contains_key(id) => Err(RowError::Duplicate),
                _ => row.parse().and_then(|rule| {
                    list.add(rule.clone())?;
                    Ok(rule)
                }),
            };
            match result {
                Ok(rule) => _ = accepted.insert(rule.id.clone(), rule),
                Err(error) => {
                    self.reject("rule", id.as_ref().ok().map(RuleId::as_str), at, &error);
                    let known = id.ok().filter(|_| error != RowError::Duplicate);
                    let last = known.and_then(|id| self.writer.rules.get(&id)).cloned();
                    if let Some(last) = last.filter(|last| list.add(last.clone()).is_ok()) {
                        accepted.insert(last.id.clone(), last);
                    }
                }
            }
        }
        self.writer.rules = accepted;
        list
    }

    fn reject(&mut self, kind: &str, name: Option<&str>, at: usize, error: &RowError) {
        let name = name.map_or_else(|| format!("row {}", at + 1), str::to_owned);
        self.report.rejected.push((format!("{kind} {name}"), error.to_string()));
    }
}

#[cfg(test)]
mod tests;
