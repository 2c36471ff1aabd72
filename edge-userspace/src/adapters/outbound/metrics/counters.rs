//! Counters that cost a worker one relaxed atomic addition: no lock, no allocation, no map.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One counter for each of a fixed set of labels, and one for whatever is not among them.
#[derive(Debug)]
pub(super) struct Labelled {
    rows: Vec<(&'static str, AtomicU64)>,
    other: AtomicU64,
}

impl Labelled {
    pub(super) fn new(labels: impl IntoIterator<Item = &'static str>) -> Self {
        Self { rows: labels.into_iter().map(|label| (label, AtomicU64::new(0))).collect(), other: AtomicU64::new(0) }
    }

    /// The sets are a dozen entries at most, so that a scan is as quick as anything.
    pub(super) fn add(&self, label: &str, n: u64) {
        let row = self.rows.iter().find(|(name, _)| *name == label);
        row.map_or(&self.other, |(_, count)| count).fetch_add(n, Ordering::Relaxed);
    }

    /// Labels with their counts; `other` only if it has occurred.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let other = Some(("other", self.other.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0);
        self.rows.iter().map(|(label, count)| (*label, count.load(Ordering::Relaxed))).chain(other)
    }

    pub(super) fn total(&self) -> u64 {
        self.counts().map(|(_, count)| count).sum()
    }
}

/// A histogram of times. Unlike the registry's own it takes no lock when it observes.
#[derive(Debug)]
pub(super) struct Times {
    /// Upper bound in seconds (the last is infinite) and count of each bucket alone.
    buckets: Vec<(f64, AtomicU64)>,
    nanos: AtomicU64,
}

impl Times {
    /// `bounds` in seconds, ascending.
    pub(super) fn new(bounds: &[f64]) -> Self {
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        Self { buckets: bounds.map(|bound| (bound, AtomicU64::new(0))).collect(), nanos: AtomicU64::new(0) }
    }

    pub(super) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some((_, count)) = self.buckets.iter().find(|(bound, _)| seconds <= *bound) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Sum in seconds, and the buckets; the count is taken from the buckets so that the two always agree.
    pub(super) fn snapshot(&self) -> (f64, Vec<(f64, u64)>) {
        let buckets = self.buckets.iter().map(|(bound, count)| (*bound, count.load(Ordering::Relaxed))).collect();
        (Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64(), buckets)
    }
}
