//! Why a client is turned away, as its outcome tells it.

use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::domain::{Attempt, ConnectFailure, NoBackend, Outcome, RejectReason, Termination};

/// Why a client is turned away.
pub(super) struct Refusal {
    pub(super) termination: Termination,
    pub(super) reject: Option<RejectReason>,
    /// What exactly was wrong, where the reason leaves that open.
    pub(super) detail: Option<String>,
}

impl Refusal {
    pub(super) fn because(termination: Termination) -> Self {
        Self { termination, reject: None, detail: None }
    }

    /// The client went while it waited for a place on a backend, or for an answer of one.
    pub(super) fn client_gone(waited: bool) -> Self {
        Self::because(if waited { Termination::ClientResetQueued } else { Termination::ClientResetConnecting })
    }

    pub(super) fn rule(reason: RejectReason) -> Self {
        Self { reject: Some(reason), ..Self::because(Termination::RejectedByRule) }
    }

    /// The client did not say in time what it had to say.
    pub(super) fn silent(reason: RejectReason) -> Self {
        Self { reject: Some(reason), ..Self::because(Termination::ClientSilent) }
    }

    pub(super) fn detail(self, detail: String) -> Self {
        Self { detail: Some(detail), ..self }
    }

    /// Puts it on record, and has the connection end with a reset, not with an end of its stream: the client must not take
    /// this for an empty answer.
    pub(super) fn turn_away(self, client: &TcpStream, outcome: &mut Outcome) {
        outcome.termination = self.termination;
        outcome.reject = self.reject;
        outcome.reject_detail = self.detail;
        let _ = SockRef::from(client).set_linger(Some(Duration::ZERO));
    }

    pub(super) fn no_backend(why: NoBackend) -> Self {
        Self { reject: Some(RejectReason::NoBackend(why)), ..Self::because(Termination::NoBackendAvailable) }
    }

    /// Candidates were tried and none answered.
    pub(super) fn after(failed: &[Attempt]) -> Self {
        Self::because(match failed.last().map(|attempt| attempt.failure) {
            Some(ConnectFailure::TimedOut) => Termination::BackendConnectTimeout,
            Some(ConnectFailure::Local | ConnectFailure::Exhausted) => Termination::OutOfResources,
            _ => Termination::BackendRefused,
        })
    }
}
