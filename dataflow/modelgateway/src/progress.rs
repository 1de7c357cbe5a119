//! How far a partition is done.
use std::collections::BTreeMap;

/// Records of one partition that were begun, and what came out of those that are done but follow one that is not.
#[derive(Debug)]
pub(crate) struct Progress<T> {
    begun: BTreeMap<i64, Option<T>>,
    /// Where a successor would go on.
    position: i64,
    /// Nothing below this is begun again.
    next: i64,
}

impl<T> Progress<T> {
    /// Begins at an offset.
    pub(crate) fn new(position: i64) -> Self {
        Self {
            begun: BTreeMap::new(),
            position,
            next: position,
        }
    }

    /// Begins a record; not one that was begun before.
    pub(crate) fn begin(&mut self, offset: i64) -> bool {
        if offset < self.next {
            return false;
        }
        self.next = offset + 1;
        self.begun.insert(offset, None);
        true
    }

    /// A record is done.
    pub(crate) fn finish(&mut self, offset: i64, outcome: T) {
        if let Some(slot) = self.begun.get_mut(&offset) {
            *slot = Some(outcome);
        }
    }

    /// Takes what is done with nothing undone before it, in order, and moves the position behind it.
    pub(crate) fn take(&mut self) -> Vec<T> {
        let mut taken = Vec::new();
        while let Some(first) = self.begun.first_entry() {
            if first.get().is_none() {
                break;
            }
            self.position = first.key() + 1;
            taken.extend(first.remove());
        }
        taken
    }

    /// Where a successor would go on.
    pub(crate) fn position(&self) -> i64 {
        self.position
    }

    /// Behind all that was begun.
    pub(crate) fn next(&self) -> i64 {
        self.next
    }

    /// How many are begun and not yet taken.
    pub(crate) fn outstanding(&self) -> usize {
        self.begun.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The position never passes what is not done, and everything is taken once and in order.
        #[test]
        fn nothing_is_skipped(order in Just((0..20_i64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut progress = Progress::new(0);
            for offset in 0..20 {
                prop_assert!(progress.begin(offset));
                prop_assert!(!progress.begin(offset));
            }
            let (mut done, mut taken) = (Vec::new(), Vec::new());
            for offset in order {
                progress.finish(offset, offset);
                done.push(offset);
                taken.extend(progress.take());
                let lowest = (0..20).find(|offset| !done.contains(offset)).unwrap_or(20);
                prop_assert_eq!(progress.position(), lowest);
            }
            prop_assert_eq!(taken, (0..20).collect::<Vec<_>>());
            prop_assert_eq!(progress.outstanding(), 0);
        }
    }
}
