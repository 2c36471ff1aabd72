//! Who waits for a place, in which order, and how waiting ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use common::refusals::{LATER, assert_all_gone, explain, is_reset, queue, refused, wait_for, why};
use common::{NETWORK, Row, SOON, World, edgeproxy, eventually};
use serde_json::Value;
use xtask::lab::{Daemon, Ns, Status};
use xtask::load::{Manner, Visit, connect_from};

fn waiting(status: &Status) -> u64 {
    status.number("/limits/queues/0/waiting")
}

fn connect(world: &World, from: IpAddr, to: SocketAddr) -> TcpStream {
    world.lab.run_in(Ns::Clients, || connect_from(from, to)).unwrap()
}

/// One backend with one place, which is taken; and a daemon.
fn one_place(world: &World, settings: &[(&str, &str)]) -> (xtask::load::NamedBackend, Daemon, Visit) {
    let backend = world.backend(1, Manner::Echo, |row| row.limits(1, 1));
    let daemon = world.daemon(settings);
    let held = world.visit(0, daemon.addr()).unwrap();
    (backend, daemon, held)
}

#[test]
fn clients_are_served_in_the_order_in_which_they_came_each_source_in_turn() {
    let test = "clients_are_served_in_the_order_in_which_they_came_each_source_in_turn";
    let Some(world) = World::new(NETWORK, test) else { return };
    queue(&world, 10, LATER);
    let (backend, daemon, held) = one_place(&world, &[]);
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let come = |n: u16| {
            let (world, daemon, order) = (&world, &daemon, &order);
            let came = waiting(&daemon.status().unwrap()) + 1;
            scope.spawn(move || {
                let visit = world.visit(n, daemon.addr()).unwrap();
                order.lock().unwrap().push(n);
                visit.finish().unwrap();
            });
            wait_for(daemon, "it waits", |status| waiting(status) == came);
        };
        // The first client comes with three connections, the others with one.
        [1, 1, 1, 2, 3].into_iter().for_each(come);
        assert_eq!(daemon.status().unwrap().number("/limits/queues/0/length"), 10);
        assert!(daemon.metrics().unwrap().contains("edgeproxy_queue_waiting{app=\"web\"} 5\n"));
        let (code, answer) = explain(&world, &daemon, world.lab.client(9));
        assert_eq!((code, &answer["refused"], &answer["queue"]["waiting"]), (Some(2), &"all_full".into(), &5.into()));
        // Another source has its turn before the second and the third of client 1; who waits already, behind all.
        for (n, others) in [(9, 3), (1, 5)] {
            let (code, text) = edgeproxy(&daemon, &["explain", "--client", &world.lab.client(n).to_string()]);
            let line = format!("\nnext        waits behind {others} others first: all_full\n");
            assert!(code == 2 && text.contains(&line) && text.contains("\nqueue       5 of 10 waiting\n"), "{text}");
            assert_eq!(explain(&world, &daemon, world.lab.client(n)).1["waits_behind"], others);
        }
        come(9);
        held.finish().unwrap();
    });
    assert_eq!(order.into_inner().unwrap(), [1, 2, 3, 9, 1, 1]);
    assert_eq!(backend.gauge().most(), 1);
    assert_all_gone(&daemon);
}

#[test]
fn waiting_ends_by_a_full_queue_by_time_and_by_going_away() {
    let Some(world) = World::new(NETWORK, "waiting_ends_by_a_full_queue_by_time_and_by_going_away") else { return };
    queue(&world, 2, LATER);
    let (_backend, daemon, held) = one_place(&world, &[]);
    let goes = connect(&world, world.lab.client(1), daemon.addr());
    let stays = connect(&world, world.lab.client(2), daemon.addr());
    wait_for(&daemon, "two wait", |status| waiting(status) == 2);
    let (code, answer) = explain(&world, &daemon, world.lab.client(3));
    assert_eq!((code, &answer["refused"], &answer["waits_behind"]), (Some(2), &"queue_full".into(), &Value::Null));
    let record = refused(&world, &daemon, world.lab.client(3), daemon.addr());
    assert_eq!((why(&record), record.queue_ms), (("PQ", Some("queue_full")), None));

    let local = goes.local_addr().unwrap();
    socket2::SockRef::from(&goes).set_linger(Some(Duration::ZERO)).unwrap();
    drop(goes);
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!(why(&record), ("CQ", None));
    assert!(record.queue_ms.is_some());

    queue(&world, 2, Duration::from_millis(300));
    wait_for(&daemon, "the new time limit is read", |status| status.number("/routing/generation") >= 2);
    let record = refused(&world, &daemon, world.lab.client(4), daemon.addr());
    assert_eq!(why(&record), ("sQ", Some("queue_timed_out")));
    assert!(record.queue_ms.unwrap() >= 300.0, "{record:?}");

    assert_eq!(waiting(&daemon.status().unwrap()), 1, "who came before has the time limit of then");
    held.finish().unwrap();
    let local = stays.local_addr().unwrap();
    let mut name = [0; 3];
    (&stays).read_exact(&mut name).unwrap();
    assert_eq!(&name, b"b1\n");
    drop(stays);
    assert!(daemon.record_of(local, SOON).unwrap().queue_ms.is_some());
    assert!(daemon.metrics().unwrap().contains("edgeproxy_queue_seconds_count 3\n"));
    assert_all_gone(&daemon);
}

#[test]
fn who_waits_is_served_when_the_table_makes_room_and_refused_when_it_empties() {
    let test = "who_waits_is_served_when_the_table_makes_room_and_refused_when_it_empties";
    let Some(world) = World::new(NETWORK, test) else { return };
    queue(&world, 10, LATER);
    let (_backend, daemon, held) = one_place(&world, &[]);
    let waits = [1, 2].map(|n| connect(&world, world.lab.client(n), daemon.addr()));
    wait_for(&daemon, "two wait", |status| waiting(status) == 2);
    world.database.execute("UPDATE backends SET hard_limit = 2, soft_limit = 2");
    wait_for(&daemon, "one has a place", |status| waiting(status) == 1);
    let _second = world.backend(2, Manner::Echo, |row| row.limits(1, 1));
    wait_for(&daemon, "the other has one on the new backend", |status| waiting(status) == 0);
    for mut stream in &waits {
        let mut name = [0; 3];
        stream.read_exact(&mut name).unwrap();
    }
    let late = connect(&world, world.lab.client(3), daemon.addr());
    wait_for(&daemon, "it waits", |status| waiting(status) == 1);
    world.database.execute("UPDATE backends SET state = 'drain'");
    assert!(is_reset(&late));
    let record = daemon.record_of(late.local_addr().unwrap(), SOON).unwrap();
    assert_eq!(why(&record), ("PC", Some("none_eligible")));
    held.finish().unwrap();
}

/// A backend that refused the first one works again: it waits on for the other, which it has not tried, and those who come
/// meanwhile do not wait beside the free places.
#[test]
fn who_comes_does_not_wait_behind_one_that_can_not_use_what_is_free() {
    let test = "who_comes_does_not_wait_behind_one_that_can_not_use_what_is_free";
    let Some(world) = World::new(NETWORK, test) else { return };
    queue(&world, 10, LATER);
    let (_backend, daemon, held) = one_place(&world, &[("ejection_failures", "0")]);
    world.database.add(&Row::new("b2", world.backend_addr(2)));
    wait_for(&daemon, "the row is read", |status| status.backends().len() == 2);
    let mut first = connect(&world, world.lab.client(1), daemon.addr());
    wait_for(&daemon, "it waits", |status| waiting(status) == 1);
    let _works_again =
        xtask::load::NamedBackend::start(world.lab.namespace(Ns::Backends), "b2", world.backend_addr(2), Manner::Echo)
            .unwrap();
    eventually("that is foreseen", || {
        let (code, answer) = explain(&world, &daemon, world.lab.client(9));
        (code, &answer["winner"], &answer["waits_behind"]) == (Some(0), &"b2".into(), &Value::Null)
    });
    let mut waited: Vec<f64> = (10..22)
        .map(|n| {
            let visit = world.visit(n, daemon.addr()).unwrap();
            assert_eq!(visit.backend, "b2");
            let local = visit.local;
            visit.finish().unwrap();
            daemon.record_of(local, SOON).unwrap().queue_ms.unwrap_or(0.0)
        })
        .collect();
    waited.sort_by(f64::total_cmp);
    // The look every 100 ms, which each would wait for, is no part of this; a machine that is busy now and then is.
    assert!(waited[5] < 40.0, "they waited beside a free place, ms: {waited:?}");
    assert_eq!(waiting(&daemon.status().unwrap()), 1);
    held.finish().unwrap();
    let mut name = [0; 3];
    first.read_exact(&mut name).unwrap();
    assert_eq!(&name, b"b1\n");
}

/// Likewise where those who wait for the other backend fill the queue.
#[test]
fn a_full_queue_refuses_nobody_a_place_that_those_in_it_can_not_use() {
    let Some(world) = World::new(NETWORK, "a_full_queue_refuses_nobody_a_place_that_those_in_it_can_not_use") else {
        return;
    };
    queue(&world, 2, LATER);
    let (_backend, daemon, held) = one_place(&world, &[("ejection_failures", "0")]);
    world.database.add(&Row::new("b2", world.backend_addr(2)).limits(1, 1));
    wait_for(&daemon, "the row is read", |status| status.backends().len() == 2);
    let waits = [1, 2].map(|n| {
        let stream = connect(&world, world.lab.client(n), daemon.addr());
        wait_for(&daemon, "it waits", |status| waiting(status) == u64::from(n));
        stream
    });
    let _works_again =
        xtask::load::NamedBackend::start(world.lab.namespace(Ns::Backends), "b2", world.backend_addr(2), Manner::Echo)
            .unwrap();
    let has_it = world.visit(10, daemon.addr()).unwrap();
    assert_eq!(has_it.backend, "b2");
    let record = refused(&world, &daemon, world.lab.client(3), daemon.addr());
    assert_eq!(why(&record), ("PQ", Some("queue_full")));
    // They are served in their turn, and the one place of each backend is enough.
    held.finish().unwrap();
    for mut stream in waits {
        let mut name = [0; 3];
        stream.read_exact(&mut name).unwrap();
        assert_eq!(&name, b"b1\n");
    }
    has_it.finish().unwrap();
}

#[test]
fn a_drain_serves_those_who_wait_until_its_deadline() {
    let Some(world) = World::new(NETWORK, "a_drain_serves_those_who_wait_until_its_deadline") else { return };
    queue(&world, 10, LATER);
    let (_backend, mut daemon, held) = one_place(&world, &[("drain_timeout_secs", "6")]);
    let [mut first, second] = [1, 2].map(|n| {
        let stream = connect(&world, world.lab.client(n), daemon.addr());
        wait_for(&daemon, "it waits", |status| waiting(status) == u64::from(n));
        stream
    });
    daemon.ask_to_end();
    wait_for(&daemon, "it drains", |status| status.text("/state") == Some("draining"));
    held.finish().unwrap();
    let mut name = [0; 3];
    first.read_exact(&mut name).unwrap();
    assert!(is_reset(&second), "at the deadline it is told");
    assert!(daemon.wait(LATER).unwrap().success());
    let record = daemon.record_of(second.local_addr().unwrap(), SOON).unwrap();
    assert_eq!(why(&record), ("KD", None));
    assert!(record.queue_ms.is_some());
}

#[test]
fn all_the_waiting_of_a_connection_has_one_limit() {
    let Some(world) = World::new(NETWORK, "all_the_waiting_of_a_connection_has_one_limit") else { return };
    let limit = Duration::from_secs(4);
    queue(&world, 10, limit);
    let _backends = [1, 2].map(|n| world.backend(n, Manner::Echo, |row| row.limits(1, 1)));
    let daemon = world.daemon(&[("connect_timeout_ms", "200")]);
    let mut held = [0, 1].map(|n| world.visit(n, daemon.addr()).unwrap());
    held.sort_by(|one, other| one.backend.cmp(&other.backend));
    let waits = connect(&world, world.lab.client(2), daemon.addr());
    wait_for(&daemon, "it waits", |status| waiting(status) == 1);
    // It gets a place after three quarters of its time, in vain, and has the last quarter left.
    thread::sleep(limit * 3 / 4);
    world.lab.mute(world.lab.backend(2)).unwrap();
    let [stays, goes] = held;
    socket2::SockRef::from(goes.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(goes);
    let record = daemon.record_of(waits.local_addr().unwrap(), SOON).unwrap();
    assert_eq!((why(&record), record.attempts), (("sQ", Some("queue_timed_out")), 1), "{record:?}");
    let waited = record.queue_ms.unwrap();
    assert!((4_000.0..6_500.0).contains(&waited), "a limit of its own for each time would be seven: {waited} ms");
    stays.finish().unwrap();
}
