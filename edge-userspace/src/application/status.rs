//! What the daemon says about itself. The shape of `GET /api/v1/status` and of `edgeproxy status --json`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::bindings::BindingFileStatus;
pub use super::listening::{ListenerStatus, SteeringStatus};
use super::routing::{ReloadReport, RoutingTable};
use crate::domain::{AppIndex, Backend, CheckSpec, ProxyVersion};

/// Everything an operator wants to know first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_secs: f64,
    /// The region of this POP.
    pub region: String,
    pub state: PopState,
    pub listeners: Vec<ListenerStatus>,
    /// Of the program that answers for prefixes and ranges of ports.
    pub steering: SteeringStatus,
    pub workers: u32,
    /// Capabilities that the daemon kept when it gave up its privileges.
    pub capabilities: Vec<String>,
    pub routing: RoutingStatus,
    pub backends: Vec<BackendStatus>,
    /// Apps whose backends in service are all out: those whose checks fail are asked all the same.
    pub fail_open: Vec<String>,
    pub forwarder: ForwarderStatus,
    pub connections: ConnectionStatus,
    pub limits: LimitsStatus,
    /// Clients that are bound to a backend, those included whose time has ended and that are not yet swept out.
    pub bindings: u64,
    /// Where bindings are kept across restarts; `None` if they aren't.
    #[serde(default)]
    pub binding_file: Option<BindingFileStatus>,
    pub geo: GeoStatus,
    /// Events since the start, by kind; kinds that have not occurred are left out.
    pub events: BTreeMap<String, u64>,
}

/// Where the daemon is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PopState {
    Ready,
    Draining,
}

impl PopState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for PopState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The routing snapshot in force and how the last reload went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RoutingStatus {
    pub generation: u64,
    pub apps: u64,
    pub backends: u64,
    pub last_reload: ReloadStatus,
    /// Reloads since the start that changed the snapshot, and those that were refused.
    pub reloads_ok: u64,
    pub reloads_rejected: u64,
    /// Rows of the last read that are bad; each keeps its last good version.
    pub rejected_rows: Vec<RejectedRow>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Seconds since it ended; `None` before the first.
    pub age_secs: Option<f64>,
    pub ok: bool,
    /// Why it was refused as a whole.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRow {
    /// The table and the key of the row.
    pub row: String,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    pub id: String,
    pub app: String,
    pub region: String,
    pub addr: String,
    /// `ready`, `drain` or `maint`.
    pub state: String,
    pub healthy: bool,
    /// An operator told this daemon to give it no new connections (`edgeproxy backends drain`).
    #[serde(default)]
    pub draining: bool,
    /// Seconds until what is left of its connections is cut; `None`: never.
    #[serde(default)]
    pub cut_in_secs: Option<f64>,
    /// As its connections and its checks see it: `up`, `ejected`, `slow_start` or `down`, and why it is ejected or down.
    pub health: String,
    pub health_why: Option<String>,
    /// `None` where it is not checked.
    pub check: Option<CheckStatus>,
    pub weight: u32,
    pub soft_limit: u32,
    /// 0 = unlimited.
    pub hard_limit: u32,
    /// The PROXY header it gets: `off`, `v1` or `v2`.
    pub send_proxy: String,
    /// As the balancer counts them.
    pub connections: u32,
    /// Measured round-trip time to it; `None`: nobody has measured it lately.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// As the kernel counts them, read back from the BPF map; `None` without one.
    pub kernel_connections: Option<u32>,
}

/// What the checks of a backend say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// The check, as the operator wrote it.
    pub check: String,
    /// `unknown` before the first check (trusted), `up` or `down`, and for how long.
    pub state: String,
    pub since_secs: Option<f64>,
    /// Checks in a row that speak against the state.
    pub against: u32,
    /// The last check: its result, more in words, how long it took, and how long ago it was.
    pub result: Option<String>,
    pub detail: Option<String>,
    pub took_ms: Option<f64>,
    pub age_secs: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwarderStatus {
    /// What the operator asks for.
    pub configured: String,
    /// What new connections get.
    pub active: String,
    /// Whether connections may take the kernel path.
    pub kernel_path: bool,
    /// Why the kernel path is off; `None` while it is on or not wanted.
    pub why: Option<String>,
    /// The same in a word.
    pub off: Option<KernelPathOff>,
    /// The BPF programs are being loaded, as in the first moments of a daemon: connections go without.
    pub loading: bool,
    /// Connections whose byte counts disagreed: each switched the kernel path off.
    pub byte_mismatches: u64,
    /// How the self-test of the kernel path ended; `None` when it was not run.
    pub self_test: Option<String>,
    pub flows_in_kernel: u64,
    /// Bytes the kernel has forwarded, flows that still run included.
    pub kernel_bytes: u64,
    pub kernel_packets: KernelPackets,
    pub same_host: SameHostStatus,
}

/// What became of packets on the kernel path, on flows that still run, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelPackets {
    /// Given to the other socket in the kernel.
    pub redirected: u64,
    /// Left to the daemon, because the other socket had no room.
    pub spilled: u64,
    /// Nothing but the end of a stream.
    pub ends: u64,
    /// Dropped by TCP on sockets of these flows: old duplicates, probes, and acknowledgements after an end.
    pub dropped: u64,
    /// Times that some were dropped while neither stream of a flow had ended, for which its bytes were compared at once.
    #[serde(default)]
    pub drop_checks: u64,
    /// Bytes cut off retransmissions that had been forwarded before.
    pub trimmed_bytes: u64,
}

/// The path between applications of this host, for backends with the mark `same_host`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SameHostStatus {
    /// Why the mark has no effect; `None` while it has.
    pub why: Option<String>,
    /// Backends that have it, those included that lost it.
    pub marked: u64,
    pub flows: u64,
    /// Bytes handed over by flows that have ended.
    pub bytes: u64,
    /// Backends that lost the mark until a restart, and why.
    pub withdrawn: BTreeMap<String, String>,
    /// Named cgroups whose applications don't take part now, and why.
    #[serde(default)]
    pub missing_cgroups: BTreeMap<String, String>,
}

/// Why the kernel path is off, where it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelPathOff {
    /// This kernel's sockmap is known to lose data.
    DeniedKernel,
    /// A capability is missing.
    Capability,
    /// The programs could not be loaded for another reason.
    Load,
    SelfTest,
    /// Byte counts of a connection disagreed.
    ByteMismatch,
}

impl KernelPathOff {
    pub const ALL: [Self; 5] = [Self::DeniedKernel, Self::Capability, Self::Load, Self::SelfTest, Self::ByteMismatch];

    /// As in the status and in the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeniedKernel => "denied_kernel",
            Self::Capability => "capability",
            Self::Load => "load",
            Self::SelfTest => "self_test",
            Self::ByteMismatch => "byte_mismatch",
        }
    }
}

/// What `POST /api/v1/forwarder` asks for: a value of the setting `forwarder`, or `off` for `copy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwarderRequest {
    pub forwarder: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    pub active: u64,
    pub accepted: u64,
    pub closed: u64,
    /// By reason; reasons that have not occurred are left out.
    pub rejected: BTreeMap<String, u64>,
}

/// What is counted for limits. The numbers are those of live connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// Also those whose row is gone, while they have connections.
    pub listeners: Vec<ListenerLoad>,
    /// Apps with a queue, or with clients that wait.
    pub queues: Vec<QueueStatus>,
    /// Sources with connections; 0 where sources have no limits.
    pub sources_connected: u64,
    /// Sources without connections that are remembered for their rate, and how many may be.
    pub sources_remembered: u64,
    pub sources_capacity: u64,
    /// Pauses of listeners because more than `max_connection_rate` came.
    pub accept_pauses: u64,
    /// Refusals that were left out of the access log.
    pub refusals_not_logged: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerLoad {
    pub listener: String,
    pub connections: u32,
    /// 0 = no limit of its own.
    pub max_connections: u32,
}

/// Clients that wait for a place on a backend of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    pub app: String,
    pub waiting: u64,
    /// How many may.
    pub length: u32,
}

impl QueueStatus {
    /// `None` for apps without a queue.
    pub fn of(app: &AppIndex) -> Option<Self> {
        let (waiting, length) = (app.queue().len() as u64, app.spec().queue.length);
        (waiting > 0 || length > 0).then(|| Self { app: app.name().to_string(), waiting, length })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeoStatus {
    /// The file, or `embedded`.
    pub source: String,
    pub build_date: Option<String>,
    pub licence: Option<String>,
}

/// What is asked of a reload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    /// Accept an empty table where there was a full one.
    #[serde(default)]
    pub allow_empty: bool,
}

/// How a reload went that was not refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    pub generation: u64,
    /// Backends in the new snapshot.
    pub accepted: u64,
    pub apps: u64,
    pub rejected_rows: Vec<RejectedRow>,
}

impl RoutingStatus {
    /// Of the table at this moment.
    pub fn of(table: &RoutingTable, now: SystemTime) -> Self {
        let (status, snapshot) = (table.status(), table.load());
        let age = status.tried_at.map(|at| now.duration_since(at).unwrap_or_default().as_secs_f64());
        Self {
            generation: snapshot.generation(),
            apps: snapshot.apps().len() as u64,
            backends: snapshot.backends().count() as u64,
            last_reload: ReloadStatus {
                age_secs: age,
                ok: age.is_some() && status.error.is_none(),
                error: status.error.clone(),
            },
            reloads_ok: status.accepted_total,
            reloads_rejected: status.refused_total,
            rejected_rows: rejected(&status.report),
        }
    }
}

impl BackendStatus {
    /// `kernel` is the kernel's count of the backend's connections; `check` is how it is checked.
    pub fn of(backend: &Backend, kernel: Option<u32>, check: Option<&CheckSpec>) -> Self {
        let phase = backend.load.phase();
        Self {
            id: backend.id.to_string(),
            app: backend.app.to_string(),
            region: backend.region.to_string(),
            addr: backend.addr.socket_addr().to_string(),
            state: backend.state.to_string(),
            healthy: backend.healthy,
            draining: backend.load.is_draining(),
            cut_in_secs: None,
            health: phase.as_str().to_owned(),
            health_why: phase.why().map(str::to_owned),
            check: check.map(|check| CheckStatus::of(backend, check, Instant::now())),
            weight: backend.weight.0,
            soft_limit: backend.limits.soft(),
            hard_limit: backend.limits.hard(),
            send_proxy: ProxyVersion::shown(backend.send_proxy).to_owned(),
            connections: backend.load.active(),
            rtt_ms: backend.load.rtt().estimate(Instant::now()).map(millis),
            kernel_connections: kernel,
        }
    }
}

impl CheckStatus {
    fn of(backend: &Backend, check: &CheckSpec, now: Instant) -> Self {
        let secs = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        backend.load.look(|health| {
            let checked = health.checked();
            let last = checked.last.as_ref();
            Self {
                check: check.to_string(),
                state: checked.verdict.as_str().to_owned(),
                since_secs: checked.since.map(secs),
                against: checked.against,
                result: last.map(|(report, _)| report.result.as_str().to_owned()),
                detail: last.and_then(|(report, _)| report.detail.clone()),
                took_ms: last.map(|(report, _)| report.took.as_secs_f64() * 1000.0),
                age_secs: last.map(|(_, at)| secs(*at)),
            }
        })
    }
}

/// With a resolution of 1 µs.
pub(super) fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

impl From<&ReloadReport> for ReloadAnswer {
    fn from(report: &ReloadReport) -> Self {
        Self {
            generation: report.generation,
            accepted: report.accepted as u64,
            apps: report.apps as u64,
            rejected_rows: rejected(report),
        }
    }
}

fn rejected(report: &ReloadReport) -> Vec<RejectedRow> {
    report.rejected.iter().map(|(row, why)| RejectedRow { row: row.clone(), why: why.clone() }).collect()
}

impl fmt::Display for GeoStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        [&self.build_date, &self.licence].into_iter().flatten().try_for_each(|part| write!(f, " · {part}"))
    }
}

#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    /// A status with something in every field.
    pub(crate) fn status() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            pid: 42,
            uptime_secs: 3725.5,
            region: "sa".to_owned(),
            state: PopState::Ready,
            listeners: vec![
                ListenerStatus {
                    id: "0.0.0.0:8080".to_owned(),
                    place: "0.0.0.0:8080".to_owned(),
                    source: "settings".to_owned(),
                    how: Some("bind".to_owned()),
                    app: Some("web".to_owned()),
                    server_names: Vec::new(),
                    open: true,
                    why: None,
                },
                ListenerStatus {
                    id: "tls".to_owned(),
                    place: "192.0.2.1:443".to_owned(),
                    source: "database".to_owned(),
                    server_names: vec!["www.example.com".to_owned(), "*.example.org".to_owned()],
                    why: Some("address 192.0.2.1:443 is in use".to_owned()),
                    ..ListenerStatus::default()
                },
            ],
            steering: SteeringStatus {
                available: true,
                why: None,
                prefixes: 3,
                verdicts: BTreeMap::from([("steered".to_owned(), 12)]),
            },
            workers: 2,
            capabilities: vec!["CAP_NET_BIND_SERVICE".to_owned()],
            routing: RoutingStatus {
                generation: 7,
                apps: 1,
                backends: 1,
                last_reload: ReloadStatus { age_secs: Some(3.0), ok: false, error: Some("file is locked".to_owned()) },
                reloads_ok: 3,
                reloads_rejected: 1,
                rejected_rows: vec![RejectedRow { row: "backend b9".to_owned(), why: "port 0".to_owned() }],
            },
            backends: vec![BackendStatus {
                id: "sa-\"1\"".to_owned(),
                app: "web".to_owned(),
                region: "sa".to_owned(),
                addr: "10.0.0.1:80".to_owned(),
                state: "ready".to_owned(),
                healthy: true,
                draining: false,
                cut_in_secs: None,
                health: "ejected".to_owned(),
                health_why: Some("timed_out".to_owned()),
                check: Some(CheckStatus {
                    check: "http path=/healthz".to_owned(),
                    state: "down".to_owned(),
                    since_secs: Some(12.4),
                    against: 1,
                    result: Some("wrong_status".to_owned()),
                    detail: Some("status 503".to_owned()),
                    took_ms: Some(3.25),
                    age_secs: Some(0.7),
                }),
                weight: 2,
                soft_limit: 10,
                hard_limit: 0,
                send_proxy: "v2".to_owned(),
                connections: 3,
                rtt_ms: Some(1.25),
                kernel_connections: Some(3),
            }],
            fail_open: vec!["web".to_owned()],
            forwarder: ForwarderStatus {
                configured: "auto".to_owned(),
                active: "copy".to_owned(),
                kernel_path: false,
                why: Some("needs CAP_BPF".to_owned()),
                off: Some(KernelPathOff::Capability),
                loading: false,
                byte_mismatches: 2,
                self_test: None,
                flows_in_kernel: 5,
                kernel_bytes: 1_000_000,
                kernel_packets: KernelPackets {
                    redirected: 900,
                    spilled: 7,
                    ends: 2,
                    dropped: 3,
                    drop_checks: 1,
                    trimmed_bytes: 400,
                },
                same_host: SameHostStatus {
                    why: Some("same_host_cgroup names no cgroup".to_owned()),
                    marked: 1,
                    flows: 0,
                    bytes: 0,
                    withdrawn: BTreeMap::from([("sa-2".to_owned(), "counts disagree".to_owned())]),
                    missing_cgroups: BTreeMap::from([("/sys/fs/cgroup/api".to_owned(), "it is not there".to_owned())]),
                },
            },
            connections: ConnectionStatus {
                active: 3,
                accepted: 10,
                closed: 7,
                rejected: BTreeMap::from([("no_app".to_owned(), 2)]),
            },
            limits: LimitsStatus {
                listeners: vec![ListenerLoad { listener: "web".to_owned(), connections: 3, max_connections: 100 }],
                queues: vec![QueueStatus { app: "web".to_owned(), waiting: 4, length: 50 }],
                sources_connected: 2,
                sources_remembered: 6,
                sources_capacity: 1000,
                accept_pauses: 5,
                refusals_not_logged: 8,
            },
            bindings: 9,
            binding_file: Some(BindingFileStatus {
                path: "/var/lib/edgeproxy/bindings".to_owned(),
                restored: 5,
                saves_ok: 4,
                saves_failed: 1,
                age_secs: Some(2.0),
                took_secs: 0.5,
                bindings: 8,
                bytes: 300,
                error: Some("the disk is full".to_owned()),
            }),
            geo: GeoStatus {
                source: "embedded".to_owned(),
                build_date: Some("2026-01-01".to_owned()),
                licence: Some("PDDL".to_owned()),
            },
            events: BTreeMap::from([("ready".to_owned(), 1)]),
        }
    }
}
