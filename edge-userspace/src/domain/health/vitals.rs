//! A backend's health behind a lock, and beside it what choosing needs of it without one.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{FULL, Health, HealthRules};
use crate::domain::Skip;

/// Why a backend is not to be trusted with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::domain) enum Distrust {
    /// It failed its clients: asked when no other is left.
    Ejected,
    /// Its checks fail: asked when all that are in service are out.
    Down,
}

impl Distrust {
    pub(in crate::domain) const fn skip(self) -> Skip {
        match self {
            Self::Ejected => Skip::Ejected,
            Self::Down => Skip::CheckFailed,
        }
    }

    const fn code(distrust: Option<Self>) -> u8 {
        match distrust {
            None => 0,
            Some(Self::Ejected) => 1,
            Some(Self::Down) => 2,
        }
    }
}

/// A backend's health, and what choosing needs of it without a lock.
#[derive(Debug)]
pub(in crate::domain) struct Vitals {
    health: Mutex<Health>,
    /// [`Distrust::code`].
    distrust: AtomicU8,
    spotless: AtomicBool,
    warmth: AtomicU32,
    /// The [`moment`] of the last connection that it has accepted; 0 is none.
    accepted: AtomicU64,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            health: Mutex::default(),
            distrust: AtomicU8::new(0),
            spotless: AtomicBool::new(true),
            warmth: AtomicU32::new(FULL),
            accepted: AtomicU64::new(0),
        }
    }
}

impl Vitals {
    pub(in crate::domain) fn distrust(&self) -> Option<Distrust> {
        match self.distrust.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(Distrust::Ejected),
            _ => Some(Distrust::Down),
        }
    }

    /// The backend has accepted a connection.
    pub(in crate::domain) fn accepted(&self, now: Instant) {
        self.accepted.fetch_max(moment(now), Ordering::Relaxed);
    }

    /// Whether it has accepted one later than `began`.
    pub(in crate::domain) fn has_accepted_since(&self, began: Instant) -> bool {
        self.accepted.load(Ordering::Relaxed) > moment(began)
    }

    /// Whether a good word would change nothing.
    pub(in crate::domain) fn is_spotless(&self) -> bool {
        self.spotless.load(Ordering::Relaxed)
    }

    /// Whether a backend that is coming back gets this client; `random` is uniform.
    pub(in crate::domain) fn admits(&self, random: impl FnOnce() -> u64) -> bool {
        let warmth = self.warmth.load(Ordering::Relaxed);
        warmth >= FULL || random() % u64::from(FULL) < u64::from(warmth)
    }

    /// Looks at or changes the health.
    pub(in crate::domain) fn with<T>(
        &self,
        now: Instant,
        rules: &HealthRules,
        change: impl FnOnce(&mut Health) -> T,
    ) -> Visit<T> {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut health);
        let code = Distrust::code(health.distrust());
        let turned = self.distrust.swap(code, Ordering::SeqCst) != code;
        self.spotless.store(health.is_spotless(), Ordering::Relaxed);
        self.warmth.store(health.warmth(now, rules), Ordering::Relaxed);
        Visit { result, turned, more: health.is_on_its_way() }
    }

    /// Begins anew. `mattered` is called if something was known that did, while the health is held.
    pub(in crate::domain) fn forget(&self, mattered: impl FnOnce()) -> Visit<()> {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if health.forget() {
            mattered();
        }
        let turned = self.distrust.swap(Distrust::code(None), Ordering::SeqCst) != Distrust::code(None);
        self.spotless.store(true, Ordering::Relaxed);
        self.warmth.store(FULL, Ordering::Relaxed);
        self.accepted.store(0, Ordering::Relaxed);
        Visit { result: (), turned, more: false }
    }

    /// Looks at the health without changing it.
    pub(in crate::domain) fn look<T>(&self, look: impl FnOnce(&Health) -> T) -> T {
        look(&self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What moments are counted from, in the middle of what a word holds: simulated times may be before the first use.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
const MIDDLE: u64 = 1 << 63;

/// A time in nanoseconds, for comparison; 292 years to either side.
fn moment(at: Instant) -> u64 {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    match at.checked_duration_since(*START) {
        Some(after) => MIDDLE.saturating_add(nanos(after)),
        None => MIDDLE.saturating_sub(nanos(START.saturating_duration_since(at))),
    }
}

/// What came of a look at a backend's health.
pub(in crate::domain) struct Visit<T> {
    pub(in crate::domain) result: T,
    /// The backend is not to be trusted any more, is again, or for another reason.
    pub(in crate::domain) turned: bool,
    /// Time has work to do.
    pub(in crate::domain) more: bool,
}
