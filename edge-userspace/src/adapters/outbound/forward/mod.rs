//! The forwarders behind one port, and which of them a connection gets.

mod chaos;
mod choice;
mod crowd;
mod delivery;
pub mod kernel;
mod lane;
pub mod pipe;
mod pump;
pub mod same_host;
pub mod self_test;
mod socket;
mod sockmap;
pub mod state;
mod stream;

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use self::chaos::Chaos;
pub use self::chaos::Odds;
use self::choice::Choice;
pub use self::choice::{SpillLimits, Thresholds};
use self::lane::Both;
use self::pump::{Pump, PumpEnd};
use self::same_host::Instead;
pub use self::same_host::{SameHost, SameHostLimits};
#[cfg(test)]
pub(crate) use self::socket::counts_what_is_left;
pub(crate) use self::socket::{count_what_is_left, queue_len, set_low_water};
use self::sockmap::Offload;
pub use self::state::{Disagreement, Found, KernelPath, Policy, PolicyError};
use crate::application::drain::Cut;
use crate::application::flows::Flow;
use crate::application::ports::{ForwardReport, Forwarder, Pair};
use crate::domain::{BackendId, ByteCounts, Fallback, ForwarderKind, Termination, Why};

/// The round-trip time to the socket's peer, if TCP has measured it lately.
pub fn round_trip(socket: BorrowedFd<'_>) -> Option<Duration> {
    socket::round_trip(socket)
}

/// A long flow tells its round-trip time so often.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// How long a pair may be quiet.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimits {
    /// Both streams open, nothing received from either side.
    pub idle: Duration,
    /// One stream ended, nothing received on the other.
    pub half_close: Duration,
}

/// What shapes forwarding, from the settings.
#[derive(Debug, Clone, Copy)]
pub struct ForwardRules {
    pub limits: TimeLimits,
    /// When connections are spliced, and when `auto` takes the kernel path.
    pub thresholds: Thresholds,
    /// Of the forwarder `chaos`.
    pub odds: Odds,
}

/// Forwards pairs by the policy of the moment.
#[derive(Debug, Clone)]
pub struct Forwarders {
    path: Arc<KernelPath>,
    same_host: Arc<SameHost>,
    rules: ForwardRules,
    cut: Arc<Cut>,
}

impl Forwarders {
    /// `cut` ends the pairs that are left at a drain's deadline.
    pub fn new(path: Arc<KernelPath>, same_host: Arc<SameHost>, rules: ForwardRules, cut: Arc<Cut>) -> Self {
        Self { path, same_host, rules, cut }
    }

    /// By the policy of this moment.
    // Here and below an `async fn` would hold its arguments twice, the sockets among them.
    fn ordinary(&self, sockets: Both<TcpStream>, header: u64, flow: &Flow) -> impl Future<Output = Report> + Send {
        let policy = self.path.policy();
        // Wanted, and not to be had for anybody. While the programs are being loaded nothing is known yet.
        let unavailable = policy.wants_kernel() && !self.path.is_open() && !self.path.is_loading();
        let fresh = Report { header, fallback: unavailable.then_some(Fallback::Unavailable), ..Report::default() };
        async move {
            match policy {
                Policy::Sockmap => Box::pin(self.offload(sockets, fresh, Why::Configured, flow)).await,
                Policy::Chaos => {
                    flow.step(ForwarderKind::Chaos, Why::Configured);
                    Box::pin(self.chaos(sockets, header, flow)).await
                }
                Policy::Auto | Policy::Copy | Policy::Splice => {
                    let why = if policy == Policy::Auto { Why::Start } else { Why::Configured };
                    flow.step(ForwarderKind::Copy, why);
                    // A pair that is in the kernel from the start has no use for the room.
                    Box::pin(self.pump(sockets, fresh, flow)).await
                }
            }
        }
    }

    /// To a backend that the operator marked: straight from application to application, where both are on this host.
    #[allow(clippy::manual_async_fn)]
    fn marked(
        &self,
        sockets: Both<TcpStream>,
        backend: BackendId,
        header: u64,
        flow: &Flow,
    ) -> impl Future<Output = Report> + Send {
        async move {
            let (limits, cut) = (&self.rules.limits, &self.cut);
            match Box::pin(self.same_host.forward(sockets, &backend, header == 0, flow, limits, cut)).await {
                Ok(ended) => {
                    // What it means is told by the mark.
                    if ended.disagreed {
                        self.path.count_mismatch();
                    }
                    Report { bytes: ended.bytes, fallback: ended.fallback, ..Report::default() }
                        .ended(ended.termination)
                }
                Err(Instead { sockets, why }) => {
                    let report = Box::pin(self.ordinary(sockets, header, flow)).await;
                    Report { fallback: why.or(report.fallback), ..report }
                }
            }
        }
    }

    /// In userspace, until it ends or the kernel path should have it.
    fn pump(&self, sockets: Both<TcpStream>, before: Report, flow: &Flow) -> impl Future<Output = Report> + Send {
        let mut choice = Choice::new(&self.path, &self.rules.thresholds);
        match before.fallback {
            // What is off for everybody may come back, and so do records; what one connection was refused does not.
            None | Some(Fallback::Unavailable) => {}
            Some(Fallback::NoFreeRecord) => choice.postpone(before.found_full),
            Some(_) => choice.bar(),
        }
        let mut pump = Pump::new(sockets, flow, before.bytes);
        async move {
            let end = Box::pin(pump.run(&self.rules.limits, &self.cut, &mut choice)).await;
            let report = Report { bytes: pump.bytes(), ..before };
            match end {
                PumpEnd::Finished(termination) => {
                    if let Some(what) = pump.audit(before.header, termination) {
                        self.path.distrust(&what, report.bytes.kernel_up + report.bytes.kernel_down > 0);
                    }
                    report.ended(termination)
                }
                PumpEnd::Promote(why) => Box::pin(self.offload(pump.sockets, report, why, flow)).await,
            }
        }
    }

    /// Hands the pair to the kernel, or to the pump where that can't be done.
    fn offload(
        &self,
        sockets: Both<TcpStream>,
        before: Report,
        why: Why,
        flow: &Flow,
    ) -> impl Future<Output = Report> + Send {
        let kernel = self.path.kernel();
        async move {
            let Some(kernel) = kernel else {
                return self.fall_back(sockets, before, Fallback::Unavailable, flow).await;
            };
            let Both { client, backend } = sockets;
            // Out of tokio's epoll: it would be woken by every redirected packet.
            let (Ok(client), Ok(backend)) = (client.into_std(), backend.into_std()) else {
                return before.ended(Termination::OutOfResources);
            };
            match Offload::begin(kernel, Both { client, backend }, before.bytes, before.header) {
                Ok(offload) => {
                    flow.step(ForwarderKind::Sockmap, why);
                    let demotes = || (self.path.policy() == Policy::Auto).then_some(self.rules.thresholds.spill);
                    let report = Box::pin(offload.run(&self.rules.limits, &self.cut, flow, &demotes)).await;
                    if let Some(what) = &report.corrupt {
                        self.path.condemn(what);
                    }
                    Report { bytes: before.bytes + report.bytes, fallback: report.fallback, ..before }
                        .ended(report.termination)
                }
                Err((fallback, Both { client, backend })) => {
                    match (TcpStream::from_std(client), TcpStream::from_std(backend)) {
                        (Ok(client), Ok(backend)) => {
                            self.fall_back(Both { client, backend }, before, fallback, flow).await
                        }
                        _ => before.ended(Termination::OutOfResources),
                    }
                }
            }
        }
    }

    /// In userspace, because the kernel path can't be had.
    async fn fall_back(&self, sockets: Both<TcpStream>, before: Report, why: Fallback, flow: &Flow) -> Report {
        flow.step(ForwarderKind::Copy, Why::Fallback(why));
        let found_full = before.found_full.saturating_add(u32::from(why == Fallback::NoFreeRecord));
        Box::pin(self.pump(sockets, Report { fallback: Some(why), found_full, ..before }, flow)).await
    }

    /// On sockets that fail and stall at random.
    async fn chaos(&self, sockets: Both<TcpStream>, header: u64, flow: &Flow) -> Report {
        let Both { client, backend } = sockets;
        let sockets =
            Both { client: Chaos::new(client, self.rules.odds), backend: Chaos::new(backend, self.rules.odds) };
        let mut choice = Choice::new(&self.path, &self.rules.thresholds);
        let mut pump = Pump::new(sockets, flow, ByteCounts::default());
        match Box::pin(pump.run(&self.rules.limits, &self.cut, &mut choice)).await {
            PumpEnd::Finished(termination) => {
                pump.audit(header, termination).into_iter().for_each(|what| self.path.distrust(&what, false));
                Report { bytes: pump.bytes(), ..Report::default() }.ended(termination)
            }
            // No kernel path is loaded for chaos.
            PumpEnd::Promote(_) => Report::default().ended(Termination::InternalError),
        }
    }
}

/// How far a connection got, while forwarders take turns.
#[derive(Debug, Clone, Copy, Default)]
struct Report {
    /// Bytes read from the client before, a PROXY header.
    header: u64,
    bytes: ByteCounts,
    fallback: Option<Fallback>,
    /// How often it found no free record.
    found_full: u32,
    termination: Option<Termination>,
}

impl Report {
    fn ended(self, termination: Termination) -> Self {
        Self { termination: Some(termination), ..self }
    }
}

impl Forwarder for Forwarders {
    fn expect_same_host(&self, backend: SocketAddr) {
        self.same_host.expect(backend.port());
    }

    fn forward(&self, pair: Pair, flow: &Flow) -> impl Future<Output = ForwardReport> + Send {
        let Pair { client, backend, same_host, header } = pair;
        let sockets = Both { client, backend };
        async move {
            let report = match same_host {
                Some(backend) => Box::pin(self.marked(sockets, backend, header, flow)).await,
                None => {
                    self.same_host.release_client(&sockets.client);
                    self.ordinary(sockets, header, flow).await
                }
            };
            ForwardReport {
                bytes: report.bytes,
                fallback: report.fallback,
                termination: report.termination.unwrap_or(Termination::InternalError),
            }
        }
    }
}
