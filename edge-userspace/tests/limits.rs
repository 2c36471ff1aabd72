//! Limits hold exactly, whoever comes and whatever changes meanwhile; each refusal has its reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{NETWORK, Over, Row, SOON, World, edgeproxy, eventually, tally};
use xtask::lab::{BRAZIL, Daemon, GERMANY, Ns, Record, Status};
use xtask::load::{Manner, Visit, connect_from};

/// Many threads on few cores: nothing here is about speed.
const LATER: Duration = Duration::from_secs(60);
/// How it ends for a client that finds all places taken.
const FULL: (&str, Option<&str>) = ("PC", Some("all_full"));

/// `apps` says that so many may wait, and for how long.
fn queue(world: &World, length: u32, timeout: Duration) {
    let ms = timeout.as_millis();
    world.database.execute(&format!(
        "INSERT INTO apps (name, queue_length, queue_timeout_ms) VALUES ('web', {length}, {ms}) \
         ON CONFLICT (name) DO UPDATE SET queue_length = excluded.queue_length, queue_timeout_ms = excluded.queue_timeout_ms"
    ));
}

fn waiting(status: &Status) -> u64 {
    status.number("/limits/queues/0/waiting")
}

fn wait_for(daemon: &Daemon, what: &str, holds: impl Fn(&Status) -> bool) {
    let status = daemon.wait_status(LATER, &holds).unwrap();
    assert!(holds(&status), "{what}: {:#}", status.0);
}

/// Whether the daemon closes the connection by a reset, before a byte.
fn is_reset(mut stream: &TcpStream) -> bool {
    stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn connect(world: &World, from: IpAddr, to: SocketAddr) -> TcpStream {
    world.lab.run_in(Ns::Clients, || connect_from(from, to)).unwrap()
}

/// Connects and is reset, be it before it knows that it was connected; the record says why.
fn refused(world: &World, daemon: &Daemon, from: IpAddr, to: SocketAddr) -> Record {
    let before = daemon.access_log(Duration::ZERO, |_| true).iter().map(|record| record.id).max().unwrap_or(0);
    match world.lab.run_in(Ns::Clients, || connect_from(from, to)) {
        Ok(stream) => assert!(is_reset(&stream), "{from} is served"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    let is_it = |record: &&Record| record.id > before && record.client().ip() == from && record.reject.is_some();
    let records = daemon.access_log(SOON, |records| records.iter().any(|record| is_it(&record)));
    records.iter().find(is_it).unwrap().clone()
}

/// Connects and is served.
fn served(world: &World, from: IpAddr, to: SocketAddr) -> Visit {
    world.lab.run_in(Ns::Clients, || Visit::start(from, to)).unwrap()
}

fn why(record: &Record) -> (&str, Option<&str>) {
    (record.termination.as_str(), record.reject.as_deref())
}

/// All that is counted is there, and 0 when nobody is left.
fn assert_all_gone(daemon: &Daemon) {
    wait_for(daemon, "nobody is left", |status| status.active() == 0);
    let status = daemon.status().unwrap();
    let mut gauges = vec![
        "connections_active",
        "backend_connections",
        "listener_connections",
        "kernel_flows",
        "sources{state=\"connected\"}",
    ];
    // Only where an app has a queue, and where the kernel counts.
    gauges.extend(status.0.pointer("/limits/queues/0").map(|_| "queue_waiting"));
    gauges.extend(status.backends()[0].2.map(|_| "backend_kernel_connections"));
    for gauge in gauges {
        let values = |metrics: &str| -> Vec<String> {
            let of = metrics.lines().filter_map(|line| line.strip_prefix("edgeproxy_")?.strip_prefix(gauge));
            of.filter(|rest| rest.starts_with([' ', '{'])).map(str::to_owned).collect()
        };
        eventually(&format!("{gauge} is there and 0"), || {
            let values = values(&daemon.metrics().unwrap());
            !values.is_empty() && values.iter().all(|value| value.ends_with(" 0"))
        });
    }
}

/// Changes the table all the time while `work` goes on: weight and country of the first backend and its limit, where it
/// has one, and the limits of the second one, where there is one, which now and then is gone. They never may have more
/// than 5 and 7.
fn under_reloads<T>(world: &World, daemon: &Daemon, work: impl FnOnce() -> T) -> T {
    let (over, from) = (AtomicBool::new(false), daemon.status().unwrap().number("/routing/generation"));
    let result = thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            for n in 0_u64.. {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                world.database.execute(&format!(
                    "UPDATE backends SET weight = {}, country = '{}' WHERE id = 'b1'",
                    n % 7 + 1,
                    if n % 2 == 0 { "BR" } else { "AR" }
                ));
                world.database.execute(&format!(
                    "UPDATE backends SET hard_limit = {} WHERE id = 'b1' AND hard_limit > 0",
                    if n % 7 < 3 { 4 } else { 5 }
                ));
                world.database.execute(&format!(
                    "UPDATE backends SET hard_limit = {}, deleted = {} WHERE id = 'b2'",
                    if n % 3 == 0 { 5 } else { 7 },
                    u8::from(n % 5 == 4)
                ));
                thread::sleep(Duration::from_millis(25));
            }
        });
        let result = work();
        over.store(true, Ordering::SeqCst);
        result
    });
    let reloads = daemon.status().unwrap().number("/routing/generation") - from;
    assert!(reloads >= 3, "only {reloads} reloads");
    result
}

/// 500 clients at once, the first half bound to the backend, each coming three times.
fn crowd(world: &World, daemon: &Daemon) -> Vec<Result<(), ErrorKind>> {
    let bound = world.visits(250, 4, |n| {
        eventually("a client is bound", || {
            Visit::start(world.lab.client(n), daemon.addr()).is_ok_and(|visit| visit.finish().is_ok())
        });
    });
    assert_eq!(bound.len(), 250);
    wait_for(daemon, "the bound ones are gone", |status| status.active() == 0);
    let start = std::sync::Barrier::new(500);
    let come = |n: u16| {
        let visit = Visit::start(world.lab.client(n), daemon.addr()).map_err(|error| error.kind())?;
        thread::sleep(Duration::from_millis(u64::from(n) % 20));
        visit.finish().map_err(|error| error.kind())
    };
    let visits = world.visits(500, 500, |n| {
        start.wait();
        [come(n), come(n), come(n)]
    });
    visits.into_iter().flatten().collect()
}

#[test]
fn five_hundred_clients_never_exceed_a_hard_limit_of_five_under_churn_and_reload() {
    let test = "five_hundred_clients_never_exceed_a_hard_limit_of_five_under_churn_and_reload";
    let Some(world) = World::new(NETWORK, test) else { return };
    let backend = world.backend(1, Manner::Echo, |row| row.limits(2, 5));
    let changing = world.backend(2, Manner::Echo, |row| row.limits(2, 7));
    let daemon = world.daemon(&[("source_max_connections", "100"), ("refusal_log_rate", "0")]);
    let visits = under_reloads(&world, &daemon, || crowd(&world, &daemon));
    let most = backend.gauge().most();
    assert!((4..=5).contains(&most), "{most} at once");
    let most = changing.gauge().most();
    assert!((1..=7).contains(&most), "{most} at once");
    let served = visits.iter().filter(|visit| visit.is_ok()).count();
    let refused = tally(visits.into_iter().filter_map(Result::err));
    assert!(served > 5 + 7, "{served} served: no place was used twice");
    assert_eq!(refused, HashMap::from([(ErrorKind::ConnectionReset, 1_500 - served)]));
    let records = daemon.access_log(LATER, |records| records.len() >= 1_750);
    assert!(records.iter().any(|record| record.why.as_deref() == Some("affinity")), "nobody came by a binding");
    let full = records.iter().filter(|record| why(record) == FULL).count();
    assert!(full >= 1_500 - served, "{full} of {} records", records.len());
    its_limit_falls_below_what_it_has_and_rises(&world, &daemon);
    // All places were taken, and never one more.
    assert_eq!(backend.gauge().most(), 5);
    assert_all_gone(&daemon);
}

/// While clients are held, backend `b1` may have fewer than it has, and then as many again: nobody is cut, and nobody
/// is one too many. `b2` is gone.
fn its_limit_falls_below_what_it_has_and_rises(world: &World, daemon: &Daemon) {
    let may_have = |most: u64| {
        world.database.execute(&format!(
            "UPDATE backends SET deleted = 1 WHERE id = 'b2'; UPDATE backends SET hard_limit = {most} WHERE id = 'b1'"
        ));
        wait_for(daemon, "the limit is read", |status| {
            status.backends().len() == 1 && status.number("/backends/0/hard_limit") == most
        });
    };
    let come = |n: u16| served(world, world.lab.client(n), daemon.addr());
    let is_full = || assert_eq!(why(&refused(world, daemon, world.lab.client(700), daemon.addr())), FULL);
    let left = |count: u64| wait_for(daemon, "they are gone", |status| status.active() == count);
    left(0);
    may_have(5);
    let mut held: Vec<Visit> = (0..5).map(come).collect();
    is_full();
    may_have(3);
    is_full();
    assert!(held.iter_mut().all(|visit| visit.echo(b"still there").is_ok()));
    held.drain(..2).for_each(|visit| visit.finish().unwrap());
    left(3);
    is_full();
    held.pop().unwrap().finish().unwrap();
    left(2);
    held.push(come(5));
    is_full();
    may_have(5);
    held.extend([6, 7].map(come));
    is_full();
    held.into_iter().for_each(|visit| visit.finish().unwrap());
}

/// The same with a queue that is long enough: nobody is refused, and the limit holds all the same.
#[test]
fn five_hundred_clients_are_served_five_at_a_time_by_a_queue() {
    let Some(world) = World::new(NETWORK, "five_hundred_clients_are_served_five_at_a_time_by_a_queue") else { return };
    let backend = world.backend(1, Manner::Echo, |row| row.limits(2, 5));
    queue(&world, 500, Duration::from_secs(600));
    let daemon = world.daemon(&[]);
    let visits = under_reloads(&world, &daemon, || crowd(&world, &daemon));
    assert_eq!(tally(visits), HashMap::from([(Ok(()), 1_500)]));
    assert_eq!(backend.gauge().most(), 5);
    let records = daemon.access_log(LATER, |records| records.len() >= 1_750);
    assert!(records.iter().any(|record| record.queue_ms.is_some_and(|ms| ms > 0.0)));
    assert_all_gone(&daemon);
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
        // The first client comes with three connections, the others with one.
        for (came, n) in [1, 1, 1, 2, 3].into_iter().enumerate() {
            let (world, daemon, order) = (&world, &daemon, &order);
            scope.spawn(move || {
                let visit = world.visit(n, daemon.addr()).unwrap();
                order.lock().unwrap().push(n);
                visit.finish().unwrap();
            });
            wait_for(daemon, "it waits", |status| waiting(status) == came as u64 + 1);
        }
        assert_eq!(daemon.status().unwrap().number("/limits/queues/0/length"), 10);
        assert!(daemon.metrics().unwrap().contains("edgeproxy_queue_waiting{app=\"web\"} 5\n"));
        let (code, answer) = explain(&world, &daemon, world.lab.client(9));
        assert_eq!((code, &answer["refused"], &answer["queue"]["waiting"]), (Some(2), &"all_full".into(), &5.into()));
        held.finish().unwrap();
    });
    assert_eq!(order.into_inner().unwrap(), [1, 2, 3, 1, 1]);
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

/// `edgeproxy explain` for a client: its exit code and what it printed.
fn explain(world: &World, daemon: &Daemon, client: IpAddr) -> (Option<i32>, serde_json::Value) {
    explain_at(world, daemon, client, &[])
}

fn explain_at(world: &World, daemon: &Daemon, client: IpAddr, at: &[&str]) -> (Option<i32>, serde_json::Value) {
    let (socket, client) = (daemon.admin_socket().display().to_string(), client.to_string());
    let arguments = [&["explain", "--json", "--admin-socket", &socket, "--client", &client], at].concat();
    let output = world.config().command(&world.lab, &arguments).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

/// The row of a listener at the daemon's own address.
fn listener(world: &World, daemon: &Daemon, most: u32, deleted: u32) {
    let (ip, port) = (daemon.addr().ip(), daemon.addr().port());
    world.database.execute(&format!(
        "INSERT INTO listeners (id, address, port, max_connections, deleted) VALUES ('front', '{ip}', {port}, {most}, {deleted}) \
         ON CONFLICT (id) DO UPDATE SET max_connections = excluded.max_connections, deleted = excluded.deleted"
    ));
    let limit = |status: &Status| {
        let all = status.0.pointer("/limits/listeners").unwrap().as_array().unwrap().clone();
        let mut of = all.into_iter().filter(|load| load["listener"] == "front");
        of.find_map(|load| load["max_connections"].as_u64())
    };
    let expected = if deleted == 0 { u64::from(most) } else { 0 };
    wait_for(daemon, "the row is read", |status| limit(status).unwrap_or(0) == expected);
}

#[test]
fn a_daemon_has_no_more_connections_than_it_may() {
    let Some(world) = World::new(NETWORK, "a_daemon_has_no_more_connections_than_it_may") else { return };
    let backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("max_connections", "5"), ("refusal_log_rate", "0")]);
    let to = daemon.addr();
    let start = std::sync::Barrier::new(200);
    let outcomes = world.visits(200, 200, |n| {
        start.wait();
        let visit = Visit::start(world.lab.client(n), to);
        // Nobody leaves before all have come.
        start.wait();
        visit
    });
    let (held, refused_ones): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let mut held: Vec<Visit> = held.into_iter().map(Result::unwrap).collect();
    assert_eq!((held.len(), refused_ones.len(), backend.gauge().most()), (5, 195, 5));
    let records = daemon.access_log(SOON, |records| records.len() >= 195);
    let counted = tally(records.iter().map(why));
    assert_eq!(counted, HashMap::from([(("PR", Some("max_connections")), 195)]));
    assert_eq!(daemon.status().unwrap().number("/connections/rejected/max_connections"), 195);
    assert!(held.iter_mut().all(|visit| visit.echo(b"still there").is_ok()));

    held.pop().unwrap().finish().unwrap();
    wait_for(&daemon, "one is gone", |status| status.active() == 4);
    held.push(served(&world, world.lab.client(300), to));
    assert_eq!(why(&refused(&world, &daemon, world.lab.client(301), to)), ("PR", Some("max_connections")));
    held.into_iter().for_each(|visit| visit.finish().unwrap());
    assert_all_gone(&daemon);
    served(&world, world.lab.client(302), to).finish().unwrap();
    assert_eq!(backend.gauge().most(), 5);
}

#[test]
fn a_listener_has_no_more_connections_than_it_may_across_reloads() {
    let test = "a_listener_has_no_more_connections_than_it_may_across_reloads";
    let Some(world) = World::new(NETWORK, test) else { return };
    let backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("refusal_log_rate", "0")]);
    listener(&world, &daemon, 7, 0);
    let to = daemon.addr();
    let outcomes = under_reloads(&world, &daemon, || {
        world.visits(200, 200, |n| {
            let visit = Visit::start(world.lab.client(n), to);
            thread::sleep(Duration::from_millis(1_500));
            visit
        })
    });
    let (held, refused_ones): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let mut held: Vec<Visit> = held.into_iter().map(Result::unwrap).collect();
    assert_eq!((held.len(), refused_ones.len(), backend.gauge().most()), (7, 193, 7));
    let records = daemon.access_log(SOON, |records| records.len() >= 193);
    assert!(records.iter().all(|record| why(record) == ("PR", Some("listener_connections"))));

    listener(&world, &daemon, 9, 0);
    held.extend([300, 301].map(|n| served(&world, world.lab.client(n), to)));
    assert_eq!(refused(&world, &daemon, world.lab.client(302), to).reject.as_deref(), Some("listener_connections"));

    // Gone and back with a lower limit: its connections count, and nobody is cut.
    listener(&world, &daemon, 9, 1);
    let other = served(&world, world.lab.client(303), to);
    listener(&world, &daemon, 3, 0);
    assert!(held.iter_mut().all(|visit| visit.echo(b"still there").is_ok()));
    held.drain(..6).for_each(|visit| visit.finish().unwrap());
    wait_for(&daemon, "six are gone", |status| status.active() == 4);
    refused(&world, &daemon, world.lab.client(304), to);
    held.pop().unwrap().finish().unwrap();
    wait_for(&daemon, "one more is gone", |status| status.active() == 3);
    let again = served(&world, world.lab.client(305), to);
    refused(&world, &daemon, world.lab.client(306), to);
    assert!(daemon.metrics().unwrap().contains("edgeproxy_listener_connections{listener=\"front\"} 3\n"));
    held.into_iter().chain([other, again]).for_each(|visit| visit.finish().unwrap());
    assert_all_gone(&daemon);
}

#[test]
fn a_source_has_no_more_connections_than_it_may() {
    let Some(world) = World::new(NETWORK, "a_source_has_no_more_connections_than_it_may") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("source_max_connections", "2"), ("source_prefix_v4", "31")]);
    let (v4, v6) = (daemon.addr(), daemon.addr_v6());
    // .8 and .9 are one source; so are all of an IPv6 /64.
    let held = [(BRAZIL.v4(8), v4), (BRAZIL.v4(9), v4), (BRAZIL.v6(1), v6), (BRAZIL.v6(0xffff), v6)]
        .map(|(from, to)| served(&world, from, to));
    for (from, to) in [(BRAZIL.v4(8), v4), (BRAZIL.v6(2), v6)] {
        let record = refused(&world, &daemon, from, to);
        assert_eq!(why(&record), ("PR", Some("source_connections")));
        assert_eq!(record.country, None, "it is not even located");
    }
    let others = [(BRAZIL.v4(10), v4), (GERMANY.v6(1), v6)].map(|(from, to)| served(&world, from, to));
    assert_eq!(daemon.status().unwrap().number("/limits/sources_connected"), 4);
    held.into_iter().for_each(|visit| visit.finish().unwrap());
    wait_for(&daemon, "they are gone", |status| status.active() == 2);
    served(&world, BRAZIL.v4(8), v4).finish().unwrap();
    others.into_iter().for_each(|visit| visit.finish().unwrap());
    assert_all_gone(&daemon);
}

/// Each of them would be remembered for ten seconds, until its burst is whole again.
/// What `explain` foretells is what happens, and it takes nobody's place.
#[test]
fn explain_says_which_limit_would_refuse_a_client() {
    let Some(world) = World::new(NETWORK, "explain_says_which_limit_would_refuse_a_client") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("max_connections", "2"), ("source_max_connections", "1")]);
    listener(&world, &daemon, 1, 0);
    let [one, two, three] = [1, 2, 3].map(|n| world.lab.client(n));
    let (to, port) = (daemon.addr(), daemon.addr().port().to_string());
    let ask = |client| explain_at(&world, &daemon, client, &["--port", &port, "--to", &to.ip().to_string()]);
    for _ in 0..3 {
        let (code, free) = ask(one);
        assert_eq!((code, &free["winner"], &free["refused"]), (Some(0), &"b1".into(), &serde_json::Value::Null));
        let places = |held: u32, limit: u32| serde_json::json!({"held": held, "limit": limit, "refuses": null});
        assert_eq!((&free["limits"]["daemon"], &free["limits"]["listener"]), (&places(0, 2), &places(0, 1)), "{free}");
    }
    let foretold = |client, reason: &str, whose: &str| {
        let (code, answer) = ask(client);
        let (refuses, held) = (&answer["limits"][whose]["refuses"], &answer["limits"][whose]["held"]);
        assert_eq!((code, &answer["refused"], refuses), (Some(2), &reason.into(), &reason.into()), "{answer:#}");
        assert_eq!((&answer["winner"], &answer["candidates"][0]["id"]), (&serde_json::Value::Null, &"b1".into()));
        let record = refused(&world, &daemon, client, to);
        assert_eq!(why(&record), ("PR", Some(reason)));
        held.as_u64().unwrap()
    };
    let held = served(&world, one, to);
    assert_eq!(foretold(one, "source_connections", "source"), 1);
    assert_eq!(foretold(two, "listener_connections", "listener"), 1);
    let (code, answer) = explain(&world, &daemon, two);
    assert_eq!((code, &answer["limits"]["listener"]), (Some(0), &serde_json::Value::Null), "it was not asked for one");
    let (_, text) = edgeproxy(&daemon, &["explain", "--client", &one.to_string()]);
    assert!(
        text.contains("refused     source_connections") && text.contains("1 of 1, refuses: source_connections"),
        "{text}"
    );
    listener(&world, &daemon, 5, 0);
    let second = served(&world, two, to);
    // The first that it meets.
    assert_eq!(foretold(one, "max_connections", "daemon"), 2);
    assert_eq!(foretold(three, "max_connections", "daemon"), 2);
    held.finish().unwrap();
    wait_for(&daemon, "one is gone", |status| status.active() == 1);
    assert_eq!(ask(one).0, Some(0));
    second.finish().unwrap();
}

#[test]
fn no_more_sources_are_remembered_than_the_operator_says() {
    let Some(world) = World::new(NETWORK, "no_more_sources_are_remembered_than_the_operator_says") else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    let settings = [("source_rate", "1"), ("source_burst", "10"), ("source_capacity", "5")];
    let daemon = world.daemon(&settings);
    let mut most = 0;
    for n in 0..40 {
        served(&world, world.lab.client(n), daemon.addr()).finish().unwrap();
        let remembered = daemon.status().unwrap().number("/limits/sources_remembered");
        assert!(remembered <= 5, "{remembered}");
        most = most.max(remembered);
    }
    assert_eq!(most, 5);
    assert_all_gone(&daemon);
}

#[test]
fn who_may_connect_is_said_by_rules() {
    let Some(world) = World::new(NETWORK, "who_may_connect_is_said_by_rules") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    world.database.execute(
        "INSERT INTO acl (id, prefix, action) VALUES ('all', '0.0.0.0/0', 'deny'), ('all-six', '2000::/3', 'deny'), \
         ('brazil', '200.160.2.0/24', 'allow'), ('host', '200.160.2.66', 'deny'); \
         INSERT INTO acl (id, prefix, action, app) VALUES ('web', '2a02:2e0::/32', 'allow', 'web')",
    );
    let daemon = world.daemon(&[]);
    let (v4, v6) = (daemon.addr(), daemon.addr_v6());
    let mut held = served(&world, BRAZIL.v4(7), v4);
    served(&world, GERMANY.v6(7), v6).finish().unwrap();
    for (from, to, rule) in [(GERMANY.v4(7), v4, "all"), (BRAZIL.v6(7), v6, "all-six"), (BRAZIL.v4(66), v4, "host")] {
        let record = refused(&world, &daemon, from, to);
        assert_eq!((why(&record), record.denied_by.as_deref()), (("PR", Some("denied")), Some(rule)));
    }
    let (code, answer) = explain(&world, &daemon, BRAZIL.v4(66));
    assert_eq!((code, &answer["refused"], &answer["denied_by"]), (Some(2), &"denied".into(), &"host".into()));
    assert_eq!(explain(&world, &daemon, BRAZIL.v4(7)).0, Some(0));
    world.database.execute(
        "UPDATE acl SET prefix = '200.160.2.1/24' WHERE id = 'brazil'; UPDATE acl SET action = 'allow' WHERE id = 'host'; \
         UPDATE acl SET deleted = 1 WHERE id = 'all-six'",
    );
    wait_for(&daemon, "the rules are read", |status| status.number("/routing/generation") >= 2);
    served(&world, BRAZIL.v4(66), v4).finish().unwrap();
    served(&world, BRAZIL.v6(7), v6).finish().unwrap();
    served(&world, BRAZIL.v4(8), v4).finish().unwrap();
    let status = daemon.status().unwrap();
    assert_eq!(status.text("/routing/rejected_rows/0/row"), Some("rule brazil"), "{:#}", status.0);
    held.echo(b"rules are for those who come").unwrap();
}

#[test]
fn a_crowd_from_one_source_never_exceeds_its_limit() {
    let Some(world) = World::new(NETWORK, "a_crowd_from_one_source_never_exceeds_its_limit") else { return };
    let backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("source_max_connections", "4")]);
    let visits = world.visits(200, 100, |_| {
        let visit = Visit::start(world.lab.client(1), daemon.addr());
        thread::sleep(Duration::from_millis(20));
        visit.map(|visit| visit.finish().unwrap())
    });
    assert!(visits.iter().filter(|visit| visit.is_ok()).count() >= 4);
    assert_eq!(backend.gauge().most(), 4);
    assert_all_gone(&daemon);
}

#[test]
fn a_source_comes_no_more_often_than_it_may() {
    let Some(world) = World::new(NETWORK, "a_source_comes_no_more_often_than_it_may") else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    let daemon = world.daemon(&[("source_rate", "1"), ("source_burst", "5")]);
    let (v4, v6) = (daemon.addr(), daemon.addr_v6());
    for (address, to) in [(BRAZIL.v4(8), v4), (BRAZIL.v6(1), v6)] {
        let started = Instant::now();
        let outcomes: Vec<bool> = (0..20)
            .map(|_| {
                world.lab.run_in(Ns::Clients, || Visit::start(address, to)).is_ok_and(|visit| visit.finish().is_ok())
            })
            .collect();
        let served = outcomes.iter().filter(|served| **served).count() as u64;
        assert!(outcomes[..5].iter().all(|served| *served), "the burst: {outcomes:?}");
        assert!(served <= 5 + started.elapsed().as_secs() + 1 && served < 20, "{outcomes:?}");
    }
    served(&world, BRAZIL.v4(9), v4).finish().unwrap();
    let status = daemon.status().unwrap();
    assert!(status.number("/connections/rejected/source_rate") >= 2, "{:#}", status.0);
    assert!(status.number("/limits/sources_remembered") >= 1, "{:#}", status.0);
    wait_for(&daemon, "all is forgotten", |status| status.number("/limits/sources_remembered") == 0);
}

#[test]
fn more_connections_in_a_second_than_may_be_wait_and_none_is_lost() {
    let test = "more_connections_in_a_second_than_may_be_wait_and_none_is_lost";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    let daemon = world.daemon(&[("max_connection_rate", "50"), ("max_connection_burst", "10")]);
    let started = Instant::now();
    let served = world.visits(150, 75, |n| Visit::start(world.lab.client(n), daemon.addr()).and_then(Visit::finish));
    assert!(served.iter().all(Result::is_ok), "{served:?}");
    // Beyond the burst, and one more for each listening socket.
    let sockets = 2 * thread::available_parallelism().unwrap().get() as u32;
    let least = Duration::from_secs(1) * (150 - 10 - sockets) / 50;
    assert!(started.elapsed() >= least, "150 in {:?}", started.elapsed());
    assert!(daemon.status().unwrap().number("/limits/accept_pauses") > 0);
    assert!(daemon.status().unwrap().0.pointer("/connections/rejected").unwrap().as_object().unwrap().is_empty());
}

#[test]
fn a_flood_of_refusals_does_not_flood_the_log() {
    let Some(world) = World::new(NETWORK, "a_flood_of_refusals_does_not_flood_the_log") else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    let daemon = world.daemon(&[("source_rate", "1"), ("source_burst", "1"), ("refusal_log_rate", "5")]);
    let refused = AtomicU64::new(0);
    world.visits(300, 10, |_| {
        if Visit::start(world.lab.client(1), daemon.addr()).is_err() {
            refused.fetch_add(1, Ordering::SeqCst);
        }
    });
    wait_for(&daemon, "all have ended", |status| status.active() == 0);
    let (refused, status) = (refused.into_inner(), daemon.status().unwrap());
    assert_eq!(status.number("/connections/rejected/source_rate"), refused);
    let left_out = status.number("/limits/refusals_not_logged");
    assert!(left_out > 0, "{:#}", status.0);
    let logged =
        || daemon.access_log(SOON, |records| !records.is_empty()).iter().filter(|r| r.reject.is_some()).count();
    eventually("every refusal is logged or counted as left out", || logged() as u64 + left_out == refused);
}

/// What the daemon's processor time is spent on, for docs/limits.md: `cargo test --test limits -- --ignored --nocapture`.
#[test]
#[ignore = "measures, and fails only where connections do"]
fn what_a_refusal_costs() {
    let Some(world) = World::new(NETWORK, "what_a_refusal_costs") else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    let measure = |what: &str, settings: &[(&str, &str)], sql: &str, expected: bool| {
        world.database.execute(sql);
        let daemon = world.daemon(settings);
        let come = |count: u16| {
            let all = world.visits(count, 4, |n| Visit::start(world.lab.client(n % 8), daemon.addr()).is_ok());
            all.into_iter().filter(|served| *served == expected).count()
        };
        come(500);
        let before = daemon.cpu();
        let as_expected = come(20_000);
        let micros = (daemon.cpu() - before).as_micros() as f64 / 20_000.0;
        println!("{what}: {micros:.1} µs of processor time each; {as_expected} of 20000 as expected");
    };
    let (none, full) = ("UPDATE backends SET healthy = 1", "UPDATE backends SET healthy = 0");
    measure("served", &[], none, true);
    let rate = [("source_rate", "1"), ("source_burst", "1")];
    measure("refused by source_rate", &rate, none, false);
    let unlogged = [rate[0], rate[1], ("access_log", "false")];
    measure("refused by source_rate, without access log", &unlogged, none, false);
    let all_logged = [rate[0], rate[1], ("refusal_log_rate", "0")];
    measure("refused by source_rate, all logged", &all_logged, none, false);
    measure("refused by none_eligible", &[], full, false);
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
