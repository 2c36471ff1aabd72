//! Opens the kernel path, or finds out why there is none. A POP starts either way.

use std::sync::Arc;
use std::time::Duration;

use aya::EbpfLoader;

use edgeproxy::adapters::inbound::listeners::manager::Steer;
use edgeproxy::adapters::outbound::forward::kernel::releases::{self, Judgement};
use edgeproxy::adapters::outbound::forward::kernel::{CgroupNews, Kernel, KernelError, KernelLimits, Offsets};
use edgeproxy::adapters::outbound::forward::{Found, Policy, SameHost, SameHostLimits, self_test};
use edgeproxy::adapters::outbound::privileges;
use edgeproxy::application::events::{EventKind, Events, Subject};
use edgeproxy::application::status::KernelPathOff;
use edgeproxy::cli::CliError;
use edgeproxy::config::{ForwarderChoice, Settings};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{failed, in_background, listening};

/// Loading and testing takes a tenth of a second. A kernel that hangs must not keep anybody waiting.
const LIMIT: Duration = Duration::from_secs(30);

/// The thread that loads and tests the BPF programs, those that forward and the one that steers. That takes longer than all
/// else at a start, so clients are served meanwhile, where they can be. This thread keeps the privileges that it began
/// with until it has loaded them; no other has them by then.
#[derive(Debug)]
pub(crate) struct Programs(oneshot::Receiver<(Found, Steer)>);

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
            let (loaded, steer) = load_all(&settings);
            privileges::forgo();
            // Without any privileges: so it proves that none is needed.
            // Nobody waits for it any more where the daemon ends.
            let _ = done.send((tested(loaded), steer));
        };
        in_background("edge-programs", work).map_err(failed)?;
        Ok(Self(outcome))
    }

    /// What came of it.
    pub(crate) async fn found(self) -> (Found, Steer) {
        let (found, steer) = match timeout(LIMIT, self.0).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => nothing("the thread that loads the BPF programs died".to_owned()),
            Err(_) => nothing(format!("loading the BPF programs takes longer than {} s", LIMIT.as_secs())),
        };
        match &found {
            Found::NotWanted => {}
            Found::Sound(_) => tracing::info!("the kernel path passed its self-test"),
            Found::Unsound(_, why) | Found::Nothing(_, why) => {
                tracing::warn!(why, "connections are forwarded in userspace");
            }
        }
        (found, steer)
    }
}

fn nothing(why: String) -> (Found, Steer) {
    (Found::Nothing(KernelPathOff::Load, why.clone()), Steer::Off(why))
}

fn tested(loaded: Loaded) -> Found {
    let kernel = match loaded {
        Loaded::NotWanted => return Found::NotWanted,
        Loaded::Not(off, why) => return Found::Nothing(off, why),
        Loaded::Programs(kernel) => kernel,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let passed = runtime
        .map_err(|why| why.to_string())
        .and_then(|runtime| runtime.block_on(self_test::run(&kernel)).map_err(|why| why.to_string()));
    match passed {
        Ok(()) => Found::Sound(kernel),
        Err(why) => Found::Unsound(kernel, format!("the self-test failed: {why}")),
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

/// Opens the path between applications of this host, where the operator named their cgroups, and says whose applications
/// don't take part.
pub(crate) async fn open_same_host(settings: &Settings, events: &Events) -> SameHost {
    let path = same_host(settings).await;
    let missing = path.missing_cgroups();
    for (cgroup, why) in &missing {
        events.emit(EventKind::CgroupLost, Subject::cgroup(cgroup), why);
    }
    // Who names none, or asks for userspace only, wants none.
    let wanted = !settings.same_host_cgroup.is_empty() && policy(settings.forwarder).wants_kernel();
    if let Some(why) = path.why_not().filter(|_| wanted && missing.is_empty()) {
        let why = format!("marked backends take the ordinary way: {why}");
        events.emit(EventKind::SameHostOff, Subject::forwarder(), why);
    }
    path
}

async fn same_host(settings: &Settings) -> SameHost {
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

/// Takes in cgroups that have come back and says which are gone.
pub(crate) fn look_after_cgroups(same_host: &SameHost, events: &Events) {
    for CgroupNews { path, why_not } in same_host.tick() {
        match why_not {
            Some(why) => events.emit(EventKind::CgroupLost, Subject::cgroup(&path), why),
            None => events.emit(EventKind::CgroupFound, Subject::cgroup(&path), "its applications take part"),
        }
    }
}
