//! How long a routing decision takes: `cargo bench --package edge-userspace --bench pick`. Prints a Markdown table, as it is in `docs/selection.md`.
//!
//! Each decision is timed by itself and includes the reservation and giving it back; what the clock itself takes
//! (some 20 ns, printed first) is part of every figure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeproxy::adapters::outbound::bindings::BindingTable;
use edgeproxy::application::ports::Bindings as _;
use edgeproxy::domain::{
    self, AffinityPrefix, AppIndex, AppName, AppSpec, BackendLoad, ClientAddr, Permit, RawBackend, Region, Request,
    Selection, SlotPool, Snapshot, Tried, pick,
};

const ROUNDS: usize = 100_000;

/// One app in one region, of backends with soft limit 2 and hard limit 3.
struct World {
    snapshot: Snapshot,
    app: AppName,
    region: Region,
    held: Vec<Permit>,
}

impl World {
    fn new(backends: usize, selection: Selection) -> Self {
        let slots = SlotPool::new(backends as u32);
        let backend = |at: usize| {
            let row = RawBackend {
                id: format!("backend-{at}").as_str().into(),
                app: "web".into(),
                region: "sa".into(),
                wg_ip: "192.0.2.1".into(),
                port: 80.into(),
                weight: (1 + at as i64 % 3).into(),
                soft_limit: 2.into(),
                hard_limit: 3.into(),
                ..RawBackend::default()
            };
            Arc::new(row.parse().unwrap().with_load(BackendLoad::new(slots.take().unwrap())))
        };
        let app = AppName::parse("web").unwrap();
        let spec = AppSpec { selection, ..AppSpec::new(app.clone()) };
        let world = domain::World { apps: [(app.clone(), spec)].into(), ..domain::World::default() };
        let snapshot = Snapshot::new(1, (0..backends).map(backend).collect(), world);
        Self { snapshot, app, region: Region::parse("sa").unwrap(), held: Vec::new() }
    }

    /// Each backend 0.1 ms nearer than the one before.
    fn measure(&self) {
        for (at, backend) in self.index().backends().iter().rev().enumerate() {
            backend.load.rtt().sample(Duration::from_micros(100 * (1 + at as u64)), Instant::now());
        }
        self.index().rank(Instant::now());
    }

    fn index(&self) -> &AppIndex {
        self.snapshot.app(&self.app).unwrap()
    }

    /// Opens so many connections on each backend but the first `spared`.
    fn load(&mut self, connections: usize, spared: usize) {
        let backends: Vec<_> = self.index().backends().iter().skip(spared).cloned().collect();
        for backend in backends {
            self.held.extend((0..connections).map(|_| backend.load.try_reserve(backend.limits).unwrap()));
        }
    }
}

fn main() {
    println!("clock alone: median {} ns\n", quantiles(measure(|| ())).0.as_nanos());
    println!("| backends | situation | median | p99 |");
    println!("|---:|---|---:|---:|");
    for backends in [10, 1_000, 10_000, 100_000] {
        for (situation, connections, spared) in [
            ("all idle", 0, 0),
            ("half at their soft limit", 2, backends / 2),
            ("all but one at their soft limit", 2, 1),
            ("all at their soft limit", 2, 0),
            ("all but one full", 3, 1),
            ("all full", 3, 0),
        ] {
            let mut world = World::new(backends, Selection::LeastLoad);
            world.load(connections, spared);
            report(backends, situation, measure(new_client(&world)));
        }
        for (situation, selection, connections) in [
            ("maglev: all idle", Selection::Maglev, 0),
            ("maglev: half at their soft limit", Selection::Maglev, 2),
            ("nearest_rtt: all idle", Selection::NearestRtt, 0),
            ("nearest_rtt: the nearer half at their soft limit", Selection::NearestRtt, 2),
            ("nearest_rtt: the nearer half full", Selection::NearestRtt, 3),
        ] {
            let mut world = World::new(backends, selection);
            world.load(connections, backends / 2);
            world.measure();
            report(backends, situation, measure(hashed_client(&world)));
        }
        let world = World::new(backends, Selection::LeastLoad);
        report(backends, "bound client", measure(bound_client(&world, 1)));
        report(backends, "one of 100,000 bound clients", measure(bound_client(&world, 100_000)));
    }
}

fn new_client(world: &World) -> impl FnMut() {
    let mut rng = fastrand::Rng::with_seed(7);
    let (index, regions) = (world.index(), world.snapshot.regions());
    let request = Request {
        client_region: Some(&world.region),
        client_position: None,
        pop_region: &world.region,
        client: None,
        bound: None,
    };
    move || drop(black_box(pick(index, regions, &request, &Tried::new(), &mut rng)))
}

/// Another client each time, as apps that hash clients know it.
fn hashed_client(world: &World) -> impl FnMut() {
    let mut rng = fastrand::Rng::with_seed(7);
    let (index, regions) = (world.index(), world.snapshot.regions());
    let key = |n| AffinityPrefix::default().key(&world.app, ClientAddr::new(std::net::Ipv4Addr::from_bits(n).into()));
    let keys: Vec<_> = (0..1_000).map(key).collect();
    let mut turn = 0;
    move || {
        turn = (turn + 1) % keys.len();
        let request = Request {
            client_region: Some(&world.region),
            client_position: None,
            pop_region: &world.region,
            client: Some(&keys[turn].client),
            bound: None,
        };
        drop(black_box(pick(index, regions, &request, &Tried::new(), &mut rng)));
    }
}

/// The look-up of the binding included.
fn bound_client(world: &World, clients: u32) -> impl FnMut() {
    let mut rng = fastrand::Rng::with_seed(7);
    let bindings = BindingTable::new(Duration::from_secs(600), 1_000_000);
    let backends = world.index().backends();
    let key = |n| AffinityPrefix::default().key(&world.app, ClientAddr::new(std::net::Ipv4Addr::from_bits(n).into()));
    for (client, backend) in (0..clients).zip(backends.iter().cycle()) {
        bindings.bind(key(client), &backend.id);
    }
    let (index, regions) = (world.index(), world.snapshot.regions());
    move || {
        let bound = bindings.get(&key(rng.u32(..clients)));
        let request = Request {
            client_region: Some(&world.region),
            client_position: None,
            pop_region: &world.region,
            client: None,
            bound: bound.as_ref(),
        };
        drop(black_box(pick(index, regions, &request, &Tried::new(), &mut rng)));
    }
}

fn measure(mut work: impl FnMut()) -> Vec<Duration> {
    (0..ROUNDS / 10).for_each(|_| work());
    let timed = |_| {
        let started = Instant::now();
        work();
        started.elapsed()
    };
    (0..ROUNDS).map(timed).collect()
}

fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn report(backends: usize, situation: &str, times: Vec<Duration>) {
    let (median, p99) = quantiles(times);
    println!("| {backends} | {situation} | {} ns | {} ns |", median.as_nanos(), p99.as_nanos());
}
