//! Clients come back to their backends: across restarts and crashes, as long as nobody ends their bindings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::thread;
use std::time::Duration;

use common::{NETWORK, SOON, World, assert_said, eventually};
use serde_json::Value;
use xtask::lab::Daemon;
use xtask::load::{Manner, NamedBackend};

const CLIENTS: u16 = 20;

struct Bound {
    world: World,
    _backends: [NamedBackend; 3],
    file: String,
}

impl Bound {
    fn new(test: &str) -> Option<Self> {
        let world = World::new(NETWORK, test)?;
        let backends = [1, 2, 3].map(|n| world.backend(n, Manner::Echo, |row| row));
        let file = world.database.path().with_file_name("bindings").display().to_string();
        Some(Self { world, _backends: backends, file })
    }

    fn daemon(&self, settings: &[(&str, &str)]) -> Daemon {
        self.world.daemon(&[&[("bindings_path", self.file.as_str())], settings].concat())
    }

    /// The backend of a client, and why that one.
    fn visit(&self, daemon: &Daemon, n: u16) -> (String, String) {
        let visit = self.world.visit(n, daemon.addr()).unwrap();
        let (client, backend) = (visit.local, visit.backend.clone());
        visit.finish().unwrap();
        (backend, daemon.record_of(client, SOON).unwrap().why.unwrap())
    }

    fn backends(&self, daemon: &Daemon) -> Vec<String> {
        (0..CLIENTS).map(|n| self.visit(daemon, n).0).collect()
    }

    fn assert_come_back(&self, daemon: &Daemon, before: &[String]) {
        for (n, backend) in (0..).zip(before) {
            assert_eq!(self.visit(daemon, n), (backend.clone(), "affinity".to_owned()), "client {n}");
        }
    }

    /// `edgeproxy bindings …`: whether it succeeded, and what it printed.
    fn command(&self, daemon: &Daemon, arguments: &[&str]) -> (bool, String) {
        let socket = daemon.admin_socket().display().to_string();
        let arguments = [&["bindings"], arguments, &["--admin-socket", &socket]].concat();
        let output = self.world.config().command(&self.world.lab, &arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn list(&self, daemon: &Daemon, filter: &[&str]) -> Vec<Value> {
        let (good, text) = self.command(daemon, &[&["list", "--json"], filter].concat());
        assert!(good, "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn bindings_survive_a_restart() {
    let Some(bound) = Bound::new("bindings_survive_a_restart") else { return };
    let mut daemon = bound.daemon(&[]);
    let before = bound.backends(&daemon);
    // A connection that lives until the end renews its binding, too.
    let held = bound.world.visit(99, daemon.addr()).unwrap();
    let last = held.backend.clone();
    daemon.ask_to_end();
    held.finish().unwrap();
    assert!(daemon.wait(SOON).unwrap().success());
    let daemon = bound.daemon(&[]);
    assert_eq!(daemon.status().unwrap().number("/binding_file/restored"), u64::from(CLIENTS) + 1);
    bound.assert_come_back(&daemon, &before);
    assert_eq!(bound.visit(&daemon, 99), (last, "affinity".to_owned()));
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_bindings_restored 21\n"), "{metrics}");
}

#[test]
fn a_killed_daemon_loses_no_more_than_the_interval() {
    let Some(bound) = Bound::new("a_killed_daemon_loses_no_more_than_the_interval") else { return };
    let mut daemon = bound.daemon(&[("bindings_save_secs", "0.2")]);
    let before = bound.backends(&daemon);
    let saved = |daemon: &Daemon| {
        let status = daemon.status().unwrap();
        (status.number("/binding_file/saves_ok"), status.number("/binding_file/bindings"))
    };
    eventually("all are saved", || saved(&daemon).1 == u64::from(CLIENTS));
    daemon.kill();
    let daemon = bound.daemon(&[]);
    bound.assert_come_back(&daemon, &before);
}

#[test]
fn the_time_of_a_binding_goes_on_while_nobody_runs() {
    let Some(bound) = Bound::new("the_time_of_a_binding_goes_on_while_nobody_runs") else { return };
    let settings = [("binding_ttl_secs", "4")];
    let mut daemon = bound.daemon(&settings);
    bound.visit(&daemon, 0);
    assert!(daemon.terminate().unwrap().success());
    thread::sleep(Duration::from_secs(4));
    let daemon = bound.daemon(&settings);
    assert_eq!(daemon.status().unwrap().number("/binding_file/restored"), 0);
    assert_eq!(bound.visit(&daemon, 0).1, "client_region");
}

#[test]
fn a_second_daemon_does_not_share_the_file() {
    let Some(bound) = Bound::new("a_second_daemon_does_not_share_the_file") else { return };
    let mut first = bound.daemon(&[]);
    let config = bound.world.config().set("bindings_path", &bound.file);
    let why = Daemon::start(&bound.world.lab, &config).unwrap_err().to_string();
    assert!(why.contains("in use by another daemon"), "{why}");
    // Killed or not, who is gone holds nothing.
    first.kill();
    Daemon::start(&bound.world.lab, &config).unwrap();
}

#[test]
fn a_damaged_file_is_said_and_not_used() {
    let Some(bound) = Bound::new("a_damaged_file_is_said_and_not_used") else { return };
    let mut daemon = bound.daemon(&[]);
    bound.visit(&daemon, 0);
    assert!(daemon.terminate().unwrap().success());
    let mut bytes = std::fs::read(&bound.file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&bound.file, bytes).unwrap();
    let mut daemon = bound.daemon(&[]);
    assert_said(&daemon, "its checksum is wrong");
    assert_eq!(bound.visit(&daemon, 0).1, "client_region");
    assert!(daemon.terminate().unwrap().success());
    let daemon = bound.daemon(&[]);
    assert_eq!(bound.visit(&daemon, 0).1, "affinity", "the file is whole again");
}

#[test]
fn a_place_that_can_not_be_written_is_told_at_the_start() {
    let Some(bound) = Bound::new("a_place_that_can_not_be_written_is_told_at_the_start") else { return };
    let config = bound.world.config().set("bindings_path", "/proc/nowhere/bindings");
    let why = Daemon::start(&bound.world.lab, &config).unwrap_err().to_string();
    assert!(why.contains("set bindings_path to a file in a directory that this user may write"), "{why}");
}

#[test]
fn bindings_are_listed_and_cleared() {
    let Some(bound) = Bound::new("bindings_are_listed_and_cleared") else { return };
    let daemon = bound.daemon(&[]);
    let before = bound.backends(&daemon);
    let all = bound.list(&daemon, &[]);
    assert_eq!(all.len(), usize::from(CLIENTS));
    assert!(all.iter().all(|one| one["app"] == "web" && one["left_secs"].as_f64().unwrap() > 500.0), "{all:?}");
    let of_first = before.iter().filter(|backend| **backend == before[0]).count();
    assert_eq!(bound.list(&daemon, &["--backend", &before[0]]).len(), of_first);
    let client = bound.world.lab.client(0).to_string();
    let one = bound.list(&daemon, &["--client", &client]);
    assert_eq!((one.len(), &one[0]["client"]), (1, &format!("{client}/32").into()));
    assert_eq!(bound.list(&daemon, &["--client", "10.64.0.0/16", "--limit", "7"]).len(), 7);
    assert_eq!(bound.list(&daemon, &["--app", "nobody"]).len(), 0);
    let (good, said) = bound.command(&daemon, &["list", "--client", "everybody"]);
    assert!(!good && said.contains("everybody"), "{said}");

    // A connection from before does not bring back what was ended.
    let held = bound.world.visit(0, daemon.addr()).unwrap();
    let (good, said) = bound.command(&daemon, &["clear"]);
    assert!(!good && said.contains("say which bindings"), "{said}");
    let (good, said) = bound.command(&daemon, &["clear", "--backend", &before[0]]);
    assert!(good && said == format!("{of_first} bindings cleared\n"), "{said}");
    held.finish().unwrap();
    daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
    assert_eq!(bound.list(&daemon, &[]).len(), usize::from(CLIENTS) - of_first);
    assert_eq!(bound.visit(&daemon, 0).1, "client_region");
    let other = (0..).zip(&before).find(|(_, backend)| **backend != before[0]).unwrap();
    assert_eq!(bound.visit(&daemon, other.0), (other.1.clone(), "affinity".to_owned()));
    assert!(bound.command(&daemon, &["clear", "--all"]).0);
    assert_eq!(bound.list(&daemon, &[]).len(), 0);
}
