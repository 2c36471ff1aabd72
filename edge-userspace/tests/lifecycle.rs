//! Start, end, limits of time and files, and what happens without privileges.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use common::listening::{connected, served};
use common::{Database, KERNEL, NETWORK, SOON, World, eventually};
use xtask::lab::{Config, Daemon};
use xtask::load::{Manner, connect_from};

/// Runs `edgeproxy` to its end.
fn run(world: &World, config: &Config, arguments: &[&str]) -> Output {
    config.command(&world.lab, arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn sigterm_drains_and_then_ends() {
    let Some(world) = World::new(NETWORK, "sigterm_drains_and_then_ends") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let mut daemon = world.daemon(&[]);
    let mut held = world.visit(0, daemon.addr()).unwrap();
    daemon.ask_to_end();
    eventually("new connections are refused", || world.visit(1, daemon.addr()).is_err());
    held.echo(b"a drain lets connections finish").unwrap();
    thread::sleep(Duration::from_millis(300));
    held.echo(b"however long they take").unwrap();
    held.finish().unwrap();
    assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0));
    assert_eq!(daemon.access_log(SOON, |_| true).first().unwrap().termination, "--");
}

/// The kernel has told them that they are connected, though no more than one in a second may be accepted.
#[test]
fn a_thousand_in_the_queue_are_served_when_the_daemon_is_told_to_end() {
    let test = "a_thousand_in_the_queue_are_served_when_the_daemon_is_told_to_end";
    let Some(world) = World::new(NETWORK, test) else { return };
    let backend = world.backend(1, Manner::Close, |row| row);
    let rate = [("max_connection_rate", "1"), ("max_connection_burst", "1")];
    let mut daemon = world.daemon(&[&rate[..], &[("workers", "1"), ("drain_timeout_secs", "120")]].concat());
    let clients = connected(&world, 1_000, daemon.addr());
    eventually("they wait", || daemon.status().unwrap().number("/limits/accept_pauses") > 0);
    assert!(backend.gauge().total() < 500, "{} are served already", backend.gauge().total());
    daemon.ask_to_end();
    assert_eq!(served(clients), 1_000);
    assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0));
    let records = daemon.access_log(SOON, |records| records.len() >= 1_000);
    assert_eq!(records.len(), 1_000);
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let Some(world) = World::new(NETWORK, "a_drain_ends_at_its_deadline") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let mut daemon = world.daemon(&[("drain_timeout_secs", "1")]);
    let held = world.visit(0, daemon.addr()).unwrap();
    let started = Instant::now();
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    let took = started.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "took {took:?}");
    assert_eq!(daemon.record_of(held.local, SOON).unwrap().termination, "KD");
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let Some(world) = World::new(NETWORK, "a_second_sigterm_ends_at_once") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let mut daemon = world.daemon(&[("drain_timeout_secs", "600")]);
    let held = world.visit(0, daemon.addr()).unwrap();
    daemon.ask_to_end();
    eventually("it drains", || daemon.status().unwrap().text("/state") == Some("draining"));
    daemon.ask_to_end();
    // 128 + 15, as shells expect.
    assert_eq!(daemon.wait(SOON).unwrap().code(), Some(143));
    assert_eq!(daemon.record_of(held.local, SOON).unwrap().termination, "KD");
}

#[test]
fn sighup_reloads_at_once() {
    let Some(world) = World::new(NETWORK, "sighup_reloads_at_once") else { return };
    let _first = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("db_reload_secs", "3600")]);
    let _second = world.backend(2, Manner::Echo, |row| row);
    let pid = daemon.pid().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    eventually("the new row is live", || daemon.status().unwrap().backends().len() == 2);
}

#[test]
fn an_idle_daemon_ends_at_once() {
    let Some(world) = World::new(NETWORK, "an_idle_daemon_ends_at_once") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let mut daemon = world.daemon(&[]);
    let started = Instant::now();
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
}

#[test]
fn a_killed_daemon_can_be_started_again_at_once() {
    let Some(world) = World::new(NETWORK, "a_killed_daemon_can_be_started_again_at_once") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let mut first = world.daemon(&[]);
    let _held: Vec<_> = (0..20).map(|n| world.visit(n, first.addr()).unwrap()).collect();
    let socket = first.admin_socket().display().to_string();
    first.kill();
    assert!(first.admin_socket().exists(), "a killed daemon leaves its socket");
    let second = world.daemon(&[("admin_socket", &socket)]);
    world.visit(30, second.addr()).unwrap().finish().unwrap();
}

#[test]
fn a_second_instance_is_refused_clearly() {
    let Some(world) = World::new(NETWORK, "a_second_instance_is_refused_clearly") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[]);
    let socket = daemon.admin_socket().display().to_string();
    let config = world.config().set("admin_socket", socket).set("listen_addr", "10.63.0.1:8081");
    let output = run(&world, &config, &["run"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("admin.sock"), "{}", stderr(&output));
    assert_eq!(daemon.get("/readyz").unwrap().code, 200, "the first instance goes on");
}

#[test]
fn running_out_of_files_is_survived() {
    let Some(world) = World::new(NETWORK, "running_out_of_files_is_survived") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = Daemon::start(&world.lab, &world.config().open_files(96)).unwrap();
    // Some are served, others wait in the listener's queue or are turned away.
    let streams: Vec<_> = world.visits(200, 50, |n| connect_from(world.lab.client(n), daemon.addr()));
    thread::sleep(Duration::from_millis(500));
    let before = daemon.cpu();
    thread::sleep(Duration::from_secs(1));
    let busy = daemon.cpu() - before;
    assert!(busy < Duration::from_millis(300), "the daemon spins: {busy:?} of processor time in a second");
    drop(streams);
    eventually("clients are served again", || world.visit(1_000, daemon.addr()).is_ok_and(|v| v.finish().is_ok()));
}

#[test]
fn a_connect_without_descriptors_is_not_tried_again() {
    let Some(world) = World::new(NETWORK, "a_connect_without_descriptors_is_not_tried_again") else { return };
    let _backends = [1, 2, 3].map(|n| world.backend(n, Manner::Echo, |row| row));
    // Whether the last descriptor is taken by an accept or by a connect depends on how many there are.
    let runs = [96, 97].map(|files| {
        let config = world.config().open_files(files).set("max_connections", 1000).set("forwarder", "copy");
        let daemon = Daemon::start(&world.lab, &config).unwrap();
        let streams: Vec<_> = world.visits(200, 50, |n| connect_from(world.lab.client(n), daemon.addr()));
        thread::sleep(Duration::from_millis(500));
        drop(streams);
        // Those that were connected end; then every record is there.
        daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
        daemon.access_log(Duration::from_secs(1), |_| false)
    });
    let out: Vec<_> = runs.iter().flatten().filter(|record| record.termination == "RR").collect();
    assert!(!out.is_empty() && out.iter().all(|record| record.attempts == 1), "{out:?}");
}

#[test]
fn the_first_start_waits_for_a_writer() {
    let Some(world) = World::new(NETWORK, "the_first_start_waits_for_a_writer") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let writer = rusqlite::Connection::open(world.database.path()).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let commit = thread::spawn(move || {
        thread::sleep(Duration::from_millis(1_500));
        writer.execute_batch("COMMIT").unwrap();
    });
    let daemon = world.daemon(&[]);
    commit.join().unwrap();
    assert!(daemon.messages().contains("not loaded: "), "{}", daemon.messages());
    world.visit(0, daemon.addr()).unwrap().finish().unwrap();
}

#[test]
fn with_privileges_the_kernel_path_is_chosen() {
    let Some(world) = World::new(KERNEL, "with_privileges_the_kernel_path_is_chosen") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    for forwarder in ["auto", "sockmap"] {
        let status = world.daemon(&[("forwarder", forwarder)]).status().unwrap();
        assert_eq!(status.text("/forwarder/active"), Some(forwarder), "{:#}", status.0);
        assert_eq!(status.text("/forwarder/why"), None, "{:#}", status.0);
    }
}

#[test]
fn bad_settings_are_all_named() {
    let Some(world) = World::new(NETWORK, "bad_settings_are_all_named") else { return };
    let config = world.config().set("connect_timeout_ms", "soon").set("frowarder", "copy").set("region", "");
    let output = run(&world, &config, &["run"]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    for part in ["EDGEPROXY_CONNECT_TIMEOUT_MS", "EDGEPROXY_FROWARDER", "EDGEPROXY_FORWARDER"] {
        assert!(stderr(&output).contains(part), "{part} is not in: {}", stderr(&output));
    }
}

#[test]
fn a_missing_database_names_the_command_that_makes_one() {
    let Some(world) = World::new(NETWORK, "a_missing_database_names_the_command_that_makes_one") else { return };
    let world = World { database: Database::missing(), ..world };
    let output = run(&world, &world.config(), &["run"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("edgeproxy db init"), "{}", stderr(&output));
}
