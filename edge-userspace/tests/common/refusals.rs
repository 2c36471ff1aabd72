//! Clients that are turned away or wait, and how that is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use xtask::lab::{Daemon, Ns, Record, Status};
use xtask::load::connect_from;

use super::{SOON, World, eventually};

/// Many threads on few cores: nothing here is about speed.
pub const LATER: Duration = Duration::from_secs(60);

/// `apps` says that so many may wait, and for how long.
pub fn queue(world: &World, length: u32, timeout: Duration) {
    let ms = timeout.as_millis();
    world.database.execute(&format!(
        "INSERT INTO apps (name, queue_length, queue_timeout_ms) VALUES ('web', {length}, {ms}) \
         ON CONFLICT (name) DO UPDATE SET queue_length = excluded.queue_length, queue_timeout_ms = excluded.queue_timeout_ms"
    ));
}

pub fn wait_for(daemon: &Daemon, what: &str, holds: impl Fn(&Status) -> bool) {
    let status = daemon.wait_status(LATER, &holds).unwrap();
    assert!(holds(&status), "{what}: {:#}", status.0);
}

/// Whether the daemon closes the connection by a reset, before a byte.
pub fn is_reset(mut stream: &TcpStream) -> bool {
    stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// Connects and is reset, be it before it knows that it was connected; the record says why.
pub fn refused(world: &World, daemon: &Daemon, from: IpAddr, to: SocketAddr) -> Record {
    let before = daemon.access_log(Duration::ZERO, |_| true).iter().map(|record| record.id).max().unwrap_or(0);
    match world.lab.run_in(Ns::Clients, || connect_from(from, to)) {
        Ok(stream) => assert!(is_reset(&stream), "{from} is served"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    let is_it = |record: &&Record| record.id > before && record.client().ip() == from && record.reject.is_some();
    let records = daemon.access_log(SOON, |records| records.iter().any(|record| is_it(&record)));
    records.iter().find(is_it).unwrap().clone()
}

pub fn why(record: &Record) -> (&str, Option<&str>) {
    (record.termination.as_str(), record.reject.as_deref())
}

/// All that is counted is there, and 0 when nobody is left.
pub fn assert_all_gone(daemon: &Daemon) {
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

/// `edgeproxy explain` for a client: its exit code and what it printed.
pub fn explain(world: &World, daemon: &Daemon, client: IpAddr) -> (Option<i32>, serde_json::Value) {
    explain_at(world, daemon, client, &[])
}

pub fn explain_at(world: &World, daemon: &Daemon, client: IpAddr, at: &[&str]) -> (Option<i32>, serde_json::Value) {
    let (socket, client) = (daemon.admin_socket().display().to_string(), client.to_string());
    let arguments = [&["explain", "--json", "--admin-socket", &socket, "--client", &client], at].concat();
    let output = world.config().command(&world.lab, &arguments).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}
