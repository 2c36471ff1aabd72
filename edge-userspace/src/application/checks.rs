//! The use case that asks backends whether they are well: each backend that is to be checked has a task of its own,
//! which lives as long as its address and its check stay what they are. Reloads start and end the tasks of those that
//! have changed and leave the others alone. And it tries backends that were ejected because they accepted no connections,
//! before clients come back to them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::health::Watch;
use super::ports::Prober;
use super::routing::RoutingTable;
use crate::domain::{AppIndex, Backend, BackendId, CheckDefaults, CheckSpec, Complaint, Snapshot};

/// How often the routing table is looked at for backends that have come, gone or changed, and for those that are to be tried.
pub const LOOK: Duration = Duration::from_millis(100);
/// The first checks of several backends follow each other so closely, as long as that fits into the interval.
const FIRST_STEP: Duration = Duration::from_millis(1);
/// A backend that this host was not able to try is tried again after so long.
const RETRY: Duration = Duration::from_secs(1);
/// Even a backend whose checks take longer than the interval is left alone for so long between two.
const LEAST_PAUSE: Duration = Duration::from_millis(20);

/// Checks backends, from this POP.
pub struct Checker<P> {
    kit: Arc<Kit<P>>,
    routing: Arc<RoutingTable>,
    generation: u64,
    running: HashMap<BackendId, Running>,
}

/// What each check needs.
struct Kit<P> {
    prober: P,
    watch: Arc<Watch>,
    defaults: CheckDefaults,
    /// Bounds the sockets that checks have open.
    places: Semaphore,
    /// Likewise for trials: checks of many silent backends don't hold them up.
    trial_places: Semaphore,
    /// How a backend is tried that accepted no connections, and how long that may take.
    trial: (CheckSpec, Duration),
    random: fn() -> u64,
}

/// A backend that is checked. Its task ends when this is dropped.
struct Running {
    backend: Arc<Backend>,
    spec: Arc<CheckSpec>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<P> std::fmt::Debug for Checker<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checker").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

impl<P: Prober> Checker<P> {
    /// `at_once` checks run at the same time, others wait for them; and as many trials. A backend that was ejected is tried within
    /// `connect_limit`. `random` is uniform.
    pub fn new(
        prober: P,
        routing: Arc<RoutingTable>,
        watch: Arc<Watch>,
        defaults: CheckDefaults,
        at_once: usize,
        connect_limit: Duration,
        random: fn() -> u64,
    ) -> Self {
        let places = || Semaphore::new(at_once.max(1));
        let trial = (CheckSpec::connect(), connect_limit);
        let kit = Kit { prober, watch, defaults, places: places(), trial_places: places(), trial, random };
        Self { kit: Arc::new(kit), routing, generation: 0, running: HashMap::new() }
    }

    /// Checks until the future is dropped. Needs a tokio runtime of its own thread: TLS takes its time.
    pub async fn run(mut self) {
        loop {
            let snapshot = self.routing.snapshot();
            if snapshot.generation() != self.generation {
                self.generation = snapshot.generation();
                self.follow(&snapshot);
            }
            drop(snapshot);
            for backend in self.kit.watch.to_try(std::time::Instant::now()) {
                tokio::spawn(try_once(Arc::clone(&self.kit), backend));
            }
            sleep(LOOK).await;
        }
    }

    /// Ends the tasks of backends that are gone or have changed, and starts those that are missing.
    fn follow(&mut self, snapshot: &Snapshot) {
        let checked = snapshot.apps().flat_map(AppIndex::checked);
        let mut wanted: HashMap<_, _> = checked.map(|(backend, spec)| (backend.id.clone(), (backend, spec))).collect();
        self.running.retain(|id, running| wanted.get(id).is_some_and(|(backend, spec)| running.is_for(backend, spec)));
        wanted.retain(|id, _| !self.running.contains_key(id));
        let crowd = FIRST_STEP * u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        for (id, (backend, spec)) in wanted {
            let (backend, spec) = (Arc::clone(backend), Arc::clone(spec));
            // The first check comes at once, but not everybody's.
            let first = crowd.min(spec.pace(&self.kit.defaults).interval).mul_f64(part(self.kit.random));
            let check = keep_checking(Arc::clone(&self.kit), Arc::clone(&backend), Arc::clone(&spec), first);
            let task = tokio::spawn(check).abort_handle();
            self.running.insert(id, Running { backend, spec, task });
        }
    }
}

impl Running {
    fn is_for(&self, backend: &Arc<Backend>, spec: &Arc<CheckSpec>) -> bool {
        let own = &self.backend;
        (&own.app, own.addr, own.send_proxy) == (&backend.app, backend.addr, backend.send_proxy)
            && Arc::ptr_eq(&own.load, &backend.load)
            && self.spec == *spec
    }
}

async fn keep_checking<P: Prober>(kit: Arc<Kit<P>>, backend: Arc<Backend>, spec: Arc<CheckSpec>, first: Duration) {
    let pace = spec.pace(&kit.defaults);
    let mut due = Instant::now() + first;
    loop {
        sleep_until(due).await;
        // Closed by nobody.
        let Ok(place) = kit.places.acquire().await else { return };
        let started = Instant::now();
        // On the heap: ten thousand tasks that wait are small.
        let report = Box::pin(kit.prober.probe(&backend, &spec, pace.timeout)).await;
        drop(place);
        kit.watch.checked(&backend, &spec, report, std::time::Instant::now(), &pace);
        due = (started + jittered(pace.interval, kit.random)).max(Instant::now() + LEAST_PAUSE);
    }
}

/// Connects as a client would, in the place of one.
async fn try_once<P: Prober>(kit: Arc<Kit<P>>, backend: Arc<Backend>) {
    let Ok(place) = kit.trial_places.acquire().await else { return };
    let (spec, limit) = &kit.trial;
    let report = Box::pin(kit.prober.probe(&backend, spec, *limit)).await;
    drop(place);
    let result = Complaint::of_trial(report.result);
    if result.is_none() {
        // Short of ports or descriptors: not at once again.
        sleep(RETRY).await;
    }
    kit.watch.tried(&backend, result, std::time::Instant::now());
}

/// A tenth more or less, so that checks that began together, here or in other POPs, don't stay together.
fn jittered(interval: Duration, random: fn() -> u64) -> Duration {
    interval.mul_f64(0.9 + part(random) / 5.0)
}

/// Uniform in 0 ≤ x < 1.
fn part(random: fn() -> u64) -> f64 {
    (random() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
