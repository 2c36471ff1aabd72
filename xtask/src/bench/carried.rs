//! What carried the bytes of a cell, by the daemon's own word: a fall back to copying must not be sold as `sockmap`.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Serialize;

use super::candidate::Candidate;
use super::workload::Shape;
use crate::lab::{Daemon, Flow};

/// How long the daemon may take to end connections whose clients have gone.
const END: Duration = Duration::from_secs(10);

/// What a daemon has counted by a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Snapshot {
    bytes: u64,
    /// The parts of `bytes` that did not come to userspace.
    sockmap: u64,
    sk_msg: u64,
    spliced: u64,
    running: Connections,
    ended: Connections,
    fallbacks: BTreeMap<String, u64>,
}

/// Connections, and those of them on each of the kernel's paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Connections {
    all: u64,
    sockmap: u64,
    sk_msg: u64,
}

impl Snapshot {
    /// In the middle of the work.
    pub(super) fn of(daemon: &Daemon) -> Result<Self> {
        Self::parse(&daemon.metrics()?, &daemon.flows()?)
    }

    /// After the work, when all connections have ended. Doesn't ask for the list of them, which takes memory for many.
    pub(super) fn at_the_end(daemon: &Daemon) -> Result<Self> {
        let left = daemon.wait_status(END, |status| status.active() == 0)?.active();
        if left > 0 {
            bail!("{left} connections have not ended within {END:?} after their clients");
        }
        Self::parse(&daemon.metrics()?, &[])
    }

    fn parse(metrics: &str, flows: &[Flow]) -> Result<Self> {
        let one = |name| count(metrics, name, &[]);
        let forwarded = |direction, path| {
            count(metrics, "edgeproxy_forwarded_bytes_total", &[("direction", direction), ("path", path)])
        };
        let kernel = forwarded("up", "kernel")? + forwarded("down", "kernel")?;
        let sockmap = one("edgeproxy_kernel_forwarded_bytes_total")?;
        // The metric is of connections that have ended.
        let running_sk_msg: u64 = flows.iter().filter(|flow| flow.forwarder == "sk_msg").map(Flow::in_kernel).sum();
        let sk_msg = one("edgeproxy_same_host_bytes_total")? + running_sk_msg;
        Ok(Self {
            bytes: kernel + forwarded("up", "userspace")? + forwarded("down", "userspace")?,
            sockmap,
            sk_msg,
            spliced: kernel.saturating_sub(sockmap + sk_msg),
            running: Connections::running(flows),
            ended: Connections::ended(metrics)?,
            fallbacks: series(metrics, "edgeproxy_forwarder_fallbacks_total", "reason")?,
        })
    }
}

impl Connections {
    fn running(flows: &[Flow]) -> Self {
        let on = |forwarder| flows.iter().filter(|flow| flow.forwarder == forwarder).count();
        Self { all: flows.len() as u64, sockmap: on("sockmap") as u64, sk_msg: on("sk_msg") as u64 }
    }

    fn ended(metrics: &str) -> Result<Self> {
        let by = series(metrics, "edgeproxy_flows_total", "forwarder")?;
        let on = |forwarder| by.get(forwarder).copied().context("connections by forwarder are not in the metrics");
        Ok(Self { all: by.values().sum(), sockmap: on("sockmap")?, sk_msg: on("sk_msg")? })
    }
}

/// The value of the series `name` with exactly these labels.
fn count(metrics: &str, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
    let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let series = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("{series} is not in the metrics"))
}

/// The values of all series `name`, by their only label.
fn series(metrics: &str, name: &str, label: &str) -> Result<BTreeMap<String, u64>> {
    let start = format!("{name}{{{label}=\"");
    let parse = |line: &str| {
        let (value, count) = line.strip_prefix(&start)?.split_once("\"} ")?;
        Some((value.to_owned(), count.parse().ok()?))
    };
    let all: BTreeMap<_, _> = metrics.lines().filter_map(parse).collect();
    if all.is_empty() { Err(anyhow!("{name} by {label} is not in the metrics")) } else { Ok(all) }
}

/// What carried the bytes of one cell, or of several.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(super) struct Carried {
    /// Those that ran at the end of the window, and those that had ended in it.
    pub(super) connections: u64,
    /// Of these, those on the kernel's paths.
    pub(super) connections_sockmap: u64,
    pub(super) connections_sk_msg: u64,
    /// Payload of the window, both ways; of workloads that measure memory that of the whole cell.
    pub(super) bytes: u64,
    /// Of these, what the kernel forwarded, what it handed over between applications of the host, and what was spliced.
    pub(super) bytes_sockmap: u64,
    pub(super) bytes_sk_msg: u64,
    pub(super) bytes_spliced: u64,
    /// Connections of the whole cell that did not use or left the kernel path, by why.
    pub(super) fallbacks: BTreeMap<String, u64>,
}

impl Carried {
    /// From `before` to `after`; fallbacks are counted at the `end` of each connection.
    pub(super) fn between(before: &Snapshot, after: &Snapshot, end: &Snapshot) -> Self {
        let connections =
            |of: fn(&Connections) -> u64| of(&after.running) + of(&after.ended).saturating_sub(of(&before.ended));
        let bytes = after.bytes.saturating_sub(before.bytes);
        // The parts are read a moment after all of it.
        let part = |of: fn(&Snapshot) -> u64| of(after).saturating_sub(of(before)).min(bytes);
        Self {
            connections: connections(|them| them.all),
            connections_sockmap: connections(|them| them.sockmap),
            connections_sk_msg: connections(|them| them.sk_msg),
            bytes,
            bytes_sockmap: part(|snapshot| snapshot.sockmap),
            bytes_sk_msg: part(|snapshot| snapshot.sk_msg),
            bytes_spliced: part(|snapshot| snapshot.spliced),
            fallbacks: end
                .fallbacks
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(why, n)| (why.clone(), *n))
                .collect(),
        }
    }

    /// Why the figures are not those of the candidate. Where some of it went another way they are.
    pub(super) fn objection(&self, candidate: Candidate, shape: Shape) -> Option<String> {
        let bulk = matches!(shape, Shape::Bulk { .. });
        // To a reader that is saturated, or has stopped, every byte may spill.
        let spills = bulk || matches!(shape, Shape::SlowReader { .. });
        let (path, connections, bytes) = match candidate {
            Candidate::Sockmap => ("sockmap", self.connections_sockmap, self.bytes_sockmap),
            Candidate::SameHost => ("sk_msg", self.connections_sk_msg, self.bytes_sk_msg),
            // On small messages it copies.
            Candidate::Splice if bulk && self.bytes_spliced == 0 => ("splice", 0, 0),
            _ => return None,
        };
        let unused = connections == 0 || bytes == 0 && !spills;
        let objection = || {
            let on = format!("{connections} of {} connections and {bytes} bytes were on {path}", self.connections);
            format!("no figures: {on}{}", self.reasons())
        };
        unused.then(objection)
    }

    /// `; 3 spilling, 1 unavailable`, or nothing.
    pub(super) fn reasons(&self) -> String {
        let reasons: Vec<_> = self.fallbacks.iter().map(|(why, count)| format!("{count} {why}")).collect();
        if reasons.is_empty() { String::new() } else { format!("; {}", reasons.join(", ")) }
    }
}

impl AddAssign<&Self> for Carried {
    fn add_assign(&mut self, other: &Self) {
        self.connections += other.connections;
        self.connections_sockmap += other.connections_sockmap;
        self.connections_sk_msg += other.connections_sk_msg;
        self.bytes += other.bytes;
        self.bytes_sockmap += other.bytes_sockmap;
        self.bytes_sk_msg += other.bytes_sk_msg;
        self.bytes_spliced += other.bytes_spliced;
        for (why, count) in &other.fallbacks {
            *self.fallbacks.entry(why.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::bench::workload::Way;

    const RPC: Shape = Shape::Rpc { connections: 2, bytes: 64 };
    const BULK: Shape = Shape::Bulk { way: Way::Down, streams: 2, paced: false };

    /// Metrics with those bytes by the kernel, and connections that have ended on sockmap.
    fn metrics(kernel: u64, sockmap: u64, ended: u64) -> String {
        format!(
            "# HELP edgeproxy_forwarded_bytes Payload\n\
             edgeproxy_forwarded_bytes_total{{direction=\"up\",path=\"userspace\"}} 100\n\
             edgeproxy_forwarded_bytes_total{{direction=\"up\",path=\"kernel\"}} {kernel}\n\
             edgeproxy_forwarded_bytes_total{{direction=\"down\",path=\"userspace\"}} 20\n\
             edgeproxy_forwarded_bytes_total{{direction=\"down\",path=\"kernel\"}} 0\n\
             edgeproxy_kernel_forwarded_bytes_total {sockmap}\n\
             edgeproxy_same_host_bytes_total 4\n\
             edgeproxy_flows_total{{forwarder=\"copy\"}} 3\n\
             edgeproxy_flows_total{{forwarder=\"sockmap\"}} {ended}\n\
             edgeproxy_flows_total{{forwarder=\"sk_msg\"}} 0\n\
             edgeproxy_forwarder_fallbacks_total{{reason=\"unavailable\"}} 0\n\
             edgeproxy_forwarder_fallbacks_total{{reason=\"spilling\"}} {ended}\n"
        )
    }

    fn flow(forwarder: &str, kernel: u64) -> Flow {
        serde_json::from_value(serde_json::json!({
            "client": "192.0.2.1:5", "backend": "b1", "forwarder": forwarder, "why": "configured", "bytes_up": 10,
            "bytes_down": kernel + 5, "kernel_up": 0, "kernel_down": kernel,
        }))
        .unwrap()
    }

    #[test]
    fn bytes_and_connections_are_told_apart_by_what_carried_them() {
        let flows = [flow("sockmap", 9), flow("sockmap", 0), flow("sk_msg", 50), flow("copy", 7)];
        let before = Snapshot::parse(&metrics(0, 0, 1), &[]).unwrap();
        let after = Snapshot::parse(&metrics(1000, 700, 3), &flows).unwrap();
        let end = Snapshot::parse(&metrics(1000, 700, 5), &[]).unwrap();
        let carried = Carried::between(&before, &after, &end);
        let wanted = Carried {
            connections: 4 + 2,
            connections_sockmap: 2 + 2,
            connections_sk_msg: 1,
            bytes: 1000,
            bytes_sockmap: 700,
            bytes_sk_msg: 50,
            bytes_spliced: 1000 - 700 - 54,
            fallbacks: BTreeMap::from([("spilling".to_owned(), 5)]),
        };
        assert_eq!(carried, wanted);
        let mut twice = carried.clone();
        twice += &carried;
        assert_eq!((twice.bytes_sockmap, twice.connections, twice.reasons().as_str()), (1400, 12, "; 10 spilling"));
    }

    #[test]
    fn a_metric_that_is_not_there_is_no_zero() {
        let text = metrics(1, 1, 1);
        for name in
            ["edgeproxy_kernel_forwarded_bytes_total", "edgeproxy_flows_total", "edgeproxy_forwarded_bytes_total"]
        {
            assert!(Snapshot::parse(&text.replace(name, "edgeproxy_renamed"), &[]).is_err(), "{name}");
        }
    }

    #[test]
    fn figures_of_a_path_that_nothing_took_are_none() {
        let fallbacks = BTreeMap::from([("unavailable".to_owned(), 2)]);
        let copied = Carried { connections: 2, bytes: 9, fallbacks, ..Carried::default() };
        let says = "no figures: 0 of 2 connections and 0 bytes were on sockmap; 2 unavailable";
        assert_eq!(copied.objection(Candidate::Sockmap, RPC).as_deref(), Some(says));
        assert!(copied.objection(Candidate::SameHost, BULK).unwrap().contains("on sk_msg"));
        assert!(copied.objection(Candidate::Splice, BULK).unwrap().contains("on splice"));
        for (candidate, shape) in [(Candidate::Splice, RPC), (Candidate::Copy, BULK), (Candidate::Auto, RPC)] {
            assert_eq!(copied.objection(candidate, shape), None);
        }
    }

    #[test]
    fn figures_of_a_path_that_some_took_are_its_own() {
        let some = Carried { connections: 9, connections_sockmap: 1, bytes: 9, bytes_spliced: 1, ..Carried::default() };
        assert_eq!(some.objection(Candidate::Sockmap, BULK), None, "all of it may have spilled");
        assert!(some.objection(Candidate::Sockmap, RPC).is_some(), "messages don't");
        let some = Carried { bytes_sockmap: 1, ..some };
        assert_eq!(some.objection(Candidate::Sockmap, RPC), None);
        assert_eq!(some.objection(Candidate::Splice, BULK), None);
        assert!(some.objection(Candidate::SameHost, BULK).is_some(), "another path is not this one");
    }
}
