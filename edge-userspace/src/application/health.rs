//! The use case that keeps clients away from backends that fail them: listens to what connections and checks tell,
//! ejects, lets back, and notices where an app has lost all its backends.

mod untold;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use self::untold::Untold;
use super::ports::Observer;
use super::routing::{ReloadReport, RoutingTable};
use crate::domain::{
    AppIndex, AppName, Backend, BackendId, CheckPace, CheckReport, CheckSpec, Complaint, ConnectFailure, Ejections,
    Health, HealthRules, Snapshot, Termination, Transition,
};

/// Listens to connections and acts on what they tell.
pub struct Watch {
    rules: HealthRules,
    routing: Arc<RoutingTable>,
    observer: Arc<dyn Observer>,
    /// Backends for which time has work to do: ejected ones, and those on their way back.
    troubled: Mutex<HashMap<BackendId, Arc<Backend>>>,
    /// Those that are being tried.
    trying: Mutex<HashSet<BackendId>>,
    /// Apps that fail open.
    failing: Mutex<BTreeSet<AppName>>,
}

/// An attempt to connect that has failed.
#[derive(Debug, Clone, Copy)]
pub struct FailedConnect {
    pub failure: ConnectFailure,
    pub began: Instant,
    /// It had less than the connect limit: others before it have used up the connection's time.
    pub shortened: bool,
}

impl FailedConnect {
    /// Whether the attempt says something against the backend. A time-out does not, if the attempt had not its whole
    /// time, or if the backend has accepted another connection since it began: a packet may get lost.
    fn counts(&self, backend: &Backend) -> bool {
        self.failure != ConnectFailure::TimedOut || !(self.shortened || backend.load.has_accepted_since(self.began))
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Watch {
    pub fn new(rules: HealthRules, routing: Arc<RoutingTable>, observer: Arc<dyn Observer>) -> Self {
        Self {
            rules,
            routing,
            observer,
            troubled: Mutex::default(),
            trying: Mutex::default(),
            failing: Mutex::default(),
        }
    }

    /// Changes the health of a backend. What comes of it waits to be [told](Self::tell). Says whether time has work to do, too.
    fn change(
        &self,
        backend: &Arc<Backend>,
        now: Instant,
        change: impl FnOnce(&mut Health) -> Option<Transition>,
    ) -> (Option<Transition>, bool) {
        backend.load.with_health(now, &self.rules, |health| {
            let transition = change(health);
            transition.iter().for_each(|transition| self.routing.untold().push(backend, *transition));
            transition
        })
    }

    /// Tells what has come of changes, others' too.
    fn tell(&self) {
        self.routing.untold().tell(|backend, transition| {
            // As its row is now: the operator may have taken it out since, or removed it, and then there is nothing to tell.
            if let Some((_, now)) = current(&self.routing.load(), backend) {
                self.observer.health_changed(now, transition);
            }
        });
    }

    /// The routing table was reloaded.
    pub fn reloaded(&self, report: &ReloadReport, now: Instant) {
        self.put_back(&report.put_back, now);
    }

    /// The backend has accepted a connection.
    pub fn connected(&self, backend: &Arc<Backend>, now: Instant) {
        if !backend.is_in_place() {
            return;
        }
        backend.load.accepted(now);
        if backend.load.is_spotless() {
            return;
        }
        let (transition, _) =
            self.change(backend, now, |health| backend.is_in_place().then(|| health.connected(now)).flatten());
        if transition.is_some() {
            self.tell();
        }
    }

    /// It has not.
    pub fn connect_failed(&self, backend: &Arc<Backend>, failed: FailedConnect, now: Instant) {
        if let Some(complaint) = Complaint::of_connect(failed.failure).filter(|_| failed.counts(backend)) {
            self.complain(backend, complaint, now);
        }
    }

    /// A connection of the backend ended so, `age` after it was accepted.
    pub fn ended(
        &self,
        backend: &Arc<Backend>,
        termination: Termination,
        bytes_down: u64,
        age: Duration,
        now: Instant,
    ) {
        match Complaint::of_end(termination, bytes_down, age) {
            Some(complaint) => self.complain(backend, complaint, now),
            None if backend.load.is_spotless() => {}
            // A client that went at once without an answer says nothing.
            None if !Complaint::is_served(bytes_down, age) || !backend.is_in_place() => {}
            None => {
                // Again, as what is forgotten meanwhile must stay so.
                let served = |health: &mut Health| {
                    if backend.is_in_place() {
                        health.served();
                    }
                };
                backend.load.with_health(now, &self.rules, served);
            }
        }
    }

    fn complain(&self, backend: &Arc<Backend>, complaint: Complaint, now: Instant) {
        let rules = &self.rules;
        let complain = |health: &mut Health| self.is_current(backend) && health.complain(complaint, rules);
        if !backend.load.with_health(now, rules, complain).0 {
            return;
        }
        // Held until the ejection is in force, so that no two together eject more than may be.
        let mut troubled = lock(&self.troubled);
        let (transition, _) = self.change(backend, now, |health| {
            // Looked at again: others may have been quicker.
            let eject = health.may_be_ejected() && self.may_eject(backend);
            eject.then(|| health.eject(complaint, now, rules))
        });
        if transition.is_some() {
            troubled.insert(backend.id.clone(), Arc::clone(backend));
            drop(troubled);
            self.tell();
        }
    }

    /// Whether the backend may be out by ejection, beside the others that are. Who is down by its checks serves nobody: of
    /// those that are left not all may go. Who is out by the operator's word is no part of either number.
    fn may_eject(&self, backend: &Backend) -> bool {
        self.ejections_beside(backend).is_some_and(|ejections| self.leave_room(ejections))
    }

    fn ejections_beside(&self, backend: &Backend) -> Option<Ejections> {
        let snapshot = self.routing.load();
        current(&snapshot, backend).map(|(app, now)| app.ejections_beside(now))
    }

    /// Whether one more may be out.
    fn leave_room(&self, ejections: Ejections) -> bool {
        ejections.others < self.rules.most_ejected(ejections.serving)
    }

    /// The operator has put these backends back.
    pub fn put_back(&self, ids: &[BackendId], now: Instant) {
        let snapshot = self.routing.snapshot();
        ids.iter().filter_map(|id| snapshot.backend(id)).for_each(|backend| self.counts_again(backend, now));
        self.tell();
    }

    /// The backend is one of those that serve again, or may be, after others were ejected without regard to it. If it is
    /// ejected itself, and one too many is so with it, that ends.
    fn counts_again(&self, backend: &Arc<Backend>, now: Instant) {
        // As in `complain`.
        let _troubled = lock(&self.troubled);
        self.change(backend, now, |health| {
            let surplus = |ejections: Ejections| ejections.own && !self.leave_room(ejections);
            let is_surplus = health.is_ejected() && self.ejections_beside(backend).is_some_and(surplus);
            is_surplus.then(|| health.spare(now))
        });
    }

    /// A check of the backend was made as `spec` says.
    pub fn checked(
        &self,
        backend: &Arc<Backend>,
        spec: &CheckSpec,
        report: CheckReport,
        now: Instant,
        pace: &CheckPace,
    ) {
        self.observer.checked(&report);
        let (transition, _) = self.change(backend, now, |health| {
            // Looked at while the health is held: a reload forgets it after it has put the new snapshot in place.
            self.is_checked_so(backend, spec).then(|| health.check(report, spec, now, pace)).flatten()
        });
        if let Some(Transition::Up { .. }) = transition {
            lock(&self.troubled).insert(backend.id.clone(), Arc::clone(backend));
            self.counts_again(backend, now);
        }
        if transition.is_some() {
            self.tell();
        }
    }

    /// Backends whose ejection is over but for that somebody tries whether they accept connections. Each is named once,
    /// until it was [tried](Self::tried).
    pub fn to_try(&self, now: Instant) -> Vec<Arc<Backend>> {
        let troubled = lock(&self.troubled);
        let due =
            |backend: &&Arc<Backend>| backend.load.with_health(now, &self.rules, |health| health.is_to_be_tried(now)).0;
        let due: Vec<_> = troubled.values().filter(|backend| self.is_current(backend)).filter(due).cloned().collect();
        drop(troubled);
        let mut trying = lock(&self.trying);
        due.into_iter().filter(|backend| trying.insert(backend.id.clone())).collect()
    }

    /// The POP itself has tried to connect to the backend, with this result; `None`: it could not try.
    pub fn tried(&self, backend: &Arc<Backend>, result: Option<Result<(), Complaint>>, now: Instant) {
        if let Some(result) = result {
            // As in `complain`.
            let troubled = lock(&self.troubled);
            self.change(backend, now, |health| {
                if !self.is_current(backend) {
                    return None;
                }
                // First: a time-out of a client that began before says nothing against it then.
                if result.is_ok() {
                    backend.load.accepted(now);
                }
                health.tried(result.err(), || self.may_eject(backend), now, &self.rules)
            });
            drop(troubled);
            self.tell();
        }
        lock(&self.trying).remove(&backend.id);
    }

    /// Whether the backend is still where the connection found it.
    fn is_current(&self, backend: &Backend) -> bool {
        current(&self.routing.load(), backend).is_some()
    }

    /// Likewise, and still checked so.
    fn is_checked_so(&self, backend: &Backend, spec: &CheckSpec) -> bool {
        let snapshot = self.routing.load();
        let check = current(&snapshot, backend).and_then(|(app, now)| app.check_of(now));
        check.is_some_and(|check| **check == *spec)
    }

    /// Apps whose backends are all out by their checks and are asked all the same.
    pub fn failing_open(&self) -> Vec<AppName> {
        lock(&self.failing).iter().cloned().collect()
    }

    /// Looks which apps have begun or ceased to fail open, and tells. A drain by an operator counts, too.
    fn look_at_apps(&self) {
        let snapshot = self.routing.load();
        let failing: BTreeSet<AppName> =
            snapshot.apps().filter(|app| app.fails_open()).map(|app| app.name().clone()).collect();
        let before = std::mem::replace(&mut *lock(&self.failing), failing.clone());
        before.difference(&failing).for_each(|app| self.observer.fail_open(app, false));
        failing.difference(&before).for_each(|app| self.observer.fail_open(app, true));
    }

    /// Lets time do its work. To be called several times a second.
    pub fn tick(&self, now: Instant) {
        lock(&self.troubled).retain(|_, backend| self.change(backend, now, |health| health.tick(now, &self.rules)).1);
        self.tell();
        self.look_at_apps();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This very backend as the snapshot has it.
fn current<'s>(snapshot: &'s Snapshot, backend: &Backend) -> Option<(&'s AppIndex, &'s Arc<Backend>)> {
    let app = snapshot.app(&backend.app)?;
    let now = app.backend(&backend.id)?;
    (now.addr == backend.addr && Arc::ptr_eq(&now.load, &backend.load)).then_some((app, now))
}

#[cfg(test)]
mod tests;
