//! Opens the kernel path, or finds out why there is none. A POP starts either way.

use std::sync::Arc;

use edgeproxy::adapters::outbound::forward::kernel::{Kernel, KernelLimits};
use edgeproxy::adapters::outbound::forward::{KernelPath, Policy, self_test};
use edgeproxy::config::{ForwarderChoice, Settings};

pub(crate) async fn open(settings: &Settings) -> KernelPath {
    let policy = policy(settings.forwarder);
    if policy == Policy::Chaos {
        tracing::warn!("forwarder chaos makes connections fail and stall: it is for tests");
    }
    if !policy.wants_kernel() {
        return KernelPath::not_wanted(policy);
    }
    let limits = KernelLimits {
        pairs: settings.max_flows,
        backlog: settings.sockmap_backlog_kib.saturating_mul(1024),
        memory: u64::from(settings.sockmap_memory_mib) * 1024 * 1024,
    };
    let kernel = match Kernel::load(limits) {
        Ok(kernel) => kernel,
        Err(why) => return closed(policy, None, why.to_string()),
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

fn closed(policy: Policy, kernel: Option<Arc<Kernel>>, why: String) -> KernelPath {
    tracing::warn!(why, "connections are forwarded in userspace");
    KernelPath::closed(policy, kernel, why)
}
