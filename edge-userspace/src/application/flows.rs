//! The flows that run now: who, where to, by which forwarder, and how many bytes so far.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use crate::domain::{AppName, Backend, BackendId, ByteCounts, ForwarderKind, Step, Why};

/// So many steps are recorded: the first ones and the last one. In practice there are one or two.
const MOST_STEPS: usize = 16;

/// All running flows. The list is that of the live [`Listed`]s.
#[derive(Debug, Default)]
pub struct Flows {
    live: DashMap<u64, Arc<Flow>>,
}

impl Flows {
    /// Lists a flow until the guard is dropped.
    pub fn list(self: &Arc<Self>, flow: Flow) -> Listed {
        let flow = Arc::new(flow);
        self.live.insert(flow.id, Arc::clone(&flow));
        Listed { flow, flows: Arc::clone(self) }
    }

    /// The flows of this moment, the oldest first.
    pub fn all(&self) -> Vec<Arc<Flow>> {
        let mut all: Vec<_> = self.live.iter().map(|entry| Arc::clone(entry.value())).collect();
        all.sort_unstable_by_key(|flow| flow.id);
        all
    }

    /// Gives back the memory of flows that have ended.
    pub fn shrink(&self) {
        self.live.shrink_to_fit();
    }

    /// The flows of one backend, whether the routing table still has it or not.
    pub fn of(&self, backend: &BackendId) -> Vec<Arc<Flow>> {
        let of_backend = self.live.iter().filter(|entry| entry.value().backend == *backend);
        of_backend.map(|entry| Arc::clone(entry.value())).collect()
    }

    /// Bytes of the running flows together.
    pub fn bytes(&self) -> ByteCounts {
        self.live.iter().fold(ByteCounts::default(), |sum, entry| sum + entry.value().bytes())
    }
}

/// A flow that is listed.
#[derive(Debug)]
pub struct Listed {
    flow: Arc<Flow>,
    flows: Arc<Flows>,
}

impl std::ops::Deref for Listed {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.flows.live.remove(&self.flow.id);
    }
}

/// Bytes that the kernel counts while the flow runs.
pub trait InKernel: Send + Sync {
    /// Client to backend, and backend to client.
    fn bytes(&self) -> (u64, u64);
}

/// One running flow.
pub struct Flow {
    pub id: u64,
    pub client: SocketAddr,
    pub app: AppName,
    pub backend: BackendId,
    began: Instant,
    cut: AtomicBool,
    /// Bytes that the daemon knows of: read and written by it, or spliced.
    up: AtomicU64,
    down: AtomicU64,
    spliced_up: AtomicU64,
    spliced_down: AtomicU64,
    course: Mutex<Course>,
    /// Learns what the flow measures.
    measured: Option<Arc<Backend>>,
}

#[derive(Default)]
struct Course {
    steps: Vec<Step>,
    in_kernel: Option<Arc<dyn InKernel>>,
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("id", &self.id).field("client", &self.client).finish_non_exhaustive()
    }
}

impl Flow {
    pub fn new(id: u64, client: SocketAddr, app: AppName, backend: BackendId) -> Self {
        Self {
            id,
            client,
            app,
            backend,
            began: Instant::now(),
            cut: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            spliced_up: AtomicU64::new(0),
            spliced_down: AtomicU64::new(0),
            course: Mutex::default(),
            measured: None,
        }
    }

    /// The same flow, with a backend that learns its round-trip times.
    pub fn measuring(self, backend: &Arc<Backend>) -> Self {
        Self { measured: Some(Arc::clone(backend)), ..self }
    }

    /// Asks for the way to the backend and back, where that is of use now.
    pub fn measure(&self, round_trip: impl FnOnce() -> Option<Duration>) {
        if let Some(backend) = &self.measured {
            backend.measure(Instant::now(), round_trip);
        }
    }

    /// A forwarder takes over.
    pub fn step(&self, forwarder: ForwarderKind, why: Why) {
        let steps = &mut self.course().steps;
        // The last one is always the present one.
        steps.truncate(MOST_STEPS - 1);
        steps.push(Step { forwarder, why, at: self.began.elapsed() });
    }

    /// The forwarders so far, the present one last.
    pub fn steps(&self) -> Vec<Step> {
        self.course().steps.clone()
    }

    /// Marks the flow: it is to end. Takes effect when [`Cut::marked`](super::drain::Cut::marked) is called.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Publishes what the daemon moved: all of it, and of that what never came to userspace.
    pub fn publish(&self, moved: ByteCounts) {
        self.up.store(moved.up, Ordering::Relaxed);
        self.down.store(moved.down, Ordering::Relaxed);
        self.spliced_up.store(moved.kernel_up, Ordering::Relaxed);
        self.spliced_down.store(moved.kernel_down, Ordering::Relaxed);
    }

    /// From now on the kernel counts, too; with `None` no longer.
    pub fn count_in_kernel(&self, counts: Option<Arc<dyn InKernel>>) {
        self.course().in_kernel = counts;
    }

    /// Bytes forwarded until now.
    pub fn bytes(&self) -> ByteCounts {
        let (up, down) = self.course().in_kernel.as_ref().map_or((0, 0), |counts| counts.bytes());
        let kernel = ByteCounts { up, down, kernel_up: up, kernel_down: down };
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let daemon = ByteCounts {
            up: load(&self.up),
            down: load(&self.down),
            kernel_up: load(&self.spliced_up),
            kernel_down: load(&self.spliced_down),
        };
        daemon + kernel
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running flow, as `GET /api/v1/flows` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// That of the access log.
    pub id: u64,
    pub client: SocketAddr,
    pub app: String,
    pub backend: String,
    pub age_secs: f64,
    /// The forwarder that carries it now, why, and since how many seconds after the flow began.
    pub forwarder: String,
    pub why: String,
    pub since_secs: f64,
    /// How often the forwarder has changed.
    pub changes: u32,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// The parts of these that never came to userspace.
    pub kernel_up: u64,
    pub kernel_down: u64,
}

impl From<&Flow> for FlowStatus {
    fn from(flow: &Flow) -> Self {
        let (bytes, steps) = (flow.bytes(), flow.steps());
        let last = steps.last();
        Self {
            id: flow.id,
            client: flow.client,
            app: flow.app.to_string(),
            backend: flow.backend.to_string(),
            age_secs: flow.age().as_secs_f64(),
            forwarder: last.map_or("", |step| step.forwarder.as_str()).to_owned(),
            why: last.map_or("", |step| step.why.as_str()).to_owned(),
            since_secs: last.map_or(0.0, |step| step.at.as_secs_f64()),
            changes: u32::try_from(steps.len().saturating_sub(1)).unwrap_or(u32::MAX),
            bytes_up: bytes.up,
            bytes_down: bytes.down,
            kernel_up: bytes.kernel_up,
            kernel_down: bytes.kernel_down,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::domain::Fallback;

    struct Counted;

    impl InKernel for Counted {
        fn bytes(&self) -> (u64, u64) {
            (30, 4)
        }
    }

    fn flow(id: u64) -> Flow {
        let (app, backend) = (AppName::parse("web").unwrap(), BackendId::parse("b").unwrap());
        Flow::new(id, "192.0.2.1:5".parse().unwrap(), app, backend)
    }

    #[test]
    fn a_flow_is_listed_while_it_runs_and_its_bytes_are_those_of_daemon_and_kernel() {
        let flows = Arc::new(Flows::default());
        let (second, first) = (flows.list(flow(2)), flows.list(flow(1)));
        assert_eq!(flows.all().iter().map(|flow| flow.id).collect::<Vec<_>>(), [1, 2]);
        first.publish(ByteCounts { up: 10, down: 20, kernel_up: 3, kernel_down: 0 });
        first.count_in_kernel(Some(Arc::new(Counted)));
        assert_eq!(first.bytes(), ByteCounts { up: 40, down: 24, kernel_up: 33, kernel_down: 4 });
        second.publish(ByteCounts { up: 1, ..ByteCounts::default() });
        assert_eq!(flows.bytes().up, 41);
        first.count_in_kernel(None);
        assert_eq!(first.bytes().up, 10);
        drop((first, second));
        assert!(flows.all().is_empty());
    }

    #[test]
    fn steps_are_kept_in_order_and_bounded() {
        let flow = flow(1);
        flow.step(ForwarderKind::Copy, Why::Start);
        flow.step(ForwarderKind::Sockmap, Why::Lively);
        (0..100).for_each(|_| flow.step(ForwarderKind::Copy, Why::Fallback(Fallback::Spilling)));
        let steps = flow.steps();
        assert_eq!(steps.len(), MOST_STEPS);
        assert_eq!((steps[0].forwarder, steps[1].why), (ForwarderKind::Copy, Why::Lively));
        let status = FlowStatus::from(&flow);
        assert_eq!((status.forwarder.as_str(), status.why.as_str(), status.changes), ("copy", "spilling", 15));
    }
}
