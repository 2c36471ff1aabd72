//! An operator tells the running daemon to drain one backend: nobody new, and an end to those it has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use common::{KERNEL, NETWORK, Row, SOON, World, edgeproxy, eventually};
use xtask::lab::requirements::Need;
use xtask::lab::{Daemon, Ns, Record};
use xtask::load::{Manner, Visit, connect_from};

/// A visit of `backend`, by one of the clients from `first` on.
fn visit_of(world: &World, daemon: &Daemon, backend: &str, first: u16) -> Visit {
    let mut visits = (first..first + 50).map(|n| world.visit(n, daemon.addr()).unwrap());
    visits.find(|visit| visit.backend == backend).expect("no client got the backend")
}

/// Both backends get clients, one is drained: bound and new clients get the other, a connection that it has goes on
/// until the deadline and is then cut; ready, it gets clients again.
fn drains(forwarder: &str, needs: &[Need], test: &str) {
    let Some(world) = World::new(needs, test) else { return };
    let _backends = [1, 2].map(|n| world.backend(n, Manner::Echo, |row| row));
    let daemon = world.daemon(&[("forwarder", forwarder)]);
    let mut held = visit_of(&world, &daemon, "b1", 0);
    let mut spared = visit_of(&world, &daemon, "b2", 100);
    let talk = |visit: &mut Visit| (0..50).try_for_each(|_| visit.echo(&[7; 600]));
    talk(&mut held).unwrap();

    let (code, text) = edgeproxy(&daemon, &["backends", "drain", "b1", "--deadline", "1h"]);
    assert!(code == 0 && text.contains("what is left is cut in 3600 s"), "{text}");
    let client = held.local.ip();
    let bound = world.lab.run_in(xtask::lab::Ns::Clients, || Visit::start(client, daemon.addr())).unwrap();
    assert_eq!(bound.backend, "b2", "the binding yields");
    let record = |visit: Visit| {
        let local = visit.local;
        drop(visit);
        daemon.record_of(local, SOON).unwrap()
    };
    assert_eq!(record(bound).binding_yielded.as_deref(), Some("drain"));
    for n in 200..230 {
        assert_eq!(world.visit(n, daemon.addr()).unwrap().backend, "b2");
    }
    talk(&mut held).unwrap();
    let status = daemon.status().unwrap();
    let drained = status.0["backends"].as_array().unwrap().iter().find(|backend| backend["id"] == "b1").unwrap();
    assert_eq!(drained["draining"], true, "{drained}");
    assert!(drained["cut_in_secs"].as_f64().unwrap() > 3_500.0, "{drained}");

    assert_eq!(edgeproxy(&daemon, &["backends", "drain", "b1", "--deadline", "0s"]).0, 0);
    let cut = daemon.record_of(held.local, SOON).unwrap();
    assert_eq!((cut.termination.as_str(), cut.backend.as_deref()), ("KD", Some("b1")), "{cut:?}");
    assert_eq!(cut.forwarder.as_deref(), Some(forwarder), "{cut:?}");
    assert!(held.echo(&[7]).is_err(), "the client was not told");
    talk(&mut spared).unwrap();
    let (_, events) = edgeproxy(&daemon, &["events"]);
    assert!(events.contains("1 connections are cut"), "{events}");

    assert_eq!(edgeproxy(&daemon, &["backends", "ready", "b1"]).0, 0);
    drop(visit_of(&world, &daemon, "b1", 300));
    let (code, text) = edgeproxy(&daemon, &["backends", "ready", "b1"]);
    assert!(code == 1 && text.contains("not being drained"), "{text}");
}

#[test]
fn a_backend_is_drained_and_its_copied_connections_are_cut() {
    drains("copy", NETWORK, "a_backend_is_drained_and_its_copied_connections_are_cut");
}

#[test]
fn a_backend_is_drained_and_its_connections_in_the_kernel_are_cut() {
    drains("sockmap", KERNEL, "a_backend_is_drained_and_its_connections_in_the_kernel_are_cut");
}

#[test]
fn connections_of_a_removed_backend_live_on_until_they_are_told_to_end() {
    let test = "connections_of_a_removed_backend_live_on_until_they_are_told_to_end";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backends = [1, 2].map(|n| world.backend(n, Manner::Echo, |row| row));
    let daemon = world.daemon(&[]);
    let mut held = visit_of(&world, &daemon, "b1", 0);
    world.database.execute("UPDATE backends SET deleted = 1 WHERE id = 'b1'");
    eventually("the backend is gone", || daemon.status().unwrap().0["backends"].as_array().unwrap().len() == 1);
    held.echo(&[7; 600]).unwrap();
    let (code, text) = edgeproxy(&daemon, &["backends", "drain", "b1", "--deadline", "0s"]);
    assert!(code == 0 && text.contains("no such backend any more"), "{text}");
    assert_eq!(daemon.record_of(held.local, SOON).unwrap().termination, "KD");
    let (code, text) = edgeproxy(&daemon, &["backends", "drain", "nobody"]);
    assert!(code == 1 && text.contains("there is no backend nobody"), "{text}");
}

#[test]
fn a_connection_that_was_still_connecting_at_the_deadline_is_cut_too() {
    let Some(world) = World::new(NETWORK, "a_connection_that_was_still_connecting_at_the_deadline_is_cut_too") else {
        return;
    };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    world.lab.mute(world.lab.backend(1)).unwrap();
    let daemon = world.daemon(&[("connect_timeout_ms", "30000"), ("connect_budget_ms", "30000")]);
    let client = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(1), daemon.addr())).unwrap();
    let connecting = daemon.wait_status(SOON, |status| status.0["backends"][0]["connections"] == 1).unwrap();
    assert_eq!(connecting.0["backends"][0]["connections"], 1, "{:#}", connecting.0);
    assert_eq!(edgeproxy(&daemon, &["backends", "drain", "b1", "--deadline", "0s"]).0, 0);
    eventually("the deadline has passed", || daemon.status().unwrap().0["backends"][0]["cut_in_secs"] == 0.0);
    // Several ticks: what there was to be cut then is cut.
    std::thread::sleep(std::time::Duration::from_secs(1));
    world.lab.unmute(world.lab.backend(1)).unwrap();
    let record = daemon.record_of(client.local_addr().unwrap(), SOON).unwrap();
    assert_eq!((record.termination.as_str(), record.backend.as_deref()), ("KD", Some("b1")), "{record:?}");
    let (_, events) = edgeproxy(&daemon, &["events"]);
    assert_eq!(events.matches("backend_drain_cut").count(), 1, "{events}");
}

/// What a client can't wait for it is refused at once, with the reason, as where the database drains the backend: also
/// if it waits already.
#[test]
fn nobody_waits_for_a_backend_that_is_drained() {
    let Some(world) = World::new(NETWORK, "nobody_waits_for_a_backend_that_is_drained") else { return };
    world.database.execute("INSERT INTO apps (name, queue_length, queue_timeout_ms) VALUES ('web', 10, 60000)");
    let _backend = world.backend(1, Manner::Echo, |row| row.limits(1, 1));
    // Nobody is there: it refuses.
    world.database.add(&Row::new("b2", world.backend_addr(2)));
    let daemon = world.daemon(&[("ejection_failures", "0")]);
    let held = visit_of(&world, &daemon, "b1", 0);
    // A client that is refused at once may be reset before it knows that it was connected.
    let connect = |n: u16| world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(n), daemon.addr()));
    let assert_refused = |n: u16| {
        let is_it = |record: &&Record| record.client().ip() == world.lab.client(n);
        let records = daemon.access_log(SOON, |records| records.iter().any(|record| is_it(&record)));
        let record = records.iter().find(is_it).expect("it waits in vain").clone();
        assert_eq!((record.termination.as_str(), record.backend.as_deref()), ("SC", None), "{record:?}");
        record
    };
    let _waits = connect(100).unwrap();
    let waiting = |count: u64| {
        let status = daemon.wait_status(SOON, |status| status.number("/limits/queues/0/waiting") == count).unwrap();
        assert_eq!(status.number("/limits/queues/0/waiting"), count, "{:#}", status.0);
    };
    waiting(1);
    assert_eq!(edgeproxy(&daemon, &["backends", "drain", "b1"]).0, 0);
    assert!(assert_refused(100).queue_ms.is_some());
    let _late = connect(101);
    assert_eq!(assert_refused(101).queue_ms, None, "it had nothing to wait for");
    held.finish().unwrap();
    let _later = connect(102);
    assert_eq!(assert_refused(102).queue_ms, None);
}
