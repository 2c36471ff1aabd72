//! Apps that choose by measured round-trip time, with a backend that is really far.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{KERNEL, NETWORK, SOON, World, eventually, tally};
use serde_json::Value;
use xtask::lab::Daemon;
use xtask::lab::requirements::Need;
use xtask::load::Manner;

/// So much farther is the far backend.
const FAR: Duration = Duration::from_millis(30);
/// How long a changed way may take to show: the average's memory, a few times.
const LEARNED: Duration = Duration::from_secs(60);

/// Two backends of one region, chosen by time; every client is a new one.
fn app(world: &World) {
    world.database.execute("INSERT INTO apps (name, selection, affinity) VALUES ('web', 'nearest_rtt', 'none')");
}

/// One connection; the backend that served it, and why it was chosen.
fn served(world: &World, daemon: &Daemon, client: u16) -> (String, String) {
    let visit = world.visit(client, daemon.addr()).unwrap();
    let local = visit.local;
    visit.finish().unwrap();
    let record = daemon.record_of(local, SOON).unwrap();
    (record.backend.unwrap(), record.why.unwrap())
}

/// What the daemon says of a backend's round-trip time, in ms.
fn rtt(daemon: &Daemon, id: &str) -> Option<f64> {
    let status = daemon.status().unwrap();
    let backends = status.0["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["id"] == id).unwrap()["rtt_ms"].as_f64()
}

/// Connects until `accept` says that the daemon knows enough.
fn warm_up(world: &World, daemon: &Daemon, what: &str, accept: impl Fn() -> bool) {
    let deadline = Instant::now() + LEARNED;
    while !accept() {
        assert!(Instant::now() < deadline, "not within {LEARNED:?}: {what}\n{:#}", daemon.status().unwrap().0);
        world.visit(1, daemon.addr()).unwrap().finish().unwrap();
        thread::sleep(Duration::from_millis(20));
    }
}

fn explained(daemon: &Daemon) -> Value {
    let answer = daemon.get("/api/v1/explain?client=10.64.0.1").unwrap();
    serde_json::from_str(&answer.body).unwrap()
}

/// Says by `explain` alone who is the next, so that nothing is measured meanwhile.
fn next(daemon: &Daemon) -> (String, String) {
    let explained = explained(daemon);
    (explained["winner"].as_str().unwrap().to_owned(), explained["why"].as_str().unwrap().to_owned())
}

#[test]
fn new_clients_go_to_the_near_backend_and_follow_when_the_ways_change() {
    let Some(world) = World::new(NETWORK, "new_clients_go_to_the_near_backend_and_follow_when_the_ways_change") else {
        return;
    };
    let mut delay = world.lab.delay(FAR).unwrap();
    delay.only(world.lab.backend(2)).unwrap();
    let _backends: Vec<_> = (1..=2).map(|n| world.backend(n, Manner::Close, |row| row)).collect();
    app(&world);
    let daemon = world.daemon(&[]);
    warm_up(&world, &daemon, "both are measured and the near one is chosen", || {
        rtt(&daemon, "b1").is_some() && rtt(&daemon, "b2").is_some() && next(&daemon).1 == "nearest_rtt"
    });
    let (near, far) = (rtt(&daemon, "b1").unwrap(), rtt(&daemon, "b2").unwrap());
    assert!(far >= 30.0, "{near} and {far} ms");
    warm_up(&world, &daemon, "the near one is clearly nearer", || rtt(&daemon, "b1").unwrap() < 20.0);

    let served: Vec<_> = (0..60).map(|n| served(&world, &daemon, n)).collect();
    let by_backend = tally(served.iter().map(|(backend, _)| backend.as_str()));
    assert!(by_backend["b1"] >= 54, "{by_backend:?}");
    assert!(served.iter().any(|(_, why)| why == "nearest_rtt"), "{served:?}");
    let explained = explained(&daemon);
    let candidates = explained["candidates"].as_array().unwrap();
    assert_eq!(candidates[0]["id"], "b1", "{explained:#}");
    assert!(candidates[0]["rtt_ms"].as_f64().unwrap() < candidates[1]["rtt_ms"].as_f64().unwrap(), "{explained:#}");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("edgeproxy_backend_rtt_microseconds{")), "{metrics}");
    assert!(metrics.contains("edgeproxy_picks_total{reason=\"nearest_rtt\"}"), "{metrics}");

    // The ways change places.
    delay.only(world.lab.backend(1)).unwrap();
    warm_up(&world, &daemon, "the other one is chosen", || {
        next(&daemon) == ("b2".to_owned(), "nearest_rtt".to_owned()) && rtt(&daemon, "b2").unwrap() < 10.0
    });
}

#[test]
fn a_near_backend_at_its_hard_limit_leaves_clients_to_the_far_one() {
    let Some(world) = World::new(NETWORK, "a_near_backend_at_its_hard_limit_leaves_clients_to_the_far_one") else {
        return;
    };
    let mut delay = world.lab.delay(FAR).unwrap();
    delay.only(world.lab.backend(2)).unwrap();
    let limit = |row: common::Row| row.limits(3, 3);
    let _near = world.backend(1, Manner::Echo, limit);
    let _far = world.backend(2, Manner::Echo, |row| row);
    app(&world);
    let daemon = world.daemon(&[]);
    warm_up(&world, &daemon, "both are measured", || {
        next(&daemon) == ("b1".to_owned(), "nearest_rtt".to_owned()) && rtt(&daemon, "b1").unwrap() < 20.0
    });
    daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
    let held: Vec<_> = (0..20).map(|n| world.visit(n, daemon.addr()).unwrap()).collect();
    let by_backend = tally(held.iter().map(|visit| visit.backend.as_str()));
    assert_eq!((by_backend["b1"], by_backend["b2"]), (3, 17), "{by_backend:?}");
    assert_eq!(next(&daemon), ("b2".to_owned(), "nearest_rtt".to_owned()));
}

#[test]
fn checks_measure_backends_that_have_no_clients() {
    let Some(world) = World::new(NETWORK, "checks_measure_backends_that_have_no_clients") else { return };
    let mut delay = world.lab.delay(FAR).unwrap();
    delay.only(world.lab.backend(2)).unwrap();
    let _backends: Vec<_> = (1..=2).map(|n| world.backend(n, Manner::Close, |row| row)).collect();
    app(&world);
    world.database.execute("UPDATE backends SET health_check = 'tcp interval=200ms'");
    let daemon = world.daemon(&[]);
    eventually("the near one is the next, before any client", || {
        let near = rtt(&daemon, "b1").is_some_and(|ms| ms < 20.0);
        near && rtt(&daemon, "b2").is_some() && next(&daemon) == ("b1".to_owned(), "nearest_rtt".to_owned())
    });
    let served: Vec<_> = (0..20).map(|n| served(&world, &daemon, n)).collect();
    assert_eq!(tally(served)[&("b1".to_owned(), "nearest_rtt".to_owned())], 20);
}

/// A flow that lasts, and whose way becomes short meanwhile: nobody but it can tell.
fn a_flow_tells(needs: &[Need], test: &str, forwarder: &str, told: impl Fn(&Daemon) -> bool) {
    let Some(world) = World::new(needs, test) else { return };
    let mut delay = world.lab.delay(FAR).unwrap();
    delay.only(world.lab.backend(1)).unwrap();
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", forwarder)]);
    let mut visit = world.visit(1, daemon.addr()).unwrap();
    assert!(rtt(&daemon, "b1").unwrap() >= 30.0);
    delay.only(world.lab.backend(2)).unwrap();
    let deadline = Instant::now() + LEARNED;
    while !told(&daemon) {
        assert!(Instant::now() < deadline, "{:#}", daemon.status().unwrap().0);
        visit.echo(&[7; 100]).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    visit.finish().unwrap();
    eventually("the flow has told of the short way", || rtt(&daemon, "b1").unwrap() < 25.0);
}

#[test]
fn a_long_flow_tells_the_round_trip_time_while_it_lasts() {
    let test = "a_long_flow_tells_the_round_trip_time_while_it_lasts";
    a_flow_tells(NETWORK, test, "copy", |daemon| rtt(daemon, "b1").unwrap() < 25.0);
}

#[test]
fn a_flow_in_the_kernel_tells_the_round_trip_time_at_its_end() {
    let test = "a_flow_in_the_kernel_tells_the_round_trip_time_at_its_end";
    let start = Instant::now();
    // The average has to give the old time up.
    a_flow_tells(KERNEL, test, "sockmap", |_| start.elapsed() >= Duration::from_secs(8));
}

#[test]
fn a_client_that_measures_a_way_is_not_bound_to_it() {
    let Some(world) = World::new(NETWORK, "a_client_that_measures_a_way_is_not_bound_to_it") else { return };
    let _known: Vec<_> = (1..=2).map(|n| world.backend(n, Manner::Close, |row| row)).collect();
    world.database.execute("INSERT INTO apps (name, selection) VALUES ('web', 'nearest_rtt')");
    let daemon = world.daemon(&[]);
    let deadline = Instant::now() + LEARNED;
    let (mut client, mut why) = (0, String::new());
    while why != "nearest_rtt" {
        assert!(Instant::now() < deadline, "two are not known:\n{:#}", daemon.status().unwrap().0);
        client += 1;
        why = served(&world, &daemon, client).1;
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(served(&world, &daemon, client).1, "affinity", "who is near is for long");
    let _unknown = world.backend(3, Manner::Close, |row| row);
    while why != "rtt_probe" {
        assert!(Instant::now() < deadline, "nobody measures:\n{:#}", daemon.status().unwrap().0);
        client += 1;
        why = served(&world, &daemon, client).1;
    }
    assert_ne!(served(&world, &daemon, client).1, "affinity");
}

/// The order of the other regions by time, where the app wants it: `us` is nearer by position, and its way is longer.
#[test]
fn the_next_region_is_the_nearest_by_measured_time_where_the_app_wants_it() {
    let Some(world) = World::new(NETWORK, "the_next_region_is_the_nearest_by_measured_time_where_the_app_wants_it")
    else {
        return;
    };
    let mut delay = world.lab.delay(FAR).unwrap();
    delay.only(world.lab.backend(1)).unwrap();
    let limited = |region: &'static str| move |row: common::Row| row.region(region).limits(1, 1);
    let _us = world.backend(1, Manner::Echo, limited("us"));
    let _eu = world.backend(2, Manner::Echo, limited("eu"));
    world.database.execute("INSERT INTO apps (name, affinity) VALUES ('web', 'none')");
    let daemon = world.daemon(&[("region", "sa")]);
    let by = || explained(&daemon)["next_region"].as_str().unwrap().to_owned();
    let nearest = |backend: &str| (backend.to_owned(), "nearest_region".to_owned());
    assert_eq!((next(&daemon), by()), (nearest("b1"), "position".to_owned()));

    let set = |next: &str| world.database.execute(&format!("UPDATE apps SET next_region = '{next}'"));
    set("rtt");
    world.database.execute("UPDATE backends SET health_check = 'tcp interval=200ms'");
    eventually("both ways are measured", || rtt(&daemon, "b1").is_some_and(|ms| ms > 20.0) && by() == "rtt");
    assert_eq!(next(&daemon), nearest("b2"));
    let candidates = explained(&daemon)["candidates"].as_array().unwrap().clone();
    assert_eq!((&candidates[0]["id"], &candidates[1]["id"]), (&"b2".into(), &"b1".into()), "{candidates:#?}");
    assert_eq!(served(&world, &daemon, 1), nearest("b2"));
    // Its capacity counts as ever.
    let held = world.visit(2, daemon.addr()).unwrap();
    assert_eq!((held.backend.as_str(), served(&world, &daemon, 3)), ("b2", nearest("b1")));
    held.finish().unwrap();

    set("position");
    eventually("the position counts again", || by() == "position");
    assert_eq!(served(&world, &daemon, 4), nearest("b1"));
}
