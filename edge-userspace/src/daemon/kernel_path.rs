//! Opens the kernel path, or finds out why there is none. A POP starts either way.

use std::sync::Arc;

use edgeproxy::adapters::outbound::forward::kernel::{Kernel, KernelError, KernelLimits};
use edgeproxy::adapters::outbound::forward::{KernelPath, Policy, self_test};
use edgeproxy::adapters::outbound::privileges;
use edgeproxy::config::{ForwarderChoice, Settings};

/// What came of loading the programs. To be opened once privileges are given up.
#[derive(Debug)]
pub(crate) enum Loaded {
    NotWanted,
    Not(String),
    Programs(Arc<Kernel>),
}

/// Loads the programs, if they are wanted.
pub(crate) fn load(settings: &Settings) -> Loaded {
    let policy = policy(settings.forwarder);
    if policy == Policy::Chaos {
        tracing::warn!("forwarder chaos makes connections fail and stall: it is for tests");
    }
    if !policy.wants_kernel() {
        return Loaded::NotWanted;
    }
    let limits = KernelLimits {
        pairs: settings.max_flows,
        backlog: settings.sockmap_backlog_kib.saturating_mul(1024),
        memory: u64::from(settings.sockmap_memory_mib) * 1024 * 1024,
    };
    match Kernel::load(limits) {
        Ok(kernel) => Loaded::Programs(kernel),
        Err(why) => Loaded::Not(explained(&why)),
    }
}

impl Loaded {
    /// Whether the daemon can go on with them when its capabilities are gone.
    pub(crate) fn usable_without_capabilities(&self) -> bool {
        match self {
            Self::Programs(kernel) => kernel.usable_without_capabilities(),
            Self::NotWanted | Self::Not(_) => true,
        }
    }
}

/// Tests what was loaded, with the privileges of everything that comes later, so that it proves that they suffice.
pub(crate) async fn open(settings: &Settings, loaded: Loaded) -> KernelPath {
    let policy = policy(settings.forwarder);
    let kernel = match loaded {
        Loaded::NotWanted => return KernelPath::not_wanted(policy),
        Loaded::Not(why) => return closed(policy, None, why),
        Loaded::Programs(kernel) => kernel,
    };
    match self_test::run(&kernel).await {
        Ok(()) => {
            tracing::info!("the kernel path passed its self-test");
            KernelPath::open(policy, kernel)
        }
        Err(why) => closed(policy, Some(kernel), format!("the self-test failed: {why}")),
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

/// What the kernel says then is "operation not permitted", or a page of the verifier's: which capability it missed is
/// known here.
fn explained(why: &KernelError) -> String {
    let Some(lacking) = privileges::lacking() else { return why.to_string() };
    tracing::debug!(%why, "loading the BPF programs failed");
    format!("{lacking}: the kernel path needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
}

fn closed(policy: Policy, kernel: Option<Arc<Kernel>>, why: String) -> KernelPath {
    tracing::warn!(why, "connections are forwarded in userspace");
    KernelPath::closed(policy, kernel, why)
}
