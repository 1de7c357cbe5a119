//! Which sets of replicas are in use, so that placement can prefer them.
use std::{
    collections::BTreeMap,
    ops::Bound::{Included, Unbounded},
    sync::Arc,
};

/// How many versions are placed on each set of a server's replicas.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sets {
    by_size: BTreeMap<usize, BTreeMap<Arc<[u32]>, u32>>,
}

impl Sets {
    /// Counts one more user; the shared form of the set.
    pub(crate) fn add(&mut self, set: &[u32]) -> Arc<[u32]> {
        let sized = self.by_size.entry(set.len()).or_default();
        if let Some((known, users)) = sized
            .range_mut::<[u32], _>((Included(set), Unbounded))
            .next()
            && **known == *set
        {
            *users += 1;
            return known.clone();
        }
        let shared: Arc<[u32]> = set.into();
        sized.insert(shared.clone(), 1);
        shared
    }

    pub(crate) fn remove(&mut self, set: &[u32]) {
        let Some(sized) = self.by_size.get_mut(&set.len()) else {
            return;
        };
        let Some(users) = sized.get_mut(set) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            sized.remove(set);
        }
    }

    /// The most replicas that anything placed here has.
    pub(crate) fn largest(&self) -> usize {
        let sizes = self.by_size.iter().rev();
        sizes
            .filter(|(_, sets)| !sets.is_empty())
            .map(|(size, _)| *size)
            .next()
            .unwrap_or(0)
    }

    pub(crate) fn count(&self, size: usize) -> usize {
        self.by_size.get(&size).map_or(0, BTreeMap::len)
    }

    pub(crate) fn contains(&self, set: &[u32]) -> bool {
        self.by_size
            .get(&set.len())
            .is_some_and(|sized| sized.contains_key(set))
    }

    /// The sets of a size, in order.
    pub(crate) fn of_size(&self, size: usize) -> impl Iterator<Item = &[u32]> {
        self.by_size
            .get(&size)
            .into_iter()
            .flat_map(|sized| sized.keys().map(|set| &**set))
    }
}
