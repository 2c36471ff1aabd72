//! How far a backend is: an estimate of the round-trip time to it, from the samples that connections bring.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A sample this much later than the one before counts for 1 − 1/e of the estimate. Long enough that one slow answer
/// moves it little, short enough that a way that has changed is known in half a minute.
pub const RTT_MEMORY: Duration = Duration::from_secs(10);

/// What nobody has measured for so long is not known any more.
pub const RTT_FORGOTTEN: Duration = Duration::from_secs(300);

/// A sample sooner than this after the one before counts for less than a thousandth: it is not worth asking TCP for.
const SAMPLES_APART: Duration = Duration::from_millis(10);

/// An exponential average whose weights follow the time between samples, so that a crowd of connections within a
/// moment does not outvote the time before it:
///
/// ```text
/// estimate ← sample + (estimate − sample) × e^(−Δt ÷ RTT_MEMORY)
/// ```
///
/// (Eckner, *Algorithms for Unevenly Spaced Time Series: Moving Averages and Other Rolling Operators*, 2012.) One
/// atomic word: samples come from all workers, and readers never wait.
#[derive(Debug, Default)]
pub struct Rtt {
    /// The estimate in [`STEPS`], plus 1, and the time of the last sample in ms; 0 is "unknown".
    cell: AtomicU64,
}

/// Steps of an estimate in a µs. A sample 1 ms after the one before counts for 1/10,000: with whole µs an estimate would
/// not move at all where a thousand samples a second are less than 5 ms away from it.
const STEPS: u64 = 64;

/// Bits of the time: 2 years of uptime and more. The others hold an estimate of up to 4.2 s; who is farther is as far.
const TIME_BITS: u32 = 36;
const LONGEST: u64 = (1 << (64 - TIME_BITS)) - 2;

/// What times are counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Rtt {
    /// The moment that times are counted from, in whole milliseconds: who plays the same samples again on a clock of its
    /// own gets the same estimates if that clock begins here.
    pub fn epoch() -> Instant {
        *START
    }

    /// Measures, if a sample at `now` would count for anything.
    pub fn measure(&self, now: Instant, round_trip: impl FnOnce() -> Option<Duration>) {
        if self.age(now).is_none_or(|age| age >= SAMPLES_APART)
            && let Some(time) = round_trip()
        {
            self.sample(time, now);
        }
    }

    /// A measurement that ended at `now`.
    pub fn sample(&self, sample: Duration, now: Instant) {
        let (sample, now) = (steps(sample), millis(now));
        let update = |cell| Some(pack(average(unpack(cell), sample, now), now));
        // The closure always has a value: this cannot fail.
        let _ = self.cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }

    /// The estimate, unless it is too old to mean anything.
    pub fn estimate(&self, now: Instant) -> Option<Duration> {
        self.last().filter(|_| self.age(now).is_some_and(|age| age < RTT_FORGOTTEN))
    }

    /// The last estimate, however old it is.
    pub(super) fn last(&self) -> Option<Duration> {
        unpack(self.cell.load(Ordering::Acquire)).map(|(estimate, _)| Duration::from_micros(estimate / STEPS))
    }

    /// Since the last sample.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        let (_, at) = unpack(self.cell.load(Ordering::Acquire))?;
        Some(Duration::from_millis(millis(now).saturating_sub(at)))
    }

    /// Forgets what is too old to mean anything.
    pub(super) fn expire(&self, now: Instant) {
        let seen = self.cell.load(Ordering::Acquire);
        if self.age(now).is_some_and(|age| age >= RTT_FORGOTTEN) {
            // A sample that has come meanwhile stays.
            let _ = self.cell.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Forgets everything: the way has become another one.
    pub fn forget(&self) {
        self.cell.store(0, Ordering::Release);
    }
}

fn average(known: Option<(u64, u64)>, sample: u64, now: u64) -> u64 {
    let Some((estimate, at)) = known else { return sample };
    let passed = Duration::from_millis(now.saturating_sub(at));
    let kept = (-passed.as_secs_f64() / RTT_MEMORY.as_secs_f64()).exp();
    let (estimate, sample) = (estimate as f64, sample as f64);
    (sample + (estimate - sample) * kept).round() as u64
}

fn pack(estimate: u64, now: u64) -> u64 {
    (estimate.min(LONGEST) + 1) << TIME_BITS | now
}

fn unpack(cell: u64) -> Option<(u64, u64)> {
    let estimate = (cell >> TIME_BITS).checked_sub(1)?;
    Some((estimate, cell & ((1 << TIME_BITS) - 1)))
}

fn steps(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(STEPS) / 1000).unwrap_or(u64::MAX)
}

fn millis(now: Instant) -> u64 {
    let passed = now.saturating_duration_since(*START).as_millis();
    u64::try_from(passed).unwrap_or(u64::MAX) & ((1 << TIME_BITS) - 1)
}

#[cfg(test)]
mod tests;
