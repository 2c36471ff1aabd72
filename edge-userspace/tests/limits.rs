//! Limits hold exactly, whoever comes and whatever changes meanwhile; each refusal has its reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::refusals::{LATER, assert_all_gone, explain, explain_at, queue, refused, wait_for, why};
use common::{NETWORK, Over, SOON, World, edgeproxy, eventually, tally};
use xtask::lab::{BRAZIL, Daemon, GERMANY, Ns, Status};
use xtask::load::{Manner, Visit};

/// How it ends for a client that finds all places taken.
const FULL: (&str, Option<&str>) = ("PC", Some("all_full"));

/// Connects and is served.
fn served(world: &World, from: IpAddr, to: SocketAddr) -> Visit {
    world.lab.run_in(Ns::Clients, || Visit::start(from, to)).unwrap()
}

/// How many reloads the work has to meet. It goes on until it has, so that a slow machine takes longer and meets no fewer.
const RELOADS: u64 = 100;

/// How many reloads were made, each after a change.
#[derive(Debug, Default)]
struct Reloads(AtomicU64);

impl Reloads {
    fn made(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether there are so many; fails where they take too long.
    fn are(&self, count: u64, since: Instant) -> bool {
        let made = self.made();
        assert!(made >= count || since.elapsed() < LATER, "{made} of {count} reloads within {LATER:?}");
        made >= count
    }

    fn wait_for(&self, count: u64) {
        let since = Instant::now();
        while !self.are(count, since) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Changes the table all the time while `work` goes on: weight and country of the first backend and its limit, where it
/// has one; the limits of the second one, where there is one, which now and then is gone; and the limit of the listener
/// `front`, where there is one. They never may have more than 5, 7 and 7.
fn under_reloads<T>(world: &World, daemon: &Daemon, work: impl FnOnce(&Reloads) -> T) -> T {
    let (over, from) = (AtomicBool::new(false), daemon.status().unwrap().number("/routing/generation"));
    let reloads = Reloads::default();
    let result = thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            for n in (0_u64..).take_while(|_| !over.load(Ordering::SeqCst)) {
                change(world, n);
                // Not to be left to the next look, which on a busy machine may come after many changes.
                let answer = daemon.post("/api/v1/reload", "{}").unwrap();
                assert_eq!(answer.code, 200, "{}", answer.body);
                reloads.0.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(10));
            }
        });
        work(&reloads)
    });
    let made = daemon.status().unwrap().number("/routing/generation") - from;
    eprintln!("{made} reloads");
    assert!(reloads.made() >= RELOADS && made >= reloads.made(), "{made} reloads, {reloads:?}");
    result
}

fn change(world: &World, n: u64) {
    let country = if n.is_multiple_of(2) { "BR" } else { "AR" };
    let first = if n % 7 < 3 { 4 } else { 5 };
    let second = if n.is_multiple_of(3) { 5 } else { 7 };
    let front = 7 - n % 2;
    world.database.execute(&format!(
        "UPDATE backends SET weight = {}, country = '{country}' WHERE id = 'b1'; \
         UPDATE backends SET hard_limit = {first} WHERE id = 'b1' AND hard_limit > 0; \
         UPDATE backends SET hard_limit = {second}, deleted = {} WHERE id = 'b2'; \
         UPDATE listeners SET max_connections = {front} WHERE id = 'front'",
        n % 7 + 1,
        u8::from(n % 5 == 4)
    ));
}

/// 500 clients at once, the first half bound to the backend, each coming three times, and again until the table has changed
/// often enough under them.
fn crowd(world: &World, daemon: &Daemon, reloads: &Reloads) -> Vec<Result<(), ErrorKind>> {
    let bound = world.visits(250, 4, |n| {
        eventually("a client is bound", || {
            Visit::start(world.lab.client(n), daemon.addr()).is_ok_and(|visit| visit.finish().is_ok())
        });
    });
    assert_eq!(bound.len(), 250);
    wait_for(daemon, "the bound ones are gone", |status| status.active() == 0);
    let (start, until) = (std::sync::Barrier::new(500), reloads.made() + RELOADS);
    let come = |n: u16| {
        let visit = Visit::start(world.lab.client(n), daemon.addr()).map_err(|error| error.kind())?;
        thread::sleep(Duration::from_millis(u64::from(n) % 20));
        visit.finish().map_err(|error| error.kind())
    };
    let visits = world.visits(500, 500, |n| {
        start.wait();
        let (since, mut visits) = (Instant::now(), vec![come(n), come(n), come(n)]);
        while !reloads.are(until, since) {
            // Who is refused does not try again without a pause.
            thread::sleep(Duration::from_millis(u64::from(n) % 200 + 50));
            visits.push(come(n));
        }
        visits
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
    let visits = under_reloads(&world, &daemon, |reloads| crowd(&world, &daemon, reloads));
    let count = visits.len();
    let most = backend.gauge().most();
    assert!((4..=5).contains(&most), "{most} at once");
    let most = changing.gauge().most();
    assert!((1..=7).contains(&most), "{most} at once");
    let served = visits.iter().filter(|visit| visit.is_ok()).count();
    let refused = tally(visits.into_iter().filter_map(Result::err));
    assert!(served > 5 + 7, "{served} served: no place was used twice");
    assert_eq!(refused, HashMap::from([(ErrorKind::ConnectionReset, count - served)]));
    let records = daemon.access_log(LATER, |records| records.len() >= count + 250);
    assert!(records.iter().any(|record| record.why.as_deref() == Some("affinity")), "nobody came by a binding");
    let full = records.iter().filter(|record| why(record) == FULL).count();
    assert!(full >= count - served, "{full} of {} records", records.len());
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
    let visits = under_reloads(&world, &daemon, |reloads| crowd(&world, &daemon, reloads));
    let count = visits.len();
    assert_eq!(tally(visits), HashMap::from([(Ok(()), count)]));
    assert_eq!(backend.gauge().most(), 5);
    let records = daemon.access_log(LATER, |records| records.len() >= count + 250);
    assert!(records.iter().any(|record| record.queue_ms.is_some_and(|ms| ms > 0.0)));
    assert_all_gone(&daemon);
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
    let outcomes = under_reloads(&world, &daemon, |reloads| {
        // Two after each reload, and nobody leaves before all have come.
        world.visits(200, 200, |n| {
            reloads.wait_for(u64::from(n) / 2);
            let visit = Visit::start(world.lab.client(n), to);
            reloads.wait_for(RELOADS);
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

/// Each of them would be remembered for ten seconds, until its burst is whole again.
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
