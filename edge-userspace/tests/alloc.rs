//! Choosing a backend allocates nothing, the look at the client's binding included, whatever the size of the app and however
//! full it is. Counted in a process of its own, with an allocator that counts.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeproxy::adapters::outbound::bindings::BindingTable;
use edgeproxy::application::ports::Bindings as _;
use edgeproxy::domain::{
    Affinity, AffinityPrefix, AppName, AppSpec, BackendLoad, ClientAddr, Complaint, HealthRules, NextRegion,
    RawBackend, Region, Request, Selection, SlotPool, Snapshot, Tried, World, pick,
};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn snapshot(backends: usize, selection: Selection, affinity: Affinity) -> Snapshot {
    let slots = SlotPool::new(backends as u32);
    let regions = ["sa", "us", "eu"];
    let backend = |at: usize| {
        let row = RawBackend {
            id: format!("b{at}").as_str().into(),
            app: "web".into(),
            region: regions[at % 3].into(),
            wg_ip: "192.0.2.1".into(),
            port: 80.into(),
            soft_limit: 1.into(),
            hard_limit: 2.into(),
            ..RawBackend::default()
        };
        Arc::new(row.parse().unwrap().with_load(BackendLoad::new(slots.take().unwrap())))
    };
    // Some go by measured times outside of the client's region.
    let next_region = if affinity == Affinity::Soft { NextRegion::Rtt } else { NextRegion::Position };
    let app = AppSpec { selection, affinity, next_region, ..AppSpec::new(AppName::parse("web").unwrap()) };
    let world = World { apps: [(app.name.clone(), app)].into(), ..World::default() };
    Snapshot::new(1, (0..backends).map(backend).collect(), world)
}

/// Some are ejected, for a long time.
fn eject(snapshot: &Snapshot) {
    let (now, long) = (Instant::now(), Duration::from_secs(3_600));
    let rules = HealthRules {
        failures: 1,
        ejection: long,
        longest: long,
        max_percent: 100,
        slow_start: long,
        untried: Duration::ZERO,
    };
    for (_, backend) in snapshot.backends().enumerate().filter(|(at, _)| at % 5 == 4) {
        backend.load.with_health(now, &rules, |health| health.eject(Complaint::Refused, now, &rules));
    }
}

#[test]
fn picking_allocates_nothing() {
    let sizes = [3, 300, 10_000].into_iter();
    for (backends, selection) in sizes.flat_map(|size| Selection::ALL.map(|selection| (size, selection))) {
        [Affinity::Strict, Affinity::Soft].into_iter().for_each(|affinity| {
            let refused = pick_until_all_are_full(backends, selection, affinity);
            assert!(refused > 0, "{backends}, {selection}: the last are refused");
        });
    }
}

fn pick_until_all_are_full(backends: usize, selection: Selection, affinity: Affinity) -> usize {
    let (app, sa, ap) = (AppName::parse("web").unwrap(), Region::parse("sa").unwrap(), Region::parse("ap").unwrap());
    let snapshot = snapshot(backends, selection, affinity);
    // Some of them were measured, for those who choose by that.
    for (at, backend) in snapshot.backends().enumerate().filter(|(at, _)| at % 7 != 3) {
        backend.load.rtt().sample(Duration::from_micros(100 * at as u64), Instant::now());
    }
    eject(&snapshot);
    snapshot.app(&app).unwrap().rank(Instant::now());
    let bindings = BindingTable::new(Duration::from_secs(600), 100_000);
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut held, mut refused) = (Vec::with_capacity(2 * backends), 0);
    for round in 0..2 * backends + 9 {
        // Near and far clients, bound and retrying ones, below and above the limits. Some have been here before.
        let client = if round % 2 == 0 { &sa } else { &ap };
        let number = if round % 5 == 0 { round / 2 } else { round };
        let address = ClientAddr::new(std::net::Ipv4Addr::from_bits(number as u32).into());
        let before = COUNT.with(Cell::get);
        let key = AffinityPrefix::default().key(&app, address);
        let bound = bindings.get(&key);
        let request = Request {
            client_region: Some(client),
            client_position: None,
            pop_region: &ap,
            client: Some(&key.client),
            bound: bound.as_ref(),
        };
        let mut tried = Tried::new();
        let index = snapshot.app(&app).unwrap();
        let first = pick(index, snapshot.regions(), &request, &tried, &mut rng);
        first.iter().for_each(|first| tried.push(&first.backend));
        let second = pick(index, snapshot.regions(), &request, &tried, &mut rng);
        drop(second);
        assert_eq!(COUNT.with(Cell::get), before, "round {round} of {backends}, {selection}");
        match first {
            Ok(first) => {
                bindings.bind(key, &first.backend.id);
                held.push(first);
            }
            Err(_) => refused += 1,
        }
    }
    refused
}
