//! How far a client's binding goes is the app's to say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use common::{NETWORK, SOON, World, eventually, tally};
use xtask::load::{Manner, Visit};

/// A crowd behind one address: ten connections at once, after the address was bound to `b1`, whose soft limit is 4.
fn crowd(affinity: &str, test: &str) -> Option<std::collections::HashMap<String, usize>> {
    let world = World::new(NETWORK, test)?;
    let _first = world.backend(1, Manner::Echo, |row| row.limits(4, 0));
    world.database.execute(&format!("INSERT INTO apps (name, affinity) VALUES ('web', '{affinity}')"));
    let daemon = world.daemon(&[]);
    world.visit(1, daemon.addr()).unwrap().finish().unwrap();
    let _second = world.backend(2, Manner::Echo, |row| row.limits(50, 0));
    daemon.wait_status(SOON, |status| status.0["backends"].as_array().unwrap().len() == 2).unwrap();
    let held: Vec<Visit> = (0..10).map(|_| world.visit(1, daemon.addr()).unwrap()).collect();
    let got = tally(held.iter().map(|visit| visit.backend.clone()));
    let last = held.last().unwrap().local;
    drop(held);
    let record = daemon.record_of(last, SOON).unwrap();
    let why = (affinity == "soft").then_some("at_soft_limit");
    assert_eq!(record.binding_yielded.as_deref(), why, "{record:?}");
    if affinity == "soft" {
        // The crowd is gone, and the binding is still there.
        daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
        assert_eq!(world.visit(1, daemon.addr()).unwrap().backend, "b1");
    }
    Some(got)
}

#[test]
fn a_crowd_behind_one_address_stays_with_a_strict_binding() {
    let Some(got) = crowd("strict", "a_crowd_behind_one_address_stays_with_a_strict_binding") else { return };
    assert_eq!(got, [("b1".to_owned(), 10)].into());
}

#[test]
fn a_crowd_behind_one_address_spills_over_from_a_soft_binding() {
    let Some(got) = crowd("soft", "a_crowd_behind_one_address_spills_over_from_a_soft_binding") else { return };
    assert_eq!(got, [("b1".to_owned(), 4), ("b2".to_owned(), 6)].into());
}

/// The soft limit steers new clients, whatever the weights say.
#[test]
fn new_clients_go_elsewhere_from_a_backend_at_its_soft_limit() {
    let Some(world) = World::new(NETWORK, "new_clients_go_elsewhere_from_a_backend_at_its_soft_limit") else { return };
    let _heavy = world.backend(1, Manner::Echo, |row| row.weight(100).limits(3, 0));
    let _light = world.backend(2, Manner::Echo, |row| row.limits(50, 0));
    let daemon = world.daemon(&[]);
    let held: Vec<Visit> = (0..23).map(|n| world.visit(n, daemon.addr()).unwrap()).collect();
    let got = tally(held.iter().map(|visit| visit.backend.clone()));
    assert_eq!(got, [("b1".to_owned(), 3), ("b2".to_owned(), 20)].into());
}

/// Clients of one prefix are one, where the operator says so.
#[test]
fn clients_of_a_prefix_share_their_binding() {
    let Some(world) = World::new(NETWORK, "clients_of_a_prefix_share_their_binding") else { return };
    let _backends = [1, 2].map(|n| world.backend(n, Manner::Close, |row| row));
    let got = |prefix| {
        let daemon = world.daemon(&[("affinity_prefix_v4", prefix)]);
        tally((0..20).map(|n| {
            let visit = world.visit(n, daemon.addr()).unwrap();
            let name = visit.backend.clone();
            visit.finish().unwrap();
            name
        }))
    };
    assert_eq!(got("24").into_values().collect::<Vec<_>>(), [20]);
    assert_eq!(got("32").len(), 2);
}

/// A new binding takes the place of one that was not used lately.
#[test]
fn no_more_bindings_are_kept_than_the_operator_says() {
    let Some(world) = World::new(NETWORK, "no_more_bindings_are_kept_than_the_operator_says") else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    let daemon = world.daemon(&[("binding_capacity", "5")]);
    for n in 0..30 {
        world.visit(n, daemon.addr()).unwrap().finish().unwrap();
        let kept = || {
            let metrics = daemon.metrics().unwrap();
            metrics.lines().find_map(|line| line.strip_prefix("edgeproxy_bindings ")?.parse::<u32>().ok())
        };
        // A new one is there before another goes.
        assert!(kept() <= Some(6));
        eventually("as many are kept as may be", || kept() == Some(5.min(u32::from(n) + 1)));
    }
}

#[test]
fn an_app_without_affinity_binds_nobody() {
    let Some(got) = crowd("none", "an_app_without_affinity_binds_nobody") else { return };
    assert!(got["b2"] > 0, "{got:?}");
}
