//! Cohorts: one value of a header always gets the same candidate.
//!
//! Weighted rendezvous hashing. Each candidate's score is `weight / -ln(u)`, with `u` from the hash of the value, the
//! experiment and the candidate; the highest wins, which happens in proportion to the weights. A score depends on
//! nothing but its own candidate, so a changed weight moves only what must move: to the candidate that grew, or
//! away from the one that shrank.

use crate::{Candidate, Version, chance::Weighted};

/// The hash of a header's value in an experiment, before any candidate is asked.
#[derive(Clone, Copy)]
pub(crate) struct Cohort(u64);

impl Cohort {
    pub(crate) fn of(value: &[u8], experiment: &str) -> Self {
        Self(0).and(value).and(experiment.as_bytes())
    }

    /// FNV-1a for the bytes, and splitmix64's last step, without which short names differ in few bits.
    fn and(self, part: &[u8]) -> Self {
        let mut hash = self.0 ^ 0xCBF2_9CE4_8422_2325;
        for byte in part {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self(hash ^ (hash >> 31))
    }

    /// In proportion to weight; nothing without a weight.
    pub(crate) fn candidate<'a>(&self, all: &'a [Candidate]) -> Option<&'a Candidate> {
        self.best(all, |c| &c.name)
    }

    /// In proportion to weight; the first where none has a weight.
    pub(crate) fn version<'a>(&self, all: &'a [Version]) -> Option<&'a Version> {
        if let [only] = all {
            return Some(only);
        }
        self.best(all, |v| &v.route).or(all.first())
    }

    fn best<T: Weighted>(self, all: &[T], name: impl Fn(&T) -> &str) -> Option<&T> {
        all.iter()
            .filter(|one| one.weight() > 0)
            .map(|one| (self.and(name(one).as_bytes()).score(one.weight()), one))
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, one)| one)
    }

    #[allow(clippy::cast_precision_loss, clippy::arithmetic_side_effects)] // floats: no overflow, no panic
    fn score(self, weight: u32) -> f64 {
        let u = ((self.0 >> 12) as f64 + 0.5) / (1u64 << 52) as f64; // in (0, 1), both excluded: exact in 53 bits
        f64::from(weight) / -u.ln()
    }
}

#[cfg(test)]
#[path = "cohort_tests.rs"]
mod tests;
