//! The one record of how a connection went: who, where to, why there, how, bytes, times, termination.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::{
    AppName, BackendAddr, BackendId, ConnectionId, CountryCode, Fallback, Instance, ListenerId, NoBackend, PickReason,
    ProxyHeader, ProxyVersion, Region, RuleId, ServerName, Skip, Step,
};

/// Everything that is said about a finished connection. Built once, by `application::serve`.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Unique within one life of the daemon, increasing in the order of accept.
    pub id: u64,
    /// The daemon that the connection came to.
    pub instance: Instance,
    /// Where the connection came from.
    pub peer: SocketAddr,
    /// The client: `peer`, unless a PROXY header names another.
    pub client: SocketAddr,
    /// The PROXY header that the connection began with.
    pub proxied: Option<ProxyHeader>,
    /// The address that the client connected to.
    pub to: SocketAddr,
    pub listener: Option<ListenerId>,
    /// The TLS server name that the client asked for, where it decides between listeners.
    pub server_name: Option<ServerName>,
    pub app: Option<AppName>,
    pub country: Option<CountryCode>,
    pub client_region: Option<Region>,
    /// The backend that was connected; `None` when none was.
    pub backend: Option<ChosenBackend>,
    /// The PROXY header that the backend got.
    pub announced: Option<ProxyVersion>,
    /// The candidates that did not answer, in the order in which they were tried.
    pub failed: Vec<Attempt>,
    /// The forwarders that carried the connection, one after the other; empty when it never got so far.
    pub forwarders: Vec<Step>,
    /// Why the kernel path was wanted and not used, or was left again.
    pub fallback: Option<Fallback>,
    pub bytes: ByteCounts,
    pub started: SystemTime,
    /// Time spent waiting for a place on a backend; `None` where there was no need.
    pub queued: Option<Duration>,
    /// From accept to an established upstream connection.
    pub connect: Option<Duration>,
    /// From accept to the end.
    pub duration: Duration,
    pub termination: Termination,
    /// Set when the proxy itself turned the client away.
    pub reject: Option<RejectReason>,
    /// What exactly was wrong, where the reason leaves that open.
    pub reject_detail: Option<String>,
    /// The rule that denied it.
    pub denied_by: Option<RuleId>,
}

impl Outcome {
    /// The connection's id outside this daemon.
    pub fn connection_id(&self) -> ConnectionId {
        ConnectionId { instance: self.instance, number: self.id }
    }
}

#[derive(Debug, Clone)]
pub struct ChosenBackend {
    pub id: BackendId,
    pub addr: BackendAddr,
    pub region: Region,
    pub reason: PickReason,
    /// Why the client's binding was not honoured, where there was one.
    pub binding_yielded: Option<Skip>,
}

/// Bytes of payload. `up` is client to backend, `down` is backend to client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByteCounts {
    pub up: u64,
    pub down: u64,
    /// The part of `up` that never came to userspace: spliced, or forwarded by the kernel path.
    pub kernel_up: u64,
    /// The part of `down` that never came to userspace.
    pub kernel_down: u64,
}

impl std::ops::Add for ByteCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            up: self.up + other.up,
            down: self.down + other.down,
            kernel_up: self.kernel_up + other.kernel_up,
            kernel_down: self.kernel_down + other.kernel_down,
        }
    }
}

/// One connect that failed.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub backend: BackendId,
    pub failure: ConnectFailure,
    pub took: Duration,
}

/// How a connect to a backend failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectFailure {
    /// RST in answer to our SYN.
    Refused,
    /// No answer within the connect limit.
    TimedOut,
    /// No route, host or network down.
    Unreachable,
    /// This host could not connect (ports, rules): no fault of the backend's.
    Local,
    /// This host is out of descriptors or memory: no other backend would do better.
    Exhausted,
}

impl ConnectFailure {
    pub const ALL: [Self; 5] = [Self::Refused, Self::TimedOut, Self::Unreachable, Self::Local, Self::Exhausted];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Local => "local",
            Self::Exhausted => "exhausted",
        }
    }
}

/// Who ended a connection and in which phase: two letters in HAProxy's sense, and the same in words.
///
/// First letter: `-` nobody (a normal end), `C` the client, `S` the backend, `P` the proxy by its rules,
/// `R` the proxy for want of a resource, `K` an operator, `I` an internal error, `c`/`s` a time limit while
/// waiting for the client or the backend. Second: `R` before a backend was sought, `Q` waiting for a place on one, `C`
/// connecting, `D` forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Termination {
    Normal,
    ClientGone,
    ClientSilent,
    ClientResetQueued,
    ClientResetConnecting,
    ClientReset,
    ClientIdle,
    BackendRefused,
    BackendConnectTimeout,
    BackendReset,
    BackendIdle,
    RejectedByRule,
    QueueFull,
    QueueTimedOut,
    NoBackendAvailable,
    OutOfResources,
    KilledByDrain,
    InternalError,
}

impl Termination {
    pub const ALL: [Self; 18] = [
        Self::Normal,
        Self::ClientGone,
        Self::ClientSilent,
        Self::ClientResetQueued,
        Self::ClientResetConnecting,
        Self::ClientReset,
        Self::ClientIdle,
        Self::BackendRefused,
        Self::BackendConnectTimeout,
        Self::BackendReset,
        Self::BackendIdle,
        Self::RejectedByRule,
        Self::QueueFull,
        Self::QueueTimedOut,
        Self::NoBackendAvailable,
        Self::OutOfResources,
        Self::KilledByDrain,
        Self::InternalError,
    ];

    pub const fn letters(self) -> &'static str {
        match self {
            Self::Normal => "--",
            Self::ClientGone => "CR",
            Self::ClientSilent => "cR",
            Self::ClientResetQueued => "CQ",
            Self::ClientResetConnecting => "CC",
            Self::ClientReset => "CD",
            Self::ClientIdle => "cD",
            Self::BackendRefused => "SC",
            Self::BackendConnectTimeout => "sC",
            Self::BackendReset => "SD",
            Self::BackendIdle => "sD",
            Self::RejectedByRule => "PR",
            Self::QueueFull => "PQ",
            Self::QueueTimedOut => "sQ",
            Self::NoBackendAvailable => "PC",
            Self::OutOfResources => "RR",
            Self::KilledByDrain => "KD",
            Self::InternalError => "ID",
        }
    }

    pub const fn words(self) -> &'static str {
        match self {
            Self::Normal => "both sides closed",
            Self::ClientGone => "client gone before a backend was sought",
            Self::ClientSilent => "time limit reached while waiting for the client's first bytes",
            Self::ClientResetQueued => "client gone while waiting for a place on a backend",
            Self::ClientResetConnecting => "client gone while connecting to a backend",
            Self::ClientReset => "client reset the connection",
            Self::ClientIdle => "time limit reached while waiting for the client",
            Self::BackendRefused => "no candidate accepted the connection",
            Self::BackendConnectTimeout => "connect time limit reached",
            Self::BackendReset => "backend reset the connection",
            Self::BackendIdle => "time limit reached while waiting for the backend",
            Self::RejectedByRule => "turned away by a rule or limit",
            Self::QueueFull => "all backends full, and as many clients waiting as may",
            Self::QueueTimedOut => "time limit reached while waiting for a place on a backend",
            Self::NoBackendAvailable => "no eligible backend",
            Self::OutOfResources => "this host is out of a resource",
            Self::KilledByDrain => "cut at the end of a drain",
            Self::InternalError => "internal error, see the log",
        }
    }
}

/// Why the proxy itself turned a client away. A bounded set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Nobody listens there any more.
    NoListener,
    /// No listener has the client's TLS server name, and none takes all names.
    UnknownServerName,
    /// The client names no TLS server, and no listener takes those who don't.
    NoServerName,
    /// What the client says begins as TLS does and is not; no listener takes all names.
    BadClientHello,
    /// The client took too long to say which TLS server it wants.
    ServerNameTimeout,
    /// The listener leads to no app: none is configured and the database has none or several.
    NoApp,
    /// The app has no backends that may take this client.
    NoBackend(NoBackend),
    /// The daemon holds as many connections as it may.
    MaxConnections,
    /// A PROXY header is required, and this address may not send one.
    ProxyUntrusted,
    /// A PROXY header is required, and the connection began with something else.
    ProxyMissing,
    /// What began like a PROXY header is none that is taken.
    ProxyMalformed,
    /// The PROXY header was not whole in time.
    ProxyTimeout,
    /// The listener does.
    ListenerConnections,
    /// A rule keeps the client away.
    Denied,
    /// The client's source prefix has as many connections as it may.
    SourceConnections,
    /// It comes more often than it may.
    SourceRate,
    /// All backends are full, and as many clients wait for a place as may.
    QueueFull,
    /// No place on a backend became free in time.
    QueueTimedOut,
}

impl RejectReason {
    pub fn all() -> impl Iterator<Item = Self> {
        let rules = [
            Self::NoListener,
            Self::UnknownServerName,
            Self::NoServerName,
            Self::BadClientHello,
            Self::ServerNameTimeout,
            Self::NoApp,
            Self::MaxConnections,
            Self::ListenerConnections,
        ];
        let header = [Self::ProxyUntrusted, Self::ProxyMissing, Self::ProxyMalformed, Self::ProxyTimeout];
        let rules = rules.into_iter().chain(header).chain([Self::Denied, Self::SourceConnections, Self::SourceRate]);
        let rules = rules.chain([Self::QueueFull, Self::QueueTimedOut]);
        rules.chain(NoBackend::ALL.into_iter().map(Self::NoBackend))
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoListener => "no_listener",
            Self::UnknownServerName => "unknown_server_name",
            Self::NoServerName => "no_server_name",
            Self::BadClientHello => "bad_client_hello",
            Self::ServerNameTimeout => "server_name_timeout",
            Self::NoApp => "no_app",
            Self::NoBackend(why) => why.as_str(),
            Self::MaxConnections => "max_connections",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::ProxyMissing => "proxy_missing",
            Self::ProxyMalformed => "proxy_malformed",
            Self::ProxyTimeout => "proxy_timeout",
            Self::ListenerConnections => "listener_connections",
            Self::Denied => "denied",
            Self::SourceConnections => "source_connections",
            Self::SourceRate => "source_rate",
            Self::QueueFull => "queue_full",
            Self::QueueTimedOut => "queue_timed_out",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn letters_are_two_and_tell_terminations_apart() {
        let letters: HashSet<_> = Termination::ALL.iter().map(|t| t.letters()).collect();
        assert_eq!(letters.len(), Termination::ALL.len());
        assert!(letters.iter().all(|l| l.len() == 2));
    }
}
