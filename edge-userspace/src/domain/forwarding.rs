//! What moves the bytes of a connection, since when and why.

use std::time::Duration;

/// What moves the bytes of an established pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ForwarderKind {
    /// recv and send in the daemon.
    Copy,
    /// splice(2) through a pipe, wherever much is to be moved at once; what is small is copied.
    Splice,
    /// Redirected between the sockets by a BPF program.
    Sockmap,
    /// Handed by a BPF program from one application of this host to another, without TCP.
    SkMsg,
    /// For tests: copy and splice on sockets that fail and stall at random.
    Chaos,
}

impl ForwarderKind {
    pub const ALL: [Self; 5] = [Self::Copy, Self::Splice, Self::Sockmap, Self::SkMsg, Self::Chaos];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::SkMsg => "sk_msg",
            Self::Chaos => "chaos",
        }
    }
}

/// A forwarder took over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub forwarder: ForwarderKind,
    pub why: Why,
    /// Since the pair was established.
    pub at: Duration,
}

/// Why a connection got a forwarder. A bounded set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The operator named it.
    Configured,
    /// With `auto` every connection begins so.
    Start,
    /// Much to move at once.
    Bulk,
    /// Many messages, back and forth.
    Lively,
    /// Client and backend are applications of this host, and the backend is marked so.
    SameHost,
    /// The operator changed the policy while the connection ran.
    Switched,
    /// The kernel path was wanted and could not be had, or was left.
    Fallback(Fallback),
}

impl Why {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Start => "start",
            Self::Bulk => "bulk",
            Self::Lively => "lively",
            Self::SameHost => "same_host",
            Self::Switched => "switched",
            Self::Fallback(fallback) => fallback.as_str(),
        }
    }

    /// All values.
    pub fn all() -> impl Iterator<Item = Self> {
        let own = [Self::Configured, Self::Start, Self::Bulk, Self::Lively, Self::SameHost, Self::Switched];
        own.into_iter().chain(Fallback::ALL.into_iter().map(Self::Fallback))
    }
}

/// Why a connection did not take, or did not stay on, the kernel path. A bounded set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// The kernel path is off for the whole daemon (`status` says why).
    Unavailable,
    /// All flow records are in use (`max_flows`).
    NoFreeRecord,
    /// The kernel refused a socket, usually because the peer had closed already.
    InsertRefused,
    /// A direction waited behind the other's backlog, so both were gated to userspace.
    Entangled,
    /// The receiver was too slow again and again, so both directions were gated to userspace.
    Spilling,
    /// The backend has the mark `same_host`, but its socket is not among those of the named cgroups.
    NotLocal,
    /// The client or the marked backend reads with blocking calls, which a hand-over can't serve.
    Blocking,
    /// The backend lost the mark `same_host` (`status` says why).
    Withdrawn,
    /// The backend has the mark `same_host`, and the client's connection began with a PROXY header.
    ProxyHeader,
}

impl Fallback {
    pub const ALL: [Self; 9] = [
        Self::Unavailable,
        Self::NoFreeRecord,
        Self::InsertRefused,
        Self::Entangled,
        Self::Spilling,
        Self::NotLocal,
        Self::Blocking,
        Self::Withdrawn,
        Self::ProxyHeader,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::NoFreeRecord => "no_free_record",
            Self::InsertRefused => "insert_refused",
            Self::Entangled => "entangled",
            Self::Spilling => "spilling",
            Self::NotLocal => "not_local",
            Self::Blocking => "blocking",
            Self::Withdrawn => "withdrawn",
            Self::ProxyHeader => "proxy_header",
        }
    }
}
