//! Which forwarder connections get, whether the kernel path is there, and why not where it isn't.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;

use super::kernel::Kernel;
use crate::application::status::KernelPathOff;

/// Which forwarder connections get (`forwarder`, `edgeproxy forwarder set`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Copy first; splice and the kernel path for what profits from them.
    Auto,
    /// recv and send only.
    Copy,
    /// Userspace only: splice for what is large.
    Splice,
    /// The kernel path from the first byte.
    Sockmap,
    /// For tests: sockets that fail and stall at random. Holds for the life of the daemon.
    Chaos,
}

impl Policy {
    const ALL: [Self; 5] = [Self::Auto, Self::Copy, Self::Splice, Self::Sockmap, Self::Chaos];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Chaos => "chaos",
        }
    }

    /// Whether it uses the kernel path.
    pub const fn wants_kernel(self) -> bool {
        matches!(self, Self::Auto | Self::Sockmap)
    }

    /// Whether it may splice.
    pub const fn may_splice(self) -> bool {
        matches!(self, Self::Auto | Self::Splice | Self::Chaos)
    }
}

/// A connection whose byte counts disagreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// On the kernel path, which was switched off for it.
    pub in_kernel: bool,
    /// In words.
    pub what: String,
}

/// Why a policy could not be set.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("there is no kernel path to use: {0}")]
    NoKernelPath(String),
    #[error("chaos is for tests and can only be chosen at the start: set EDGEPROXY_FORWARDER=chaos")]
    Chaos,
    #[error("the daemon runs with forwarder chaos, which holds for its life")]
    InChaos,
}

/// The policy and the kernel path of this daemon.
#[derive(Debug)]
pub struct KernelPath {
    policy: AtomicU8,
    changes: Mutex<()>,
    workers: AtomicU32,
    /// Not there while the programs are being loaded.
    found: OnceLock<Found>,
    /// Byte counts disagreed since the operator last allowed it.
    condemned: AtomicBool,
    /// Likewise of a connection that was spliced.
    distrusted: AtomicBool,
    /// What disagreed and was not asked for yet.
    news: Mutex<Vec<Disagreement>>,
    /// Connections whose byte counts disagreed, in all.
    mismatches: AtomicU64,
    why_not: ArcSwapOption<String>,
}

/// What came of loading the programs.
#[derive(Debug)]
pub enum Found {
    /// The operator asked for userspace only: no program is loaded.
    NotWanted,
    /// They passed their self-test.
    Sound(Arc<Kernel>),
    /// They failed it, for the reason given; they still count connections.
    Unsound(Arc<Kernel>, String),
    /// They could not be loaded.
    Nothing(KernelPathOff, String),
}

impl Found {
    fn kernel(&self) -> Option<&Arc<Kernel>> {
        match self {
            Self::Sound(kernel) | Self::Unsound(kernel, _) => Some(kernel),
            Self::NotWanted | Self::Nothing(..) => None,
        }
    }
}

impl KernelPath {
    /// Nothing is known yet of the programs: until [`KernelPath::settle`] connections go without.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy: AtomicU8::new(policy as u8),
            changes: Mutex::new(()),
            workers: AtomicU32::new(1),
            found: OnceLock::new(),
            condemned: AtomicBool::new(false),
            distrusted: AtomicBool::new(false),
            news: Mutex::default(),
            mismatches: AtomicU64::new(0),
            why_not: ArcSwapOption::from(policy.wants_kernel().then(|| Arc::new(LOADING.to_owned()))),
        }
    }

    /// There is no kernel path, because the operator wants none.
    pub fn not_wanted(policy: Policy) -> Self {
        let path = Self::new(policy);
        path.settle(Found::NotWanted);
        path
    }

    /// Says what came of the programs. Counts only once.
    pub fn settle(&self, found: Found) {
        let _one_at_a_time = self.change();
        let why = match &found {
            Found::NotWanted => None,
            Found::Sound(kernel) => {
                // What the self-test sent is nobody's traffic.
                kernel.restart_count();
                None
            }
            Found::Unsound(_, why) | Found::Nothing(_, why) => Some(Arc::new(why.clone())),
        };
        if self.found.set(found).is_ok() {
            self.why_not.store(why);
            self.gate();
        }
    }

    /// Whether the programs are still being loaded.
    pub fn is_loading(&self) -> bool {
        self.found.get().is_none()
    }

    /// They are loaded and passed their self-test.
    fn is_sound(&self) -> bool {
        matches!(self.found.get(), Some(Found::Sound(_)))
    }

    /// What new connections get.
    pub fn active(&self) -> Policy {
        match self.policy() {
            Policy::Auto if !self.is_open() && self.may_splice() => Policy::Splice,
            Policy::Auto if !self.is_open() => Policy::Copy,
            Policy::Splice if !self.may_splice() => Policy::Copy,
            Policy::Sockmap if !self.is_open() => Policy::Copy,
            policy => policy,
        }
    }

    /// How the self-test ended; `None` if it was not run.
    pub fn self_test(&self) -> Option<&'static str> {
        match self.found.get()? {
            Found::Sound(_) => Some("passed"),
            Found::Unsound(..) => Some("failed"),
            Found::NotWanted | Found::Nothing(..) => None,
        }
    }

    /// Why there is no kernel path where it is wanted, in a word.
    pub fn off(&self) -> Option<KernelPathOff> {
        let off = match self.found.get()? {
            Found::NotWanted => None,
            Found::Sound(_) => self.is_condemned().then_some(KernelPathOff::ByteMismatch),
            Found::Unsound(..) => Some(KernelPathOff::SelfTest),
            Found::Nothing(off, _) => Some(*off),
        };
        off.filter(|_| self.policy().wants_kernel())
    }

    /// What the operator wants, for new connections and for those that run.
    pub fn policy(&self) -> Policy {
        let policy = self.policy.load(Ordering::Relaxed);
        Policy::ALL.into_iter().find(|known| *known as u8 == policy).unwrap_or(Policy::Copy)
    }

    /// Changes the policy, for new connections and for those that run. Choosing the kernel path lifts a condemnation.
    pub fn set_policy(&self, policy: Policy) -> Result<(), PolicyError> {
        match policy {
            Policy::Chaos => return Err(PolicyError::Chaos),
            _ if self.policy() == Policy::Chaos => return Err(PolicyError::InChaos),
            Policy::Sockmap if !self.is_sound() => {
                let why = self.why_not().map_or_else(|| NOT_LOADED.to_owned(), |why| why.to_string());
                return Err(PolicyError::NoKernelPath(why));
            }
            _ => {}
        }
        let _one_at_a_time = self.change();
        if policy.wants_kernel() && self.is_sound() && self.condemned.swap(false, Ordering::AcqRel) {
            self.why_not.store(None);
            tracing::warn!("an operator allows the kernel path again");
        }
        if policy.may_splice() && self.distrusted.swap(false, Ordering::AcqRel) {
            tracing::warn!("an operator allows splice again");
        }
        self.policy.store(policy as u8, Ordering::Release);
        self.gate();
        tracing::info!(forwarder = policy.as_str(), active = self.active().as_str(), "forwarder policy changed");
        Ok(())
    }

    /// Whether connections may use it, by the policy of now.
    pub fn is_open(&self) -> bool {
        self.is_sound() && self.policy().wants_kernel() && !self.is_condemned()
    }

    /// Whether byte counts disagreed.
    pub fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Acquire)
    }

    /// Whether large amounts may be spliced, by the policy of now.
    pub fn may_splice(&self) -> bool {
        self.policy().may_splice() && !self.distrusted.load(Ordering::Relaxed)
    }

    /// Pairs that the kernel path has, for each worker.
    pub(super) fn pairs_per_worker(&self) -> u32 {
        let pairs = self.programs().map_or(0, |kernel| kernel.pairs_in_use());
        pairs / self.workers.load(Ordering::Relaxed).max(1)
    }

    /// How many workers share the connections.
    pub fn set_workers(&self, workers: usize) {
        self.workers.store(u32::try_from(workers).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// The programs, for new connections.
    pub(super) fn kernel(&self) -> Option<&Arc<Kernel>> {
        self.programs().filter(|_| self.is_open())
    }

    /// The programs, for reading back what they count.
    pub fn programs(&self) -> Option<&Arc<Kernel>> {
        self.found.get()?.kernel()
    }

    /// Why new connections can't use it.
    pub fn why_not(&self) -> Option<Arc<String>> {
        let never = matches!(self.found.get(), Some(Found::NotWanted)) && self.policy().wants_kernel();
        if never { Some(Arc::new(NOT_LOADED.to_owned())) } else { self.why_not.load_full() }
    }

    /// Connections whose byte counts disagreed, in all.
    pub fn mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }

    /// Bytes were lost or duplicated: nothing goes this way any more until an operator allows it. Running connections
    /// go on in userspace.
    pub fn condemn(&self, what: &str) {
        let why = format!("byte counts disagreed: {what}");
        self.note(Disagreement { in_kernel: true, what: why.clone() });
        let _one_at_a_time = self.change();
        self.why_not.store(Some(Arc::new(why)));
        self.condemned.store(true, Ordering::Release);
        self.gate();
        tracing::error!(
            what,
            "the kernel path is switched off: byte counts of a connection disagree; \
             `edgeproxy forwarder set` switches it on again"
        );
    }

    /// A connection in userspace did not move what it received. If a part of it was `spliced`, nothing is
    /// any more until an operator allows it; to copy there is no alternative.
    pub fn distrust(&self, what: &str, spliced: bool) {
        self.distrusted.fetch_or(spliced, Ordering::AcqRel);
        let remedy = if spliced { "; splice is switched off until `edgeproxy forwarder set`" } else { "" };
        let what = format!("byte counts of a connection disagree: {what}{remedy}");
        self.note(Disagreement { in_kernel: false, what });
    }

    /// A connection's byte counts disagreed.
    pub(super) fn count_mismatch(&self) {
        self.mismatches.fetch_add(1, Ordering::Relaxed);
    }

    fn note(&self, disagreement: Disagreement) {
        self.count_mismatch();
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if news.len() < MAX_NEWS {
            news.push(disagreement);
        }
    }

    /// What disagreed since the last call.
    pub fn disagreements(&self) -> Vec<Disagreement> {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A state and the gate that follows from it are changed together.
    fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the programs: with the gate closed everything is left to userspace, running flows included.
    fn gate(&self) {
        if let Some(kernel) = self.programs() {
            kernel.gate_all(!self.is_open());
        }
    }
}

/// Disagreements that are kept until they are told; all are counted.
const MAX_NEWS: usize = 10;

/// Why there is no kernel path in the first moments of a daemon.
const LOADING: &str = "the BPF programs are being loaded";

/// Why a daemon that was started without it has no kernel path.
const NOT_LOADED: &str = "no program was loaded at the start: start with EDGEPROXY_FORWARDER=auto or sockmap";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_kernel_path_the_policy_falls_back_and_sockmap_can_not_be_set() {
        let path = KernelPath::new(Policy::Auto);
        assert!(path.is_loading() && path.off().is_none() && path.active() == Policy::Splice);
        let refused = path.set_policy(Policy::Sockmap).unwrap_err();
        assert!(refused.to_string().contains("being loaded"), "{refused}");
        path.settle(Found::Nothing(KernelPathOff::Load, "no BTF".to_owned()));
        assert_eq!((path.is_loading(), path.off(), path.active()), (false, Some(KernelPathOff::Load), Policy::Splice));
        let refused = path.set_policy(Policy::Sockmap).unwrap_err();
        assert!(refused.to_string().contains("no BTF"), "{refused}");
        path.set_policy(Policy::Copy).unwrap();
        assert_eq!((path.policy(), path.active(), path.off()), (Policy::Copy, Policy::Copy, None));
        path.set_policy(Policy::Auto).unwrap();
        assert_eq!(path.active(), Policy::Splice);
    }

    #[test]
    fn splice_is_off_after_a_disagreement_until_an_operator_allows_it() {
        let path = KernelPath::not_wanted(Policy::Splice);
        path.distrust("5 bytes", false);
        assert!(path.may_splice() && path.active() == Policy::Splice);
        path.distrust("6 bytes", true);
        assert!(!path.may_splice() && path.active() == Policy::Copy);
        assert_eq!((path.mismatches(), path.disagreements().len(), path.disagreements().len()), (2, 2, 0));
        path.set_policy(Policy::Copy).unwrap();
        assert!(!path.may_splice());
        path.set_policy(Policy::Splice).unwrap();
        assert!(path.may_splice() && path.active() == Policy::Splice);
    }

    #[test]
    fn chaos_holds_for_life() {
        let path = KernelPath::not_wanted(Policy::Chaos);
        assert!(matches!(path.set_policy(Policy::Copy), Err(PolicyError::InChaos)) && path.why_not().is_none());
        let path = KernelPath::not_wanted(Policy::Copy);
        assert!(matches!(path.set_policy(Policy::Chaos), Err(PolicyError::Chaos)));
    }
}
