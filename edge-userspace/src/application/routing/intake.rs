//! One load on its way from rows to a snapshot: row by row, each refused alone.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Weak};

use super::ReloadReport;
use crate::domain::{
    AccessList, AccessRule, AppName, AppSpec, Backend, BackendId, BackendLoad, BackendSpec, Endpoints, GeoOverride,
    ListenerId, ListenerSpec, Overrides, RawAcl, RawApp, RawBackend, RawGeoOverride, RawListener, RawRegion, RawRow,
    RawValue, Region, RegionSpec, Regions, RowError, RuleId, SlotPool,
};

/// What was accepted last, and what it became.
#[derive(Debug)]
pub(super) struct Memory {
    slots: Arc<SlotPool>,
    /// Also removed backends that still carry connections. The operator chooses the ids: nobody can choose them to
    /// collide.
    backends: HashMap<BackendId, Known, foldhash::fast::RandomState>,
    /// Counts the loads, so that each backend knows whether it was seen in the one under way.
    pass: u64,
    region_specs: Vec<RegionSpec>,
    regions: Arc<Regions>,
    apps: HashMap<AppName, AppSpec>,
    listeners: HashMap<ListenerId, ListenerSpec>,
    overrides: HashMap<ipnet::IpNet, GeoOverride>,
    rules: HashMap<RuleId, AccessRule>,
}

/// A backend across loads.
#[derive(Debug)]
struct Known {
    load: Weak<BackendLoad>,
    /// As it is in the snapshot in force; `None` if it is not in there.
    current: Option<Arc<Backend>>,
    /// As the load under way has it.
    next: Option<Arc<Backend>>,
    /// Of the row that `next` or else `current` was made of.
    fingerprint: u64,
    /// The last load in which a row had this id.
    pass: u64,
}

impl Memory {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            slots: SlotPool::new(capacity),
            backends: HashMap::default(),
            pass: 0,
            region_specs: Vec::new(),
            regions: Arc::default(),
            apps: HashMap::new(),
            listeners: HashMap::new(),
            overrides: HashMap::new(),
            rules: HashMap::new(),
        }
    }
}

pub(super) struct Intake<'a> {
    memory: &'a mut Memory,
    report: ReloadReport,
}

impl<'a> Intake<'a> {
    pub(super) fn new(memory: &'a mut Memory) -> Self {
        memory.pass += 1;
        Self { memory, report: ReloadReport::default() }
    }

    /// What was made becomes what was accepted last.
    pub(super) fn accept(self) -> ReloadReport {
        self.memory.backends.retain(|_, known| {
            known.current = known.next.take();
            known.current.is_some() || known.load.strong_count() > 0
        });
        self.report
    }

    pub(super) fn backends(&mut self, rows: &[RawBackend]) -> Vec<Arc<Backend>> {
        let mut backends = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            let fingerprint = self.memory.backends.hasher().hash_one(row);
            if let Some(backend) = self.unchanged(row, fingerprint) {
                backends.push(backend);
                continue;
            }
            match row.parse().and_then(|spec| self.admit(spec, fingerprint)) {
                Ok(backend) => backends.push(backend),
                Err(error) => backends.extend(self.refuse(at, row, &error)),
            }
        }
        backends
    }

    /// The backend of a row that was accepted before, if it is as it was then: most rows are. Two rows of the same id
    /// have the same fingerprint by chance once in 2⁶⁴ changes, and nobody can aim for it, for it is seeded.
    fn unchanged(&mut self, row: &RawBackend, fingerprint: u64) -> Option<Arc<Backend>> {
        let RawValue::Text(id) = &row.id else { return None };
        let known = self.memory.backends.get_mut(id.as_str()).filter(|known| known.fingerprint == fingerprint)?;
        let current = known.current.as_ref().filter(|_| known.pass != self.memory.pass)?;
        known.pass = self.memory.pass;
        Some(Arc::clone(known.next.insert(Arc::clone(current))))
    }

    fn admit(&mut self, spec: BackendSpec, fingerprint: u64) -> Result<Arc<Backend>, RowError> {
        let Memory { slots, backends, pass, .. } = &mut *self.memory;
        if let Some(known) = backends.get_mut(&spec.id) {
            if known.pass == *pass {
                return Err(RowError::Duplicate);
            }
            known.pass = *pass;
            known.fingerprint = fingerprint;
            let unchanged = known.current.as_ref().filter(|current| current.spec == spec);
            let next = match (unchanged, known.load.upgrade()) {
                (Some(current), _) => Arc::clone(current),
                (None, Some(load)) => Arc::new(spec.with_load(load)),
                (None, None) => {
                    let load = new_load(slots)?;
                    known.load = Arc::downgrade(&load);
                    Arc::new(spec.with_load(load))
                }
            };
            return Ok(Arc::clone(known.next.insert(next)));
        }
        let load = new_load(slots)?;
        let id = spec.id.clone();
        let (weak, next) = (Arc::downgrade(&load), Arc::new(spec.with_load(load)));
        backends
            .insert(id, Known { load: weak, current: None, next: Some(Arc::clone(&next)), fingerprint, pass: *pass });
        Ok(next)
    }

    /// Notes why a row is refused; the last good version of its backend, which stays.
    fn refuse(&mut self, at: usize, row: &RawBackend, error: &RowError) -> Option<Arc<Backend>> {
        let id = row.id().ok();
        let name = id.as_ref().map_or_else(|| format!("row {}", at + 1), ToString::to_string);
        self.report.rejected.push((name, error.to_string()));
        let pass = self.memory.pass;
        let known = id.filter(|_| *error != RowError::Duplicate).and_then(|id| self.memory.backends.get_mut(&id))?;
        if known.next.is_some() {
            return None;
        }
        known.pass = pass;
        known.next = known.current.clone();
        self.report.kept += usize::from(known.next.is_some());
        known.next.clone()
    }

    pub(super) fn regions(&mut self, rows: &[RawRegion]) -> Arc<Regions> {
        let mut specs: Vec<RegionSpec> = Vec::new();
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            match row.parse() {
                Ok(spec) => specs.push(spec),
                Err(error) => {
                    let name = row.name();
                    self.reject("region", name.as_ref().map(Region::as_str), at, &error);
                    let last = self.memory.region_specs.iter().find(|spec| Some(&spec.name) == name.as_ref());
                    specs.extend(last.cloned());
                }
            }
        }
        if specs != self.memory.region_specs {
            self.memory.regions = Arc::new(Regions::new(&specs));
            self.memory.region_specs = specs;
        }
        Arc::clone(&self.memory.regions)
    }

    pub(super) fn overrides(&mut self, rows: &[RawGeoOverride]) -> Overrides {
        let mut accepted = HashMap::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            let key = row.key();
            let result = match &key {
                Some(key) if accepted.contains_key(key) => Err(RowError::DuplicatePrefix),
                _ => row.parse(),
            };
            match result {
                Ok(place) => _ = accepted.insert(place.prefix, place),
                Err(error) => {
                    self.reject("geo override", key.map(|key| key.to_string()).as_deref(), at, &error);
                    let known = key.filter(|_| error != RowError::DuplicatePrefix);
                    let last = known.and_then(|key| self.memory.overrides.get(&key)).cloned();
                    accepted.extend(last.map(|place| (place.prefix, place)));
                }
            }
        }
        let overrides = Overrides::new(accepted.values().cloned());
        self.memory.overrides = accepted;
        overrides
    }

    pub(super) fn apps(&mut self, rows: &[RawApp]) -> HashMap<AppName, AppSpec> {
        let mut specs = HashMap::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            let name = row.name();
            let known = name.as_ref().ok().and_then(|name| self.memory.apps.get(name)).cloned();
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
        self.memory.apps = specs.clone();
        specs
    }

    /// A listener that contradicts one before it is refused like one that can't be parsed: its last good version counts,
    /// where that fits in.
    pub(super) fn endpoints(&mut self, rows: &[RawListener]) -> Endpoints {
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
                    let last = known.and_then(|id| self.memory.listeners.get(&id)).cloned();
                    if let Some(last) = last.filter(|last| endpoints.add(last.clone()).is_ok()) {
                        accepted.insert(last.id.clone(), last);
                    }
                }
            }
        }
        self.memory.listeners = accepted;
        endpoints
    }

    /// As [`Self::endpoints`].
    pub(super) fn access(&mut self, rows: &[RawAcl]) -> AccessList {
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
                    let last = known.and_then(|id| self.memory.rules.get(&id)).cloned();
                    if let Some(last) = last.filter(|last| list.add(last.clone()).is_ok()) {
                        accepted.insert(last.id.clone(), last);
                    }
                }
            }
        }
        self.memory.rules = accepted;
        list
    }

    fn reject(&mut self, kind: &str, name: Option<&str>, at: usize, error: &RowError) {
        let name = name.map_or_else(|| format!("row {}", at + 1), str::to_owned);
        self.report.rejected.push((format!("{kind} {name}"), error.to_string()));
    }
}

fn new_load(slots: &Arc<SlotPool>) -> Result<Arc<BackendLoad>, RowError> {
    let slot = slots.take().ok_or(RowError::NoSlot { capacity: slots.capacity() })?;
    Ok(BackendLoad::new(slot))
}
