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
    /// For tests: copy and splice on sockets that fail and stall at random.
    Chaos,
}

impl ForwarderKind {
    pub const ALL: [Self; 4] = [Self::Copy, Self::Splice, Self::Sockmap, Self::Chaos];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
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
            Self::Switched => "switched",
            Self::Fallback(fallback) => fallback.as_str(),
        }
    }

    /// All values.
    pub fn all() -> impl Iterator<Item = Self> {
        let own = [Self::Configured, Self::Start, Self::Bulk, Self::Lively, Self::Switched];
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
}

impl Fallback {
    pub const ALL: [Self; 5] =
        [Self::Unavailable, Self::NoFreeRecord, Self::InsertRefused, Self::Entangled, Self::Spilling];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::NoFreeRecord => "no_free_record",
            Self::InsertRefused => "insert_refused",
            Self::Entangled => "entangled",
            Self::Spilling => "spilling",
        }
    }
}
