//! Helpers of the tests: short ways to worlds of backends.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;

pub(crate) fn app_name(name: &str) -> AppName {
    AppName::parse(name).unwrap()
}

pub(crate) fn region(name: &str) -> Region {
    Region::parse(name).unwrap()
}

pub(crate) fn id(name: &str) -> BackendId {
    BackendId::parse(name).unwrap()
}

/// A valid row of the app `web`, unlimited, of weight 1 and soft limit 100.
pub(crate) fn row(id: &str, region: &str) -> RawBackend {
    RawBackend {
        id: id.into(),
        app: "web".into(),
        region: region.into(),
        wg_ip: "192.0.2.1".into(),
        port: 8080.into(),
        ..RawBackend::default()
    }
}

/// One fault is enough, and holds for the whole test.
const STRICT: HealthRules = HealthRules {
    failures: 1,
    ejection: Duration::from_secs(600),
    longest: Duration::from_secs(600),
    max_percent: 100,
    slow_start: Duration::ZERO,
    untried: Duration::ZERO,
};

/// Ejects a backend for its time-outs.
pub(crate) fn eject(backend: &Backend) {
    let now = Instant::now();
    backend.load.with_health(now, &STRICT, |health| health.eject(Complaint::TimedOut, now, &STRICT));
}

/// Has the backend's next check pass or fail; one is enough.
pub(crate) fn turn(backend: &Backend, passes: bool) {
    let pace = CheckPace { interval: Duration::from_secs(1), timeout: Duration::from_secs(1), rise: 1, fall: 1 };
    let result = if passes { CheckResult::Passed } else { CheckResult::Refused };
    let report = CheckReport { result, detail: None, took: Duration::ZERO };
    let now = Instant::now();
    backend.load.with_health(now, &STRICT, |health| health.check(report, &CheckSpec::connect(), now, &pace));
}

/// Backends with loads of their own.
pub(crate) fn backends(rows: &[RawBackend]) -> Vec<Arc<Backend>> {
    let slots = SlotPool::new(rows.len() as u32);
    let load = || BackendLoad::new(slots.take().unwrap());
    rows.iter().map(|row| Arc::new(row.parse().unwrap().with_load(load()))).collect()
}

pub(crate) fn snapshot(rows: &[RawBackend]) -> Snapshot {
    Snapshot::new(1, backends(rows), Regions::default())
}

/// The same, with rules for the app `web`.
pub(crate) fn snapshot_of_app(rows: &[RawBackend], app: &RawApp, generation: u64) -> Snapshot {
    let spec = app.parse().unwrap();
    let world = super::World { apps: [(spec.name.clone(), spec)].into(), ..super::World::default() };
    Snapshot::new(generation, backends(rows), world)
}

/// Holds one snapshot and picks from its app `web`.
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) rng: fastrand::Rng,
}

impl World {
    pub(crate) fn new(rows: &[RawBackend]) -> Self {
        Self::seeded(rows, 7)
    }

    pub(crate) fn seeded(rows: &[RawBackend], seed: u64) -> Self {
        Self { snapshot: Snapshot::new(seed, backends(rows), Regions::default()), rng: fastrand::Rng::with_seed(seed) }
    }

    pub(crate) fn app(&self) -> &AppIndex {
        self.snapshot.app(&app_name("web")).unwrap()
    }

    pub(crate) fn pick(&mut self, request: &Request<'_>, tried: &Tried) -> Result<Pick, NoBackend> {
        let app = self.snapshot.app(&app_name("web")).unwrap();
        pick(app, self.snapshot.regions(), request, tried, &mut self.rng)
    }

    /// A client in `client` that comes to a POP in `pop`.
    pub(crate) fn route(&mut self, client: Option<&str>, pop: &str) -> Result<Pick, NoBackend> {
        let (client, pop) = (client.map(region), region(pop));
        self.pick(
            &Request {
                client_region: client.as_ref(),
                client_position: None,
                pop_region: &pop,
                client: None,
                bound: None,
            },
            &Tried::new(),
        )
    }

    pub(crate) fn bound(&mut self, backend: &str) -> Result<Pick, NoBackend> {
        let (pop, bound) = (region("sa"), id(backend));
        self.pick(
            &Request {
                client_region: None,
                client_position: None,
                pop_region: &pop,
                client: None,
                bound: Some(&bound),
            },
            &Tried::new(),
        )
    }
}
