//! What the admin API sees of the daemon, and what it may do to it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Instant, SystemTime};

use edgeproxy::adapters::inbound::admin::Control;
use edgeproxy::application::ports::Bindings as _;
use edgeproxy::application::reload::ReloadCommand;
use edgeproxy::application::routing::ReloadReport;
use edgeproxy::application::status::{
    BackendStatus, ForwarderStatus, GeoStatus, ListenerStatus, PopState, RejectedRow, ReloadAnswer, ReloadStatus,
    RoutingStatus, Status,
};
use edgeproxy::domain::Backend;
use tokio::sync::{Notify, oneshot};

use super::Shared;

pub(crate) struct DaemonControl {
    shared: Arc<Shared>,
    commands: Sender<ReloadCommand>,
    started: Instant,
    drain: Notify,
}

impl DaemonControl {
    pub(crate) fn new(shared: Arc<Shared>, commands: Sender<ReloadCommand>) -> Self {
        Self { shared, commands, started: Instant::now(), drain: Notify::new() }
    }

    /// Resolves when the admin API asks for a drain.
    pub(crate) async fn drain_asked(&self) {
        self.drain.notified().await;
    }

    /// Reloads on the reload thread, which logs how it went.
    pub(crate) fn reload_in_background(&self) {
        let _ = self.commands.send(ReloadCommand::Reload { allow_empty: false, done: Box::new(drop) });
    }

    fn state(&self) -> PopState {
        if self.shared.connections.is_draining() { PopState::Draining } else { PopState::Ready }
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let sole = self.shared.routing.load().sole_app().cloned();
        let app = self.shared.settings.app.clone().or(sole);
        let leads_to = || app.as_ref().map(ToString::to_string);
        self.shared.listeners.iter().map(|addr| ListenerStatus { addr: addr.to_string(), app: leads_to() }).collect()
    }

    fn routing(&self) -> RoutingStatus {
        let status = self.shared.routing.status();
        RoutingStatus {
            generation: status.report.generation,
            apps: status.report.apps as u64,
            backends: status.report.accepted as u64,
            last_reload: ReloadStatus {
                age_secs: status
                    .tried_at
                    .and_then(|at| SystemTime::now().duration_since(at).ok())
                    .map(|d| d.as_secs_f64()),
                ok: status.error.is_none(),
                error: status.error.clone(),
            },
            reloads_ok: status.accepted_total,
            reloads_rejected: status.refused_total,
            rejected_rows: rejected_rows(&status.report),
        }
    }

    fn backends(&self) -> Vec<BackendStatus> {
        self.shared.routing.snapshot().backends().map(|backend| self.backend(backend)).collect()
    }

    fn backend(&self, backend: &Backend) -> BackendStatus {
        let counts = self.shared.path.programs().and_then(|kernel| kernel.counts());
        BackendStatus {
            id: backend.id.to_string(),
            app: backend.app.to_string(),
            region: backend.region.to_string(),
            addr: backend.addr.socket_addr().to_string(),
            state: backend.state.as_str().to_owned(),
            healthy: backend.healthy,
            weight: backend.weight.0,
            soft_limit: backend.limits.soft(),
            hard_limit: backend.limits.hard(),
            connections: backend.load.active(),
            kernel_connections: counts
                .map(|counts| u32::try_from(counts.connections(backend.load.slot())).unwrap_or(u32::MAX)),
        }
    }

    fn forwarder(&self) -> ForwarderStatus {
        let path = &self.shared.path;
        let programs = path.programs();
        ForwarderStatus {
            configured: path.policy().as_str().to_owned(),
            active: path.active().as_str().to_owned(),
            why: path.why_not().map(|why| why.to_string()),
            self_test: path.self_test().map(str::to_owned),
            flows_in_kernel: programs.map_or(0, |kernel| u64::from(kernel.pairs_in_use())),
            kernel_bytes: programs.map_or(0, |kernel| kernel.forwarded()),
        }
    }
}

impl Control for DaemonControl {
    fn status(&self) -> Status {
        let shared = &self.shared;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_secs: self.started.elapsed().as_secs_f64(),
            region: shared.settings.region.to_string(),
            state: self.state(),
            listeners: self.listeners(),
            workers: u32::try_from(shared.worker_count).unwrap_or(u32::MAX),
            routing: self.routing(),
            backends: self.backends(),
            forwarder: self.forwarder(),
            connections: shared.recorder.metrics.connections(),
            bindings: shared.bindings.len() as u64,
            geo: GeoStatus::from(shared.geo.info()),
        }
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        self.shared.recorder.metrics.render(self.status())
    }

    fn reload(&self, allow_empty: bool) -> Pin<Box<dyn Future<Output = Result<ReloadAnswer, String>> + Send + '_>> {
        let (done, answer) = oneshot::channel();
        let done = Box::new(move |result| _ = done.send(result));
        let sent = self.commands.send(ReloadCommand::Reload { allow_empty, done });
        Box::pin(async move {
            let gone = |_| "the thread that reloads has ended".to_owned();
            sent.map_err(|_| "the daemon is ending".to_owned())?;
            let report = answer.await.map_err(gone)?.map_err(|why| why.to_string())?;
            Ok(ReloadAnswer {
                generation: report.generation,
                accepted: report.accepted as u64,
                apps: report.apps as u64,
                rejected_rows: rejected_rows(&report),
            })
        })
    }

    fn drain(&self) {
        self.drain.notify_one();
    }
}

fn rejected_rows(report: &ReloadReport) -> Vec<RejectedRow> {
    report.rejected.iter().map(|(row, why)| RejectedRow { row: row.clone(), why: why.clone() }).collect()
}
