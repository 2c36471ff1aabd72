//! The current routing table, and how a new one takes its place.

mod intake;
mod word;

use std::borrow::Borrow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use edge_common::MAX_BACKENDS;

pub use self::intake::LostTable;
use self::intake::{Intake, Memory};
pub use self::word::Words;
use super::health::Untold;
use crate::domain::{Backend, BackendId, Courtesy, Lobby, RawBackend, RawRouting, Snapshot, Transition, World};

/// Holds the snapshot that routes. Readers never wait; a new snapshot takes the place of the old one at once.
#[derive(Debug)]
pub struct RoutingTable {
    current: ArcSwap<Snapshot>,
    status: ArcSwap<ReloadStatus>,
    writer: Mutex<Writer>,
    /// Who waits for a place on a backend, whatever the snapshot.
    lobby: Arc<Lobby>,
    untold: Untold,
}

/// What outlives snapshots. Used by one reload at a time.
#[derive(Debug)]
struct Writer {
    memory: Memory,
    /// Snapshots that route no more, and may still be looked at. Whoever lets go of one last frees all that it held,
    /// which takes milliseconds: it must not be a worker.
    retired: Vec<Arc<Snapshot>>,
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
    /// Backends that take new clients again by their rows, and were ejected meanwhile.
    pub put_back: Vec<BackendId>,
    /// Backends of which the operator says otherwise now.
    pub words: Words,
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

/// Empty or missing tables where there were full ones: a POP is emptied, or its rules are lost, by accident that way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the routing database has {}: the last good table stays; if that is meant, confirm with \
     `edgeproxy reload --allow-empty`",
    listed(.lost)
)]
pub struct Emptied {
    pub lost: Vec<LostTable>,
}

fn listed(lost: &[LostTable]) -> String {
    lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
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
        let writer = Writer { memory: Memory::new(capacity), retired: Vec::new() };
        Self {
            current: ArcSwap::from_pointee(Snapshot::empty()),
            status: ArcSwap::default(),
            writer: Mutex::new(writer),
            lobby: Arc::default(),
            untold: Untold::default(),
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

    /// What has become of backends and is still to be told: reloads forget what is known of some.
    pub(super) fn untold(&self) -> &Untold {
        &self.untold
    }

    pub fn status(&self) -> Arc<ReloadStatus> {
        self.status.load_full()
    }

    /// Validates `raw` row by row and makes it the current snapshot. A refused row keeps its last good version.
    /// Tables that have lost all of their rows are refused, unless `allow_empty` says that it is meant.
    ///
    /// Loads are kept by backend id, so counts are right across reloads; what hasn't changed is taken over as it is.
    pub fn apply(&self, raw: &RawRouting, allow_empty: bool) -> Result<ReloadReport, Emptied> {
        self.apply_read(allow_empty, |take| {
            take(&raw.backends);
            Ok(raw)
        })
    }

    /// Likewise, while the rows are being read: `read` hands over the backends as they come, and returns all others. If
    /// it fails, nothing has changed.
    pub fn apply_read<R: Borrow<RawRouting>, E: From<Emptied>>(
        &self,
        allow_empty: bool,
        read: impl FnOnce(&mut dyn FnMut(&[RawBackend])) -> Result<R, E>,
    ) -> Result<ReloadReport, E> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.snapshot();
        let mut intake = Intake::new(&mut writer.memory);
        let raw = match read(&mut |rows| intake.backends(rows)) {
            Ok(raw) => raw,
            Err(why) => {
                intake.abandon();
                return Err(why);
            }
        };
        let raw = raw.borrow();
        let mut lost = intake.lost(raw);
        let backends = intake.take_backends();
        // None that is good, and none that was known.
        if lost.is_empty() && backends.is_empty() && !last.is_empty() {
            lost.push(LostTable::backends(last.len()));
        }
        if !lost.is_empty() && !allow_empty {
            drop(backends);
            intake.abandon();
            return Err(Emptied { lost }.into());
        }
        let world = World {
            regions: intake.regions(&raw.regions),
            apps: intake.apps(&raw.apps),
            endpoints: intake.endpoints(&raw.listeners),
            overrides: intake.overrides(&raw.geo_overrides),
            access: intake.access(&raw.acl),
            lobby: Arc::clone(&self.lobby),
        };
        let mut report = intake.accept();
        let snapshot = Snapshot::following(&last, backends, world);
        report.generation = snapshot.generation();
        report.accepted = snapshot.len();
        report.apps = snapshot.apps().len();
        let snapshot = Arc::new(snapshot);
        self.current.store(Arc::clone(&snapshot));
        // Only now: what is still said of the former one is not taken for the new one's any more.
        forget_changed(&last, &snapshot, &self.untold);
        // There may be more room now, or nothing to wait for.
        self.lobby.changed();
        let mut courtesy = Courtesy::among_many();
        for (was, is) in kept(&last, &snapshot) {
            courtesy.pass();
            report.words.hear(was, is);
            report.put_back.extend(is_put_back(was, is).then(|| is.id.clone()));
        }
        writer.retired.push(last);
        writer.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        self.lobby.tidy();
        Ok(report)
    }

    /// Frees snapshots that nobody looks at any more. To be called now and then by who may take milliseconds.
    pub fn clear_away(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody can get hold of one any more: a count of one is ours, and final.
        writer.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
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

/// A backend that has come, moved or is checked in another way begins anew, which is told of those that had trouble.
fn forget_changed(last: &Snapshot, now: &Snapshot, untold: &Untold) {
    // At the start nothing is known of anybody.
    if last.generation() == 0 {
        return;
    }
    let mut courtesy = Courtesy::among_many();
    for app in now.apps() {
        let before = last.app(app.name());
        // What was taken over as it is has not changed.
        if before.is_some_and(|before| std::ptr::eq(before, app)) {
            continue;
        }
        for backend in app.backends() {
            courtesy.pass();
            let was = before.and_then(|app| app.backend(&backend.id));
            if was.is_none_or(|was| was.addr != backend.addr) {
                // In this order: what the former address says after it was forgotten must not count.
                backend.load.move_to(backend.addr);
                backend.load.rtt().forget();
            }
            let same = before
                .and_then(|app| Some((app, app.backend(&backend.id)?)))
                .is_some_and(|(before, was)| was.addr == backend.addr && before.check_of(was) == app.check_of(backend));
            if !same {
                backend.load.forget_health(|| untold.push(backend, Transition::Anew));
            }
        }
    }
}

/// Backends that are in both snapshots, as they were and as they are, where they may differ.
fn kept<'s>(last: &'s Snapshot, now: &'s Snapshot) -> impl Iterator<Item = (&'s Arc<Backend>, &'s Arc<Backend>)> {
    now.apps()
        .filter_map(|app| Some((last.app(app.name())?, app)))
        // What was taken over as it is has not changed.
        .filter(|(before, app)| !std::ptr::eq(*before, *app))
        .flat_map(|(before, app)| app.backends().iter().filter_map(|is| Some((before.backend(&is.id)?, is))))
}

/// Whether the row kept new clients away, and only an ejection does now.
fn is_put_back(was: &Backend, is: &Backend) -> bool {
    was.closed_to_new().is_some() && is.closed_to_new().is_none() && is.load.is_ejected()
}

#[cfg(test)]
mod tests;
