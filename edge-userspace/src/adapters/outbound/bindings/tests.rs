#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::*;
use crate::application::bindings::Wanted;
use crate::domain::{AffinityPrefix, AppName, ClientAddr};

#[derive(Debug, Clone)]
pub(super) struct TestClock {
    start: Instant,
    millis: Arc<AtomicU64>,
}

impl TestClock {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), millis: Arc::default() }
    }

    pub(super) fn advance(&self, millis: u64) {
        self.millis.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }
}

fn table(ttl_secs: u64, capacity: usize) -> (BindingTable<TestClock>, TestClock) {
    let clock = TestClock::new();
    (BindingTable::with_clock(Duration::from_secs(ttl_secs), capacity, clock.clone()), clock)
}

pub(super) fn key(client: u32) -> BindingKey {
    let ip = Ipv4Addr::from_bits(0x0b00_0000 + client);
    AffinityPrefix::default().key(&AppName::parse("web").unwrap(), ClientAddr::new(ip.into()))
}

#[test]
fn a_look_does_not_renew_a_binding() {
    let (table, clock) = table(600, 100);
    table.bind(key(1), &backend("a"));
    clock.advance(599_999);
    assert_eq!(table.peek(&key(1)), Some(backend("a")));
    clock.advance(1);
    assert_eq!(table.peek(&key(1)), None);
    assert_eq!(table.get(&key(1)), None);
}

fn backend(name: &str) -> BackendId {
    BackendId::parse(name).unwrap()
}

#[test]
fn a_binding_lives_as_long_as_it_is_used() {
    let (table, clock) = table(600, 100);
    table.bind(key(1), &backend("a"));
    for _ in 0..5 {
        clock.advance(599_999);
        assert_eq!(table.get(&key(1)), Some(backend("a")));
    }
    clock.advance(600_000);
    assert_eq!(table.get(&key(1)), None, "over, though no collection ran");
    assert_eq!(table.len(), 1);
    assert_eq!(table.gc(), 1);
    assert_eq!(table.len(), 0);
}

#[test]
fn binding_again_replaces_and_renews() {
    let (table, clock) = table(10, 100);
    table.bind(key(1), &backend("a"));
    clock.advance(9_000);
    table.bind(key(1), &backend("b"));
    clock.advance(9_000);
    assert_eq!(table.get(&key(1)), Some(backend("b")));
    assert_eq!((table.gc(), table.len()), (0, 1));
}

#[test]
fn the_same_client_has_a_binding_per_app() {
    let (table, _) = table(10, 100);
    let other = BindingKey { app: AppName::parse("db").unwrap(), ..key(1) };
    table.bind(key(1), &backend("a"));
    table.bind(other.clone(), &backend("b"));
    assert_eq!((table.get(&key(1)), table.get(&other)), (Some(backend("a")), Some(backend("b"))));
}

#[test]
fn at_capacity_the_least_recently_used_goes() {
    let (table, clock) = table(600, 100);
    for client in 0..100 {
        table.bind(key(client), &backend("a"));
    }
    clock.advance(1000);
    for client in 0..50 {
        assert!(table.get(&key(client)).is_some());
    }
    for client in 100..150 {
        table.bind(key(client), &backend("a"));
        assert_eq!(table.len(), 100);
    }
    assert!((0..50).all(|client| table.get(&key(client)).is_some()), "those in use stay");
    assert!((50..100).all(|client| table.get(&key(client)).is_none()));
    assert!((100..150).all(|client| table.get(&key(client)).is_some()));
}

#[test]
fn a_few_that_were_all_used_leave_room_for_a_new_one() {
    for capacity in [1, 2, 5] {
        let (table, clock) = table(600, capacity);
        for client in 0..20 {
            table.bind(key(client), &backend("a"));
            assert!(table.len() <= capacity, "{} of {capacity}", table.len());
            clock.advance(1);
            assert!(table.get(&key(client)).is_some(), "the new one is kept");
        }
    }
}

#[test]
fn a_flood_of_clients_takes_no_more_than_the_capacity() {
    for capacity in [1, 2, 50_000] {
        let (table, clock) = table(600, capacity);
        for client in 0..capacity as u32 * 3 {
            table.bind(key(client), &backend("a"));
            assert!(table.len() <= capacity, "{} of {capacity}", table.len());
        }
        assert_eq!(table.map.len(), table.len());
        assert_eq!(table.queues.iter().map(|queue| lock(queue).len()).sum::<usize>(), table.len());
        clock.advance(600_000);
        assert_eq!(table.gc(), capacity);
        assert_eq!(table.map.len(), 0);
        assert!(table.queues.iter().all(|queue| lock(queue).is_empty()));
    }
}

#[test]
fn threads_agree_on_the_count() {
    let table = BindingTable::new(Duration::from_secs(600), 1000);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let table = &table;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread.into());
                for round in 0..20_000 {
                    let key = key(rng.u32(..3000));
                    if table.get(&key).is_none() {
                        table.bind(key, &backend("a"));
                    }
                    if round % 5000 == 0 {
                        table.gc();
                    }
                }
            });
        }
    });
    assert_eq!(table.map.len(), table.len());
    // A binding that finds all queues busy with others may stay over the cap until the next one.
    assert!(table.len() <= 1004, "{}", table.len());
    assert_eq!(table.queues.iter().map(|queue| lock(queue).len()).sum::<usize>(), table.len());
}

#[test]
fn pages_hold_each_binding_once() {
    let (table, clock) = table(600, 100_000);
    (0..5_000).for_each(|n| table.bind(key(n), &backend("a")));
    clock.advance(600_000);
    (5_000..9_000).for_each(|n| table.bind(key(n), &backend("b")));
    clock.advance(1_000);
    assert!(table.pages() > 1);
    let all: Vec<Bound> = (0..table.pages()).flat_map(|at| table.page(at)).collect();
    assert_eq!(all.len(), 4_000, "those that are over are left out");
    assert!(all.iter().all(|bound| bound.idle == Duration::from_secs(1) && bound.backend == backend("b")));
    let distinct: std::collections::HashSet<_> = all.iter().map(|bound| &bound.key).collect();
    assert_eq!(distinct.len(), 4_000);
}

#[test]
fn what_is_cleared_is_gone_and_the_rest_stays() {
    let (table, _) = table(600, 100_000);
    (0..3_000).for_each(|n| table.bind(key(n), &backend(if n % 3 == 0 { "a" } else { "b" })));
    assert_eq!(table.clears(), 0);
    let of = |name: &str| Wanted::of_backend(name);
    assert_eq!(table.clear(&of("a")), 1_000);
    assert_eq!((table.len(), table.clears()), (2_000, 1));
    assert_eq!((table.peek(&key(0)), table.peek(&key(1))), (None, Some(backend("b"))));
    assert_eq!(table.clear(&Wanted::default()), 2_000);
    assert!(table.is_empty());
}
