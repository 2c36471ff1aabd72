//! What the admin API sees of the daemon, and what it may do to it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

use edgeproxy::adapters::inbound::admin::{Answer, Control, ExplainQuery};
use edgeproxy::adapters::outbound::bindings::BindingTable;
use edgeproxy::adapters::outbound::privileges;
use edgeproxy::application::backend_drain::{DrainAnswer, DrainRequest};
use edgeproxy::application::bindings::{
    BindingFilter, BindingPage, BindingStatus, BindingsQuery, ClearAnswer, ClearRequest, Wanted,
};
use edgeproxy::application::events::{EventKind, EventsAnswer, EventsQuery, Subject};
use edgeproxy::application::explain::{Explanation, Oracle};
use edgeproxy::application::flows::FlowStatus;
use edgeproxy::application::ports::Bindings as _;
use edgeproxy::application::reload::ReloadCommand;
use edgeproxy::application::status::{
    BackendStatus, ForwarderStatus, GeoStatus, LimitsStatus, ListenerLoad, ListenerStatus, PopState, QueueStatus,
    ReloadAnswer, RoutingStatus, SameHostStatus, Status,
};
use edgeproxy::config::ForwarderChoice;
use edgeproxy::domain::{AppIndex, Backend, BackendId, ClientAddr, ListenerId};
use tokio::sync::{Notify, oneshot};

use super::{Shared, kernel_path, workers};

/// Bindings on a page, if nobody says how many.
const BINDINGS: u32 = 1000;
const NO_FILTER: &str = "say which bindings: by app, backend or client, or all";

pub(crate) struct DaemonControl {
    shared: Arc<Shared>,
    commands: SyncSender<ReloadCommand>,
    started: Instant,
    drain: Notify,
}

impl DaemonControl {
    pub(crate) fn new(shared: Arc<Shared>, commands: SyncSender<ReloadCommand>) -> Self {
        Self { shared, commands, started: Instant::now(), drain: Notify::new() }
    }

    /// Resolves when the admin API asks for a drain.
    pub(crate) async fn drain_asked(&self) {
        self.drain.notified().await;
    }

    /// Reloads on the reload thread, which logs how it went.
    pub(crate) fn reload_in_background(&self) {
        // If so many wait already, one more would tell nothing new.
        let _ = self.commands.try_send(ReloadCommand::Reload { allow_empty: false, done: Box::new(drop) });
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        self.shared.listening.status(&self.shared.routing, &workers::rules(&self.shared))
    }

    fn limits(&self) -> LimitsStatus {
        let shared = &self.shared;
        let (sources, snapshot) = (shared.admission.sources(), shared.routing.snapshot());
        let (connected, remembered) = sources.len();
        LimitsStatus {
            listeners: self.listener_loads(),
            queues: snapshot.apps().filter_map(QueueStatus::of).collect(),
            sources_connected: connected as u64,
            sources_remembered: remembered as u64,
            sources_capacity: shared.settings.source_capacity as u64,
            accept_pauses: shared.admission.pauses(),
            refusals_not_logged: shared.recorder.refusals.left_out(),
        }
    }

    fn listener_loads(&self) -> Vec<ListenerLoad> {
        let snapshot = self.shared.routing.snapshot();
        let endpoints = self.shared.endpoints.iter().chain(snapshot.endpoints().iter());
        let named = endpoints.flat_map(|endpoint| endpoint.listeners()).map(|spec| (&spec.id, spec.max_connections));
        let mut limits: BTreeMap<_, _> = named.map(|(id, most)| (id.clone(), (0, most))).collect();
        for (id, connections) in self.shared.admission.listeners().all() {
            limits.entry(id).or_insert((0, 0)).0 = connections;
        }
        let load = |(id, (connections, most)): (ListenerId, _)| ListenerLoad {
            listener: id.to_string(),
            connections,
            max_connections: most,
        };
        limits.into_iter().map(load).collect()
    }

    fn backends(&self) -> Vec<BackendStatus> {
        let counts = self.shared.path.programs().and_then(|kernel| kernel.counts());
        let counted = |slot| counts.map(|counts| u32::try_from(counts.connections(slot)).unwrap_or(u32::MAX));
        let snapshot = self.shared.routing.snapshot();
        let now = Instant::now();
        let of_app = |app: &AppIndex| -> Vec<_> {
            let status = |backend: &Arc<Backend>| BackendStatus {
                cut_in_secs: self.shared.backend_drains.state(&backend.id, now).flatten(),
                ..BackendStatus::of(backend, counted(backend.load.slot()), app.check_of(backend).map(Arc::as_ref))
            };
            app.backends().iter().map(status).collect()
        };
        snapshot.apps().flat_map(of_app).collect()
    }

    fn same_host(&self) -> SameHostStatus {
        let path = &self.shared.same_host;
        let snapshot = self.shared.routing.snapshot();
        let (withdrawn, missing) = (path.withdrawn().into_iter(), path.missing_cgroups().into_iter());
        let policy = self.shared.path.policy();
        let off = || (!policy.wants_kernel()).then(|| format!("forwarder {} asks for userspace only", policy.as_str()));
        SameHostStatus {
            why: path.why_not().or_else(off).or_else(|| self.shared.ways_to_marked().why_not(&snapshot)),
            marked: snapshot.same_host().count() as u64,
            flows: path.pairs_in_use().into(),
            bytes: path.forwarded(),
            withdrawn: withdrawn.map(|(backend, why)| (backend.to_string(), why)).collect(),
            missing_cgroups: missing.map(|(path, why)| (path.display().to_string(), why)).collect(),
        }
    }

    fn forwarder(&self) -> ForwarderStatus {
        let path = &self.shared.path;
        let programs = path.programs();
        let tally = programs.map(|kernel| kernel.tally()).unwrap_or_default();
        ForwarderStatus {
            configured: path.policy().as_str().to_owned(),
            active: path.active().as_str().to_owned(),
            kernel_path: path.is_open(),
            why: path.why_not().map(|why| why.to_string()),
            off: path.off(),
            loading: path.is_loading(),
            byte_mismatches: path.mismatches(),
            self_test: path.self_test().map(str::to_owned),
            flows_in_kernel: programs.map_or(0, |kernel| u64::from(kernel.pairs_in_use())),
            kernel_bytes: tally.bytes,
            kernel_packets: tally.packets,
            same_host: self.same_host(),
        }
    }
}

impl Control for DaemonControl {
    fn state(&self) -> PopState {
        if self.shared.connections.is_draining() { PopState::Draining } else { PopState::Ready }
    }

    fn status(&self) -> Status {
        let shared = &self.shared;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_secs: self.started.elapsed().as_secs_f64(),
            region: shared.settings.region.to_string(),
            state: self.state(),
            listeners: self.listeners(),
            steering: shared.listening.steering(),
            workers: u32::try_from(shared.worker_count).unwrap_or(u32::MAX),
            capabilities: privileges::names(shared.privileges),
            routing: RoutingStatus::of(&shared.routing, SystemTime::now()),
            backends: self.backends(),
            fail_open: shared.health.failing_open().iter().map(ToString::to_string).collect(),
            forwarder: self.forwarder(),
            connections: shared.recorder.metrics.connections(),
            limits: self.limits(),
            bindings: shared.bindings.len() as u64,
            binding_file: shared.keeper.as_ref().map(|keeper| keeper.status()),
            geo: GeoStatus::from(shared.geo.info()),
            events: shared.events.totals(),
        }
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let metrics = &self.shared.recorder.metrics;
        // In this order: a flow that ends in between is missing for a moment, and never counted twice.
        let ended = metrics.ended_bytes();
        metrics.render(self.status(), ended, self.shared.flows.bytes())
    }

    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, String> {
        let shared = &self.shared;
        let target = query.target()?;
        let rules = workers::rules(shared);
        let oracle = Oracle {
            routing: &shared.routing,
            geo: &*shared.geo,
            bindings: &*shared.bindings,
            rules: &rules,
            listening: &shared.listening,
            connections: &shared.connections,
            admission: &shared.admission,
        };
        let client = ClientAddr::new(query.client);
        oracle.explain(client, &target, &mut fastrand::Rng::new()).map_err(|why| why.to_string())
    }

    fn reload(&self, allow_empty: bool) -> Answer<'_, ReloadAnswer> {
        let (done, answer) = oneshot::channel();
        let done = Box::new(move |result| _ = done.send(result));
        let sent = self.commands.try_send(ReloadCommand::Reload { allow_empty, done });
        Box::pin(async move {
            let gone = |_| "the thread that reloads has ended".to_owned();
            sent.map_err(|_| "too many reloads are waiting, or the daemon is ending".to_owned())?;
            let report = answer.await.map_err(gone)?.map_err(|why| why.to_string())?;
            Ok(ReloadAnswer::from(&report))
        })
    }

    fn bindings(&self, query: &BindingsQuery) -> Answer<'_, BindingPage> {
        let wanted = query.filter().parse().map_err(|why| why.to_string());
        let (from, limit) = (query.from, query.limit.unwrap_or(BINDINGS) as usize);
        let (table, ttl) = (Arc::clone(&self.shared.bindings), self.shared.settings.binding_ttl);
        // May walk a million entries, and other things wait on this thread.
        walk(wanted, move |wanted| page(&table, &wanted, ttl, from, limit))
    }

    fn clear_bindings(&self, request: &ClearRequest) -> Answer<'_, ClearAnswer> {
        let wanted = request.filter.parse().map_err(|why| why.to_string());
        let meant = request.all || request.filter != BindingFilter::default();
        let wanted = wanted.and_then(|wanted| if meant { Ok(wanted) } else { Err(NO_FILTER.to_owned()) });
        let (table, events) = (Arc::clone(&self.shared.bindings), Arc::clone(&self.shared.events));
        walk(wanted, move |wanted| {
            let cleared = table.clear(&wanted) as u64;
            events.emit(EventKind::BindingsCleared, Subject::bindings(), format!("{cleared} bindings: {wanted}"));
            ClearAnswer { cleared }
        })
    }

    fn flows(&self) -> Vec<FlowStatus> {
        self.shared.flows.all().iter().map(|flow| FlowStatus::from(&**flow)).collect()
    }

    fn events(&self, query: EventsQuery) -> Pin<Box<dyn Future<Output = EventsAnswer> + Send + '_>> {
        Box::pin(self.shared.events.answer(query))
    }

    fn set_forwarder(&self, forwarder: ForwarderChoice) -> Result<ForwarderStatus, String> {
        self.shared.path.set_policy(kernel_path::policy(forwarder)).map_err(|why| why.to_string())?;
        // Userspace only is meant for these, too.
        self.shared.same_host.gate_all(!self.shared.path.policy().wants_kernel());
        let status = self.forwarder();
        let reason = format!("an operator chose {}; new connections get {}", status.configured, status.active);
        self.shared.events.emit(EventKind::ForwarderSet, Subject::forwarder(), reason);
        Ok(status)
    }

    fn drain_backend(&self, request: &DrainRequest) -> Result<DrainAnswer, String> {
        let id = BackendId::parse(&request.backend).map_err(|why| why.to_string())?;
        self.shared.backend_drains.drain(&id, request.deadline()?, Instant::now()).map_err(|why| why.to_string())
    }

    fn ready_backend(&self, request: &DrainRequest) -> Result<DrainAnswer, String> {
        let id = BackendId::parse(&request.backend).map_err(|why| why.to_string())?;
        self.shared.backend_drains.ready(&id, Instant::now()).map_err(|why| why.to_string())
    }

    fn drain(&self) {
        self.drain.notify_one();
    }
}

/// Runs `work` where it holds up nobody.
fn walk<T: Send + 'static>(
    wanted: Result<Wanted, String>,
    work: impl FnOnce(Wanted) -> T + Send + 'static,
) -> Answer<'static, T> {
    Box::pin(async move {
        let wanted = wanted?;
        tokio::task::spawn_blocking(move || work(wanted)).await.map_err(|why| why.to_string())
    })
}

/// Whole pages of the table, until there are enough bindings.
fn page(table: &BindingTable, wanted: &Wanted, ttl: Duration, from: usize, limit: usize) -> BindingPage {
    let mut page = BindingPage::default();
    for at in from..table.pages() {
        let found = table.page(at).into_iter().filter(|bound| wanted.has(&bound.key, &bound.backend));
        page.bindings.extend(found.map(|bound| BindingStatus::of(&bound, ttl)));
        if page.bindings.len() >= limit {
            page.next = (at + 1 < table.pages()).then_some(at + 1);
            break;
        }
    }
    page
}
