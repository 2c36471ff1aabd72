//! Choosing a backend allocates nothing, whatever the size of the app. Counted in a process of its own, with an
//! allocator that counts.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeproxy::domain::{
    AffinityPrefix, AppName, AppSpec, BackendLoad, ClientAddr, RawBackend, Region, Request, Selection, SlotPool,
    Snapshot, Tried, World, pick,
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

fn snapshot(backends: usize, selection: Selection) -> Snapshot {
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
            ..RawBackend::default()
        };
        Arc::new(row.parse().unwrap().with_load(BackendLoad::new(slots.take().unwrap())))
    };
    let app = AppSpec { selection, ..AppSpec::new(AppName::parse("web").unwrap()) };
    let world = World { apps: [(app.name.clone(), app)].into(), ..World::default() };
    Snapshot::new(1, (0..backends).map(backend).collect(), world)
}

#[test]
fn picking_allocates_nothing() {
    let (app, sa, ap) = (AppName::parse("web").unwrap(), Region::parse("sa").unwrap(), Region::parse("ap").unwrap());
    let sizes = [3, 300, 10_000];
    for (backends, selection) in sizes.into_iter().flat_map(|size| Selection::ALL.map(|selection| (size, selection))) {
        let snapshot = snapshot(backends, selection);
        // Some of them were measured, for those who choose by that.
        for (at, backend) in snapshot.backends().enumerate().filter(|(at, _)| at % 7 != 3) {
            backend.load.rtt().sample(Duration::from_micros(100 * at as u64), Instant::now());
        }
        snapshot.app(&app).unwrap().rank(Instant::now());
        let mut rng = fastrand::Rng::with_seed(1);
        let mut held = Vec::with_capacity(2 * backends);
        for round in 0..2 * backends {
            // Near and far clients, bound and retrying ones, below and above the soft limit.
            let client = if round % 2 == 0 { &sa } else { &ap };
            let bound = held.last().map(|pick: &edgeproxy::domain::Pick| pick.backend.id.clone());
            let address = ClientAddr::new(std::net::Ipv4Addr::from_bits(round as u32).into());
            let key = AffinityPrefix::default().key(&app, address);
            let request = Request {
                client_region: Some(client),
                client_position: None,
                pop_region: &ap,
                client: Some(&key.client),
                bound: bound.as_ref().filter(|_| round % 5 == 0),
            };
            let before = COUNT.with(Cell::get);
            let mut tried = Tried::new();
            let index = snapshot.app(&app).unwrap();
            let first = pick(index, snapshot.regions(), &request, &tried, &mut rng).unwrap();
            tried.push(&first.backend);
            let second = pick(index, snapshot.regions(), &request, &tried, &mut rng).unwrap();
            held.push(first);
            drop(second);
            assert_eq!(COUNT.with(Cell::get), before, "round {round} of {backends}, {selection}");
        }
    }
}
