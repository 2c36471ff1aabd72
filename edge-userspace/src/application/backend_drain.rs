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
use super::health::Watch;
use super::routing::RoutingTable;
use crate::domain::{BackendId, BackendLoad};

/// The drains of backends that are under way.
#[derive(Debug)]
pub struct BackendDrains {
    routing: Arc<RoutingTable>,
    flows: Arc<Flows>,
    watch: Arc<Watch>,
    events: Arc<Events>,
    /// Of all workers.
    cuts: Vec<Arc<Cut>>,
    drains: Mutex<HashMap<BackendId, Drain>>,
}

#[derive(Debug)]
struct Drain {
    /// From when on what it has is cut; `None`: never.
    deadline: Option<Instant>,
    /// Where the mark is, which so outlives the row; `None` for a backend that the table had lost already.
    load: Option<Arc<BackendLoad>>,
    /// Since when it is out of the table and has no connections.
    gone_since: Option<Instant>,
}

/// A backend that was removed and has no connections is forgotten after this time, and its place in the kernel's counts
/// is free again. Not at once: a row may be away for a moment while the table is written anew, and its backend must
/// still be draining when it is back.
const FORGOTTEN: Duration = Duration::from_secs(60);

impl Drain {
    /// Whether it is to be forgotten: what the table had lost already with its last connection.
    fn is_over(&mut self, is_known: bool, now: Instant, has_flows: impl FnOnce() -> bool) -> bool {
        let Some(load) = &self.load else { return !has_flows() };
        // Those that are still connecting count.
        if is_known || load.active() > 0 {
            self.gone_since = None;
            return false;
        }
        now.saturating_duration_since(*self.gone_since.get_or_insert(now)) >= FORGOTTEN
    }
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
    pub fn new(
        routing: Arc<RoutingTable>,
        flows: Arc<Flows>,
        watch: Arc<Watch>,
        events: Arc<Events>,
        cuts: Vec<Arc<Cut>>,
    ) -> Self {
        Self { routing, flows, watch, events, cuts, drains: Mutex::default() }
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
        let known = load.is_some();
        let at = deadline.and_then(|after| now.checked_add(after));
        let former = {
            let mut drains = self.drains();
            load.iter().for_each(|load| load.set_draining(true));
            drains.insert(id.clone(), Drain { deadline: at, load, gone_since: None })
        };
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
    pub fn ready(&self, id: &BackendId, now: Instant) -> Result<DrainAnswer, BackendDrainError> {
        let drain = {
            // As in `drain`: of two words at once the mark is the later one's.
            let mut drains = self.drains();
            let drain = drains.remove(id).ok_or_else(|| BackendDrainError::NotDraining(id.clone()))?;
            drain.load.iter().for_each(|load| load.set_draining(false));
            drain
        };
        self.events.emit(EventKind::BackendReady, Subject::backend_id(id), "an operator has ended its drain");
        self.watch.put_back(std::slice::from_ref(id), now);
        Ok(self.answer(id, false, None, drain.load.is_some()))
    }

    /// Cuts what there is where a deadline has passed, also what was still connecting then and became a flow since, and
    /// forgets drains of backends that are gone. To be called several times a second.
    pub fn tick(&self, now: Instant) {
        let (mut due, mut over) = (Vec::new(), Vec::new());
        let mut drains = self.drains();
        // While the drains are held: nobody can say it anew of a backend that this snapshot has lost.
        let snapshot = self.routing.snapshot();
        drains.retain(|id, drain| {
            if drain.deadline.is_some_and(|deadline| now >= deadline) {
                due.push(id.clone());
            }
            let is_over = drain.is_over(snapshot.backend(id).is_some(), now, || !self.flows.of(id).is_empty());
            if is_over && let Some(load) = &drain.load {
                load.set_draining(false);
                over.push(id.clone());
            }
            !is_over
        });
        drop(drains);
        due.iter().for_each(|id| self.cut(id));
        for id in over {
            let reason = format!("its drain is forgotten: it was removed, and had no connection for {FORGOTTEN:?}");
            self.events.emit(EventKind::BackendReady, Subject::backend_id(&id), reason);
        }
    }

    /// Cuts the flows that are not cut yet; those that are take a moment to end.
    fn cut(&self, id: &BackendId) {
        let mut left = self.flows.of(id);
        left.retain(|flow| !flow.is_cut());
        if left.is_empty() {
            return;
        }
        left.iter().for_each(|flow| flow.cut());
        self.cuts.iter().for_each(|cut| cut.marked());
        let reason = format!("the deadline of its drain has passed: {} connections are cut", left.len());
        self.events.emit(EventKind::BackendDrainCut, Subject::backend_id(id), reason);
    }

    /// How many seconds are left to a drain's deadline, for the status, 0 once it has passed: `None` where the daemon
    /// drains no such backend.
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
