//! Where the outcomes of connections go: into the metrics and the access log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access_log::AccessLog;
use super::metrics::Metrics;
use super::refusal_log::RefusalLog;
use crate::application::events::{EventKind, Events, Subject};
use crate::application::ports::{GeoSource, Observer};
use crate::domain::{AppName, Backend, CheckReport, Complaint, Outcome, Phase, Return, Skip, Transition, Witness};

/// Counts every connection and, where wanted, writes its line.
#[derive(Debug)]
pub struct Recorder {
    pub metrics: Arc<Metrics>,
    pub access_log: Option<AccessLog>,
    pub refusals: RefusalLog,
    pub events: Arc<Events>,
}

impl Observer for Recorder {
    fn accepted(&self) {
        self.metrics.accepted();
    }

    fn located(&self, source: GeoSource) {
        self.metrics.located(source);
    }

    fn closed(&self, outcome: &Outcome) {
        self.metrics.closed(outcome);
        if let Some(log) = self.access_log.as_ref().filter(|_| self.refusals.wants(outcome, Instant::now())) {
            log.record(outcome);
        }
    }

    fn health_changed(&self, backend: &Backend, transition: Transition) {
        let (kind, reason) = match transition {
            Transition::Ejected { why, lasts, by } => {
                self.metrics.ejected(why, by);
                (EventKind::BackendEjected, ejection(why, lasts, by))
            }
            Transition::Down { why, after } => {
                let last = backend.load.look(|health| health.checked().last.as_ref().map(|(report, _)| report.words()));
                let last = last.unwrap_or_else(|| why.as_str().to_owned());
                (EventKind::BackendDown, format!("{} failed, the last: {last}", checks(after)))
            }
            Transition::Up { after } => {
                (EventKind::BackendUp, format!("{} passed: {}", checks(after), share(backend, GROWING)))
            }
            Transition::Back { why } => {
                (EventKind::BackendBack, format!("{}: {}", end_of_ejection(why), share(backend, GROWING)))
            }
            Transition::Recovered => {
                (EventKind::BackendRecovered, share(backend, "has its whole share of clients again"))
            }
            Transition::Anew => {
                (EventKind::BackendAnew, "another address or check: what was known of it is forgotten".to_owned())
            }
        };
        self.events.emit(kind, Subject::backend(backend), reason);
    }

    fn checked(&self, report: &CheckReport) {
        self.metrics.checked(report);
    }

    fn fail_open(&self, app: &AppName, begins: bool) {
        let (kind, reason) = if begins {
            let reason = "no backend in service is trusted: those whose checks fail are asked all the same";
            (EventKind::FailOpenBegan, reason)
        } else {
            (EventKind::FailOpenEnded, "a backend is trusted again, or none is in service any more")
        };
        self.events.emit(kind, Subject::app(app), reason);
    }

    fn accept_failed(&self, listener: SocketAddr, kind: &'static str) {
        self.metrics.accept_failed(kind);
        tracing::warn!(%listener, kind, "accept failed; trying again shortly");
    }
}

fn ejection(why: Complaint, lasts: Duration, by: Witness) -> String {
    let (secs, why) = (lasts.as_secs_f64(), why.as_str());
    match by {
        Witness::Client => format!("ejected for {secs} s: it fails its clients ({why})"),
        Witness::Trial => format!("ejected for {secs} s more: it did not accept the POP's own connection ({why})"),
    }
}

const fn end_of_ejection(why: Return) -> &'static str {
    match why {
        Return::Connected => "accepted a client's connection",
        Return::Tried => "accepted the POP's own connection",
        Return::Checked => "a check passed",
        Return::Spared => "did not accept the POP's own connection, but no more of its app's backends may be ejected",
        Return::Surplus => "counts among its app's backends again, of which no more may be ejected",
        Return::Over => "its ejection is over",
        Return::Untried => "its ejection is over, and the POP was not able to try it",
    }
}

const GROWING: &str = "gets a growing share of clients";

/// What a backend gets that is trusted again, by one of those who have a say; `clients` is what that one gives it.
fn share(backend: &Backend, clients: &str) -> String {
    let out = backend.closed_to_new().or_else(|| backend.load.is_draining().then_some(Skip::Drain));
    match (out, backend.load.phase()) {
        (Some(out), _) => format!("gets no new clients all the same, for it is out by the operator's word ({out})"),
        (None, Phase::Ejected(why)) => {
            format!("gets no clients yet, for it is still ejected ({})", why.as_str())
        }
        (None, Phase::Down(why)) => format!("gets no clients yet, for its checks fail ({})", why.as_str()),
        (None, Phase::Up | Phase::SlowStart) => clients.to_owned(),
    }
}

fn checks(count: u32) -> String {
    if count == 1 { "1 check".to_owned() } else { format!("{count} checks in a row") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::application::events::EventsQuery;
    use crate::domain::RawBackend;
    use crate::domain::testing::{backends, eject, row, turn};

    fn recorder() -> Recorder {
        Recorder {
            metrics: Arc::new(Metrics::new(Vec::new())),
            access_log: None,
            refusals: RefusalLog::new(0),
            events: Arc::default(),
        }
    }

    /// Why each of the events came that were told.
    async fn reasons(recorder: &Recorder) -> Vec<String> {
        recorder.events.answer(EventsQuery::default()).await.events.into_iter().map(|event| event.reason).collect()
    }

    #[tokio::test]
    async fn a_backend_that_comes_back_is_said_to_get_what_it_gets() {
        let recorder = recorder();
        let out = RawBackend { state: "maint".into(), ..row("b3", "sa") };
        let backends = backends(&[row("b1", "sa"), row("b2", "sa"), out]);
        turn(&backends[1], false);
        for backend in &backends {
            recorder.health_changed(backend, Transition::Back { why: Return::Tried });
        }
        for backend in [&backends[0], &backends[2]] {
            recorder.health_changed(backend, Transition::Recovered);
        }
        let out = "gets no new clients all the same, for it is out by the operator's word (maint)";
        assert_eq!(
            reasons(&recorder).await,
            [
                "accepted the POP's own connection: gets a growing share of clients",
                "accepted the POP's own connection: gets no clients yet, for its checks fail (refused)",
                &format!("accepted the POP's own connection: {out}"),
                "has its whole share of clients again",
                out,
            ]
        );
    }

    #[tokio::test]
    async fn a_backend_whose_checks_pass_is_said_to_get_what_it_gets() {
        let recorder = recorder();
        let out = RawBackend { state: "maint".into(), ..row("b4", "sa") };
        let backends = backends(&[row("b1", "sa"), row("b2", "sa"), row("b3", "sa"), out]);
        let [_, ejected, draining, _] = &backends[..] else { panic!("{backends:?}") };
        eject(ejected);
        draining.load.set_draining(true);
        for backend in &backends {
            recorder.health_changed(backend, Transition::Up { after: 2 });
        }
        assert_eq!(
            reasons(&recorder).await,
            [
                "2 checks in a row passed: gets a growing share of clients",
                "2 checks in a row passed: gets no clients yet, for it is still ejected (timed_out)",
                "2 checks in a row passed: gets no new clients all the same, for it is out by the operator's word (drain)",
                "2 checks in a row passed: gets no new clients all the same, for it is out by the operator's word (maint)",
            ]
        );
    }
}

#[cfg(test)]
pub(crate) mod sample {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::time::{Duration, UNIX_EPOCH};

    use crate::domain::*;

    /// A connection on the second try, reset by the client.
    pub(crate) fn outcome() -> Outcome {
        Outcome {
            id: 7,
            instance: Instance::new(0xab),
            peer: "192.0.2.33:999".parse().unwrap(),
            proxied: Some(ProxyHeader {
                version: ProxyVersion::V2,
                addresses: Some(proxy::ProxiedAddresses {
                    client: "203.0.113.9:4444".parse().unwrap(),
                    to: "198.51.100.1:443".parse().unwrap(),
                }),
                unique_id: Some("lb-5".to_owned()),
                server_name: Some("www.example.com".to_owned()),
            }),
            announced: Some(ProxyVersion::V1),
            client: "203.0.113.9:4444".parse().unwrap(),
            to: "192.0.2.80:8080".parse().unwrap(),
            listener: Some(ListenerId::parse("0.0.0.0:8080").unwrap()),
            server_name: Some(ServerName::parse("www.example.com").unwrap()),
            app: Some(AppName::parse("web").unwrap()),
            country: Some(CountryCode::parse("BR").unwrap()),
            client_region: Some(Region::parse("sa").unwrap()),
            backend: Some(ChosenBackend {
                id: BackendId::parse("sa-1").unwrap(),
                addr: BackendAddr::new("10.0.0.1".parse().unwrap(), 80).unwrap(),
                region: Region::parse("sa").unwrap(),
                reason: PickReason::ClientRegion,
                binding_yielded: Some(Skip::AtHardLimit),
            }),
            failed: vec![Attempt {
                backend: BackendId::parse("sa-2").unwrap(),
                failure: ConnectFailure::Refused,
                took: Duration::from_micros(250),
            }],
            forwarders: vec![
                Step { forwarder: ForwarderKind::Copy, why: Why::Start, at: Duration::ZERO },
                Step { forwarder: ForwarderKind::Sockmap, why: Why::Lively, at: Duration::from_micros(21_500) },
            ],
            fallback: Some(Fallback::Entangled),
            bytes: ByteCounts { up: 100, down: 2000, kernel_up: 40, kernel_down: 1500 },
            started: UNIX_EPOCH + Duration::from_millis(1500),
            queued: Some(Duration::from_micros(500)),
            connect: Some(Duration::from_micros(1500)),
            duration: Duration::from_millis(2500),
            termination: Termination::ClientReset,
            reject: None,
            reject_detail: None,
            denied_by: None,
        }
    }

    /// A connection that no backend had room for.
    pub(crate) fn rejected() -> Outcome {
        Outcome {
            client: "[::ffff:203.0.113.9]:4444".parse().unwrap(),
            proxied: None,
            announced: None,
            backend: None,
            failed: Vec::new(),
            forwarders: Vec::new(),
            fallback: None,
            bytes: ByteCounts::default(),
            queued: None,
            connect: None,
            termination: Termination::NoBackendAvailable,
            reject: Some(RejectReason::NoBackend(NoBackend::AllFull)),
            ..outcome()
        }
    }
}
