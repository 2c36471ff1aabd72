//! `edgeproxy run`: puts the parts together, in the order in which they can fail, and takes them apart again.

mod checks;
mod control;
mod keep;
mod kernel_path;
mod limits;
mod listening;
mod memory;
mod workers;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use edgeproxy::adapters::inbound::admin::AdminServer;
use edgeproxy::adapters::inbound::listeners::handed::Handed;
use edgeproxy::adapters::inbound::listeners::manager::Steer;
use edgeproxy::adapters::inbound::signals::{Signal, Signals};
use edgeproxy::adapters::outbound::access_log::AccessLog;
use edgeproxy::adapters::outbound::bindings::BindingTable;
use edgeproxy::adapters::outbound::forward::{Disagreement, KernelPath, SameHost};
use edgeproxy::adapters::outbound::geo::Geo;
use edgeproxy::adapters::outbound::logging::Logging;
use edgeproxy::adapters::outbound::metrics::Metrics;
use edgeproxy::adapters::outbound::observer::Recorder;
use edgeproxy::adapters::outbound::privileges::{self, CapabilitySet};
use edgeproxy::adapters::outbound::refusal_log::RefusalLog;
use edgeproxy::adapters::outbound::sqlite::SqliteSource;
use edgeproxy::application::admission::Admission;
use edgeproxy::application::backend_drain::BackendDrains;
use edgeproxy::application::drain::{Connections, Cut};
use edgeproxy::application::events::{EventKind, Events, Subject};
use edgeproxy::application::flows::Flows;
use edgeproxy::application::health::Watch;
use edgeproxy::application::listening::Listening;
use edgeproxy::application::marked_behind_headers::{HeaderWatch, WaysToMarked};
use edgeproxy::application::ports::SourceError;
use edgeproxy::application::reload::{ReloadCommand, ReloadError, ReloadLoop, Tick};
use edgeproxy::application::routing::RoutingTable;
use edgeproxy::application::rtt::RttRanking;
use edgeproxy::application::unknown_regions::{RegionWatch, UnknownRegions};
use edgeproxy::cli::{CliError, Exit, SettingArgs};
use edgeproxy::config::Settings;
use edgeproxy::domain::{Endpoints, HealthRules, Instance, Overrides};

use self::control::DaemonControl;
use self::keep::{Keeper, Keeping};
use self::kernel_path::Programs;
use self::listening::Listeners;
use self::workers::Workers;

/// How long connections may take to go after the drain deadline has cut them.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);

/// Ejections are counted in seconds, and shares grow in steps that nobody notices.
const HEALTH_TICK: std::time::Duration = std::time::Duration::from_millis(100);

/// How long the first load waits for somebody who is writing the database.
const FIRST_LOAD: std::time::Duration = std::time::Duration::from_secs(10);

/// An ejection that is over lasts this much longer, and the connect limit, where the POP has not been able to try the backend.
const UNTRIED: std::time::Duration = std::time::Duration::from_secs(30);

/// Reloads that may wait for the one under way.
const WAITING_COMMANDS: usize = 16;

/// What the parts of the daemon share.
pub(crate) struct Shared {
    settings: Settings,
    /// This life of the daemon.
    instance: Instance,
    routing: Arc<RoutingTable>,
    geo: Arc<Geo>,
    bindings: Arc<BindingTable>,
    /// `None`: bindings end with the daemon.
    keeper: Option<Arc<Keeper>>,
    recorder: Arc<Recorder>,
    connections: Arc<Connections>,
    admission: Arc<Admission>,
    flows: Arc<Flows>,
    /// One for each worker: ends its connections.
    cuts: Vec<Arc<Cut>>,
    backend_drains: BackendDrains,
    health: Arc<Watch>,
    events: Arc<Events>,
    path: Arc<KernelPath>,
    same_host: Arc<SameHost>,
    /// The listeners of the settings.
    endpoints: Arc<Endpoints>,
    /// What has become of all listeners.
    listening: Arc<Listening>,
    /// Where the settings say that prefixes are.
    overrides: Arc<Overrides>,
    worker_count: usize,
    /// Connections held at once, as far as files allow.
    max_connections: usize,
    /// What the daemon kept of its capabilities.
    privileges: CapabilitySet,
}

impl Shared {
    fn ways_to_marked(&self) -> WaysToMarked {
        WaysToMarked { endpoints: Arc::clone(&self.endpoints), app: self.settings.app.clone() }
    }
}

/// Runs the daemon until it is told to stop; the exit code says how it ended.
pub(crate) fn run(args: &SettingArgs) -> Result<u8, CliError> {
    // Before anything is opened: a number that is none of the service manager's can't be one of ours.
    let handed = Handed::take().map_err(CliError::HandedOver)?;
    memory::bound_what_is_kept();
    let settings = args.load()?.settings;
    privileges::begin().map_err(failed)?;
    let logging = Logging::start(settings.log_level, settings.log_format).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(start(settings, &logging, handed))
}

async fn start(settings: Settings, logging: &Logging, handed: Handed) -> Result<u8, CliError> {
    // From here on a signal means an end in good order.
    let mut signals = Signals::install().map_err(failed)?;
    let events = Arc::new(Events::default());
    let early = kernel_path::comes_first(&settings).then(|| Programs::start(&settings)).transpose()?;
    let (routing, reload) = load_routing(&settings.db_path, Arc::clone(&events))?;
    let same_host = Arc::new(kernel_path::open_same_host(&settings, &events).await);
    let geo = open_geo(&settings)?;
    let admin_tcp = settings.admin_listen.map(edgeproxy::config::LoopbackAddr::socket_addr);
    let admin = AdminServer::bind(&settings.admin_socket, admin_tcp).await.map_err(failed)?;
    let max_connections = limits::connections(&settings);
    let endpoints = listening::endpoints(&settings)?;
    // A listener for a range of ports takes the program that steers, and would get the connections of the self-test, too.
    let waits = early.is_some() || listening::any_to_steer(endpoints.iter().chain(routing.load().endpoints().iter()));
    let programs = early.map_or_else(|| Programs::start(&settings), Ok)?;
    let privileges = give_up_privileges(&settings)?;
    let path = Arc::new(KernelPath::new(kernel_path::policy(settings.forwarder)));
    let (steer, programs) = if waits {
        tokio::select! {
            steer = settle(&path, programs) => (steer, None),
            exit_code = told_to_end(&mut signals) => return Ok(exit_code),
        }
    } else {
        (Steer::Loading, Some(programs))
    };
    same_host.look_at(&routing.load());
    let bindings = Arc::new(BindingTable::new(settings.binding_ttl, settings.binding_capacity));
    let keeper = Keeper::open(&settings, &bindings).map_err(failed)?;
    let worker_count = limits::workers(&settings);
    path.set_workers(worker_count);
    let metrics = Metrics::new(vec![("log", logging.messages.lost()), ("access", logging.access.lost())]);
    let access_log = settings.access_log.then(|| AccessLog::new(logging.access.clone()));
    let recorder = Arc::new(Recorder {
        metrics: Arc::new(metrics),
        access_log,
        events: Arc::clone(&events),
        refusals: RefusalLog::new(settings.refusal_log_rate),
    });
    let health = Arc::new(Watch::new(health_rules(&settings), Arc::clone(&routing), Arc::clone(&recorder) as _));
    let flows = Arc::new(Flows::default());
    let cuts: Vec<_> = (0..worker_count).map(|_| Arc::new(Cut::default())).collect();
    let (table, listed, told) = (Arc::clone(&routing), Arc::clone(&flows), Arc::clone(&events));
    let drains = BackendDrains::new(table, listed, Arc::clone(&health), told, cuts.clone());
    let shared = Arc::new(Shared {
        backend_drains: drains,
        instance: Instance::new(fastrand::u64(..)),
        routing,
        geo,
        bindings,
        keeper,
        recorder,
        connections: Arc::default(),
        admission: Arc::new(limits::admission(&settings)),
        flows,
        cuts,
        health,
        events,
        path,
        same_host,
        endpoints: Arc::new(endpoints),
        listening: Arc::default(),
        overrides: Arc::new(Overrides::new(settings.geo_override.iter().cloned())),
        worker_count,
        max_connections,
        privileges,
        settings,
    });
    serve(shared, (steer, handed), programs, admin, signals, reload).await
}

/// Resolves when a signal wants a daemon to end that has no clients yet.
async fn told_to_end(signals: &mut Signals) -> u8 {
    loop {
        match signals.next().await {
            // It has just been read.
            Signal::Reload => {}
            Signal::Drain => return Exit::Ok.code(),
            Signal::Quit { exit_code } => return exit_code,
        }
    }
}

/// Takes the programs into use, or says why there are none.
async fn settle(path: &KernelPath, programs: Programs) -> Steer {
    let (found, steer) = programs.found().await;
    path.settle(found);
    steer
}

/// Everything is there: serve until told to stop, then drain.
async fn serve(
    shared: Arc<Shared>,
    (steer, handed): (Steer, Handed),
    programs: Option<Programs>,
    admin: AdminServer,
    mut signals: Signals,
    reload: ReloadLoop<SqliteSource>,
) -> Result<u8, CliError> {
    let (commands, inbox) = mpsc::sync_channel(WAITING_COMMANDS);
    let (workers, jobs) = Workers::start(&shared).map_err(failed)?;
    let listeners = Listeners::start(&shared, steer, handed, jobs)?;
    spawn_reload(&shared, reload, inbox, listeners.clone()).map_err(failed)?;
    spawn_binding_sweep(&shared);
    let keeping = shared
        .keeper
        .clone()
        .map(|keeper| Keeping::start(keeper, Arc::clone(&shared.events), shared.settings.bindings_save_interval));
    let keeping = keeping.transpose().map_err(failed)?;
    memory::spawn_trim(&shared);
    spawn_health_ticks(&shared);
    limits::spawn_upkeep(&shared);
    checks::spawn(&shared).map_err(failed)?;
    let control = Arc::new(DaemonControl::new(Arc::clone(&shared), commands.clone()));
    let admin_addr = admin.tcp_addr();
    let admin = tokio::spawn(admin.run(Arc::clone(&control) as _));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        instance = %shared.instance,
        listeners = ?shared.endpoints.iter().map(|endpoint| endpoint.spot.to_string()).collect::<Vec<_>>(),
        admin_socket = %shared.settings.admin_socket.display(),
        admin_listen = ?admin_addr,
        forwarder = shared.path.active().as_str(),
        region = %shared.settings.region,
        "edgeproxy is ready"
    );
    shared.events.emit(EventKind::Ready, Subject::pop(), "takes connections");
    finish_start(&shared, programs, listeners.clone());
    let code = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Reload => control.reload_in_background(),
                Signal::Drain => break drain(&shared, (&workers, &listeners), &mut signals, &control).await,
                Signal::Quit { exit_code } => break exit_code,
            },
            () = control.drain_asked() => break drain(&shared, (&workers, &listeners), &mut signals, &control).await,
        }
    };
    // A full queue means that the thread is at work; it ends with the process.
    let _ = commands.try_send(ReloadCommand::Stop);
    admin.abort();
    // The admin socket's file goes with its task.
    let _ = admin.await;
    workers.stop();
    // After the last connection has renewed its binding.
    keeping.into_iter().for_each(Keeping::finish);
    tracing::info!(code, "edgeproxy ends");
    Ok(code)
}

/// What clients need not wait for.
fn finish_start(shared: &Arc<Shared>, programs: Option<Programs>, listeners: Listeners) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        if let Some(programs) = programs {
            listeners.steer(settle(&shared.path, programs).await);
        }
        verify_privileges(shared.privileges);
    });
}

/// No new connections; existing ones live until they end, the deadline passes, or a second signal comes.
async fn drain(
    shared: &Shared,
    (workers, listeners): (&Workers, &Listeners),
    signals: &mut Signals,
    control: &DaemonControl,
) -> u8 {
    let limit = shared.settings.drain_timeout;
    shared.connections.start_draining();
    workers.stop_accepting();
    listeners.stop();
    let reason = format!("no new connections; {} go on for {limit:?} at most", shared.connections.active());
    shared.events.emit(EventKind::Draining, Subject::pop(), reason);
    let none_left = tokio::time::timeout(limit, workers.idle(&shared.connections));
    tokio::pin!(none_left);
    loop {
        tokio::select! {
            ended = &mut none_left => {
                if ended.is_err() {
                    shared.routing.lobby().close();
                    let reason = format!("the deadline has passed: {} connections are cut", shared.connections.active());
                    shared.events.emit(EventKind::DrainCut, Subject::pop(), reason);
                    workers.cut();
                    let _ = tokio::time::timeout(LAST_WORDS, workers.idle(&shared.connections)).await;
                }
                return Exit::Ok.code();
            }
            signal = signals.next() => match signal {
                Signal::Reload => control.reload_in_background(),
                Signal::Quit { exit_code } => return exit_code,
                // The admin API asked for the drain; the first signal only confirms it.
                Signal::Drain => {}
            },
        }
    }
}

/// The routing table, and what keeps it up to date.
type Routing = (Arc<RoutingTable>, ReloadLoop<SqliteSource>);

/// The first load must succeed: a POP that routes nowhere is of no use, and the reason is known now.
///
/// It is the first thread that takes in the rows: that takes many small pieces of memory, and for any other thread glibc
/// asks the kernel for each page.
fn load_routing(path: &Path, events: Arc<Events>) -> Result<Routing, CliError> {
    let _pages = memory::LargePages::begin(path);
    let table = Arc::new(RoutingTable::new());
    let mut reload = ReloadLoop::new(SqliteSource::new(path), Arc::clone(&table), events);
    let deadline = Instant::now() + FIRST_LOAD;
    loop {
        match reload.tick(SystemTime::now()) {
            // Each look waits for a moment by itself.
            Tick::Refused(ReloadError::Source(SourceError::Locked { .. })) if Instant::now() < deadline => {}
            Tick::Refused(why) => return Err(failed(why)),
            Tick::Reloaded(_) | Tick::Unchanged => return Ok((table, reload)),
        }
    }
}

/// From here on this thread, and all that it starts, have what they keep for good. What loads the programs has started.
fn give_up_privileges(settings: &Settings) -> Result<CapabilitySet, CliError> {
    let files = [Some(settings.db_path.as_path()), settings.geoip_path.as_deref()];
    privileges::settle(files.into_iter().flatten()).map_err(failed)
}

/// Takes nobody's word for it: the kernel says what each thread has.
fn verify_privileges(kept: CapabilitySet) {
    match privileges::verify(kept) {
        Ok(exceeding) if exceeding.is_empty() => tracing::info!(kept = ?privileges::names(kept), "privileges given up"),
        Ok(exceeding) => tracing::error!(?exceeding, "threads have capabilities that they should have given up"),
        Err(why) => tracing::warn!(%why, "whether privileges are given up can't be read from /proc"),
    }
}

fn open_geo(settings: &Settings) -> Result<Arc<Geo>, CliError> {
    Geo::open(settings.geoip_path.as_deref()).map(Arc::new).map_err(failed)
}

fn spawn_reload(
    shared: &Shared,
    reload: ReloadLoop<SqliteSource>,
    inbox: Receiver<ReloadCommand>,
    listeners: Listeners,
) -> std::io::Result<()> {
    let interval = shared.settings.db_reload;
    let reload = reload.watched_by(Arc::clone(&shared.health));
    let geo = Arc::clone(&shared.geo);
    let events = Arc::clone(&shared.events);
    let look_after_geo = move || match geo.maybe_reload() {
        Ok(true) => events.emit(EventKind::GeoReloaded, Subject::geo(), geo.info().database_type),
        Ok(false) => {}
        Err(why) => {
            let reason = format!("geo database not reloaded; the old one stays: {why}");
            events.emit(EventKind::GeoRefused, Subject::geo(), reason);
        }
    };
    let (routing, same_host) = (Arc::clone(&shared.routing), Arc::clone(&shared.same_host));
    let regions =
        UnknownRegions { pop_region: shared.settings.region.clone(), overrides: Arc::clone(&shared.overrides) };
    let mut regions = RegionWatch::new(regions, Arc::clone(&shared.events));
    // Where no cgroup is named no mark has an effect, which is told already.
    let named = !shared.settings.same_host_cgroup.is_empty();
    let mut headers = named.then(|| HeaderWatch::new(shared.ways_to_marked(), Arc::clone(&shared.events)));
    let work = move || {
        limits::yield_to_workers();
        let mut seen = routing.load().generation();
        regions.look_at(&routing.snapshot());
        headers.iter_mut().for_each(|watch| watch.look_at(&routing.snapshot()));
        let also = move || {
            look_after_geo();
            let snapshot = routing.snapshot();
            if std::mem::replace(&mut seen, snapshot.generation()) != snapshot.generation() {
                same_host.look_at(&snapshot);
                listeners.look();
                regions.look_at(&snapshot);
                headers.iter_mut().for_each(|watch| watch.look_at(&snapshot));
            }
        };
        reload.run(interval, &inbox, also);
    };
    in_background("edge-reload", work).map(drop)
}

fn in_background(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Bindings that have ended never count; this gives their memory back.
fn spawn_binding_sweep(shared: &Shared) {
    let bindings = Arc::clone(&shared.bindings);
    let mut ticks = tokio::time::interval(shared.settings.binding_gc_interval);
    tokio::spawn(async move {
        loop {
            ticks.tick().await;
            let bindings = Arc::clone(&bindings);
            // May walk a million entries.
            let _ = tokio::task::spawn_blocking(move || bindings.gc()).await;
        }
    });
}

fn health_rules(settings: &Settings) -> HealthRules {
    HealthRules {
        failures: settings.ejection_failures,
        ejection: settings.ejection,
        longest: settings.ejection_longest,
        max_percent: settings.ejection_max_percent,
        slow_start: settings.slow_start,
        // One attempt and a while: where this host can't even try, clients do.
        untried: settings.connect_timeout + UNTRIED,
    }
}

/// Ends ejections in time and lets shares grow; ranks backends by their round-trip times; tells when the kernel path was
/// condemned or a mark withdrawn; takes in cgroups that have come back.
fn spawn_health_ticks(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let mut rtt = RttRanking::default();
    let mut ticks = tokio::time::interval(HEALTH_TICK);
    tokio::spawn(async move {
        loop {
            ticks.tick().await;
            shared.health.tick(Instant::now());
            shared.backend_drains.tick(Instant::now());
            rtt.tick(&shared.routing, Instant::now());
            for Disagreement { in_kernel, what } in shared.path.disagreements() {
                let kind = if in_kernel { EventKind::KernelPathCondemned } else { EventKind::BytesDisagree };
                shared.events.emit(kind, Subject::forwarder(), what);
            }
            for (backend, why) in shared.same_host.newly_withdrawn() {
                let why = format!("the mark same_host is withdrawn until a restart: {why}");
                shared.events.emit(EventKind::MarkWithdrawn, Subject::backend_id(&backend), why);
            }
            kernel_path::look_after_cgroups(&shared.same_host, &shared.events);
        }
    });
}

fn failed(why: impl std::fmt::Display) -> CliError {
    CliError::Failed(why.to_string())
}
