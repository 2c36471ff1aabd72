//! The worker threads: each has its own runtime, is given its own listening sockets, and keeps what it accepts.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use edgeproxy::adapters::inbound::client_hello::ClientHellos;
use edgeproxy::adapters::inbound::listeners::{self, Job};
use edgeproxy::adapters::outbound::connector::TcpConnector;
use edgeproxy::adapters::outbound::forward::{ForwardRules, Forwarders, Odds, SpillLimits, Thresholds, TimeLimits};
use edgeproxy::adapters::outbound::tcp_options::TcpOptions;
use edgeproxy::application::drain::{Connections, Cut};
use edgeproxy::application::serve::{Proxy, Rules};
use edgeproxy::config::Settings;
use edgeproxy::domain::AffinityPrefix;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{Notify, watch};

use super::Shared;

/// Listening sockets that may wait for a worker.
const WAITING_JOBS: usize = 64;

/// The running workers.
pub(crate) struct Workers {
    threads: Vec<JoinHandle<()>>,
    phase: watch::Sender<Phase>,
    cuts: Vec<Arc<Cut>>,
    accepting: Arc<Accepting>,
}

/// Listeners that have not been closed yet.
#[derive(Default)]
struct Accepting {
    listeners: AtomicUsize,
    one_closed: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Accepting,
    Draining,
    Over,
}

impl Workers {
    /// Starts the workers; what they are to serve is sent to them.
    pub(crate) fn start(shared: &Arc<Shared>) -> io::Result<(Self, Vec<Sender<Job>>)> {
        let (phase, _) = watch::channel(Phase::Accepting);
        let accepting = Arc::new(Accepting::default());
        let ids = Arc::new(AtomicU64::new(0));
        let mut workers = Self { threads: Vec::new(), phase, cuts: shared.cuts.clone(), accepting };
        let mut senders = Vec::new();
        for (index, cut) in shared.cuts.iter().enumerate() {
            let (sender, jobs) = mpsc::channel(WAITING_JOBS);
            senders.push(sender);
            let proxy = Arc::new(proxy(shared, cut, &ids));
            workers.spawn(index, shared, proxy, jobs)?;
        }
        Ok((workers, senders))
    }

    fn spawn(
        &mut self,
        index: usize,
        shared: &Arc<Shared>,
        proxy: Arc<Proxy<TcpConnector, Forwarders>>,
        mut jobs: Receiver<Job>,
    ) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options = tcp_options(shared);
        let (phase, accepting) = (self.phase.subscribe(), Arc::clone(&self.accepting));
        let work = async move {
            tokio::spawn(tick());
            let over = reached(phase.clone(), Phase::Over);
            let serve_all = async {
                while let Some(job) = jobs.recv().await {
                    let stop = reached(phase.clone(), Phase::Draining);
                    let serve = listeners::serve(job, Arc::clone(&proxy), options, stop);
                    let open = accepting.opened();
                    tokio::spawn(async move {
                        serve.await;
                        drop(open);
                    });
                }
                // Nothing more will be opened; what is served goes on.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = over => {}
                () = serve_all => {}
            }
        };
        let thread = std::thread::Builder::new().name(format!("edge-worker-{index}"));
        self.threads.push(thread.spawn(move || runtime.block_on(work))?);
        Ok(())
    }

    /// Closes the listeners, after taking those who are in their queues.
    pub(crate) fn stop_accepting(&self) {
        self.phase.send_if_modified(|phase| std::mem::replace(phase, Phase::Draining) == Phase::Accepting);
    }

    /// Waits until all listeners are closed and no connection is left.
    pub(crate) async fn idle(&self, connections: &Connections) {
        self.accepting.none().await;
        connections.none_left().await;
    }

    /// Ends what is left.
    pub(crate) fn cut(&self) {
        self.cuts.iter().for_each(|cut| cut.now());
    }

    /// Ends the threads; connections that are left are dropped.
    pub(crate) fn stop(self) {
        self.phase.send_replace(Phase::Over);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread died");
            }
        }
    }
}

/// A listener that is not closed.
struct Listed(Arc<Accepting>);

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::AcqRel);
        self.0.one_closed.notify_waiters();
    }
}

impl Accepting {
    fn opened(self: &Arc<Self>) -> Listed {
        self.listeners.fetch_add(1, Ordering::AcqRel);
        Listed(Arc::clone(self))
    }

    async fn none(&self) {
        loop {
            let mut closed = std::pin::pin!(self.one_closed.notified());
            closed.as_mut().enable();
            if self.listeners.load(Ordering::Acquire) == 0 {
                return;
            }
            closed.await;
        }
    }
}

async fn reached(mut phase: watch::Receiver<Phase>, at_least: Phase) {
    // The sender is gone only when the process ends.
    let _ = phase.wait_for(|phase| *phase >= at_least).await;
}

fn proxy(shared: &Shared, cut: &Arc<Cut>, ids: &Arc<AtomicU64>) -> Proxy<TcpConnector, Forwarders> {
    let settings = &shared.settings;
    Proxy {
        routing: Arc::clone(&shared.routing),
        geo: Arc::clone(&shared.geo) as _,
        bindings: Arc::clone(&shared.bindings) as _,
        greeter: Arc::new(ClientHellos { limit: settings.server_name_timeout }),
        observer: Arc::clone(&shared.recorder) as _,
        connections: Arc::clone(&shared.connections),
        admission: Arc::clone(&shared.admission),
        flows: Arc::clone(&shared.flows),
        health: Arc::clone(&shared.health),
        instance: shared.instance,
        ids: Arc::clone(ids),
        random: || fastrand::u64(..),
        connector: TcpConnector::new(tcp_options(shared), Arc::clone(&shared.path)),
        forwarder: Forwarders::new(
            Arc::clone(&shared.path),
            Arc::clone(&shared.same_host),
            forward_rules(settings),
            Arc::clone(cut),
        ),
        rules: rules(shared),
    }
}

/// The settings that shape a connection's way.
pub(crate) fn rules(shared: &Shared) -> Rules {
    let settings = &shared.settings;
    Rules {
        listeners: Arc::clone(&shared.endpoints),
        app: settings.app.clone(),
        pop_region: settings.region.clone(),
        overrides: Arc::clone(&shared.overrides),
        affinity: affinity(shared),
        max_connections: shared.max_connections,
        proxy_header_timeout: settings.proxy_header_timeout,
        proxy_optional_wait: settings.proxy_optional_wait,
        connect_timeout: settings.connect_timeout,
        connect_attempts: usize::try_from(settings.connect_attempts).unwrap_or(usize::MAX),
        connect_budget: settings.connect_budget,
    }
}

fn forward_rules(settings: &Settings) -> ForwardRules {
    ForwardRules {
        limits: TimeLimits { idle: settings.idle_timeout, half_close: settings.half_close_timeout },
        thresholds: thresholds(settings),
        odds: Odds { fail: settings.chaos_fail_permille, delay: settings.chaos_delay_permille },
    }
}

fn thresholds(settings: &Settings) -> Thresholds {
    Thresholds {
        bytes_per_sec: settings.auto_bytes_per_sec.into(),
        messages_per_sec: settings.auto_messages_per_sec.into(),
        turns: settings.auto_turns,
        largest_message: u64::from(settings.auto_largest_message_kib) * 1024,
        sizeable_message: u64::from(settings.auto_sizeable_message_kib) * 1024,
        conversations: settings.auto_conversations,
        reads_per_block: settings.auto_reads_per_block.into(),
        window: settings.auto_window,
        splice_read: usize::try_from(settings.splice_read_kib).map_or(usize::MAX, |kib| kib.saturating_mul(1024)),
        splice_reads: settings.splice_reads,
        spill: SpillLimits {
            percent: settings.auto_spill_percent,
            seconds: u32::try_from(settings.auto_spill.as_secs()).unwrap_or(u32::MAX),
        },
    }
}

fn affinity(shared: &Shared) -> AffinityPrefix {
    let settings = &shared.settings;
    // The settings have the same ranges.
    AffinityPrefix::new(settings.affinity_prefix_v4, settings.affinity_prefix_v6).unwrap_or_default()
}

fn tcp_options(shared: &Shared) -> TcpOptions {
    TcpOptions { keepalive: shared.settings.keepalive, user_timeout: shared.settings.tcp_user_timeout }
}

/// A timer that is always there and always soon. tokio writes to an eventfd, and with that wakes its own thread, for a
/// new timer that is due before all others; a connection that lives for a moment would do so three times.
async fn tick() {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
    }
}
