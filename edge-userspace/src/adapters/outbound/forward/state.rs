//! Whether the kernel path is there, and why not where it isn't.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;

use super::kernel::Kernel;

/// Which forwarder connections get (`forwarder`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Copy first; the kernel path for what profits from it.
    Auto,
    /// Userspace only.
    Copy,
    /// The kernel path from the first byte.
    Sockmap,
}

impl Policy {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Copy => "copy",
            Self::Sockmap => "sockmap",
        }
    }
}

/// The kernel path of this daemon.
#[derive(Debug)]
pub struct KernelPath {
    policy: Policy,
    kernel: Option<Arc<Kernel>>,
    usable: AtomicBool,
    self_test: Option<&'static str>,
    why_not: ArcSwapOption<String>,
}

impl KernelPath {
    /// The programs are loaded and passed their self-test.
    pub fn open(policy: Policy, kernel: Arc<Kernel>) -> Self {
        kernel.restart_count();
        Self::new(policy, Some(kernel), Some("passed"), None)
    }

    /// There is none, for the reason given. A `kernel` that failed its self-test still counts connections.
    pub fn closed(policy: Policy, kernel: Option<Arc<Kernel>>, why: String) -> Self {
        let self_test = kernel.is_some().then_some("failed");
        Self::new(policy, kernel, self_test, Some(why))
    }

    /// The operator asked for userspace only: no program is loaded.
    pub fn not_wanted() -> Self {
        Self::new(Policy::Copy, None, None, None)
    }

    fn new(policy: Policy, kernel: Option<Arc<Kernel>>, self_test: Option<&'static str>, why: Option<String>) -> Self {
        let usable = AtomicBool::new(kernel.is_some() && why.is_none());
        Self { policy, kernel, usable, self_test, why_not: ArcSwapOption::from(why.map(Arc::new)) }
    }

    /// What new connections get.
    pub fn active(&self) -> Policy {
        if self.is_open() { self.policy } else { Policy::Copy }
    }

    /// How the self-test ended; `None` if it was not run.
    pub fn self_test(&self) -> Option<&'static str> {
        self.self_test
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Whether new connections may use it.
    pub fn is_open(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    /// The programs, for new connections.
    pub(super) fn kernel(&self) -> Option<&Arc<Kernel>> {
        self.kernel.as_ref().filter(|_| self.is_open())
    }

    /// The programs, for reading back what they count.
    pub fn programs(&self) -> Option<&Arc<Kernel>> {
        self.kernel.as_ref()
    }

    /// Why new connections can't use it.
    pub fn why_not(&self) -> Option<Arc<String>> {
        self.why_not.load_full()
    }

    /// Bytes were lost or duplicated: nothing goes this way any more. Running connections go on in userspace.
    pub fn condemn(&self, what: &str) {
        if let Some(kernel) = &self.kernel {
            kernel.gate_all(true);
        }
        self.why_not.store(Some(Arc::new(format!("byte counts disagreed: {what}"))));
        self.usable.store(false, Ordering::Release);
        tracing::error!(what, "the kernel path is switched off: byte counts of a connection disagree");
    }
}
