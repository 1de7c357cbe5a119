//! What a cache would do that always evicts what was used least recently.
use std::collections::{BTreeMap, HashMap};

/// Misses of an ideal cache that holds `size` items, among requests from `from` on; those before fill it.
pub fn misses(trace: &[usize], size: usize, from: usize) -> usize {
    let mut times: HashMap<usize, usize> = HashMap::new();
    let mut order: BTreeMap<usize, usize> = BTreeMap::new();
    let mut misses = 0;
    for (now, item) in trace.iter().enumerate() {
        match times.insert(*item, now) {
            Some(former) => drop(order.remove(&former)),
            None => {
                misses += usize::from(now >= from);
                if order.len() == size
                    && let Some((_, gone)) = order.pop_first()
                {
                    times.remove(&gone);
                }
            }
        }
        order.insert(now, *item);
    }
    misses
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_one_used_least_recently_goes() {
        // 1 is used again before 3 comes, so 2 goes.
        let trace = [1, 2, 1, 3, 1, 2];
        assert_eq!(super::misses(&trace, 2, 0), 4);
        assert_eq!(super::misses(&trace, 2, 3), 2);
        assert_eq!(super::misses(&trace, 3, 0), 3);
    }
}
