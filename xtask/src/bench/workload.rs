//! What is measured: one table of workloads.

use serde::Serialize;

/// Where client, proxy and backend are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Group {
    /// Each in a network of its own; the way between client and backend leads through the POP.
    Remote,
    /// All on one host, over loopback.
    Local,
}

/// Direction of a stream, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Way {
    Up,
    Down,
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    /// Requests and answers of `bytes` each, one outstanding on each connection.
    Rpc { connections: u32, bytes: u32 },
    /// Streams; paced ones at half the rate that `direct` reaches.
    Bulk { way: Way, streams: u32, paced: bool },
    /// Connect, one request of 64 bytes, its answer, close.
    Churn { at_once: u32 },
    /// Messages of 64 bytes at a fixed rate, over all connections.
    Open { connections: u32, per_second: u32 },
    /// Connections that have served one request and stay.
    Idle { connections: u32 },
    /// Streams down whose client reads nothing.
    SlowReader { streams: u32 },
}

impl Shape {
    /// Connections that must stand before anything is measured.
    pub(super) fn connections(self) -> u64 {
        u64::from(match self {
            Self::Rpc { connections, .. } | Self::Open { connections, .. } | Self::Idle { connections } => connections,
            Self::Bulk { streams, .. } | Self::SlowReader { streams } => streams,
            Self::Churn { at_once } => at_once,
        })
    }

    /// Whether memory is measured instead of work.
    pub(super) fn is_memory(self) -> bool {
        matches!(self, Self::Idle { .. } | Self::SlowReader { .. })
    }

    pub(super) fn is_paced(self) -> bool {
        matches!(self, Self::Bulk { paced: true, .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) shape: Shape,
    /// One line for tables.
    pub(super) title: &'static str,
    /// Part of `--quick`.
    pub(super) quick: bool,
}

const fn rpc(name: &'static str, connections: u32, bytes: u32, title: &'static str, quick: bool) -> Workload {
    Workload { name, group: Group::Remote, shape: Shape::Rpc { connections, bytes }, title, quick }
}

const fn bulk(name: &'static str, way: Way, streams: u32, paced: bool, title: &'static str, quick: bool) -> Workload {
    Workload { name, group: Group::Remote, shape: Shape::Bulk { way, streams, paced }, title, quick }
}

const fn remote(name: &'static str, shape: Shape, title: &'static str, quick: bool) -> Workload {
    Workload { name, group: Group::Remote, shape, title, quick }
}

const fn local(name: &'static str, shape: Shape, title: &'static str, quick: bool) -> Workload {
    Workload { name, group: Group::Local, shape, title, quick }
}

const KIB16: u32 = 16 * 1024;

/// Everything, in the order in which it is run and reported.
pub(super) const WORKLOADS: [Workload; 25] = [
    rpc("rr64-1", 1, 64, "64 B request/response, 1 connection", false),
    rpc("rr64-8", 8, 64, "64 B request/response, 8 connections", false),
    rpc("rr64-64", 64, 64, "64 B request/response, 64 connections", true),
    rpc("rr64-512", 512, 64, "64 B request/response, 512 connections", false),
    rpc("rr16k-1", 1, KIB16, "16 KB request/response, 1 connection", false),
    rpc("rr16k-8", 8, KIB16, "16 KB request/response, 8 connections", false),
    rpc("rr16k-64", 64, KIB16, "16 KB request/response, 64 connections", true),
    rpc("rr16k-512", 512, KIB16, "16 KB request/response, 512 connections", false),
    bulk("up-1", Way::Up, 1, false, "bulk up, 1 stream", false),
    bulk("up-8", Way::Up, 8, false, "bulk up, 8 streams", false),
    bulk("down-1", Way::Down, 1, false, "bulk down, 1 stream", false),
    bulk("down-8", Way::Down, 8, false, "bulk down, 8 streams", true),
    bulk("both-1", Way::Both, 1, false, "bulk both ways, 1 stream", false),
    bulk("both-8", Way::Both, 8, false, "bulk both ways, 8 streams", false),
    bulk("paced-1", Way::Down, 1, true, "bulk down at half the direct rate, 1 stream", false),
    bulk("paced-8", Way::Down, 8, true, "bulk down at half the direct rate, 8 streams", true),
    remote("connect-1", Shape::Churn { at_once: 1 }, "connect, request, close, 1 at once", false),
    remote("connect-64", Shape::Churn { at_once: 64 }, "connect, request, close, 64 at once", true),
    remote(
        "rate-200",
        Shape::Open { connections: 50, per_second: 200 },
        "200 messages/s over 50 connections, open loop",
        true,
    ),
    remote("idle-5000", Shape::Idle { connections: 5000 }, "5,000 idle connections", true),
    remote("slow-reader", Shape::SlowReader { streams: 16 }, "16 streams whose reader has stopped", true),
    local(
        "local-rr64-1",
        Shape::Rpc { connections: 1, bytes: 64 },
        "one host: 64 B request/response, 1 connection",
        false,
    ),
    local(
        "local-rr64-64",
        Shape::Rpc { connections: 64, bytes: 64 },
        "one host: 64 B request/response, 64 connections",
        true,
    ),
    local(
        "local-rr16k-64",
        Shape::Rpc { connections: 64, bytes: KIB16 },
        "one host: 16 KB request/response, 64 connections",
        false,
    ),
    local(
        "local-down-8",
        Shape::Bulk { way: Way::Down, streams: 8, paced: false },
        "one host: bulk down, 8 streams",
        false,
    ),
];

/// Workloads of that name, or whose name begins with it and a dash.
pub(super) fn select(name: &str) -> Vec<&'static Workload> {
    let fits = |workload: &&Workload| {
        workload.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    WORKLOADS.iter().filter(fits).collect()
}
