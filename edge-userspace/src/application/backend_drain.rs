//! Taking one backend out of service at this POP, by an operator's word to the running daemon: no new connections, and
//! those it has end by themselves or at a deadline. The routing database says the same for good and for all POPs
//! (`state`); this word ends with the daemon.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::drain::Cut;
use super::events::{EventKind, Events, Subject};
use super::flows::Flows;
use super::routing::RoutingTable;
use crate::domain::{BackendId, BackendLoad};

/// The drains of backends that are under way.
#[derive(Debug)]
pub struct BackendDrains {
    routing: Arc<RoutingTable>,
    flows: Arc<Flows>,
    events: Arc<Events>,
    /// Of all workers.
    cuts: Vec<Arc<Cut>>,
    drains: Mutex<HashMap<BackendId, Drain>>,
}

#[derive(Debug)]
struct Drain {
    /// When what is left is cut; `None`: never.
    deadline: Option<Instant>,
    /// Where the mark is, which so outlives the row; `None` for a backend that the table had lost already.
    load: Option<Arc<BackendLoad>>,
}

/// What `POST /api/v1/backends/drain` asks, and `…/ready`, which knows no deadline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    pub backend: String,
    /// Seconds until what is left is cut; without it connections end by themselves.
    #[serde(default)]
    pub deadline_secs: Option<f64>,
}

/// Longer deadlines are slips of the keyboard: 30 days.
pub const LONGEST_DEADLINE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl DrainRequest {
    /// The deadline as a time, if it is one.
    pub fn deadline(&self) -> Result<Option<Duration>, String> {
        let deadline = self.deadline_secs.map(Duration::try_from_secs_f64).transpose();
        match deadline.map_err(|why| format!("deadline_secs is no time: {why}"))? {
            Some(long) if long > LONGEST_DEADLINE => {
                Err(format!("deadline_secs is more than {} (30 days)", LONGEST_DEADLINE.as_secs()))
            }
            deadline => Ok(deadline),
        }
    }
}

/// What they answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DrainAnswer {
    pub backend: String,
    pub draining: bool,
    /// Seconds until what is left is cut; `None`: never.
    pub deadline_secs: Option<f64>,
    /// Connections that the backend has now.
    pub connections: usize,
    /// Whether the routing table has the backend; one that was removed may still have connections.
    pub known: bool,
}

/// Why an operator's word on a backend has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendDrainError {
    #[error("there is no backend {0}, and no connection to one: see `edgeproxy backends`")]
    Unknown(BackendId),
    #[error(
        "backend {0} is not being drained by the daemon; what the routing database says is changed by `edgeproxy db ready`"
    )]
    NotDraining(BackendId),
}

impl BackendDrains {
    pub fn new(routing: Arc<RoutingTable>, flows: Arc<Flows>, events: Arc<Events>, cuts: Vec<Arc<Cut>>) -> Self {
        Self { routing, flows, events, cuts, drains: Mutex::default() }
    }

    /// No new connections from now on; those that are left at the deadline are cut. A later word replaces an earlier one.
    pub fn drain(
        &self,
        id: &BackendId,
        deadline: Option<Duration>,
        now: Instant,
    ) -> Result<DrainAnswer, BackendDrainError> {
        let load = self.routing.snapshot().backend(id).map(|backend| Arc::clone(&backend.load));
        let connections = self.flows.of(id).len();
        if load.is_none() && connections == 0 {
            return Err(BackendDrainError::Unknown(id.clone()));
        }
        if let Some(load) = &load {
            load.set_draining(true);
        }
        let known = load.is_some();
        let at = deadline.and_then(|after| now.checked_add(after));
        let former = self.drains().insert(id.clone(), Drain { deadline: at, load });
        let until = deadline.map_or_else(
            || "connections end by themselves".to_owned(),
            |after| format!("what is left is cut in {after:?}"),
        );
        let instead = former.and_then(|drain| drain.deadline).map_or_else(String::new, |former| {
            format!("; the deadline before would have been in {:?}", former.saturating_duration_since(now))
        });
        let reason = format!("an operator drains it: {connections} connections; {until}{instead}");
        self.events.emit(EventKind::BackendDraining, Subject::backend_id(id), reason);
        Ok(self.answer(id, true, deadline, known))
    }

    /// Takes the word back.
    pub fn ready(&self, id: &BackendId) -> Result<DrainAnswer, BackendDrainError> {
        let drain = self.drains().remove(id).ok_or_else(|| BackendDrainError::NotDraining(id.clone()))?;
        if let Some(load) = &drain.load {
            load.set_draining(false);
        }
        self.events.emit(EventKind::BackendReady, Subject::backend_id(id), "an operator has ended its drain");
        Ok(self.answer(id, false, None, drain.load.is_some()))
    }

    /// Cuts what is left where a deadline has passed. To be called several times a second.
    pub fn tick(&self, now: Instant) {
        let mut due = Vec::new();
        {
            let mut drains = self.drains();
            for (id, drain) in drains.iter_mut() {
                // Once; the drain itself goes on.
                if drain.deadline.take_if(|deadline| now >= *deadline).is_some() {
                    due.push(id.clone());
                }
            }
            // What the table had lost is forgotten with its last connection.
            drains.retain(|id, drain| drain.load.is_some() || !self.flows.of(id).is_empty());
        }
        due.iter().for_each(|id| self.cut(id));
    }

    fn cut(&self, id: &BackendId) {
        let left = self.flows.of(id);
        left.iter().for_each(|flow| flow.cut());
        self.cuts.iter().for_each(|cut| cut.marked());
        let reason = format!("the deadline of its drain has passed: {} connections are cut", left.len());
        self.events.emit(EventKind::BackendDrainCut, Subject::backend_id(id), reason);
    }

    /// How many seconds are left to a drain's deadline, for the status: `None` where the daemon drains no such backend.
    pub fn state(&self, id: &BackendId, now: Instant) -> Option<Option<f64>> {
        let drains = self.drains();
        let deadline = drains.get(id)?.deadline;
        Some(deadline.map(|deadline| deadline.saturating_duration_since(now).as_secs_f64()))
    }

    fn answer(&self, id: &BackendId, draining: bool, deadline: Option<Duration>, known: bool) -> DrainAnswer {
        DrainAnswer {
            backend: id.to_string(),
            draining,
            deadline_secs: deadline.map(|after| after.as_secs_f64()),
            connections: self.flows.of(id).len(),
            known,
        }
    }

    fn drains(&self) -> MutexGuard<'_, HashMap<BackendId, Drain>> {
        self.drains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
