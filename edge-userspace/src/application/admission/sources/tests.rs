#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::*;

fn rules(max_connections: u32, per_second: u32, burst: u32) -> SourceRules {
    let rate = Rate::new(per_second, burst);
    SourceRules { prefix: AffinityPrefix::default(), max_connections, rate, capacity: 1000 }
}

fn sources(rules: SourceRules) -> Arc<Sources> {
    Arc::new(Sources::new(rules))
}

fn client(text: &str) -> ClientAddr {
    ClientAddr::new(text.parse().unwrap())
}

fn v4(n: u32) -> ClientAddr {
    ClientAddr::new(Ipv4Addr::from_bits(0x0a00_0000 + n).into())
}

#[test]
fn a_source_has_no_more_connections_than_it_may() {
    let (sources, now) = (sources(rules(2, 0, 0)), Instant::now());
    let admit = |from: &str| sources.admit(client(from), now);
    let held = [admit("192.0.2.1").unwrap(), admit("::ffff:192.0.2.1").unwrap()];
    assert_eq!(admit("192.0.2.1").unwrap_err(), RejectReason::SourceConnections);
    assert!(admit("192.0.2.2").is_ok());
    let six = [admit("2001:db8::1").unwrap(), admit("2001:db8::ffff:1").unwrap()];
    assert!(admit("2001:db8::2").is_err(), "the same /64");
    assert!(admit("2001:db8:0:1::2").is_ok());
    assert_eq!(sources.len(), (2, 0));
    drop((held, six));
    assert_eq!(sources.len(), (0, 0), "without a rate there is nothing to remember");
    assert!(admit("192.0.2.1").is_ok());
}

#[test]
fn to_look_says_what_would_be_and_changes_nothing() {
    let (limited, start) = (sources(rules(1, 1, 2)), Instant::now());
    let look = |from, after| {
        let look = limited.look(v4(from), start + Duration::from_millis(after)).unwrap();
        (look.connections, look.wait.unwrap().as_millis(), look.refused)
    };
    (0..5).for_each(|_| assert_eq!(look(1, 0), (0, 0, None)));
    assert_eq!(limited.len(), (0, 0), "nobody is remembered for it");
    let held = limited.admit(v4(1), start).unwrap();
    assert_eq!(look(1, 0), (1, 0, Some(RejectReason::SourceConnections)));
    assert_eq!(limited.look(v4(1), start).unwrap().source, limited.prefix(v4(1)));
    drop(held);
    drop(limited.admit(v4(1), start).unwrap());
    (0..5).for_each(|_| assert_eq!(look(1, 250), (0, 750, Some(RejectReason::SourceRate))));
    assert_eq!(look(1, 1_000), (0, 0, None));
    assert_eq!(look(2, 0), (0, 0, None));
    assert_eq!(sources(rules(0, 0, 0)).look(v4(1), start), None);
}

#[test]
fn prefixes_are_as_set() {
    let prefix = AffinityPrefix::new(24, 48).unwrap();
    let (sources, now) = (sources(SourceRules { prefix, ..rules(1, 0, 0) }), Instant::now());
    let _held = [sources.admit(client("192.0.2.1"), now), sources.admit(client("2001:db8:1:2::"), now)];
    assert!(sources.admit(client("192.0.2.200"), now).is_err());
    assert!(sources.admit(client("2001:db8:1:3::"), now).is_err());
    assert!(sources.admit(client("192.0.3.1"), now).is_ok());
}

#[test]
fn a_source_comes_no_more_often_than_it_may() {
    let (sources, now) = (sources(rules(0, 10, 3)), Instant::now());
    let come = |after: u64| sources.admit(v4(1), now + Duration::from_millis(after));
    (0..3).for_each(|_| drop(come(0).unwrap()));
    assert_eq!(come(0).unwrap_err(), RejectReason::SourceRate);
    assert!(come(99).is_err() && come(100).is_ok() && come(101).is_err());
    assert!(sources.admit(v4(2), now).is_ok());
    sources.sweep(now + Duration::from_millis(350));
    assert_eq!(sources.len(), (0, 1), "another is known no more");
    sources.sweep(now + Duration::from_secs(10));
    assert_eq!(sources.len(), (0, 0));
}

#[test]
fn a_rate_is_remembered_while_connections_live_and_after() {
    let (sources, now) = (sources(rules(5, 1, 2)), Instant::now());
    let held = [sources.admit(v4(1), now).unwrap(), sources.admit(v4(1), now).unwrap()];
    assert_eq!(sources.admit(v4(1), now).unwrap_err(), RejectReason::SourceRate);
    drop(held);
    assert_eq!(sources.admit(v4(1), now).unwrap_err(), RejectReason::SourceRate);
}

/// Many more sources than may be remembered, each once: what is kept is bounded, connections are never forgotten, and
/// one that comes all the time stays known.
#[test]
fn a_flood_of_sources_is_bounded_and_frees_nobody_who_is_connected() {
    let capacity = 8 * SHARE;
    let (sources, now) = (sources(SourceRules { capacity, ..rules(1, 1, 2) }), Instant::now());
    let _victim = sources.admit(v4(0), now).unwrap();
    let busy = ClientAddr::new(Ipv6Addr::LOCALHOST.into());
    (0..2).for_each(|_| drop(sources.admit(busy, now).unwrap()));
    for n in 1..=100_000 {
        drop(sources.admit(v4(n), now).unwrap());
        if n.is_multiple_of(1000) {
            assert_eq!(sources.admit(busy, now).unwrap_err(), RejectReason::SourceRate, "after {n} others");
        }
        let (live, idle) = sources.len_cheap(n);
        assert!(live <= 1 && idle <= capacity);
    }
    assert_eq!(sources.len(), (1, capacity), "all that may be remembered is");
    let room: usize = sources.shards.iter().map(|shard| lock(shard).idle.capacity()).sum();
    assert!(room <= 4 * capacity, "{room} places");
    assert_eq!(sources.admit(v4(0), now).unwrap_err(), RejectReason::SourceConnections);
}

impl Sources {
    /// Counts now and then: it walks all shards.
    fn len_cheap(&self, n: u32) -> (usize, usize) {
        if n.is_multiple_of(500) { self.len() } else { (0, 0) }
    }
}

#[test]
fn threads_never_exceed_the_limit_of_a_source() {
    let sources = sources(rules(3, 1_000_000, 0));
    let most = std::sync::atomic::AtomicU32::new(0);
    let now_live = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    let Ok(held) = sources.admit(v4(1), Instant::now()) else { continue };
                    let live = now_live.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                    most.fetch_max(live, std::sync::atomic::Ordering::SeqCst);
                    now_live.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(held);
                }
            });
        }
    });
    assert!((1..=3).contains(&most.into_inner()));
    assert_eq!(sources.len().0, 0);
}
