//! Opens the kernel path, or finds out why there is none. A POP starts either way.

use std::sync::Arc;

use edgeproxy::adapters::outbound::forward::kernel::{Kernel, KernelLimits};
use edgeproxy::adapters::outbound::forward::{KernelPath, Policy, self_test};
use edgeproxy::config::{ForwarderChoice, Settings};

pub(crate) async fn open(settings: &Settings) -> KernelPath {
    let policy = match settings.forwarder {
        ForwarderChoice::Auto => Policy::Auto,
        ForwarderChoice::Copy => Policy::Copy,
        ForwarderChoice::Sockmap => Policy::Sockmap,
    };
    if policy == Policy::Copy {
        return KernelPath::not_wanted();
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

fn closed(policy: Policy, kernel: Option<Arc<Kernel>>, why: String) -> KernelPath {
    tracing::warn!(why, "connections are forwarded in userspace");
    KernelPath::closed(policy, kernel, why)
}
