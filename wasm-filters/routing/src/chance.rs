//! Draws by weight.

use crate::{Candidate, Copy, Random, Version};

/// What has a share relative to its like.
pub(crate) trait Weighted {
    fn weight(&self) -> u32;
}
impl Weighted for Candidate {
    fn weight(&self) -> u32 {
        self.weight
    }
}
impl Weighted for Version {
    fn weight(&self) -> u32 {
        self.weight
    }
}
impl Weighted for Copy {
    fn weight(&self) -> u32 {
        self.weight
    }
}

/// The sum of the weights.
pub(crate) fn total(all: &[impl Weighted]) -> u64 {
    all.iter()
        .fold(0u64, |sum, one| sum.saturating_add(one.weight().into()))
}

/// One of them by weight; none if none has a weight.
pub(crate) fn draw<'a, T: Weighted>(all: &'a [T], random: &Random) -> Option<&'a T> {
    let mut left = random.below(total(all));
    all.iter().find(|one| {
        let weight = u64::from(one.weight());
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    })
}

/// One of them by weight, the first if none has a weight.
pub(crate) fn draw_any<'a, T: Weighted>(all: &'a [T], random: &Random) -> Option<&'a T> {
    if let [only] = all {
        return Some(only);
    }
    draw(all, random).or(all.first())
}
