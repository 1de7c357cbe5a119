//! Who was used least recently, among thousands that are used all the time.
//!
//! A use costs nothing here: it is noted where the item lives. The order is put right only when somebody looks for the
//! least recently used one: an item found at the front that has been used since is moved to where it belongs. Each use
//! causes one such move at most, of logarithmic cost.
use std::collections::{BTreeMap, HashMap};

/// What an item says of itself when it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Not in use since this time.
    Idle(u64),
    /// In use now.
    Busy,
    /// Does not belong here any more.
    Gone,
}

/// Items by the time of their last use, as far as it is known here.
pub struct Order<T> {
    places: BTreeMap<(u64, u64), T>,
    times: HashMap<u64, u64>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self {
            places: BTreeMap::new(),
            times: HashMap::new(),
        }
    }
}

impl<T> Order<T> {
    /// Adds an item, or moves it.
    pub fn put(&mut self, id: u64, time: u64, item: T) {
        self.remove(id);
        self.times.insert(id, time);
        self.places.insert((time, id), item);
    }

    /// Takes an item out; none there is fine.
    pub fn remove(&mut self, id: u64) {
        if let Some(time) = self.times.remove(&id) {
            self.places.remove(&(time, id));
        }
    }

    /// All items, in no order that means anything.
    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.places.values()
    }

    /// Takes out the item that is idle for longest. `now` is later than every use that the caller wants to see. None
    /// when all are in use, or have been used since.
    pub fn pop(&mut self, now: u64, look: impl Fn(&T) -> Use) -> Option<(u64, T)> {
        loop {
            let (&(time, id), item) = self.places.first_key_value()?;
            let seen = look(item);
            // Whatever is further back was found in use in this very search, or used after it began.
            if time >= now && seen != Use::Gone {
                return None;
            }
            let (_, item) = self.places.pop_first()?;
            self.times.remove(&id);
            match seen {
                Use::Idle(used) if used <= time => return Some((id, item)),
                Use::Idle(used) => self.put(id, used, item),
                Use::Busy => self.put(id, now, item),
                Use::Gone => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use proptest::prelude::*;

    /// What each item says, by id.
    struct Items(RefCell<HashMap<u64, Use>>);

    impl Items {
        fn new(uses: impl IntoIterator<Item = (u64, Use)>) -> (Self, Order<u64>) {
            let items: HashMap<_, _> = uses.into_iter().collect();
            let mut order = Order::default();
            for id in items.keys() {
                order.put(*id, 0, *id);
            }
            (Self(RefCell::new(items)), order)
        }

        fn say(&self, id: u64, what: Use) {
            self.0.borrow_mut().insert(id, what);
        }

        fn look(&self) -> impl Fn(&u64) -> Use + '_ {
            |id| self.0.borrow()[id]
        }
    }

    #[test]
    fn the_longest_idle_goes_first_and_those_in_use_stay() {
        let (items, mut order) = Items::new([
            (1, Use::Idle(30)),
            (2, Use::Busy),
            (3, Use::Idle(10)),
            (4, Use::Gone),
        ]);
        assert_eq!(order.pop(100, items.look()), Some((3, 3)));
        items.say(1, Use::Busy);
        assert_eq!(order.pop(101, items.look()), None);
        items.say(2, Use::Idle(110));
        items.say(1, Use::Idle(120));
        assert_eq!(order.pop(200, items.look()), Some((2, 2)));
        assert_eq!(order.pop(201, items.look()), Some((1, 1)));
        assert_eq!(order.pop(202, items.look()), None);
        assert!(order.places.is_empty() && order.times.is_empty());
    }

    #[test]
    fn what_is_removed_or_moved_leaves_nothing_behind() {
        let (items, mut order) = Items::new([(1, Use::Idle(1)), (2, Use::Idle(2))]);
        order.remove(1);
        order.remove(1);
        order.put(2, 50, 2);
        assert_eq!((order.places.len(), order.times.len()), (1, 1));
        assert_eq!(order.pop(50, items.look()), None, "put there at that time");
        assert_eq!(order.pop(51, items.look()), Some((2, 2)));
    }

    /// A least-recently-used cache as in the textbook: a list, the newest at the end.
    #[derive(Default)]
    struct Ideal(Vec<u64>);

    impl Ideal {
        fn hit(&mut self, id: u64) -> bool {
            let known = self.0.iter().position(|known| *known == id);
            if let Some(at) = known {
                self.0.remove(at);
                self.0.push(id);
            }
            known.is_some()
        }
    }

    /// Numbers from 0 to `items`, the n-th with a likelihood of 1/(n+1); the same at each run.
    fn zipf(items: u32, length: usize) -> impl Iterator<Item = u64> {
        let mut sums: Vec<f64> = Vec::new();
        for rank in 1..=items {
            sums.push(sums.last().copied().unwrap_or(0.0) + 1.0 / f64::from(rank));
        }
        let whole = sums.last().copied().unwrap_or(1.0);
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        (0..length).map(move |_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let at = f64::from((seed >> 32) as u32) / f64::from(u32::MAX) * whole;
            sums.partition_point(|sum| *sum < at).min(sums.len() - 1) as u64
        })
    }

    #[test]
    fn zipf_traffic_hits_as_often_as_in_an_ideal_cache() {
        const ROOM: usize = 100;
        let (mut ideal, mut ideal_hits) = (Ideal::default(), 0_u32);
        let (items, mut order) = Items::new([]);
        let (mut cached, mut hits) = (std::collections::HashSet::new(), 0_u32);
        // Every seventh is in use until the next seventh begins: it must stay, unlike in the ideal cache.
        let mut in_use = None;
        let requests = 100_000_u32;
        for (time, id) in (1..).zip(zipf(1_000, requests as usize)) {
            if ideal.hit(id) {
                ideal_hits += 1;
            } else {
                if ideal.0.len() == ROOM {
                    ideal.0.remove(0);
                }
                ideal.0.push(id);
            }
            let hit = cached.contains(&id);
            hits += u32::from(hit);
            if !hit {
                if cached.len() == ROOM {
                    let (victim, _) = order.pop(time, items.look()).unwrap();
                    assert_ne!(Some(victim), in_use);
                    cached.remove(&victim);
                }
                cached.insert(id);
                order.put(id, time, id);
            }
            if time % 7 == 0
                && let Some(ended) = in_use.replace(id)
            {
                items.say(ended, Use::Idle(time));
            }
            let state = if in_use == Some(id) {
                Use::Busy
            } else {
                Use::Idle(time)
            };
            items.say(id, state);
        }
        let points = (f64::from(ideal_hits) - f64::from(hits)).abs() * 100.0 / f64::from(requests);
        assert!(points < 2.0, "{hits} hits, {ideal_hits} ideal");
        assert!(ideal_hits > requests / 3, "{ideal_hits}: no such traffic");
    }

    proptest! {
        /// Whatever is used, added and removed: the victims are those of the textbook.
        #[test]
        fn evicts_what_an_ideal_cache_evicts(steps in prop::collection::vec((0_u64..12, 0_u8..8), 1..400)) {
            let mut ideal = Ideal::default();
            let (items, mut order) = Items::new([]);
            for (time, (id, step)) in (1..).zip(steps) {
                match step {
                    0 => {
                        ideal.0.retain(|known| *known != id);
                        order.remove(id);
                    }
                    1 => {
                        let victim = order.pop(time, items.look()).map(|(victim, _)| victim);
                        let expected = (!ideal.0.is_empty()).then(|| ideal.0.remove(0));
                        prop_assert_eq!(victim, expected);
                    }
                    _ => {
                        if !ideal.hit(id) {
                            ideal.0.push(id);
                            order.put(id, time, id);
                        }
                        items.say(id, Use::Idle(time));
                    }
                }
            }
        }
    }
}
