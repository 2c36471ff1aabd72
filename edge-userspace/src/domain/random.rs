//! Randomness comes in from outside, so that tests run with a seed.

/// A source of uniformly distributed numbers.
pub trait RandomSource {
    fn next_u64(&mut self) -> u64;
}

impl RandomSource for fastrand::Rng {
    fn next_u64(&mut self) -> u64 {
        self.u64(..)
    }
}

/// Spreads a seed over all bits (the finaliser of SplitMix64), so that neighbouring seeds give unrelated sequences.
pub(super) fn spread(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
