//! Random numbers of a world: always the same for the same seed.

use std::time::Duration;

/// A seeded source of the distributions that worlds are made of.
#[derive(Debug, Clone)]
pub struct Dice(fastrand::Rng);

impl Dice {
    /// `purpose` gives each user of one seed numbers of its own, so that a change of one leaves the others alone.
    pub fn new(seed: u64, purpose: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mixed = rng.u64(..) ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(fastrand::Rng::with_seed(mixed))
    }

    /// Uniform over [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0.f64()
    }

    /// Uniform over `0..bound`; 0 if that is empty.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { self.0.usize(..bound) }
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// The place in `weights` that is drawn with a probability proportional to its weight.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut room = self.unit() * weights.iter().sum::<f64>();
        for (at, weight) in weights.iter().enumerate() {
            room -= weight;
            if room < 0.0 {
                return at;
            }
        }
        weights.len().saturating_sub(1)
    }

    /// Of mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Of mean 0 and variance 1 (Box and Muller's method).
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    /// Pareto's distribution of exponent `alpha`, cut to `low..high`.
    pub fn bounded_pareto(&mut self, alpha: f64, low: f64, high: f64) -> f64 {
        let tail = 1.0 - (low / high).powf(alpha);
        low / (1.0 - self.unit() * tail).powf(1.0 / alpha)
    }
}

/// Whole microseconds: what differs in the last bit between two mathematical libraries is rounded away.
pub fn seconds(seconds: f64) -> Duration {
    Duration::from_micros((seconds.max(0.0) * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(mut draw: impl FnMut() -> f64) -> f64 {
        (0..40_000).map(|_| draw()).sum::<f64>() / 40_000.0
    }

    #[test]
    fn distributions_have_their_means() {
        let mut dice = Dice::new(1, 2);
        assert!((mean(|| dice.exponential()) - 1.0).abs() < 0.03);
        // e^(σ²/2) times the median.
        assert!((mean(|| dice.log_normal(2.0, 0.5)) - 2.0 * 0.125_f64.exp()).abs() < 0.04);
        let heavy: Vec<f64> = (0..40_000).map(|_| dice.bounded_pareto(1.3, 20.0, 1800.0)).collect();
        assert!(heavy.iter().all(|value| (20.0..=1800.0).contains(value)));
        let above = heavy.iter().filter(|value| **value > 200.0).count() as f64 / 40_000.0;
        let expected = (0.1_f64.powf(1.3) - (20.0_f64 / 1800.0).powf(1.3)) / (1.0 - (20.0_f64 / 1800.0).powf(1.3));
        assert!((above - expected).abs() < 0.005, "{above} instead of {expected}");
        let drawn = mean(|| if dice.weighted(&[1.0, 3.0]) == 1 { 1.0 } else { 0.0 });
        assert!((drawn - 0.75).abs() < 0.02);
    }

    #[test]
    fn a_seed_gives_the_same_numbers_and_each_purpose_its_own() {
        let draw = |seed, purpose| Dice::new(seed, purpose).unit();
        assert_eq!(draw(1, 1), draw(1, 1));
        assert!(draw(1, 1) != draw(1, 2) && draw(1, 1) != draw(2, 1));
    }
}
