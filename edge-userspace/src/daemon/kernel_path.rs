//! Opens the kernel path, or finds out why there is none. A POP starts either way.

use std::sync::Arc;

use aya::EbpfLoader;

use edgeproxy::adapters::outbound::forward::kernel::releases::{self, Judgement};
use edgeproxy::adapters::outbound::forward::kernel::{Kernel, KernelError, KernelLimits, Offsets};
use edgeproxy::adapters::outbound::forward::{KernelPath, Policy, SameHost, SameHostLimits, self_test};
use edgeproxy::adapters::outbound::privileges;
use edgeproxy::application::status::KernelPathOff;
use edgeproxy::config::{ForwarderChoice, Settings};

/// What came of loading the programs. To be opened once privileges are given up.
#[derive(Debug)]
pub(crate) enum Loaded {
    NotWanted,
    Not(KernelPathOff, String),
    Programs(Arc<Kernel>),
}

/// What loading the programs takes, or why they are not loaded. Can be had while the loader is made.
pub(crate) fn prepare(settings: &Settings) -> Result<Offsets, Loaded> {
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
pub(crate) fn load(settings: &Settings, offsets: &Offsets, loader: EbpfLoader<'_>) -> Loaded {
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

impl Loaded {
    /// Whether the daemon can go on with them when its capabilities are gone.
    pub(crate) fn usable_without_capabilities(&self) -> bool {
        match self {
            Self::Programs(kernel) => kernel.usable_without_capabilities(),
            Self::NotWanted | Self::Not(..) => true,
        }
    }
}

/// Tests what was loaded, with the privileges of everything that comes later, so that it proves that they suffice.
pub(crate) async fn open(settings: &Settings, loaded: Loaded) -> (KernelPath, Option<KernelPathOff>) {
    let policy = policy(settings.forwarder);
    let kernel = match loaded {
        Loaded::NotWanted => return (KernelPath::not_wanted(policy), None),
        Loaded::Not(off, why) => return (closed(policy, None, why), Some(off)),
        Loaded::Programs(kernel) => kernel,
    };
    match self_test::run(&kernel).await {
        Ok(()) => {
            tracing::info!("the kernel path passed its self-test");
            (KernelPath::open(policy, kernel), None)
        }
        Err(why) => {
            let why = format!("the self-test failed: {why}");
            (closed(policy, Some(kernel), why), Some(KernelPathOff::SelfTest))
        }
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

fn closed(policy: Policy, kernel: Option<Arc<Kernel>>, why: String) -> KernelPath {
    tracing::warn!(why, "connections are forwarded in userspace");
    KernelPath::closed(policy, kernel, why)
}
