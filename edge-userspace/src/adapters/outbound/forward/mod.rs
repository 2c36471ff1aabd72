//! The forwarders behind one port, and which of them a connection gets.

mod copy;
pub mod kernel;
mod lane;
mod promotion;
pub mod self_test;
mod socket;
mod sockmap;
pub mod state;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use self::copy::{Copy, CopyEnd};
use self::lane::Both;
use self::promotion::Promotion;
use self::sockmap::Offload;
pub use self::state::{KernelPath, Policy};
use crate::application::drain::Cut;
use crate::application::ports::{ForwardReport, Forwarder, Pair};
use crate::domain::{ByteCounts, Fallback, ForwarderKind, Termination};

/// How long a pair may be quiet.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimits {
    /// Both streams open, nothing received from either side.
    pub idle: Duration,
    /// One stream ended, nothing received on the other.
    pub half_close: Duration,
}

/// Forwards pairs by the policy that is in force when they begin.
#[derive(Debug, Clone)]
pub struct Forwarders {
    path: Arc<KernelPath>,
    limits: TimeLimits,
    cut: Arc<Cut>,
}

impl Forwarders {
    /// `cut` ends the pairs that are left at a drain's deadline.
    pub fn new(path: Arc<KernelPath>, limits: TimeLimits, cut: Arc<Cut>) -> Self {
        Self { path, limits, cut }
    }

    async fn copy_first(&self, sockets: Both<TcpStream>) -> ForwardReport {
        let mut promotion = if self.path.is_open() { Promotion::measured() } else { Promotion::never() };
        let mut copy = Copy::new(sockets);
        match copy.run(&self.limits, &self.cut, &mut promotion).await {
            CopyEnd::Finished(termination) => self.copied(copy.moved, termination, None),
            CopyEnd::Promote => self.offload(copy.sockets, copy.moved).await,
        }
    }

    async fn copy_only(&self, sockets: Both<TcpStream>, moved: Both<u64>, why: Option<Fallback>) -> ForwardReport {
        let mut copy = Copy::new(sockets);
        let mut never = Promotion::never();
        // Never wants a promotion, so what ends is finished.
        let end = copy.run(&self.limits, &self.cut, &mut never).await;
        let termination = match end {
            CopyEnd::Finished(termination) => termination,
            CopyEnd::Promote => Termination::InternalError,
        };
        self.copied(Both::of(|side| moved[side] + copy.moved[side]), termination, why)
    }

    /// Hands the pair to the kernel. `moved` was copied before.
    async fn offload(&self, sockets: Both<TcpStream>, moved: Both<u64>) -> ForwardReport {
        let Some(kernel) = self.path.kernel() else {
            return Box::pin(self.copy_only(sockets, moved, Some(Fallback::Unavailable))).await;
        };
        let Both { client, backend } = sockets;
        // Out of tokio's epoll: it would be woken by every redirected packet.
        let (Ok(client), Ok(backend)) = (client.into_std(), backend.into_std()) else {
            return self.copied(moved, Termination::OutOfResources, None);
        };
        match Offload::begin(kernel, Both { client, backend }, moved) {
            Ok(offload) => {
                let report = Box::pin(offload.run(&self.limits, &self.cut)).await;
                self.offloaded(report, moved)
            }
            Err((why, Both { client, backend })) => match (TcpStream::from_std(client), TcpStream::from_std(backend)) {
                (Ok(client), Ok(backend)) => Box::pin(self.copy_only(Both { client, backend }, moved, Some(why))).await,
                _ => self.copied(moved, Termination::OutOfResources, Some(why)),
            },
        }
    }

    fn copied(&self, moved: Both<u64>, termination: Termination, fallback: Option<Fallback>) -> ForwardReport {
        let Both { client: up, backend: down } = moved;
        let bytes = ByteCounts { up, down, kernel_up: 0, kernel_down: 0 };
        let wanted = self.path.policy() != Policy::Copy;
        let fallback = fallback.or((wanted && !self.path.is_open()).then_some(Fallback::Unavailable));
        ForwardReport { bytes, forwarder: ForwarderKind::Copy, fallback, termination }
    }

    fn offloaded(&self, report: sockmap::Report, before: Both<u64>) -> ForwardReport {
        if let Some(what) = &report.corrupt {
            self.path.condemn(what);
        }
        let Both { client: kernel_up, backend: kernel_down } = report.in_kernel;
        let bytes = ByteCounts {
            up: before.client + report.moved.client,
            down: before.backend + report.moved.backend,
            kernel_up,
            kernel_down,
        };
        ForwardReport {
            bytes,
            forwarder: ForwarderKind::Sockmap,
            fallback: report.fallback,
            termination: report.termination,
        }
    }
}

impl Forwarder for Forwarders {
    async fn forward(&self, pair: Pair) -> ForwardReport {
        let sockets = Both { client: pair.client, backend: pair.backend };
        match self.path.policy() {
            Policy::Copy => self.copy_only(sockets, Both::default(), None).await,
            Policy::Auto => self.copy_first(sockets).await,
            Policy::Sockmap => self.offload(sockets, Both::default()).await,
        }
    }
}
