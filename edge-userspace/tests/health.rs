//! Backends that fail their clients are ejected, come back, and are asked when no other is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{NETWORK, Row, SOON, World, eventually};
use xtask::lab::{Daemon, Ns};
use xtask::load::{Manner, NamedBackend, Visit, connect_from};

/// The health of a backend in the status, and why.
fn health(daemon: &Daemon, id: &str) -> (String, Option<String>) {
    let status = daemon.status().unwrap();
    let backends = status.0["backends"].as_array().unwrap().clone();
    let backend = backends.iter().find(|backend| backend["id"] == id).unwrap();
    let text = |name: &str| backend[name].as_str().map(str::to_owned);
    (text("health").unwrap(), text("health_why"))
}

fn ejected(why: &str) -> (String, Option<String>) {
    ("ejected".to_owned(), Some(why.to_owned()))
}

/// Starts the `n`-th backend under its name; its row is there already.
fn start(world: &World, n: u8) -> NamedBackend {
    let namespace = world.lab.namespace(Ns::Backends);
    NamedBackend::start(namespace, &format!("b{n}"), world.backend_addr(n), Manner::Close).unwrap()
}

/// Waits until the events say so.
fn wait_told(daemon: &Daemon, words: &str) {
    eventually(words, || daemon.messages().contains(words));
}

fn visit(world: &World, daemon: &Daemon, client: u16) -> std::io::Result<String> {
    let visit = world.visit(client, daemon.addr())?;
    let name = visit.backend.clone();
    visit.finish().map(|()| name)
}

#[test]
fn a_dead_backend_is_ejected_and_costs_nobody_a_connection() {
    let Some(world) = World::new(NETWORK, "a_dead_backend_is_ejected_and_costs_nobody_a_connection") else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    world.database.add(&Row::new("dead", world.backend_addr(2)));
    let daemon = world.daemon(&[("ejection_secs", "60")]);
    let lanes = 8;
    let failures: Vec<_> = world
        .visits(1_000, lanes, |n| Visit::start(world.lab.client(n), daemon.addr()).and_then(Visit::finish))
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(failures.is_empty(), "{} failed, the first by {:?}", failures.len(), failures[0]);
    assert_eq!(health(&daemon, "dead"), ejected("refused"));
    assert_eq!(health(&daemon, "b1"), ("up".to_owned(), None));
    let records = daemon.access_log(SOON, |records| records.len() >= 1_000);
    let retried = records.iter().filter(|record| record.attempts > 1).count();
    // Three in a row eject; others may be on their way to it meanwhile.
    assert!((3..=3 + usize::from(lanes)).contains(&retried), "{retried} clients found it out");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_ejections_total{by=\"client\",why=\"refused\"} 1"), "{metrics}");
    assert!(daemon.messages().contains("backend_ejected"), "{}", daemon.messages());
}

#[test]
fn a_silent_backend_costs_the_connect_limit_once() {
    let Some(world) = World::new(NETWORK, "a_silent_backend_costs_the_connect_limit_once") else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    world.database.add(&Row::new("silent", world.backend_addr(2)));
    world.lab.mute(world.lab.backend(2)).unwrap();
    let daemon = world.daemon(&[("connect_timeout_ms", "400"), ("ejection_secs", "60")]);
    let mut waits = Vec::new();
    for client in 0..200 {
        let started = Instant::now();
        assert_eq!(visit(&world, &daemon, client).unwrap(), "b1");
        waits.extend(Some(started.elapsed()).filter(|took| *took >= Duration::from_millis(400)));
    }
    assert_eq!(waits.len(), 1, "{waits:?}");
    // The connect limit, and what a busy machine takes for the rest.
    assert!(waits[0] < Duration::from_secs(5), "a client waited {:?}", waits[0]);
    let records = daemon.access_log(SOON, |records| records.len() >= 200);
    assert_eq!(records.iter().filter(|record| record.attempts > 1).count(), 1);
    assert_eq!(health(&daemon, "silent"), ejected("timed_out"));
    let socket = daemon.admin_socket().display().to_string();
    let arguments = ["explain", "--client", "192.0.2.1", "--admin-socket", &socket];
    let output = world.config().command(&world.lab, &arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("out: ejected"), "{text}");
}

/// Each time an ejection is over the POP tries for itself. Then a client would wait again for who is still silent.
#[test]
fn no_client_waits_again_for_a_backend_that_stays_silent() {
    let Some(world) = World::new(NETWORK, "no_client_waits_again_for_a_backend_that_stays_silent") else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    let _silent = start(&world, 2);
    world.database.add(&Row::new("b2", world.backend_addr(2)));
    world.lab.mute(world.lab.backend(2)).unwrap();
    let times = [("ejection_secs", "0.2"), ("ejection_longest_secs", "0.4"), ("slow_start_secs", "0.2")];
    let daemon = world.daemon(&[&times[..], &[("connect_timeout_ms", "300")]].concat());
    let mut clients = 0;
    let mut next = || {
        clients += 1;
        visit(&world, &daemon, clients).unwrap()
    };
    let ejections = || daemon.messages().matches("ejected for 0.4 s").count();
    let deadline = Instant::now() + SOON;
    while ejections() < 5 {
        assert_eq!(next(), "b1");
        assert!(Instant::now() < deadline, "{}", daemon.messages());
    }
    let metrics = daemon.metrics().unwrap();
    let count = |by: &str| {
        let series = format!("edgeproxy_ejections_total{{by=\"{by}\",why=\"timed_out\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<u32>().ok())
    };
    assert_eq!(count("client"), Some(1), "{metrics}");
    assert!(count("trial") >= Some(5), "{metrics}");
    let told = daemon.messages();
    assert!(told.contains("ejected for 0.2 s: it fails its clients (timed_out)"), "{told}");
    assert!(told.contains("ejected for 0.4 s more: it did not accept the POP's own connection (timed_out)"), "{told}");
    world.lab.unmute(world.lab.backend(2)).unwrap();
    while next() != "b2" {
        assert!(Instant::now() < deadline + SOON, "{}", daemon.messages());
    }
    wait_told(&daemon, "accepted the POP's own connection: gets a growing share of clients");
    let records = daemon.access_log(SOON, |records| records.len() >= usize::from(clients));
    assert_eq!(records.iter().filter(|record| record.attempts > 1).count(), 1, "the first one only");
}

#[test]
fn a_backend_that_fails_again_is_ejected_for_longer_and_comes_back_when_it_is_well() {
    let test = "a_backend_that_fails_again_is_ejected_for_longer_and_comes_back_when_it_is_well";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    world.database.add(&Row::new("b2", world.backend_addr(2)));
    let daemon = world.daemon(&[("ejection_secs", "0.2"), ("slow_start_secs", "0.2"), ("ejection_failures", "1")]);
    let mut client = 0;
    let mut next = || {
        client += 1;
        visit(&world, &daemon, client).unwrap()
    };
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        assert_eq!(next(), "b1");
    }
    for secs in ["0.2", "0.4", "0.8"] {
        let ejected = format!("ejected for {secs} s");
        assert!(daemon.messages().contains(&ejected), "not {ejected}:\n{}", daemon.messages());
    }
    let _well = start(&world, 2);
    let deadline = Instant::now() + SOON;
    while next() != "b2" {
        assert!(Instant::now() < deadline, "{}", daemon.messages());
    }
    eventually("it has its whole share again", || health(&daemon, "b2").0 == "up");
    let got = common::tally((0..100).map(|_| next()));
    assert!(got["b2"] >= 40, "{got:?}");
}

/// More than half of an app are out by its clients' word only where the operator wants it so.
#[test]
fn no_more_backends_are_ejected_than_may_be_at_once() {
    let Some(world) = World::new(NETWORK, "no_more_backends_are_ejected_than_may_be_at_once") else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    (2..=4).for_each(|n| world.database.add(&Row::new(&format!("b{n}"), world.backend_addr(n))));
    let settings = |percent| [("ejection_secs", "60"), ("connect_attempts", "4"), ("ejection_max_percent", percent)];
    for (percent, most) in [("50", 2), ("25", 1), ("100", 3)] {
        let daemon = world.daemon(&settings(percent));
        let out = || ["b2", "b3", "b4"].iter().filter(|id| health(&daemon, id) == ejected("refused")).count();
        for client in 0..100 {
            assert_eq!(visit(&world, &daemon, client).unwrap(), "b1");
            assert!(out() <= most, "{percent} %: {}", daemon.messages());
        }
        assert_eq!(out(), most, "{percent} %: {}", daemon.messages());
    }
}

/// `b2` is ejected, and well again since; no other is left.
fn with_an_ejected_one(test: &str) -> Option<(World, Daemon, NamedBackend)> {
    let world = World::new(NETWORK, test)?;
    let other = world.backend(1, Manner::Close, |row| row);
    world.database.add(&Row::new("b2", world.backend_addr(2)));
    let daemon = world.daemon(&[("ejection_secs", "600")]);
    for client in 0..20 {
        assert_eq!(visit(&world, &daemon, client).unwrap(), "b1");
    }
    assert_eq!(health(&daemon, "b2"), ejected("refused"));
    drop(other);
    let well = start(&world, 2);
    Some((world, daemon, well))
}

/// What keeps it away is the operator's word; a last resort is only who failed its clients.
#[test]
fn what_the_operator_says_outranks_an_ejection() {
    let Some((world, daemon, _well)) = with_an_ejected_one("what_the_operator_says_outranks_an_ejection") else {
        return;
    };
    let say = |state: &str| {
        world.database.execute(&format!("UPDATE backends SET state = '{state}' WHERE id = 'b2'"));
        assert_eq!(daemon.post("/api/v1/reload", "{}").unwrap().code, 200);
    };
    for state in ["drain", "maint"] {
        say(state);
        assert!(visit(&world, &daemon, 100).is_err(), "{state}");
        assert_eq!(health(&daemon, "b2"), ejected("refused"));
    }
    say("ready");
    assert_eq!(visit(&world, &daemon, 100).unwrap(), "b2");
}

#[test]
fn an_ejected_backend_is_asked_when_no_other_is_left() {
    let Some((world, daemon, _well)) = with_an_ejected_one("an_ejected_backend_is_asked_when_no_other_is_left") else {
        return;
    };
    let visit = world.visit(100, daemon.addr()).unwrap();
    let (client, backend) = (visit.local, visit.backend.clone());
    visit.finish().unwrap();
    let record = daemon.record_of(client, SOON).unwrap();
    assert_eq!((backend.as_str(), record.why.as_deref(), record.attempts), ("b2", Some("last_resort"), 2));
    assert_eq!(health(&daemon, "b2").0, "slow_start", "it has answered: it is back");
    wait_told(&daemon, "accepted a client's connection: gets a growing share of clients");
}

#[test]
fn a_backend_that_resets_at_once_is_ejected() {
    let Some(world) = World::new(NETWORK, "a_backend_that_resets_at_once_is_ejected") else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    let addr = world.backend_addr(2);
    world.database.add(&Row::new("b2", addr));
    let listener = world.lab.run_in(Ns::Backends, || std::net::TcpListener::bind(addr)).unwrap();
    // Accepts and resets, late enough for the connect to succeed; ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::sleep(Duration::from_millis(20));
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    });
    let daemon = world.daemon(&[("ejection_secs", "60"), ("forwarder", "copy")]);
    let mut failed = 0;
    for client in 0..100 {
        failed += usize::from(visit(&world, &daemon, client).is_err());
    }
    assert_eq!(failed, 3, "{}", daemon.messages());
    assert_eq!(health(&daemon, "b2"), ejected("early_reset"));
}

#[test]
fn a_lost_packet_does_not_eject_a_backend_that_accepts_others_meanwhile() {
    let Some(world) = World::new(NETWORK, "a_lost_packet_does_not_eject_a_backend_that_accepts_others_meanwhile")
    else {
        return;
    };
    let _backends: Vec<_> = (1..=2).map(|n| world.backend(n, Manner::Close, |row| row)).collect();
    // Below the second after which the kernel sends a SYN again.
    let settings = [("connect_timeout_ms", "950"), ("ejection_secs", "0.2"), ("slow_start_secs", "0.1")];
    let daemon = world.daemon(&settings);
    let ejections = || daemon.messages().matches("\"event\":\"backend_ejected\"").count();
    let both = [1, 2].map(|n| world.lab.backend(n));
    // On a busy machine the others may come too late.
    for try_ in 0..10 {
        let before = ejections();
        both.iter().for_each(|backend| world.lab.mute(*backend).unwrap());
        let began = Instant::now();
        let mut lost = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(200), daemon.addr())).unwrap();
        daemon.wait_status(SOON, |status| status.active() == 1).unwrap();
        both.iter().for_each(|backend| world.lab.unmute(*backend).unwrap());
        // Both have answered somebody.
        let mut seen = std::collections::HashSet::new();
        let mut client = try_ * 10;
        while seen.len() < 2 && began.elapsed() < SOON {
            seen.insert(visit(&world, &daemon, client).unwrap());
            client += 1;
        }
        let in_time = began.elapsed() < Duration::from_millis(900);
        let local = lost.local_addr().unwrap();
        lost.read_to_end(&mut Vec::new()).unwrap();
        drop(lost);
        let record = daemon.record_of(local, SOON).unwrap();
        assert_eq!((record.attempts, record.termination.as_str()), (2, "--"), "{record:?}");
        if in_time {
            assert_eq!(ejections(), before, "{}", daemon.messages());
            return;
        }
        eventually("both are well again", || ["b1", "b2"].iter().all(|id| health(&daemon, id).0 == "up"));
    }
    panic!("this machine is too busy for the test");
}

#[test]
fn an_attempt_that_the_budget_cuts_short_is_not_held_against_the_backend() {
    let Some(world) = World::new(NETWORK, "an_attempt_that_the_budget_cuts_short_is_not_held_against_the_backend")
    else {
        return;
    };
    let _far = world.backend(1, Manner::Close, |row| row.region("ap"));
    for n in [2, 3] {
        world.database.add(&Row::new(&format!("b{n}"), world.backend_addr(n)));
        world.lab.mute(world.lab.backend(n)).unwrap();
    }
    let daemon = world.daemon(&[("connect_timeout_ms", "600"), ("connect_budget_ms", "700"), ("ejection_secs", "600")]);
    let lost = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(1), daemon.addr())).unwrap();
    let record = daemon.record_of(lost.local_addr().unwrap(), SOON).unwrap();
    assert_eq!((record.attempts, record.termination.as_str()), (2, "sC"), "{record:?}");
    let mut phases = ["b2", "b3"].map(|id| health(&daemon, id).0);
    phases.sort();
    assert_eq!(phases, ["ejected", "up"], "half of the three would have been two");
}
