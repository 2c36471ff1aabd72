//! Opens the kernel path, or finds out why there is none. A POP starts either way.

use std::sync::Arc;

use aya::EbpfLoader;

use edgeproxy::adapters::inbound::listeners::manager::Steer;
use edgeproxy::adapters::outbound::forward::kernel::releases::{self, Judgement};
use edgeproxy::adapters::outbound::forward::kernel::{Kernel, KernelError, KernelLimits, Offsets};
use edgeproxy::adapters::outbound::forward::{Found, Policy, SameHost, SameHostLimits, self_test};
use edgeproxy::adapters::outbound::privileges;
use edgeproxy::application::status::KernelPathOff;
use edgeproxy::cli::CliError;
use edgeproxy::config::{ForwarderChoice, Settings};
use tokio::sync::oneshot;

use super::{failed, in_background, listening};

/// The thread that loads the BPF programs, those that forward and the one that steers. Loading them takes longer than all
/// else at a start, so clients are served meanwhile, where they can be. This thread keeps the privileges that it began
/// with until it is done; no other has them by then.
#[derive(Debug)]
pub(crate) struct Programs(oneshot::Receiver<(Loaded, Steer)>);

/// What came of it.
#[derive(Debug)]
enum Loaded {
    NotWanted,
    Not(KernelPathOff, String),
    Programs(Arc<Kernel>),
}

impl Programs {
    /// Starts it, with the privileges of the caller.
    pub(crate) fn start(settings: &Settings) -> Result<Self, CliError> {
        let (done, outcome) = oneshot::channel();
        let settings = settings.clone();
        let work = move || {
            let loaded = load_all(&settings);
            privileges::forgo();
            // Nobody waits for it any more where the daemon ends.
            let _ = done.send(loaded);
        };
        in_background("edge-programs", work).map_err(failed)?;
        Ok(Self(outcome))
    }

    /// Tests what was loaded, with the privileges of everything that comes later, so that it proves that they suffice.
    pub(crate) async fn tested(self) -> (Found, Steer) {
        let (loaded, steer) = self.0.await.unwrap_or_else(|_| {
            let why = "the thread that loads the BPF programs died";
            (Loaded::Not(KernelPathOff::Load, why.to_owned()), Steer::Off(why.to_owned()))
        });
        let found = match loaded {
            Loaded::NotWanted => return (Found::NotWanted, steer),
            Loaded::Not(off, why) => Found::Nothing(off, why),
            Loaded::Programs(kernel) => match self_test::run(&kernel).await {
                Ok(()) => Found::Sound(kernel),
                Err(why) => Found::Unsound(kernel, format!("the self-test failed: {why}")),
            },
        };
        match &found {
            Found::Unsound(_, why) | Found::Nothing(_, why) => {
                tracing::warn!(why, "connections are forwarded in userspace");
            }
            _ => tracing::info!("the kernel path passed its self-test"),
        }
        (found, steer)
    }
}

/// Whether nobody can be served before the programs are loaded, whatever the listeners: the operator wants the kernel path
/// from the first byte, or the same-host path, which must see the first one.
pub(crate) fn comes_first(settings: &Settings) -> bool {
    policy(settings.forwarder) == Policy::Sockmap || !settings.same_host_cgroup.is_empty()
}

fn load_all(settings: &Settings) -> (Loaded, Steer) {
    std::thread::scope(|scope| {
        let prepared =
            std::thread::Builder::new().name("edge-offsets".into()).spawn_scoped(scope, || prepare(settings));
        // Reads all types of the kernel, which takes as long as everything else about the programs.
        let mut loader = EbpfLoader::new();
        let steer = listening::load_steering(&mut loader);
        let prepared = prepared.map_err(|why| Loaded::Not(KernelPathOff::Load, why.to_string()));
        let died =
            |_| Err(Loaded::Not(KernelPathOff::Load, "the thread that reads the kernel's offsets died".to_owned()));
        let offsets = prepared.and_then(|thread| thread.join().unwrap_or_else(died));
        (offsets.map_or_else(|not| not, |offsets| load(settings, &offsets, loader)), steer)
    })
}

/// What loading the programs takes, or why they are not loaded. Can be had while the loader is made.
fn prepare(settings: &Settings) -> Result<Offsets, Loaded> {
    let policy = policy(settings.forwarder);
    if policy == Policy::Chaos {
        tracing::warn!("forwarder chaos makes connections fail and stall: it is for tests");
    }
    if !policy.wants_kernel() {
        return Err(Loaded::NotWanted);
    }
    if let Err(why) = judge_kernel(settings.sockmap_on_denied_kernels) {
        return Err(Loaded::Not(KernelPathOff::DeniedKernel, why));
    }
    Offsets::read().map_err(|why| explained(&why))
}

/// Loads the programs.
fn load(settings: &Settings, offsets: &Offsets, loader: EbpfLoader<'_>) -> Loaded {
    let limits = KernelLimits {
        pairs: settings.max_flows,
        backlog: settings.sockmap_backlog_kib.saturating_mul(1024),
        memory: u64::from(settings.sockmap_memory_mib) * 1024 * 1024,
    };
    match Kernel::load(limits, offsets, loader) {
        Ok(kernel) => Loaded::Programs(kernel),
        Err(why) => explained(&why),
    }
}

/// The forwarders' name for what the operator chose.
pub(crate) fn policy(choice: ForwarderChoice) -> Policy {
    match choice {
        ForwarderChoice::Auto => Policy::Auto,
        ForwarderChoice::Copy => Policy::Copy,
        ForwarderChoice::Splice => Policy::Splice,
        ForwarderChoice::Sockmap => Policy::Sockmap,
        ForwarderChoice::Chaos => Policy::Chaos,
    }
}

/// Corruption can't be probed for: kernels that are known for it are refused by their release.
fn judge_kernel(use_anyway: bool) -> Result<(), String> {
    match releases::judge_running() {
        Judgement::Denied(why) if use_anyway => {
            tracing::warn!(%why, "the kernel path is used all the same: sockmap_on_denied_kernels is set");
        }
        Judgement::Denied(why) => return Err(why.to_string()),
        Judgement::Accepted => tracing::info!(recommended = releases::RECOMMENDATION, "a newer kernel is recommended"),
        Judgement::Recommended => {}
    }
    Ok(())
}

/// What the kernel says then is "operation not permitted", or a page of the verifier's: which capability it missed is
/// known here.
fn explained(why: &KernelError) -> Loaded {
    let Some(lacking) = privileges::lacking() else { return Loaded::Not(KernelPathOff::Load, why.to_string()) };
    tracing::debug!(%why, "loading the BPF programs failed");
    let why = format!("{lacking}: the kernel path needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
    Loaded::Not(KernelPathOff::Capability, why)
}

/// Opens the path between applications of this host, where the operator named their cgroups.
pub(crate) async fn open_same_host(settings: &Settings) -> SameHost {
    if !settings.same_host_cgroup.is_empty() {
        if !policy(settings.forwarder).wants_kernel() {
            return SameHost::closed(format!("forwarder = {} asks for userspace only", settings.forwarder.as_str()));
        }
        if let Err(why) = judge_kernel(settings.sockmap_on_denied_kernels) {
            return SameHost::closed(why);
        }
    }
    let limits = SameHostLimits {
        cgroups: settings.same_host_cgroup.iter().map(|path| path.as_path().to_owned()).collect(),
        pairs: settings.max_flows,
        budget: settings.same_host_budget_kib.saturating_mul(1024),
    };
    SameHost::open(&limits).await
}
