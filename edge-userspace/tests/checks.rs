//! Health checks: what they ask, whom they take out and bring back, and what outranks them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use common::{NETWORK, Over, Row, SOON, World, eventually, tally};
use serde_json::Value;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring};
use xtask::lab::{Daemon, Ns};
use xtask::load::{Manner, NamedBackend, Visit};

/// Port on which a backend answers checks.
const HEALTH: u16 = 7100;
/// Quick ones, so that the tests are.
const PACE: &str = "interval=100ms timeout=2s rise=2 fall=2";

const WELL: u8 = 0;
const ILL: u8 = 1;
/// Accepts and never answers.
const SILENT: u8 = 2;

#[derive(Clone, Copy)]
enum Speaks {
    Redis,
    Http,
}

/// The port on which a backend answers checks, as it is told; ends with the test's process.
struct HealthPort(Arc<AtomicU8>);

impl HealthPort {
    fn start(world: &World, n: u8, speaks: Speaks, tls: Option<Arc<ServerConfig>>) -> Self {
        let addr = SocketAddr::new(world.lab.backend(n), HEALTH);
        let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
        let state = Arc::new(AtomicU8::new(WELL));
        let told = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (told, tls) = (Arc::clone(&told), tls.clone());
                thread::spawn(move || {
                    stream.set_read_timeout(Some(SOON)).unwrap();
                    match tls {
                        Some(config) => {
                            let session = ServerConnection::new(config).unwrap();
                            answer(StreamOwned::new(session, stream), speaks, &told);
                        }
                        None => answer(stream, speaks, &told),
                    }
                });
            }
        });
        Self(state)
    }

    fn turn(&self, state: u8) {
        self.0.store(state, Ordering::SeqCst);
    }
}

/// A checker that is gone is no news.
fn answer(mut stream: impl Read + Write, speaks: Speaks, told: &AtomicU8) {
    let Ok(1..) = stream.read(&mut [0; 1024]) else { return };
    let text = match (speaks, told.load(Ordering::SeqCst)) {
        (_, SILENT) => return thread::sleep(SOON),
        (Speaks::Redis, WELL) => "+PONG\r\n",
        (Speaks::Redis, _) => "-LOADING\r\n",
        (Speaks::Http, WELL) => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        (Speaks::Http, _) => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    };
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
}

/// A server's configuration with a certificate for `backend.example`, which is also its authority, in PEM.
fn certificate() -> (Arc<ServerConfig>, String) {
    let made = rcgen::generate_simple_self_signed(["backend.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    (Arc::new(builder.with_single_cert(vec![made.cert.der().clone()], key).unwrap()), made.cert.pem())
}

/// The `n`-th backend with its row and this check.
fn backend(world: &World, n: u8, check: &str) -> NamedBackend {
    let backend = world.backend(n, Manner::Close, |row| row);
    set_check(world, n, check);
    backend
}

fn set_check(world: &World, n: u8, check: &str) {
    world.database.execute(&format!("UPDATE backends SET health_check = '{check}' WHERE id = 'b{n}'"));
}

fn backend_status(daemon: &Daemon, id: &str) -> Value {
    let status = daemon.status().unwrap();
    let list = status.0["backends"].as_array().unwrap().clone();
    list.into_iter().find(|backend| backend["id"] == id).unwrap_or_default()
}

/// What the checks say, and the last one's result.
fn check(daemon: &Daemon, id: &str) -> (String, String) {
    let status = backend_status(daemon, id);
    let text = |name: &str| status["check"][name].as_str().unwrap_or_default().to_owned();
    (text("state"), text("result"))
}

fn wait_check(daemon: &Daemon, id: &str, state: &str, result: &str) {
    let expected = (state.to_owned(), result.to_owned());
    let deadline = Instant::now() + SOON;
    while check(daemon, id) != expected {
        assert!(Instant::now() < deadline, "{id} is {:?}, not {expected:?}:\n{}", check(daemon, id), daemon.messages());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Counts the connections that begin with a PROXY header, and those that don't, and says nothing.
fn count_headers(world: &World, n: u8) -> Arc<[AtomicUsize; 2]> {
    let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(world.backend_addr(n))).unwrap();
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let counted = Arc::clone(&counts);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut begins = [0; 12];
            let bare = stream.read_exact(&mut begins).is_err() || &begins != b"\r\n\r\n\0\r\nQUIT\n";
            counted[usize::from(bare)].fetch_add(1, Ordering::SeqCst);
        }
    });
    counts
}

#[test]
fn a_check_sends_the_header_that_its_row_wants_by_now() {
    let Some(world) = World::new(NETWORK, "a_check_sends_the_header_that_its_row_wants_by_now") else { return };
    let counts = count_headers(&world, 1);
    world.database.add(&Row::new("b1", world.backend_addr(1)));
    set_check(&world, 1, &format!("tcp {PACE}"));
    let _daemon = world.daemon(&[]);
    let [with, without] = [0, 1].map(|at| move |counts: &[AtomicUsize; 2]| counts[at].load(Ordering::SeqCst));
    eventually("it is checked", || without(&counts) > 1);
    assert_eq!(with(&counts), 0);
    world.database.execute("UPDATE backends SET send_proxy = 'v2'");
    eventually("checks begin with a header", || with(&counts) > 1);
    world.database.execute("UPDATE backends SET send_proxy = NULL");
    let before = without(&counts);
    eventually("and no longer", || without(&counts) > before + 1);
}

/// Names of the backends that `count` clients got, each of them another one. None fails.
fn visits(world: &World, daemon: &Daemon, clients: std::ops::Range<u16>) -> std::collections::HashMap<String, usize> {
    tally(clients.map(|n| {
        let visit = world.visit(n, daemon.addr()).unwrap();
        let name = visit.backend.clone();
        visit.finish().unwrap();
        name
    }))
}

/// Events of one kind, as `name: reason`.
fn events(daemon: &Daemon, kind: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(&daemon.get("/api/v1/events").unwrap().body).unwrap();
    let events = answer["events"].as_array().unwrap().iter().filter(|event| event["kind"] == kind);
    events.map(|event| format!("{}: {}", event["name"].as_str().unwrap(), event["reason"].as_str().unwrap())).collect()
}

/// What an `edgeproxy` command prints beside the daemon.
fn printed(world: &World, daemon: &Daemon, arguments: &[&str]) -> String {
    let socket = daemon.admin_socket().display().to_string();
    let arguments = [arguments, &["--admin-socket", &socket]].concat();
    let output = world.config().command(&world.lab, &arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_kind_of_check_takes_a_backend_out_and_brings_it_back() {
    let Some(world) = World::new(NETWORK, "each_kind_of_check_takes_a_backend_out_and_brings_it_back") else { return };
    let (tls, authority) = certificate();
    let pem = world.database.path().with_file_name("ca.pem");
    std::fs::write(&pem, authority).unwrap();
    let tls = Some(tls);
    let exchange = format!("tcp port={HEALTH} send=\"PING\\r\\n\" expect=\"+PONG\" {PACE}");
    let https = format!("https port={HEALTH} verify={} sni=backend.example {PACE}", pem.display());
    let _backends = [
        backend(&world, 1, &exchange),
        backend(&world, 2, &format!("http port={HEALTH} path=/healthz {PACE}")),
        backend(&world, 3, &https),
        backend(&world, 5, ""),
    ];
    let connect = backend(&world, 4, &format!("tcp {PACE}"));
    let ports = [
        HealthPort::start(&world, 1, Speaks::Redis, None),
        HealthPort::start(&world, 2, Speaks::Http, None),
        HealthPort::start(&world, 3, Speaks::Http, tls),
    ];
    let daemon = world.daemon(&[("slow_start_secs", "0.2"), ("ejection_failures", "0")]);
    for id in ["b1", "b2", "b3", "b4"] {
        wait_check(&daemon, id, "up", "passed");
    }
    assert!(backend_status(&daemon, "b5")["check"].is_null());
    assert_eq!(visits(&world, &daemon, 0..100).len(), 5, "all of them serve");

    ports.iter().for_each(|port| port.turn(ILL));
    drop(connect);
    let ill = [("b1", "wrong_answer"), ("b2", "wrong_status"), ("b3", "wrong_status"), ("b4", "refused")];
    ill.iter().for_each(|(id, result)| wait_check(&daemon, id, "down", result));
    // Bound clients and new ones.
    let got = visits(&world, &daemon, 0..200);
    assert_eq!(got.keys().collect::<Vec<_>>(), ["b5"], "{got:?}");
    let records = daemon.access_log(SOON, |records| records.len() >= 300);
    let yielded = |why: &str| records.iter().filter(|record| record.binding_yielded.as_deref() == Some(why)).count();
    assert!(yielded("check_failed") > 20, "bindings yield with the reason");
    assert!(records.iter().all(|record| record.attempts == 1), "nobody found it out by a connect");
    let text = printed(&world, &daemon, &["explain", "--client", "192.0.2.1"]);
    assert!(text.contains("out: check_failed (wrong_status: status 503)"), "{text}");
    let text = printed(&world, &daemon, &["backends", "--app", "web"]);
    assert!(text.contains("down: wrong_answer") && text.contains("wrong_answer: answered \"-LOADING"), "{text}");
    assert_eq!(printed(&world, &daemon, &["backends", "list", "--json", "--app", "other"]).trim(), "[]");
    let metrics = daemon.metrics().unwrap();
    for part in ["edgeproxy_health_checks_total{result=\"wrong_status\"} ", "edgeproxy_app_fail_open{app=\"web\"} 0"] {
        assert!(metrics.contains(part), "{part} is not in {metrics}");
    }
    assert!(metrics.contains("edgeproxy_backend_check_up{backend=\"b2\",app=\"web\",region=\"sa\"} 0"), "{metrics}");

    ports.iter().for_each(|port| port.turn(WELL));
    let namespace = world.lab.namespace(Ns::Backends);
    let _connect = NamedBackend::start(namespace, "b4", world.backend_addr(4), Manner::Close).unwrap();
    for (id, result) in ill {
        wait_check(&daemon, id, "up", "passed");
        let downs = events(&daemon, "backend_down");
        assert!(
            downs.iter().any(|event| event.starts_with(&format!("{id}: 2 checks in a row failed, the last: {result}")))
        );
        assert!(
            events(&daemon, "backend_up").iter().any(|event| event.starts_with(&format!("{id}: 2 checks in a row")))
        );
        eventually("it has its whole share again", || backend_status(&daemon, id)["health"] == "up");
    }
    assert_eq!(visits(&world, &daemon, 1_000..1_100).len(), 5);
}

/// Clients that come at once to a backend that flaps.
const LANES: u16 = 8;
/// It is ejected for so long, each time.
const EJECTION: &[(&str, &str)] = &[("ejection_secs", "0.2"), ("ejection_longest_secs", "0.2")];

/// Backend `b2` ends and starts again for 6 s, its health in step by `turn`, while clients come all the time: none of
/// them fails, and few are led to another backend. It serves in the end.
fn flap(world: &World, daemon: &Daemon, flapping: NamedBackend, turn: impl Fn(u8) + Sync) -> NamedBackend {
    let backend = RwLock::new(Some(flapping));
    let (done, stops, came) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    thread::scope(|scope| {
        let _over = Over(&done);
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(400));
                turn(ILL);
                // Between two clients: the kernel resets those who are in the queue of a socket that ceases to listen,
                // and no proxy can mend that.
                *backend.write().unwrap() = None;
                stops.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(400));
                let namespace = world.lab.namespace(Ns::Backends);
                let again = NamedBackend::start(namespace, "b2", world.backend_addr(2), Manner::Close).unwrap();
                *backend.write().unwrap() = Some(again);
                turn(WELL);
            }
        });
        let failures = world.visits(LANES, LANES, |lane| {
            let mut failures = Vec::new();
            for n in (0..4_000).cycle().take_while(|_| started.elapsed() < Duration::from_secs(6)) {
                let _stays_as_it_is = backend.read().unwrap();
                let visit = Visit::start(world.lab.client(lane * 4_000 + n), daemon.addr()).and_then(Visit::finish);
                came.fetch_add(1, Ordering::SeqCst);
                failures.extend(visit.err());
            }
            failures
        });
        done.store(true, Ordering::SeqCst);
        let failures: Vec<_> = failures.into_iter().flatten().collect();
        assert!(failures.is_empty(), "{} failed, the first by {:?}", failures.len(), failures[0]);
    });
    let (came, stops) = (came.into_inner(), stops.into_inner());
    let records = daemon.access_log(SOON, |records| records.len() >= came);
    assert!(records.iter().any(|record| record.backend.as_deref() == Some("b2")), "it never served");
    assert!(records.iter().all(|record| record.attempts <= 2));
    let retried = records.iter().filter(|record| record.attempts == 2).count();
    let (ejected, downs) = (events(daemon, "backend_ejected").len(), events(daemon, "backend_down").len());
    // Three in a row eject, and others may be on their way to it meanwhile; as many may find out each time that it has
    // ended, and not suffice.
    let most = (stops + ejected + downs) * (3 + usize::from(LANES));
    assert!((1..=most).contains(&retried), "{retried} of {came} found it dead, not more than {most}");
    // Each lasts as long as it is to, unless a connect that was under way finds the backend there again.
    let most = started.elapsed().as_millis() as usize / 200 + 1 + stops;
    assert!(ejected <= most, "{ejected} times ejected, not more than {most}");
    backend.into_inner().unwrap().unwrap()
}

#[test]
fn a_backend_that_flaps_costs_no_client_and_turns_no_oftener_than_rise_and_fall_let_it() {
    let test = "a_backend_that_flaps_costs_no_client_and_turns_no_oftener_than_rise_and_fall_let_it";
    let Some(world) = World::new(NETWORK, test) else { return };
    let check = format!("http port={HEALTH} interval=100ms rise=3 fall=2");
    let (_other, flapping) = (backend(&world, 1, ""), backend(&world, 2, &check));
    let port = HealthPort::start(&world, 2, Speaks::Http, None);
    let daemon = world.daemon(&[EJECTION, &[("slow_start_secs", "60")]].concat());
    wait_check(&daemon, "b2", "up", "passed");
    let started = Instant::now();
    let _flapping = flap(&world, &daemon, flapping, |state| port.turn(state));
    let (downs, ups) = (events(&daemon, "backend_down").len(), events(&daemon, "backend_up").len());
    // The shortest interval is 90 ms, and one way down and up takes five checks.
    let most = started.elapsed().as_millis() as usize / (5 * 90) + 1;
    assert!(downs >= 1 && downs <= most && ups <= downs, "{downs} times down and {ups} up, not more than {most}");

    port.turn(ILL);
    wait_check(&daemon, "b2", "down", "wrong_status");
    port.turn(WELL);
    wait_check(&daemon, "b2", "up", "passed");
    // Its last ejection may have lasted until now.
    eventually("it is on its way back", || backend_status(&daemon, "b2")["health"] == "slow_start");
    // Of half of them a sixteenth at first, which grows to the whole in a minute.
    let got = visits(&world, &daemon, 40_000..40_200);
    assert!(got.get("b2").is_none_or(|count| *count < 60), "{got:?}");
    assert_eq!(got["b1"] + got.get("b2").unwrap_or(&0), 200);
}

#[test]
fn a_backend_that_flaps_unchecked_costs_no_client_either() {
    let Some(world) = World::new(NETWORK, "a_backend_that_flaps_unchecked_costs_no_client_either") else { return };
    let (_other, flapping) = (backend(&world, 1, ""), backend(&world, 2, ""));
    let daemon = world.daemon(&[EJECTION, &[("slow_start_secs", "0.1")]].concat());
    let _flapping = flap(&world, &daemon, flapping, |_| ());
    assert!(!events(&daemon, "backend_ejected").is_empty());
    eventually("it has its whole share again", || backend_status(&daemon, "b2")["health"] == "up");
    assert_eq!(visits(&world, &daemon, 40_000..40_100).len(), 2);
}

#[test]
fn where_all_checks_fail_clients_are_served_all_the_same_and_it_is_said() {
    let Some(world) = World::new(NETWORK, "where_all_checks_fail_clients_are_served_all_the_same_and_it_is_said")
    else {
        return;
    };
    // By the app's row.
    let _backends = [backend(&world, 1, ""), backend(&world, 2, ""), backend(&world, 3, "")];
    world.database.execute("UPDATE backends SET state = 'drain' WHERE id = 'b3'");
    let insert = format!("INSERT INTO apps (name, health_check) VALUES ('web', 'http port={HEALTH} {PACE}')");
    world.database.execute(&insert);
    let ports = [1, 2, 3].map(|n| HealthPort::start(&world, n, Speaks::Http, None));
    ports.iter().take(2).for_each(|port| port.turn(ILL));
    let daemon = world.daemon(&[("slow_start_secs", "0.1")]);
    eventually("the app fails open", || daemon.status().unwrap().0["fail_open"][0] == "web");
    wait_check(&daemon, "b3", "up", "passed");
    let first = visits(&world, &daemon, 0..60);
    assert_eq!(first.len(), 2, "the operator's word outranks the checks: {first:?}");
    let records = daemon.access_log(SOON, |records| records.len() >= 60);
    assert!(records.iter().all(|record| record.why.as_deref() == Some("fail_open")), "{:?}", records[0]);
    let why = |client: u16| {
        let visit = world.visit(client, daemon.addr()).unwrap();
        let (local, backend) = (visit.local, visit.backend.clone());
        visit.finish().unwrap();
        (backend, daemon.record_of(local, SOON).unwrap().why.unwrap())
    };
    assert_eq!(why(7).1, "fail_open", "what is better than nothing binds nobody");
    assert!(printed(&world, &daemon, &["status"]).contains("fail open    app web: no backend in service is trusted"));
    assert!(printed(&world, &daemon, &["backends"]).contains("app web fails open"));
    assert!(daemon.metrics().unwrap().contains("edgeproxy_app_fail_open{app=\"web\"} 1"));
    assert_eq!(events(&daemon, "fail_open_began").len(), 1);
    common::assert_said(&daemon, "\"event\":\"fail_open_began\"");

    ports[1].turn(WELL);
    wait_check(&daemon, "b2", "up", "passed");
    eventually("the app does not fail open any more", || events(&daemon, "fail_open_ended").len() == 1);
    assert_eq!(visits(&world, &daemon, 100..130).into_keys().collect::<Vec<_>>(), ["b2"]);
    assert_eq!(daemon.status().unwrap().0["fail_open"], serde_json::json!([]));
    ports[1].turn(ILL);
    eventually("the app fails open again", || daemon.status().unwrap().0["fail_open"][0] == "web");
    let bound = ("b2".to_owned(), "affinity".to_owned());
    assert_eq!([why(101), why(101)], [bound.clone(), bound], "bindings of before hold");
}

#[test]
fn what_the_operator_says_outranks_checks_that_pass() {
    let Some(world) = World::new(NETWORK, "what_the_operator_says_outranks_checks_that_pass") else { return };
    let _backends: Vec<_> = (1..=4).map(|n| backend(&world, n, &format!("tcp {PACE}"))).collect();
    world.database.execute(
        "UPDATE backends SET healthy = 0 WHERE id = 'b1'; UPDATE backends SET state = 'maint' WHERE id = 'b2';
         UPDATE backends SET state = 'drain' WHERE id = 'b3'",
    );
    let daemon = world.daemon(&[]);
    for id in ["b1", "b2", "b3", "b4"] {
        wait_check(&daemon, id, "up", "passed");
    }
    assert_eq!(visits(&world, &daemon, 0..50).into_keys().collect::<Vec<_>>(), ["b4"]);
}

#[test]
fn a_silent_backend_that_is_checked_costs_nobody_anything() {
    let Some(world) = World::new(NETWORK, "a_silent_backend_that_is_checked_costs_nobody_anything") else { return };
    let _live = backend(&world, 1, "");
    world.database.add(&Row::new("b2", world.backend_addr(2)));
    set_check(&world, 2, "tcp timeout=200ms");
    world.lab.mute(world.lab.backend(2)).unwrap();
    let daemon = world.daemon(&[]);
    wait_check(&daemon, "b2", "down", "timed_out");
    assert_eq!(visits(&world, &daemon, 0..200).into_keys().collect::<Vec<_>>(), ["b1"]);
    let records = daemon.access_log(SOON, |records| records.len() >= 200);
    assert!(records.iter().all(|record| record.attempts == 1), "nobody tried it");
}

/// Its clients said that it is ill, and then only the POP: a check of its port knows as much as that.
#[test]
fn a_check_that_passes_ends_an_ejection_that_only_trials_prolong() {
    let Some(world) = World::new(NETWORK, "a_check_that_passes_ends_an_ejection_that_only_trials_prolong") else {
        return;
    };
    // So many that they take nobody out.
    let check = "tcp interval=100ms fall=100";
    let (_live, well) = (backend(&world, 1, ""), backend(&world, 2, check));
    let daemon = world.daemon(&[("ejection_secs", "2"), ("ejection_failures", "1")]);
    wait_check(&daemon, "b2", "up", "passed");
    drop(well);
    let ejected = || backend_status(&daemon, "b2")["health"] == "ejected";
    eventually("a client meets it", || {
        visits(&world, &daemon, 0..2);
        ejected()
    });
    let start = || {
        let namespace = world.lab.namespace(Ns::Backends);
        NamedBackend::start(namespace, "b2", world.backend_addr(2), Manner::Close).unwrap()
    };
    let well = start();
    wait_check(&daemon, "b2", "up", "passed");
    assert!(ejected(), "checks do not see all that clients see");
    drop(well);
    eventually("a trial fails", || {
        events(&daemon, "backend_ejected").iter().any(|event| event.contains("ejected for 4 s more"))
    });
    let _well = start();
    let back = || events(&daemon, "backend_back");
    eventually("it is back", || !back().is_empty());
    assert_eq!(back(), ["b2: a check passed: gets a growing share of clients"]);
}

#[test]
fn checks_are_in_no_count_of_connections_and_against_no_limit() {
    let Some(world) = World::new(NETWORK, "checks_are_in_no_count_of_connections_and_against_no_limit") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row.limits(1, 1));
    set_check(
        &world,
        1,
        &format!("tcp port={HEALTH} send=\"PING\" expect=\"PONG\" interval=100ms timeout=3s fall=100"),
    );
    let port = HealthPort::start(&world, 1, Speaks::Redis, None);
    let daemon = world.daemon(&[("max_connections", "1")]);
    wait_check(&daemon, "b1", "up", "passed");
    port.turn(SILENT);
    // Checks hang now, each for 3 s.
    thread::sleep(Duration::from_millis(500));
    let status = backend_status(&daemon, "b1");
    assert_eq!(
        (&status["connections"], status["kernel_connections"].as_u64().unwrap_or(0)),
        (&0.into(), 0),
        "{status:#}"
    );
    assert_eq!(daemon.status().unwrap().active(), 0);
    let mut visit = world.visit(0, daemon.addr()).unwrap();
    visit.echo(b"the only place is free").unwrap();
    visit.finish().unwrap();
}

#[test]
fn a_row_that_moves_begins_anew_and_a_bad_check_is_refused_alone() {
    let Some(world) = World::new(NETWORK, "a_row_that_moves_begins_anew_and_a_bad_check_is_refused_alone") else {
        return;
    };
    let _backends = [backend(&world, 1, &format!("tcp {PACE}")), backend(&world, 3, "")];
    world.database.add(&Row::new("b2", world.backend_addr(2)));
    let daemon = world.daemon(&[("ejection_secs", "600"), ("ejection_failures", "1")]);
    let (mut client, deadline) = (0, Instant::now() + SOON);
    while backend_status(&daemon, "b2")["health"] != "ejected" {
        visits(&world, &daemon, client..client + 5);
        client += 5;
        assert!(Instant::now() < deadline, "{}", daemon.messages());
    }
    let moved = world.lab.backend(3);
    world.database.execute(&format!("UPDATE backends SET wg_ip = '{moved}' WHERE id = 'b2'"));
    eventually("what was known of it is forgotten", || backend_status(&daemon, "b2")["health"] == "up");
    eventually("it is told", || events(&daemon, "backend_anew").len() == 1);

    wait_check(&daemon, "b1", "up", "passed");
    set_check(&world, 1, "tcp prot=80");
    let rejected = |status: &xtask::lab::Status| status.0["routing"]["rejected_rows"].to_string();
    let status = daemon.wait_status(SOON, |status| rejected(status).contains("b1")).unwrap();
    assert!(rejected(&status).contains("option prot is unknown with tcp"), "{}", rejected(&status));
    assert_eq!(check(&daemon, "b1").0, "up", "its last good version stays, and goes on being checked");
    set_check(&world, 1, "none");
    eventually("it is not checked any more", || backend_status(&daemon, "b1")["check"].is_null());
}

/// Not a test: what checking costs, printed. `cargo test --release --test checks -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement"]
fn the_cost_of_a_thousand_backends_checked_each_second() {
    let Some(world) = World::new(NETWORK, "the_cost_of_a_thousand_backends_checked_each_second") else { return };
    for kind in ["tcp", "http"] {
        world.database.execute("DELETE FROM backends");
        let (ip, port) = (world.lab.backend(1), HEALTH);
        for n in 0..1_000 {
            world.database.execute(&format!(
                "INSERT INTO backends (id, app, region, wg_ip, port, health_check)
                 VALUES ('b{n}', 'web', 'sa', '{ip}', {port}, '{kind} interval=1s')"
            ));
        }
        let listener = TcpListenerOf::start(&world, SocketAddr::new(ip, port));
        let daemon = world.daemon(&[("db_reload_secs", "3600")]);
        thread::sleep(Duration::from_secs(3));
        let (before, started) = (daemon.cpu(), Instant::now());
        thread::sleep(Duration::from_secs(10));
        let share = (daemon.cpu() - before).as_secs_f64() / started.elapsed().as_secs_f64() * 100.0;
        eprintln!("{kind}: {share:.1} % of a core, {} MiB resident", daemon.memory() >> 20);
        drop(listener);
    }
}

/// Answers HTTP on one thread, for the measurement; stops when dropped.
struct TcpListenerOf(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

impl TcpListenerOf {
    fn start(world: &World, addr: SocketAddr) -> Self {
        let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let serve = move || {
            while !stop.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => greet(stream),
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        };
        Self(over, Some(thread::spawn(serve)))
    }
}

impl Drop for TcpListenerOf {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        let _ = self.1.take().map(thread::JoinHandle::join);
    }
}

fn greet(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(1))));
    if let Ok(1..) = stream.read(&mut [0; 512]) {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    }
}
