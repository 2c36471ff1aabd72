//! One load on its way from rows to a snapshot: row by row, each refused alone.

mod lost;
mod settling;
mod table;
mod together;

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Weak};

pub use self::lost::LostTable;
use self::table::Table;
use self::together::{Apart, Count, Spots};
use super::ReloadReport;
use crate::domain::{
    AccessList, AccessRule, AppName, AppSpec, Backend, BackendId, BackendLoad, BackendSpec, Courtesy, Endpoints,
    GeoOverride, ListenerId, ListenerSpec, Overrides, RawAcl, RawApp, RawBackend, RawGeoOverride, RawListener,
    RawRegion, RawRouting, RawRow as _, RawValue, Region, RegionSpec, Regions, RowError, RuleId, SlotPool,
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
    region_specs: HashMap<Region, RegionSpec>,
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
    /// Of the row that `next` or else `current` was made of; `None`: not known.
    fingerprint: Option<u64>,
    /// The last load in which a row had this id.
    pass: u64,
    /// Where its backend is among those of that load.
    place: usize,
}

impl Known {
    /// Of two rows with the same id (white space around it is no part of it) that in force counts, also if it comes second.
    fn prefer_current(&mut self, spec: &BackendSpec, place: Option<&mut Arc<Backend>>) {
        let Some(current) = self.current.as_ref().filter(|current| current.spec == *spec) else { return };
        if let Some(place) = place.filter(|first| first.id == current.id) {
            *place = Arc::clone(current);
            self.next = Some(Arc::clone(current));
            // Nobody knows which of them it will be: it is looked at.
            self.fingerprint = None;
        }
    }
}

impl Memory {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            slots: SlotPool::new(capacity),
            backends: HashMap::default(),
            pass: 0,
            region_specs: HashMap::new(),
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
    backends: Vec<Arc<Backend>>,
    /// Rows of backends so far, and how many of them are not marked as deleted.
    rows: usize,
    alive: usize,
}

impl<'a> Intake<'a> {
    pub(super) fn new(memory: &'a mut Memory) -> Self {
        memory.pass += 1;
        Self { memory, report: ReloadReport::default(), backends: Vec::new(), rows: 0, alive: 0 }
    }

    /// What was made becomes what was accepted last.
    pub(super) fn accept(self) -> ReloadReport {
        let mut courtesy = Courtesy::among_many();
        self.memory.backends.retain(|_, known| {
            courtesy.pass();
            known.current = known.next.take();
            known.current.is_some() || known.load.strong_count() > 0
        });
        self.report
    }

    /// What was made is forgotten; what was accepted last stays.
    pub(super) fn abandon(self) {
        let pass = self.memory.pass;
        drop(self.backends);
        self.memory.backends.retain(|_, known| {
            let next = known.next.take();
            let is_in_force =
                next.zip(known.current.as_ref()).is_some_and(|(next, current)| Arc::ptr_eq(&next, current));
            if known.pass == pass && !is_in_force {
                // That of a row that was just forgotten.
                known.fingerprint = None;
            }
            known.current.is_some() || known.load.strong_count() > 0
        });
    }

    /// Where rows are missing that were accepted last; `others` are all but the backends.
    pub(super) fn lost(&self, others: &RawRouting) -> Vec<LostTable> {
        self.memory.lost(self.alive == 0, others)
    }

    /// Takes in some rows more.
    pub(super) fn backends(&mut self, rows: &[RawBackend]) {
        let mut courtesy = Courtesy::among_many();
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            courtesy.pass();
            self.alive += 1;
            let fingerprint = self.memory.backends.hasher().hash_one(row);
            let backend = match self.unchanged(row, fingerprint) {
                Some(backend) => Some(backend),
                None => match row.parse().and_then(|spec| self.admit(spec, fingerprint)) {
                    Ok(backend) => Some(backend),
                    Err(error) => self.refuse(self.rows + at, row, &error),
                },
            };
            self.backends.extend(backend);
        }
        self.rows += rows.len();
    }

    /// All backends that came of the rows.
    pub(super) fn take_backends(&mut self) -> Vec<Arc<Backend>> {
        std::mem::take(&mut self.backends)
    }

    /// The backend of a row that was accepted before, if it is as it was then: most rows are. Two rows of the same id
    /// have the same fingerprint by chance once in 2⁶⁴ changes, and nobody can aim for it, for it is seeded.
    fn unchanged(&mut self, row: &RawBackend, fingerprint: u64) -> Option<Arc<Backend>> {
        let RawValue::Text(id) = &row.id else { return None };
        let known = self.memory.backends.get_mut(id.as_str()).filter(|known| known.fingerprint == Some(fingerprint))?;
        let current = known.current.as_ref().filter(|_| known.pass != self.memory.pass)?;
        known.pass = self.memory.pass;
        known.place = self.backends.len();
        Some(Arc::clone(known.next.insert(Arc::clone(current))))
    }

    fn admit(&mut self, spec: BackendSpec, fingerprint: u64) -> Result<Arc<Backend>, RowError> {
        let Memory { slots, backends, pass, .. } = &mut *self.memory;
        let place = self.backends.len();
        if let Some(known) = backends.get_mut(&spec.id) {
            if known.pass == *pass {
                known.prefer_current(&spec, self.backends.get_mut(known.place));
                return Err(RowError::Duplicate);
            }
            known.pass = *pass;
            known.place = place;
            known.fingerprint = Some(fingerprint);
            let unchanged = known.current.as_ref().filter(|current| current.spec == spec);
            let next = match (unchanged, known.load.upgrade()) {
                (Some(current), _) => Arc::clone(current),
                (None, Some(load)) => {
                    // Before the first ranking is made of it: the way to it is another one, or may be.
                    if known.current.as_ref().is_none_or(|current| current.addr != spec.addr) {
                        load.rtt().forget();
                    }
                    Arc::new(spec.with_load(load))
                }
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
        let (fingerprint, pass) = (Some(fingerprint), *pass);
        let known = Known { load: weak, current: None, next: Some(Arc::clone(&next)), fingerprint, pass, place };
        backends.insert(id, known);
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
        known.place = self.backends.len();
        known.next = known.current.clone();
        self.report.kept += usize::from(known.next.is_some());
        known.next.clone()
    }

    pub(super) fn regions(&mut self, rows: &[RawRegion]) -> Arc<Regions> {
        let table = Table {
            kind: "region",
            duplicate: RowError::DuplicateName,
            key: RawRegion::name,
            parse: RawRegion::parse,
            last: &self.memory.region_specs,
        };
        let (accepted, _) = table.take_in::<Count>(rows, &mut self.report);
        // In the order of the rows.
        let specs: Vec<_> = accepted.iter().map(|(_, spec)| spec.clone()).collect();
        let accepted = accepted.into_iter().collect();
        if self.memory.region_specs != accepted {
            self.memory.regions = Arc::new(Regions::new(&specs));
            self.memory.region_specs = accepted;
        }
        Arc::clone(&self.memory.regions)
    }

    pub(super) fn overrides(&mut self, rows: &[RawGeoOverride]) -> Overrides {
        let table = Table {
            kind: "geo override",
            duplicate: RowError::DuplicatePrefix,
            key: RawGeoOverride::key,
            parse: RawGeoOverride::parse,
            last: &self.memory.overrides,
        };
        let (accepted, Apart) = table.take_in(rows, &mut self.report);
        self.memory.overrides = accepted.into_iter().collect();
        Overrides::new(self.memory.overrides.values().cloned())
    }

    pub(super) fn apps(&mut self, rows: &[RawApp]) -> HashMap<AppName, AppSpec> {
        let table = Table {
            kind: "app",
            duplicate: RowError::DuplicateName,
            key: |row: &RawApp| row.name().ok(),
            parse: RawApp::parse,
            last: &self.memory.apps,
        };
        let (accepted, Apart) = table.take_in(rows, &mut self.report);
        self.memory.apps = accepted.into_iter().collect();
        self.memory.apps.clone()
    }

    pub(super) fn endpoints(&mut self, rows: &[RawListener]) -> Endpoints {
        let table = Table {
            kind: "listener",
            duplicate: RowError::Duplicate,
            key: |row: &RawListener| row.id().ok(),
            parse: RawListener::parse,
            last: &self.memory.listeners,
        };
        let (accepted, spots) = table.take_in::<Spots>(rows, &mut self.report);
        let endpoints = spots.endpoints(accepted.iter().map(|(_, spec)| spec));
        // No worker should have to do it.
        endpoints.prepare();
        self.memory.listeners = accepted.into_iter().collect();
        endpoints
    }

    pub(super) fn access(&mut self, rows: &[RawAcl]) -> AccessList {
        let table = Table {
            kind: "rule",
            duplicate: RowError::Duplicate,
            key: |row: &RawAcl| row.id().ok(),
            parse: RawAcl::parse,
            last: &self.memory.rules,
        };
        let (accepted, list) = table.take_in(rows, &mut self.report);
        self.memory.rules = accepted.into_iter().collect();
        list
    }
}

impl ReloadReport {
    /// Notes why the row in place `at` is refused.
    fn reject(&mut self, kind: &str, name: Option<String>, at: usize, error: &RowError) {
        let name = name.unwrap_or_else(|| format!("row {}", at + 1));
        self.rejected.push((format!("{kind} {name}"), error.to_string()));
    }
}

fn new_load(slots: &Arc<SlotPool>) -> Result<Arc<BackendLoad>, RowError> {
    let slot = slots.take().ok_or(RowError::NoSlot { capacity: slots.capacity() })?;
    Ok(BackendLoad::new(slot))
}
