//! The use case that keeps clients away from backends that fail them: listens to what connections tell, ejects, and
//! lets back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ports::Observer;
use super::routing::RoutingTable;
use crate::domain::{AppName, Backend, BackendId, Complaint, ConnectFailure, HealthRules, Termination, Transition};

/// Listens to connections and acts on what they tell.
pub struct Watch {
    rules: HealthRules,
    routing: Arc<RoutingTable>,
    observer: Arc<dyn Observer>,
    /// Backends for which time has work to do: ejected ones, and those on their way back.
    troubled: Mutex<HashMap<BackendId, Arc<Backend>>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Watch {
    pub fn new(rules: HealthRules, routing: Arc<RoutingTable>, observer: Arc<dyn Observer>) -> Self {
        Self { rules, routing, observer, troubled: Mutex::default() }
    }

    /// The backend has accepted a connection.
    pub fn connected(&self, backend: &Arc<Backend>, now: Instant) {
        if backend.load.is_spotless() {
            return;
        }
        let (transition, _) = backend.load.with_health(now, &self.rules, |health| health.connected(now));
        self.tell(backend, transition);
    }

    /// It has not.
    pub fn connect_failed(&self, backend: &Arc<Backend>, failure: ConnectFailure, now: Instant) {
        if let Some(complaint) = Complaint::of_connect(failure) {
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
            None => backend.load.with_health(now, &self.rules, |health| health.served()).0,
        }
    }

    fn complain(&self, backend: &Arc<Backend>, complaint: Complaint, now: Instant) {
        let rules = &self.rules;
        // Held until the ejection is in force, so that no two together eject more than may be.
        let mut troubled = self.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        let (transition, _) = backend.load.with_health(now, rules, |health| {
            let eject = health.complain(complaint, rules) && self.may_eject(&backend.app, &troubled);
            eject.then(|| health.eject(complaint, now, rules))
        });
        if transition.is_some() {
            troubled.insert(backend.id.clone(), Arc::clone(backend));
        }
        drop(troubled);
        self.tell(backend, transition);
    }

    fn may_eject(&self, app: &AppName, troubled: &HashMap<BackendId, Arc<Backend>>) -> bool {
        let snapshot = self.routing.load();
        let Some(index) = snapshot.app(app) else { return false };
        let in_service = index.backends().iter().filter(|backend| backend.closed_to_new().is_none()).count();
        let ejected = troubled.values().filter(|backend| backend.app == *app && backend.load.is_ejected()).count();
        ejected < self.rules.most_ejected(in_service)
    }

    /// Lets time do its work. To be called several times a second.
    pub fn tick(&self, now: Instant) {
        let mut transitions = Vec::new();
        self.troubled.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, backend| {
            let (transition, more) = backend.load.with_health(now, &self.rules, |health| health.tick(now, &self.rules));
            transitions.push((Arc::clone(backend), transition));
            more
        });
        for (backend, transition) in transitions {
            self.tell(&backend, transition);
        }
    }

    fn tell(&self, backend: &Backend, transition: Option<Transition>) {
        if let Some(transition) = transition {
            self.observer.health_changed(backend, transition);
        }
    }
}

#[cfg(test)]
mod tests;
