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
    condemned: AtomicBool,
    why_not: ArcSwapOption<String>,
}

impl KernelPath {
    /// The programs are loaded and passed their self-test.
    pub fn open(policy: Policy, kernel: Arc<Kernel>) -> Self {
        Self { policy, kernel: Some(kernel), condemned: AtomicBool::new(false), why_not: ArcSwapOption::empty() }
    }

    /// There is none, for the reason given. `kernel` may still count connections.
    pub fn closed(policy: Policy, kernel: Option<Arc<Kernel>>, why: String) -> Self {
        let why_not = ArcSwapOption::from_pointee(why);
        Self { policy, kernel, condemned: AtomicBool::new(true), why_not }
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Whether new connections may use it.
    pub fn is_open(&self) -> bool {
        self.kernel.is_some() && !self.condemned.load(Ordering::Acquire)
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
        self.condemned.store(true, Ordering::Release);
        tracing::error!(what, "the kernel path is switched off: byte counts of a connection disagree");
    }
}
