//! Where clients arrive: listeners of the settings, of the database and of the service manager, which come and go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::listening::{app, connected, listen, listener, served, unlisten};
use common::{BINARY, Database, NETWORK, NOBODY, Row, SOON, World, assert_said, eventually, urgent};
use serde_json::Value;
use xtask::lab::{Config, Daemon, Ns};
use xtask::load::{Manner, Visit, connect_from};

fn at(world: &World, port: u16) -> SocketAddr {
    (world.lab.pop(), port).into()
}

/// Which backend a new client gets.
fn backend_at(world: &World, to: SocketAddr) -> Option<String> {
    let visit = world.visit(7, to).ok()?;
    let name = visit.backend.clone();
    visit.finish().ok().map(|()| name)
}

fn leads_to(world: &World, port: u16, backend: &str) {
    eventually(&format!("port {port} leads to {backend}"), || {
        backend_at(world, at(world, port)).as_deref() == Some(backend)
    });
}

#[test]
fn listeners_of_the_database_come_and_go_while_running() {
    let Some(world) = World::new(NETWORK, "listeners_of_the_database_come_and_go_while_running") else { return };
    let _backends = [app(&world, 1), app(&world, 2)];
    listen(&world, "one", "app1", "'0.0.0.0', 81, NULL");
    let daemon = world.daemon(&[("listen_addr", "none"), ("workers", "2")]);
    assert_eq!(backend_at(&world, at(&world, 81)).as_deref(), Some("b1"));
    assert!(world.visit(1, daemon.addr()).is_err(), "listen_addr is none");
    listen(&world, "two", "app2", "'10.63.0.1', 82, NULL");
    leads_to(&world, 82, "b2");
    // More specific than one that is open already.
    listen(&world, "near", "app2", "'10.63.0.1', 81, NULL");
    leads_to(&world, 81, "b2");
    let mut held = world.visit(3, at(&world, 82)).unwrap();
    unlisten(&world, "two");
    unlisten(&world, "near");
    eventually("the removed one refuses", || world.visit(1, at(&world, 82)).is_err());
    held.echo(b"what it accepted goes on").unwrap();
    let local = held.local;
    held.finish().unwrap();
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!((record.listener.as_deref(), record.app.as_deref()), (Some("two"), Some("app2")), "{record:?}");
    leads_to(&world, 81, "b1");
    listen(&world, "two", "app1", "'10.63.0.1', 82, NULL");
    leads_to(&world, 82, "b1");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_listener_up{listener=\"two\"} 1"), "{metrics}");
    let count = |line: &str| line.starts_with("edgeproxy_listener_connections_closed_total{listener=\"one\"}");
    assert!(metrics.lines().any(|line| count(line) && !line.ends_with(" 0")), "{metrics}");
    for kind in ["listener_opened", "listener_closed"] {
        assert!(daemon.get("/api/v1/events").unwrap().body.contains(kind), "{kind}");
    }
}

/// A row may say what a place of the settings leads to; the sockets stay.
#[test]
fn a_row_of_a_place_of_the_settings_shares_its_sockets() {
    let Some(world) = World::new(NETWORK, "a_row_of_a_place_of_the_settings_shares_its_sockets") else { return };
    let _backends = [app(&world, 1), app(&world, 2)];
    let daemon = world.daemon(&[("app", "app1")]);
    let mut held = world.visit(1, daemon.addr()).unwrap();
    listen(&world, "mine", "app2", "'10.63.0.1', 8080, NULL");
    leads_to(&world, 8080, "b2");
    unlisten(&world, "mine");
    leads_to(&world, 8080, "b1");
    held.echo(b"untouched").unwrap();
    assert_eq!(listener(&daemon, "10.63.0.1:8080")["how"], "bind");
}

#[test]
fn a_place_that_can_not_be_had_is_told_and_tried_again_and_disturbs_nobody() {
    let test = "a_place_that_can_not_be_had_is_told_and_tried_again_and_disturbs_nobody";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let addr = at(&world, 90);
    let other = world.lab.run_in(Ns::Pop, || TcpListener::bind(addr)).unwrap();
    listen(&world, "taken", "web", "'10.63.0.1', 90, NULL");
    listen(&world, "elsewhere", "web", "'192.0.2.99', 90, NULL");
    let daemon = world.daemon(&[]);
    for (id, why) in [("taken", "in use by another program"), ("elsewhere", "not one of this host's")] {
        let status = listener(&daemon, id);
        assert!(status["open"] == false && status["why"].as_str().unwrap().contains(why), "{status}");
        assert_said(&daemon, why);
    }
    assert!(daemon.metrics().unwrap().contains("edgeproxy_listener_up{listener=\"taken\"} 0"));
    let asked = || explained(&daemon, &["--port", "90", "--to", "10.63.0.1"]);
    let output = asked();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &answer["winner"]), (Some(2), &"b1".into()), "nobody would come there");
    assert!(answer["closed"].as_str().unwrap().contains("in use by another program"), "{answer}");
    assert!(daemon.get("/api/v1/events").unwrap().body.contains("listener_failed"));
    world.visit(0, daemon.addr()).unwrap().finish().unwrap();
    drop(other);
    leads_to(&world, 90, "b1");
    assert_eq!(asked().status.code(), Some(0));
    let added =
        world.lab.command_in(Ns::Pop, Command::new("ip").args(["addr", "add", "192.0.2.99/32", "dev", "lo"])).status();
    assert!(added.unwrap().success());
    eventually("the address that has come is listened on", || listener(&daemon, "elsewhere")["open"] == true);
}

#[test]
fn a_storm_of_new_and_removed_listeners_loses_no_connection_of_others() {
    let test = "a_storm_of_new_and_removed_listeners_loses_no_connection_of_others";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backend = world.backend(1, Manner::Close, |row| row);
    let daemon = world.daemon(&[]);
    let over = AtomicBool::new(false);
    let failures: Vec<_> = thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) || rounds < 20 {
                rounds += 1;
                listen(&world, "come", "web", &format!("'0.0.0.0', {}, NULL", 8100 + rounds % 7));
                thread::sleep(Duration::from_millis(60));
                unlisten(&world, "come");
                listen(&world, "go", "web", &format!("'10.63.0.1', 8080, {}", 8080 + rounds % 3));
                thread::sleep(Duration::from_millis(60));
            }
        });
        let visits =
            world.visits(2_000, 8, |n| Visit::start(world.lab.client(n), daemon.addr()).and_then(Visit::finish));
        over.store(true, Ordering::Relaxed);
        storm.join().unwrap();
        visits.into_iter().filter_map(Result::err).collect()
    });
    assert!(failures.is_empty(), "{} of 2,000 were lost, the first by {:?}", failures.len(), failures[0]);
    assert!(daemon.status().unwrap().number("/routing/generation") > 20);
}

/// The kernel has told them that they are connected.
#[test]
fn who_is_in_the_queue_of_a_removed_listener_is_served() {
    let Some(world) = World::new(NETWORK, "who_is_in_the_queue_of_a_removed_listener_is_served") else { return };
    let _backend = app(&world, 1);
    let daemon = world.daemon(&[("workers", "2")]);
    let signal = |signal: &str| {
        assert!(Command::new("kill").args([signal, &daemon.pid().to_string()]).status().unwrap().success());
    };
    for round in 0..5 {
        listen(&world, "brief", "app1", &format!("'10.63.0.1', {}, NULL", 90 + round));
        let to = at(&world, 90 + round);
        leads_to(&world, to.port(), "b1");
        signal("-STOP");
        let waiting: Vec<_> =
            world.lab.run_in(Ns::Clients, || (0..30).map(|n| connect_from(world.lab.client(n), to).unwrap()).collect());
        unlisten(&world, "brief");
        signal("-CONT");
        for mut stream in waiting {
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut heard = [0; 3];
            stream.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"b1\n");
        }
        eventually("the removed one refuses", || world.visit(1, to).is_err());
    }
}

/// More than one turn of a task takes in, and more than may come in a second.
#[test]
fn a_thousand_in_the_queue_of_a_removed_listener_are_served() {
    let Some(world) = World::new(NETWORK, "a_thousand_in_the_queue_of_a_removed_listener_are_served") else { return };
    let backend = world.backend(1, Manner::Close, |row| row);
    let settings = [("workers", "1"), ("max_connection_rate", "1"), ("max_connection_burst", "1")];
    let daemon = world.daemon(&settings);
    listen(&world, "brief", "web", "'10.63.0.1', 90, NULL");
    eventually("it is open", || listener(&daemon, "brief")["open"] == true);
    let clients = connected(&world, 1_000, at(&world, 90));
    eventually("they wait", || daemon.status().unwrap().number("/limits/accept_pauses") > 0);
    assert!(backend.gauge().total() < 500, "{} are served already", backend.gauge().total());
    unlisten(&world, "brief");
    assert_eq!(served(clients), 1_000);
    eventually("the removed one refuses", || world.visit(1, at(&world, 90)).is_err());
}

/// A socket that is open before the daemon starts, as systemd opens it.
fn socket(world: &World, port: u16) -> TcpListener {
    let addr = at(world, port);
    world.lab.run_in(Ns::Pop, || TcpListener::bind(addr)).unwrap()
}

#[test]
fn sockets_that_are_handed_over_are_found_by_their_names() {
    let Some(world) = World::new(NETWORK, "sockets_that_are_handed_over_are_found_by_their_names") else { return };
    let _backends = [app(&world, 1), app(&world, 2)];
    listen(&world, "two", "app2", "'fd:web', 0, NULL");
    listen(&world, "lacking", "app2", "'fd:nothing', 0, NULL");
    let config =
        world.config_for_others().set("app", "app1").set("listen_addr", "fd:plain").set("workers", 2).user(NOBODY);
    // Two sockets of one name, below 1024, for a user without privileges.
    let config = config.hand_over("plain", socket(&world, 80)).hand_over("web", socket(&world, 443));
    let config = config.hand_over("web", socket(&world, 444)).hand_over("unused", socket(&world, 445));
    let daemon = Daemon::start(&world.lab, &config).unwrap();
    for (port, backend) in [(80, "b1"), (443, "b2"), (444, "b2")] {
        for _ in 0..8 {
            assert_eq!(backend_at(&world, at(&world, port)).as_deref(), Some(backend), "port {port}");
        }
    }
    assert_eq!(listener(&daemon, "two")["how"], "fd");
    let lacking = listener(&daemon, "lacking");
    assert!(
        lacking["why"].as_str().unwrap().contains("no socket named nothing (there: plain, unused, web)"),
        "{lacking}"
    );
    assert_said(&daemon, "a socket that no listener names (fd:unused)");
    let mut held = world.visit(1, at(&world, 443)).unwrap();
    unlisten(&world, "two");
    eventually("the row is gone", || listener(&daemon, "two").is_null());
    held.echo(b"what was accepted goes on").unwrap();
    listen(&world, "again", "app1", "'fd:web', 0, NULL");
    leads_to(&world, 444, "b1");
    let record = daemon.record_of(held.local, Duration::ZERO);
    assert!(record.is_none());
    held.finish().unwrap();
}

/// Whoever starts the daemon has to know, before it takes a descriptor of its own for one of theirs.
#[test]
fn what_is_handed_over_and_is_no_listening_socket_is_an_error() {
    let test = "what_is_handed_over_and_is_no_listening_socket_is_an_error";
    let Some(world) = World::new(NETWORK, test) else { return };
    // Nothing is there to be served: one that went on would end by that, with another code.
    let missing = Database::missing();
    let run = |before: &str| {
        let mut shell = xtask::lab::daemon::edgeproxy("/bin/sh".as_ref(), &missing.path());
        let line = format!("exec 3<&-; {before} LISTEN_PID=$$ exec \"$0\" run");
        let output = shell.args(["-c", &line, BINARY]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (before, why) in [
        ("LISTEN_FDS=1", "descriptor 3 (unknown) is not open"),
        ("exec 3</dev/null; LISTEN_FDS=1 LISTEN_FDNAMES=web", "descriptor 3 (web) is no listening TCP socket"),
        ("LISTEN_FDS=many", "LISTEN_FDS is \"many\""),
    ] {
        let (code, said) = run(before);
        assert!(code == Some(64) && said.contains(why), "{before}: {code:?}, {said}");
    }
    let udp = world.lab.run_in(Ns::Pop, || std::net::UdpSocket::bind(at(&world, 9))).unwrap();
    let config = world.config().hand_over("web", socket(&world, 443)).hand_over("udp", udp);
    let said = Daemon::start(&world.lab, &config).unwrap_err().to_string();
    assert!(
        said.contains("exit status: 64") && said.contains("descriptor 4 (udp) is no listening TCP socket"),
        "{said}"
    );
    assert!(!said.contains("descriptor 3"), "{said}");
}

/// Processor time of the thread that opens listeners.
fn time_for_listeners(daemon: &Daemon) -> Duration {
    let threads =
        std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().map(|thread| thread.unwrap().path());
    let is_it = |thread: &std::path::PathBuf| {
        std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "edge-listeners")
    };
    let thread = threads.into_iter().find(is_it).expect("there is such a thread");
    let spent = std::fs::read_to_string(thread.join("schedstat")).unwrap();
    Duration::from_nanos(spent.split_whitespace().next().unwrap().parse().unwrap())
}

/// What `count` reloads cost that thread, each of a row that is no listener's.
fn cost_of_reloads(world: &World, daemon: &Daemon, count: u32) -> Duration {
    let before = time_for_listeners(daemon);
    for turn in 1..=count {
        world.database.execute(&format!("UPDATE backends SET soft_limit = {turn} WHERE id = 'b1'"));
        assert_eq!(daemon.post("/api/v1/reload", "{}").unwrap().code, 200);
        // It has seen the table when it rests: one that were still at work would see several at once.
        let mut spent = Duration::ZERO;
        while std::mem::replace(&mut spent, time_for_listeners(daemon)) != spent {
            thread::sleep(Duration::from_millis(20));
        }
    }
    time_for_listeners(daemon) - before
}

#[test]
fn a_reload_costs_as_much_for_each_of_many_listeners_as_for_each_of_few() {
    let test = "a_reload_costs_as_much_for_each_of_many_listeners_as_for_each_of_few";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backend = app(&world, 1);
    let daemon = world.daemon(&[("workers", "1"), ("app", "app1"), ("db_reload_secs", "60")]);
    let cost_with = |listeners: u64| {
        world.database.execute(&format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {listeners}) \
             INSERT OR REPLACE INTO listeners (id, app, address, port) SELECT 'l' || n, 'app1', '10.63.0.1', 10000 + n FROM n"
        ));
        assert_eq!(daemon.post("/api/v1/reload", "{}").unwrap().code, 200);
        let open = |status: &xtask::lab::Status| {
            let all = status.0["listeners"].as_array().unwrap();
            all.iter().filter(|listener| listener["open"] == true).count() as u64
        };
        let status = daemon.wait_status(SOON * 6, |status| open(status) > listeners).unwrap();
        assert!(open(&status) > listeners, "{} of {listeners} are open", open(&status));
        cost_of_reloads(&world, &daemon, 10)
    };
    let (few, many) = (cost_with(200), cost_with(3_200));
    println!("10 reloads: {few:?} with 200 listeners, {many:?} with 3,200");
    // 16 times as many: about 16 times the cost, and 256 times if each were compared with all.
    assert!(many < few * 64, "10 reloads cost {few:?} with 200 listeners and {many:?} with 3,200");
}

/// The next daemon finds in the queue who came while there was none.
#[test]
fn a_restart_behind_a_handed_socket_refuses_nobody() {
    let Some(world) = World::new(NETWORK, "a_restart_behind_a_handed_socket_refuses_nobody") else { return };
    let _backend = app(&world, 1);
    let kept = socket(&world, 443);
    let config = || world.config().set("listen_addr", "fd:web").hand_over("web", kept.try_clone().unwrap());
    let mut first = Daemon::start(&world.lab, &config()).unwrap();
    assert_eq!(backend_at(&world, at(&world, 443)).as_deref(), Some("b1"));
    assert_eq!(first.terminate().unwrap().code(), Some(0));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| backend_at(&world, at(&world, 443)));
        let _second = Daemon::start(&world.lab, &config()).unwrap();
        assert_eq!(waiting.join().unwrap().as_deref(), Some("b1"));
    });
}

/// Their sockets were made before the listening one had its options: without those an urgent byte is cut out of the stream.
#[test]
fn who_waits_in_the_queue_of_a_handed_socket_loses_nothing() {
    let Some(world) = World::new(NETWORK, "who_waits_in_the_queue_of_a_handed_socket_loses_nothing") else { return };
    let _backend = app(&world, 1);
    let kept = socket(&world, 443);
    let early: Vec<_> = (0..3)
        .map(|n| {
            let from = world.lab.client(n);
            let mut client = world.lab.run_in(Ns::Clients, || connect_from(from, at(&world, 443))).unwrap();
            urgent::send(&mut client);
            client
        })
        .collect();
    let config = world.config().set("listen_addr", "fd:web").set("workers", 2).hand_over("web", kept);
    let daemon = Daemon::start(&world.lab, &config).unwrap();
    early.into_iter().for_each(|client| urgent::assert_came_back(client, &daemon));
}

/// Runs `edgeproxy explain` for a client; its output as JSON, or what it complained of.
fn explained(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(common::BINARY);
    command.args(["explain", "--json", "--client", "10.64.0.1", "--admin-socket"]).arg(daemon.admin_socket());
    command.args(arguments).output().unwrap()
}

fn explain(daemon: &Daemon, arguments: &[&str]) -> Result<Value, String> {
    let output = explained(daemon, arguments);
    serde_json::from_slice(&output.stdout).map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn explain_says_which_listener_a_client_gets() {
    let Some(world) = World::new(NETWORK, "explain_says_which_listener_a_client_gets") else { return };
    let _backends = [app(&world, 1), app(&world, 2), app(&world, 3)];
    let daemon = world.daemon(&[("app", "app1")]);
    world.database.execute(
        "INSERT INTO listeners (id, app, address, port, server_name) VALUES \
         ('tls', 'app2', '0.0.0.0', 443, 'www.example.com,*.example.org'), ('near', 'app3', '10.63.0.1', 443, NULL), \
         ('far', 'app1', '192.0.2.1', 8443, NULL), ('far6', 'app3', '2001:db8::1', 8443, NULL)",
    );
    eventually("the rows are there", || !listener(&daemon, "far6").is_null());
    let ask = |arguments: &[&str]| explain(&daemon, arguments).unwrap();
    for (arguments, listener, winner) in [
        (&["--port", "8080", "--to", "10.63.0.1"][..], "10.63.0.1:8080", "b1"),
        (&["--port", "443", "--sni", "www.example.com"], "tls", "b2"),
        (&["--sni", "A.Example.org"], "tls", "b2"),
        (&["--port", "443", "--to", "10.63.0.1", "--sni", "www.example.com"], "near", "b3"),
        (&["--port", "8443", "--to", "2001:db8::1"], "far6", "b3"),
        (&["--port", "8080"], "10.63.0.1:8080", "b1"),
    ] {
        let answer = ask(arguments);
        assert_eq!(
            (&answer["listener"], &answer["winner"]),
            (&listener.into(), &winner.into()),
            "{arguments:?}: {answer}"
        );
    }
    assert_eq!(ask(&["--port", "443", "--sni", "example.net"])["refused"], "unknown_server_name");
    assert_eq!(ask(&["--port", "443"])["refused"], "no_server_name");
    for (arguments, why) in [
        (&["--port", "1"][..], "no listener on port 1"),
        (&["--port", "8443"], "several listeners fit: 192.0.2.1:8443, [2001:db8::1]:8443"),
        (&["--port", "8443", "--to", "192.0.2.2"], "no listener on 192.0.2.2:8443"),
        (&["--sni", "a b"], "is not a host name"),
    ] {
        let said = explain(&daemon, arguments).unwrap_err();
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
}

#[test]
fn check_judges_listeners_without_starting() {
    let Some(world) = World::new(NETWORK, "check_judges_listeners_without_starting") else { return };
    world.database.add(&Row::new("b1", world.backend_addr(1)));
    listen(&world, "lost", "nobody", "'0.0.0.0', 80, NULL");
    let check = |config: Config| {
        let output = config.command(&world.lab, &["check"]).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    };
    let said = check(world.config());
    assert!(said.contains("listener lost (0.0.0.0:80) leads to app nobody, which has no backends"), "{said}");
    unlisten(&world, "lost");
    let said = check(world.config().set("listen_addr", "none"));
    assert!(said.contains("no listener: listen_addr is none and the database has none"), "{said}");
    listen(&world, "good", "web", "'0.0.0.0', 80, NULL");
    let said = check(world.config().set("listen_addr", "none"));
    assert!(said.contains("listeners      ok: 1"), "{said}");
}
