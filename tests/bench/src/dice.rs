//! Chance that is the same in every run.

/// A small generator of our own.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.next() as usize % sides
    }

    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// From 0 to below 1.
    fn share(&mut self) -> f64 {
        f64::from(self.next()) / f64::from(1_u32 << 31)
    }
}

/// Which of `items` is asked for, again and again: the one of rank r with a chance of r to the power of −`exponent`.
pub fn zipf(items: usize, exponent: f64, length: usize, dice: &mut Dice) -> Vec<usize> {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=items)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect();
    // Ranks are not names in order: neighbours were loaded at the same time, and are near in nothing else.
    let mut names: Vec<usize> = (0..items).collect();
    for place in (1..items).rev() {
        names.swap(place, dice.roll(place + 1));
    }
    (0..length)
        .map(|_| {
            let point = dice.share() * sum;
            names[sums.partition_point(|sum| *sum <= point).min(items - 1)]
        })
        .collect()
}
