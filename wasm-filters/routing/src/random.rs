//! A small generator: choices need to be even, not secret.

use std::cell::Cell;

/// Random numbers (splitmix64), seeded from the host's clock and shared by the requests of one worker.
#[derive(Debug, Default)]
pub struct Random(Cell<u64>);

impl Random {
    /// Starts a sequence.
    pub fn from_seed(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// An even choice among `0..bound`; 0 if there is nothing to choose from.
    pub fn below(&self, bound: u64) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        // The high half of the product is even to one part in 2^64 / bound, without a division.
        let scaled = u128::from(x).wrapping_mul(u128::from(bound)) >> 64;
        u64::try_from(scaled).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_within_bounds_and_even() {
        let random = Random::from_seed(0);
        let mut seen = [0u32; 10];
        for _ in 0..100_000 {
            seen[random.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
        assert_eq!((random.below(0), random.below(1)), (0, 0));
    }
}
