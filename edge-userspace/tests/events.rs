//! What happens to a POP is told as events.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{NETWORK, Row, World, eventually};
use xtask::lab::{Daemon, Ns};
use xtask::load::{Manner, NamedBackend};

/// A running `edgeproxy events -f`, and the lines it has printed; killed when dropped.
struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Follower {
    fn start(world: &World, daemon: &Daemon, arguments: &[&str]) -> Self {
        let socket = daemon.admin_socket().display().to_string();
        let arguments = [&["events", "-f", "--admin-socket", &socket], arguments].concat();
        let mut command = world.config().command(&world.lab, &arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, read) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).for_each(|line| read.lock().unwrap().push(line))
        });
        Self { child, lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until one line holds all these parts.
    fn wait(&self, parts: &[&str]) {
        let said = || self.lines().iter().any(|line| parts.iter().all(|part| line.contains(part)));
        eventually(&format!("{parts:?} is told"), said);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_tell_what_happens_with_reasons() {
    let Some(world) = World::new(NETWORK, "events_tell_what_happens_with_reasons") else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    world.database.add(&Row::new("dead", world.backend_addr(2)));
    let settings = [("ejection_secs", "0.3"), ("slow_start_secs", "0.2"), ("ejection_failures", "1")];
    let mut daemon = world.daemon(&settings);
    let (text, json) = (Follower::start(&world, &daemon, &[]), Follower::start(&world, &daemon, &["--json"]));
    text.wait(&["ready", "pop: takes connections"]);
    for client in 0..10 {
        world.visit(client, daemon.addr()).unwrap().finish().unwrap();
    }
    text.wait(&["warn", "backend_ejected", "backend dead (app web): ejected for 0.3 s", "refused"]);
    let revived =
        NamedBackend::start(world.lab.namespace(Ns::Backends), "dead", world.backend_addr(2), Manner::Close).unwrap();
    text.wait(&["info", "backend_back", "backend dead"]);
    text.wait(&["info", "backend_recovered", "backend dead"]);
    drop(revived);
    world.database.execute("UPDATE backends SET region = 'south america' WHERE id = 'dead'");
    text.wait(&["warn", "row_rejected", "row dead: refused"]);
    world.database.execute("ALTER TABLE backends RENAME TO elsewhere");
    text.wait(&["warn", "reload_refused", "no table `backends`"]);
    world.database.execute("ALTER TABLE elsewhere RENAME TO backends");
    text.wait(&["info", "reload_mended"]);
    daemon.post("/api/v1/forwarder", "{\"forwarder\": \"copy\"}").unwrap();
    text.wait(&["info", "forwarder_set", "an operator chose copy"]);

    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_events_total{kind=\"row_rejected\"} 1"), "told once: {metrics}");
    let answer = daemon.get("/api/v1/events?after=1").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&answer["events"][0]["seq"], &answer["lost"]), (&2.into(), &0.into()), "{answer:#}");
    assert!(daemon.messages().contains("\"event\":\"backend_ejected\""), "{}", daemon.messages());

    let held = world.backend(3, Manner::Echo, |row| row);
    world.database.execute("UPDATE backends SET state = 'drain' WHERE id <> 'b3'");
    text.wait(&["info", "backend_state", "backend b1 (app web): the routing database says: state drain, was ready"]);
    eventually("clients reach b3", || world.visit(20, daemon.addr()).is_ok_and(|visit| visit.backend == "b3"));
    let _held = (held, world.visit(21, daemon.addr()).unwrap());
    daemon.ask_to_end();
    text.wait(&["info", "draining", "1 go on for"]);
    json.wait(&["\"kind\":\"draining\"", "\"subject\":\"pop\""]);
    daemon.kill();
    let numbers: Vec<_> =
        json.lines().iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect();
    let numbers: Vec<_> = numbers.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "each once and in order");
}

#[test]
fn the_last_events_can_be_asked_for() {
    let Some(world) = World::new(NETWORK, "the_last_events_can_be_asked_for") else { return };
    let _live = world.backend(1, Manner::Close, |row| row);
    let daemon = world.daemon(&[]);
    for forwarder in ["copy", "splice", "auto"] {
        daemon.post("/api/v1/forwarder", &format!("{{\"forwarder\": \"{forwarder}\"}}")).unwrap();
    }
    let socket = daemon.admin_socket().display().to_string();
    let arguments = ["events", "-n", "2", "--admin-socket", &socket];
    let output = world.config().command(&world.lab, &arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("chose splice") && lines[1].contains("chose auto"), "{text}");
}
