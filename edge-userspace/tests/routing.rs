//! Each client gets the right backend, and a broken backend costs nobody a connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use common::{Database, NETWORK, Row, SOON, World, edgeproxy, eventually, tally};
use xtask::lab::{BRAZIL, Daemon, GERMANY, JAPAN, Lab, Ns, SOUTH_AFRICA, UNITED_STATES};
use xtask::load::{Manner, NamedBackend, Visit, connect_from};

/// Clients of a thousand that come at once.
const LANES: u16 = 16;

/// 1,000 connections, one after the other on 16 lanes; how long each took, or how it failed.
fn thousand(world: &World, daemon: &Daemon) -> Vec<std::io::Result<Duration>> {
    world.visits(1_000, LANES, |n| {
        let started = Instant::now();
        Visit::start(world.lab.client(n), daemon.addr()).and_then(Visit::finish).map(|()| started.elapsed())
    })
}

#[test]
fn a_backend_that_refuses_costs_no_client() {
    let Some(world) = World::new(NETWORK, "a_backend_that_refuses_costs_no_client") else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    world.database.add(&Row::new("dead", world.backend_addr(2)));
    let daemon = world.daemon(&[]);
    let failures: Vec<_> = thousand(&world, &daemon).into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{} failed, the first by {:?}", failures.len(), failures[0]);
    let records = daemon.access_log(SOON, |records| records.len() >= 1_000);
    assert!(records.iter().any(|record| record.attempts == 2), "the dead backend was never tried");
    assert!(records.iter().all(|record| record.backend.as_deref() == Some("b1")));
}

#[test]
fn a_backend_that_is_silent_costs_the_connect_limit_at_most() {
    let test = "a_backend_that_is_silent_costs_the_connect_limit_at_most";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    world.database.add(&Row::new("silent", world.backend_addr(2)));
    world.lab.mute(world.lab.backend(2)).unwrap();
    let daemon = world.daemon(&[("connect_timeout_ms", "250"), ("ejection_secs", "600")]);
    let longest = thousand(&world, &daemon).into_iter().map(Result::unwrap).max().unwrap();
    assert!(longest >= Duration::from_millis(250), "the silent backend was never tried");
    assert!(longest < Duration::from_millis(1_000), "a client waited {longest:?}");
    let records = daemon.access_log(SOON, |records| records.len() >= 1_000);
    let waited = records.iter().filter(|record| record.attempts > 1).count();
    // The first to wait in vain ejects it; the others were on their way to it.
    assert!((1..=usize::from(LANES)).contains(&waited), "{waited} clients waited");
    let status = daemon.status().unwrap();
    let silent = status.0["backends"].as_array().unwrap().iter().find(|backend| backend["id"] == "silent").unwrap();
    assert_eq!((&silent["health"], &silent["health_why"]), (&"ejected".into(), &"timed_out".into()), "{silent:#}");
    assert_eq!(status.number("/events/backend_ejected"), 1);
}

#[test]
fn three_equal_backends_get_a_third_each() {
    shares([1, 1, 1], "three_equal_backends_get_a_third_each");
}

#[test]
fn weighted_backends_get_their_shares() {
    shares([1, 2, 4], "weighted_backends_get_their_shares");
}

/// 3,000 short connections from as many addresses, on 8 lanes, are spread by weight within 10 %.
fn shares(weights: [u32; 3], test: &str) {
    let Some(world) = World::new(NETWORK, test) else { return };
    let start = |n: usize| world.backend(n as u8 + 1, Manner::Close, |row| row.weight(weights[n]));
    let _backends = [0, 1, 2].map(start);
    let daemon = world.daemon(&[]);
    let names = world.visits(3_000, 8, |n| {
        let visit = Visit::start(world.lab.client(n), daemon.addr()).unwrap();
        let name = visit.backend.clone();
        visit.finish().unwrap();
        name
    });
    let got = tally(names);
    let total: u32 = weights.iter().sum();
    for (n, weight) in weights.iter().enumerate() {
        let (count, share) = (got[&format!("b{}", n + 1)] as f64, 3_000.0 * f64::from(*weight) / f64::from(total));
        assert!((count - share).abs() <= share / 10.0, "weights {weights:?}: {got:?}");
    }
}

/// Backend `b1`, which takes five connections, and as many as come from clients bound to it are no exception.
#[test]
fn a_hard_limit_holds_against_a_crowd() {
    let Some(world) = World::new(NETWORK, "a_hard_limit_holds_against_a_crowd") else { return };
    let backend = world.backend(1, Manner::Echo, |row| row.limits(2, 5));
    let daemon = world.daemon(&[]);
    // Every client of the crowd is bound to the backend before it comes again.
    for n in 0..200 {
        world.visit(n, daemon.addr()).unwrap().finish().unwrap();
        daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
    }
    let outcomes = world.visits(200, 200, |n| {
        let outcome = Visit::start(world.lab.client(n), daemon.addr());
        thread::sleep(Duration::from_millis(1_500));
        outcome.map(Visit::finish)
    });
    assert_eq!(backend.gauge().most(), 5);
    let (served, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(served.len(), 5);
    let kinds = tally(refused.into_iter().map(|refusal| refusal.unwrap_err().kind()));
    assert_eq!(kinds, HashMap::from([(std::io::ErrorKind::ConnectionReset, 195)]));
    let records = daemon.access_log(SOON, |records| records.len() >= 400);
    assert_eq!(records.iter().filter(|record| record.reject.as_deref() == Some("all_full")).count(), 195);
}

#[test]
fn the_limit_is_free_again_when_connections_end() {
    let Some(world) = World::new(NETWORK, "the_limit_is_free_again_when_connections_end") else { return };
    let backend = world.backend(1, Manner::Echo, |row| row.limits(2, 5));
    let daemon = world.daemon(&[]);
    for round in 0..20 {
        let held: Vec<_> = (0..5).map(|n| world.visit(round * 5 + n, daemon.addr()).unwrap()).collect();
        assert!(world.visit(1_000, daemon.addr()).is_err());
        held.into_iter().for_each(|visit| visit.finish().unwrap());
        daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
    }
    assert_eq!(backend.gauge().most(), 5);
}

#[test]
fn clients_reach_the_region_of_their_country() {
    let Some(world) = World::new(NETWORK, "clients_reach_the_region_of_their_country") else { return };
    let regions = ["sa", "eu", "us", "ap"];
    let _backends: Vec<_> =
        regions.iter().zip(1..).map(|(region, n)| world.backend(n, Manner::Close, |row| row.region(region))).collect();
    let daemon = world.daemon(&[("region", "sa")]);
    for (country, region) in
        [(BRAZIL, "sa"), (GERMANY, "eu"), (UNITED_STATES, "us"), (JAPAN, "ap"), (SOUTH_AFRICA, "eu")]
    {
        for (from, to) in [(country.v4(7), daemon.addr()), (country.v6(7), daemon.addr_v6())] {
            let visit = world.lab.run_in(Ns::Clients, || Visit::start(from, to)).unwrap();
            let client = visit.local;
            visit.finish().unwrap();
            let record = daemon.record_of(client, SOON).unwrap();
            assert_eq!(record.country.as_deref(), Some(country.code), "{from}");
            assert_eq!(record.backend_region.as_deref(), Some(region), "{from}");
            assert_eq!(record.why.as_deref(), Some("client_region"), "{from}");
        }
    }
}

#[test]
fn a_client_returns_to_its_backend_until_the_binding_ends() {
    let test = "a_client_returns_to_its_backend_until_the_binding_ends";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backends = [1, 2, 3].map(|n| world.backend(n, Manner::Close, |row| row));
    let daemon = world.daemon(&[("binding_ttl_secs", "2")]);
    // The backend that the client gets, and why.
    let visit = || {
        let visit = world.visit(9, daemon.addr()).unwrap();
        let (client, backend) = (visit.local, visit.backend.clone());
        visit.finish().unwrap();
        (backend, daemon.record_of(client, SOON).unwrap().why.unwrap())
    };
    let (first, _) = visit();
    for _ in 0..20 {
        assert_eq!(visit(), (first.clone(), "affinity".to_owned()));
    }
    thread::sleep(Duration::from_millis(2_300));
    assert_eq!(visit().1, "client_region");
}

#[test]
fn a_binding_outlives_a_connection_that_is_longer_than_it() {
    let Some(world) = World::new(NETWORK, "a_binding_outlives_a_connection_that_is_longer_than_it") else { return };
    let _backends = [1, 2, 3].map(|n| world.backend(n, Manner::Echo, |row| row));
    let daemon = world.daemon(&[("binding_ttl_secs", "1")]);
    let long = world.visit(9, daemon.addr()).unwrap();
    let (client, backend) = (long.local, long.backend.clone());
    thread::sleep(Duration::from_millis(1_500));
    long.finish().unwrap();
    daemon.record_of(client, SOON).unwrap();
    let next = world.visit(9, daemon.addr()).unwrap();
    assert_eq!(next.backend, backend);
    let client = next.local;
    next.finish().unwrap();
    assert_eq!(daemon.record_of(client, SOON).unwrap().why.as_deref(), Some("affinity"));
}

#[test]
fn a_binding_yields_when_its_backend_drains() {
    let Some(world) = World::new(NETWORK, "a_binding_yields_when_its_backend_drains") else { return };
    let _backends = [1, 2].map(|n| world.backend(n, Manner::Echo, |row| row));
    let daemon = world.daemon(&[]);
    let mut held = world.visit(9, daemon.addr()).unwrap();
    let first = held.backend.clone();
    world.database.execute(&format!("UPDATE backends SET state = 'drain' WHERE id = '{first}'"));
    wait_generation(&daemon, 2);
    let second = world.visit(9, daemon.addr()).unwrap();
    assert_ne!(second.backend, first);
    let client = second.local;
    second.finish().unwrap();
    assert_eq!(daemon.record_of(client, SOON).unwrap().binding_yielded.as_deref(), Some("drain"));
    held.echo(b"a drain leaves existing connections alone").unwrap();
}

/// Waits until the daemon routes by its `generation`-th snapshot.
fn wait_generation(daemon: &Daemon, generation: u64) {
    let status = daemon.wait_status(SOON, |status| status.number("/routing/generation") >= generation).unwrap();
    assert!(status.number("/routing/generation") >= generation, "{:#}", status.0);
}

#[test]
fn a_changed_row_is_live_without_a_restart() {
    let Some(world) = World::new(NETWORK, "a_changed_row_is_live_without_a_restart") else { return };
    let _first = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[]);
    let mut held = world.visit(0, daemon.addr()).unwrap();
    let _second = world.backend(2, Manner::Echo, |row| row);
    world.database.execute("UPDATE backends SET deleted = 1 WHERE id = 'b1'");
    eventually("clients reach the new backend", || {
        world.visit(1, daemon.addr()).is_ok_and(|visit| visit.backend == "b2")
    });
    assert_eq!(held.backend, "b1");
    held.echo(b"a reload leaves existing connections alone").unwrap();
    held.finish().unwrap();
    daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
}

/// The daemon looks once in an interval; a machine that is busy may take another one or two for it.
#[test]
fn a_changed_row_is_live_within_the_interval() {
    let Some(world) = World::new(NETWORK, "a_changed_row_is_live_within_the_interval") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let interval = Duration::from_secs(1);
    let daemon = world.daemon(&[("db_reload_secs", "1")]);
    let generation = daemon.status().unwrap().number("/routing/generation");
    for turn in 1..=3 {
        world.database.execute(&format!("UPDATE backends SET weight = 1 + {turn}"));
        let changed = Instant::now();
        wait_generation(&daemon, generation + turn);
        assert!(changed.elapsed() < interval * 3, "change {turn} was live after {:?}", changed.elapsed());
        // Somewhere else in the interval.
        thread::sleep(interval.mul_f64(0.3));
    }
}

#[test]
fn a_bad_row_is_rejected_alone() {
    let Some(world) = World::new(NETWORK, "a_bad_row_is_rejected_alone") else { return };
    // The old schema has no CHECKs, so that anything can be in a row.
    let database = Database::missing();
    database.execute(include_str!("../../sql/seed.sql"));
    database.execute("DELETE FROM backends");
    let world = World { database, ..world };
    let _backends = [1, 2].map(|n| world.backend(n, Manner::Close, |row| row));
    let daemon = world.daemon(&[]);
    world.database.execute(
        "UPDATE backends SET port = 'seventy' WHERE id = 'b1'; UPDATE backends SET weight = 3 WHERE id = 'b2'",
    );
    let rejected = |status: &xtask::lab::Status| status.0.pointer("/routing/rejected_rows").map(ToString::to_string);
    let status = daemon.wait_status(SOON, |status| rejected(status).is_some_and(|rows| rows.contains("b1"))).unwrap();
    let rows = rejected(&status).unwrap();
    assert!(rows.contains("b1") && rows.contains("port") && !rows.contains("b2"), "{rows}");
    assert_eq!(status.number("/backends/1/weight"), 3, "the good row took effect: {:#}", status.0);
    let names = tally((0..200).map(|n| world.visit(n, daemon.addr()).unwrap().backend));
    assert_eq!(names.len(), 2, "the bad row keeps its last good version: {names:?}");
}

#[test]
fn the_seeds_database_works_unmodified() {
    let Some(world) = World::new(NETWORK, "the_seeds_database_works_unmodified") else { return };
    let database = Database::missing();
    database.execute(include_str!("../../sql/seed.sql"));
    let world = World { database, ..world };
    let daemon = world.daemon(&[]);
    let status = daemon.status().unwrap();
    assert_eq!(status.backends().len(), 5, "{:#}", status.0);
    assert_eq!(status.text("/listeners/0/app"), Some("myapp"), "{:#}", status.0);
    // Its addresses are not those of the lab: move one, as an operator would.
    let addr = world.backend_addr(1);
    let _backend = NamedBackend::start(world.lab.namespace(Ns::Backends), "moved", addr, Manner::Close).unwrap();
    world.database.execute(&format!(
        "UPDATE backends SET wg_ip = '{}', port = {} WHERE id = 'sa-node-1'; \
         UPDATE backends SET deleted = 1 WHERE id = 'sa-node-2'",
        addr.ip(),
        addr.port()
    ));
    eventually("the moved backend answers", || {
        world.visit(0, daemon.addr()).is_ok_and(|visit| visit.backend == "moved")
    });
}

/// `edgeproxy explain` for a client, beside a running daemon: its exit code and what it printed.
fn explain(world: &World, daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let socket = daemon.admin_socket().display().to_string();
    let arguments = [&["explain", "--json", "--admin-socket", &socket], arguments].concat();
    let output = world.config().command(&world.lab, &arguments).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

/// Of a column that is aligned right.
fn cell<'a>(text: &'a str, backend: &str, column: &str) -> &'a str {
    let head = text.lines().find(|line| line.starts_with("BACKEND ")).unwrap();
    let row = text.lines().find(|line| line.starts_with(&format!("{backend} "))).unwrap();
    let end = head.find(column).unwrap() + column.len();
    row[..end].rsplit(' ').next().unwrap()
}

#[test]
fn explain_tells_what_the_next_connection_does() {
    let Some(world) = World::new(NETWORK, "explain_tells_what_the_next_connection_does") else { return };
    let _backends = [
        world.backend(1, Manner::Echo, |row| row.region("eu").limits(1, 2).weight(4)),
        world.backend(2, Manner::Echo, |row| row.region("us")),
    ];
    world.database.add(&Row::new("drained", world.backend_addr(3)).region("eu"));
    world.database.execute("UPDATE backends SET state = 'drain' WHERE id = 'drained'");
    let daemon = world.daemon(&[("region", "sa"), ("connect_attempts", "2")]);
    let client = GERMANY.v4(9);
    let visit = || world.lab.run_in(Ns::Clients, || Visit::start(client, daemon.addr())).unwrap();
    let address = client.to_string();
    let ask = |arguments: &[&str]| explain(&world, &daemon, &[&["--client", &address], arguments].concat());
    let backend = |answer: &serde_json::Value, at: usize| answer["candidates"][at]["id"].as_str().unwrap().to_owned();

    let (code, answer) = ask(&[]);
    assert_eq!(code, Some(0), "{answer:#}");
    assert_eq!((&answer["country"], &answer["client_region"]), (&"DE".into(), &"eu".into()));
    assert_eq!((&answer["winner"], &answer["why"]), (&"b1".into(), &"client_region".into()));
    assert_eq!((&answer["order"][1]["backend"], &answer["order"][1]["why"]), (&"b2".into(), &"nearest_region".into()));
    assert_eq!([0, 1, 2].map(|at| backend(&answer, at)), ["b1", "b2", "drained"]);
    assert_eq!((&answer["candidates"][1]["score"], &answer["candidates"][2]["out"]), (&200.0.into(), &"drain".into()));
    let held = [visit(), visit()];
    assert!(held.iter().all(|visit| visit.backend == "b1"), "the daemon does as it was explained");

    // Bound to b1, which is full now.
    let (code, answer) = ask(&["--app", "web"]);
    assert_eq!((code, &answer["bound"], &answer["binding_yielded"]), (Some(0), &"b1".into(), &"at_hard_limit".into()));
    assert_eq!((&answer["winner"], &answer["candidates"][2]["out"]), (&"b2".into(), &"at_hard_limit".into()));
    let (_, text) = edgeproxy(&daemon, &["explain", "--client", &address]);
    let of_b1 = ["SCORE", "NEAR", "LOAD", "CONNS", "SOFT", "HARD", "WEIGHT"].map(|column| cell(&text, "b1", column));
    assert_eq!(of_b1, ["0.500", "0", "2.000", "2", "1", "2", "4"], "{text}");
    assert_eq!(visit().backend, "b2");
    held.into_iter().for_each(|visit| visit.finish().unwrap());

    let (code, answer) = ask(&["--app", "nobody"]);
    assert_eq!((code, &answer["refused"]), (Some(2), &"no_such_app".into()));
    assert_eq!(ask(&["--port", "8080"]).1["app"], "web");
    assert_eq!(ask(&["--port", "81"]).0, Some(2), "nobody listens there");
}

#[test]
fn to_explain_a_client_does_not_renew_its_binding() {
    let Some(world) = World::new(NETWORK, "to_explain_a_client_does_not_renew_its_binding") else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    let daemon = world.daemon(&[("binding_ttl_secs", "1.5")]);
    world.visit(9, daemon.addr()).unwrap().finish().unwrap();
    let client = world.lab.client(9).to_string();
    let bound = || explain(&world, &daemon, &["--client", &client]).1["bound"].clone();
    assert_eq!(bound(), "b1");
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        bound();
        thread::sleep(Duration::from_millis(200));
    }
    assert!(bound().is_null(), "asking often does not keep it alive");
}

#[test]
fn an_app_without_backends_is_refused_with_a_reset() {
    let Some(world) = World::new(NETWORK, "an_app_without_backends_is_refused_with_a_reset") else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    world.database.execute("UPDATE backends SET healthy = 0");
    let daemon = world.daemon(&[]);
    let lab: &Lab = &world.lab;
    // The reset may come before connect has returned: then the next one tells more.
    let mut connects = (0..100).map(|_| lab.run_in(Ns::Clients, || connect_from(lab.client(0), daemon.addr())));
    let mut stream = connects.find_map(Result::ok).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let record = daemon.record_of(stream.local_addr().unwrap(), SOON).unwrap();
    assert_eq!((record.termination.as_str(), record.reject.as_deref()), ("PC", Some("none_eligible")));
}
