//! The memory of the inference server: who holds how much of it, and who gives it up for others.
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::bell::Bell;
use super::entry::{Entry, now};
use super::lru::{Order, Use};

/// Bytes held never exceed the total, but for models that were in memory already when they were found there.
pub struct Room {
    total: u64,
    books: Mutex<Books>,
    /// Held by whoever is next to get memory: first come, first served.
    pub door: tokio::sync::Mutex<()>,
    pub bell: Arc<Bell>,
    /// Somebody evicts what is too much.
    pub trimming: AtomicBool,
}

struct Books {
    held: u64,
    /// Part of it that evictions under way will free.
    leaving: u64,
    order: Order<Arc<Entry>>,
    /// When memory was last freed or given.
    progress: Instant,
}

impl Room {
    pub fn new(total: u64) -> Arc<Self> {
        Arc::new(Self {
            total,
            books: Mutex::new(Books {
                held: 0,
                leaving: 0,
                order: Order::default(),
                progress: Instant::now(),
            }),
            door: tokio::sync::Mutex::default(),
            bell: Arc::default(),
            trimming: AtomicBool::new(false),
        })
    }

    /// Says why a model can never be in memory here.
    pub fn refuses(&self, entry: &Entry) -> Option<String> {
        let (needed, total) = (entry.bytes(), self.total);
        (needed > total).then(|| {
            format!("it needs {needed} bytes of memory, and this server replica has {total} for all its models")
        })
    }

    /// Gives a model its memory, if there is as much.
    pub fn hold(&self, entry: &Entry) -> bool {
        let mut books = self.books();
        let held = books.held - entry.held() + entry.bytes();
        let fits = held <= self.total;
        if fits {
            books.take(entry);
        }
        fits
    }

    /// The same, if nobody waits for memory.
    pub fn hold_unless_awaited(&self, entry: &Entry) -> bool {
        self.door.try_lock().is_ok_and(|_door| self.hold(entry))
    }

    /// Says whether no more is held than there is.
    pub fn is_within(&self) -> bool {
        self.books().held <= self.total
    }

    /// Takes back what a model held.
    pub fn free(&self, entry: &Entry) {
        self.books().give_back(entry);
        self.bell.ring();
    }

    /// Passes on what a model held to the one that takes its place in the inference server.
    pub fn pass_on(&self, from: &Entry, to: &Entry) {
        let _books = self.books();
        to.set_held(to.held() + from.held());
        from.set_held(0);
    }

    /// Follows a model's state: one that answers holds memory and can be evicted, one that is gone holds none. Says
    /// whether no more is held than there is.
    pub fn follow(&self, entry: &Arc<Entry>) -> bool {
        let mut books = self.books();
        if entry.state().serves() {
            books.take(entry);
            books.enlist(entry, entry.used_at());
        } else {
            books.order.remove(entry.id);
        }
        if entry.state() == super::State::Gone {
            books.give_back(entry);
        }
        let within = books.held <= self.total;
        drop(books);
        self.bell.ring();
        within
    }

    /// Puts a model that could not be evicted behind all others.
    pub fn put_back(&self, entry: &Arc<Entry>) {
        let mut books = self.books();
        if entry.state().serves() {
            books.enlist(entry, now());
        }
    }

    /// Chooses models to evict, so that there is memory for `entry` when they are gone. None where enough is on its way
    /// already, and none where the idle ones are not enough: evicting them would help nobody.
    pub fn choose(self: &Arc<Self>, entry: Option<&Entry>) -> Vec<(Arc<Entry>, Leaving)> {
        let mut books = self.books();
        let missing = books.after(entry).saturating_sub(self.total);
        let begun = now();
        let (mut chosen, mut freed) = (Vec::new(), 0);
        while freed < missing {
            let Some((_, victim)) = books.order.pop(begun, look) else {
                break;
            };
            freed += victim.held();
            chosen.push(victim);
        }
        if freed < missing {
            for victim in chosen.drain(..) {
                books.enlist(&victim, victim.used_at());
            }
        }
        let leaving = |victim: Arc<Entry>| {
            let leaving = books.leave(&victim, self);
            (victim, leaving)
        };
        chosen.into_iter().map(leaving).collect()
    }

    /// The same where the idle ones are not enough: of those in use, the ones that have been in memory for longest. None
    /// that still owes an answer to those who waited for it, and none that is spared.
    pub fn choose_in_use(&self, entry: Option<&Entry>) -> Vec<Arc<Entry>> {
        let mut books = self.books();
        let missing = books.after(entry).saturating_sub(self.total);
        let may_go = |candidate: &&Arc<Entry>| match look(candidate) {
            Use::Idle(_) => true,
            Use::Busy => {
                let spared = candidate.waiting() > 0 || candidate.spared_until() > now();
                !spared && candidate.turn.try_lock().is_ok()
            }
            Use::Gone => false,
        };
        let mut chosen: Vec<_> = books.order.items().filter(may_go).cloned().collect();
        // Requests come and go meanwhile.
        chosen.sort_by_cached_key(|candidate| (candidate.is_answering(), candidate.spared_until()));
        let mut freed = 0;
        chosen.retain(|candidate| {
            let needed = freed < missing;
            freed += candidate.held();
            needed
        });
        if freed < missing {
            chosen.clear();
        }
        for candidate in &chosen {
            books.order.remove(candidate.id);
        }
        chosen
    }

    /// How long memory has been neither freed nor given.
    pub fn unchanged(&self) -> Duration {
        self.books().progress.elapsed()
    }

    /// Counts on the memory of one that is evicted, though nobody needs it.
    pub fn leave(self: &Arc<Self>, victim: &Entry) -> Leaving {
        self.books().leave(victim, self)
    }

    /// Says whether there is enough memory when the evictions under way have ended.
    pub fn will_fit(&self, entry: Option<&Entry>) -> bool {
        self.books().after(entry) <= self.total
    }

    /// Resolves when memory was neither freed nor given for this time.
    pub async fn stalled(&self, patience: Duration) {
        let joined = Instant::now();
        loop {
            let since = self.books().progress.max(joined);
            if since.elapsed() >= patience {
                return;
            }
            tokio::time::sleep_until(since + patience).await;
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// What is held when the evictions under way have ended, and `entry` has its memory.
    fn after(&self, entry: Option<&Entry>) -> u64 {
        let needed = entry.map_or(0, |entry| entry.bytes().saturating_sub(entry.held()));
        let left = self.held.saturating_sub(self.leaving);
        left.saturating_add(needed)
    }

    fn take(&mut self, entry: &Entry) {
        if entry.held() != entry.bytes() {
            self.held = self.held - entry.held() + entry.bytes();
            entry.set_held(entry.bytes());
            self.progress = Instant::now();
        }
    }

    fn leave(&mut self, victim: &Entry, room: &Arc<Room>) -> Leaving {
        let (room, bytes) = (room.clone(), victim.held());
        self.leaving += bytes;
        Leaving { room, bytes }
    }

    fn give_back(&mut self, entry: &Entry) {
        if entry.held() > 0 {
            self.held -= entry.held();
            entry.set_held(0);
            self.progress = Instant::now();
        }
    }

    /// One that holds nothing frees nothing.
    fn enlist(&mut self, entry: &Arc<Entry>, time: u64) {
        if entry.held() > 0 {
            self.order.put(entry.id, time, entry.clone());
        }
    }
}

/// Memory that an eviction under way will free, until this is dropped.
pub struct Leaving {
    room: Arc<Room>,
    bytes: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.room.books().leaving -= self.bytes;
        self.room.bell.ring();
    }
}

/// Whether a model may be evicted, and since when it is idle.
fn look(entry: &Arc<Entry>) -> Use {
    if !entry.state().serves() {
        Use::Gone
    } else if entry.is_needed() || entry.turn.try_lock().is_err() {
        Use::Busy
    } else {
        Use::Idle(entry.used_at())
    }
}

#[cfg(test)]
mod tests {
    use seldon_proto::agent::ModelVersion;
    use seldon_proto::scheduler::{Model, ModelRuntimeInfo, ModelSpec};

    use super::super::State;
    use super::*;

    fn entry(room: &Room, name: &str, bytes: u64, state: State) -> Arc<Entry> {
        let spec = ModelSpec {
            memory_bytes: Some(bytes),
            ..Default::default()
        };
        let model = Model {
            model_spec: Some(spec),
            ..Default::default()
        };
        let version = ModelVersion {
            model: Some(model),
            version: 1,
        };
        let runtime = ModelRuntimeInfo::default();
        let entry = Entry::new(name.into(), version, &runtime, State::Loading, &room.bell);
        entry.state.send_replace(state);
        room.follow(&entry);
        entry
    }

    fn names(chosen: &[(Arc<Entry>, Leaving)]) -> Vec<&str> {
        chosen
            .iter()
            .map(|(entry, _)| entry.internal.as_str())
            .collect()
    }

    #[test]
    fn idle_models_leave_in_the_order_of_their_last_use() {
        let room = Room::new(100);
        let [a, b, c] = ["a", "b", "c"].map(|name| entry(&room, name, 30, State::Loaded));
        drop(a.enter());
        let new = entry(&room, "new", 60, State::Loading);
        assert!(!room.hold(&new));
        let busy = b.enter();
        let chosen = room.choose(Some(&new));
        assert_eq!(names(&chosen), ["c", "a"]);
        assert!(
            room.choose(Some(&new)).is_empty(),
            "enough is on its way already"
        );
        for (victim, leaving) in chosen {
            victim.state.send_replace(State::Evicted);
            room.follow(&victim);
            room.free(&victim);
            drop(leaving);
        }
        assert!(room.hold(&new) && room.is_within());
        assert_eq!((a.held(), b.held(), c.held(), new.held()), (0, 30, 0, 60));
        drop(busy);
    }

    #[test]
    fn nobody_is_evicted_in_vain() {
        let room = Room::new(100);
        let [a, b] = ["a", "b"].map(|name| entry(&room, name, 50, State::Loaded));
        let large = entry(&room, "large", 80, State::Loading);
        let busy = b.enter();
        assert!(room.choose(Some(&large)).is_empty());
        drop(busy);
        assert_eq!(names(&room.choose(Some(&large))), ["a", "b"]);
        room.put_back(&a);
        room.put_back(&b);
        assert_eq!(names(&room.choose(Some(&large))), ["a", "b"]);
    }

    #[test]
    fn of_those_in_use_the_longest_there_yield_but_none_that_is_waited_for_or_spared() {
        let room = Room::new(100);
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| entry(&room, name, 25, State::Loaded));
        let busy = [&a, &b, &c, &d].map(Entry::enter);
        b.spare(Duration::ZERO);
        c.spare(Duration::from_secs(60));
        let waits = d.wait();
        let chosen = |bytes| {
            let new = entry(&room, "new", bytes, State::Loading);
            let chosen = room.choose_in_use(Some(&new));
            chosen.iter().for_each(|entry| room.put_back(entry));
            let names = chosen.iter().map(|entry| entry.internal.clone());
            names.collect::<Vec<_>>()
        };
        let new = entry(&room, "new", 25, State::Loading);
        assert!(room.choose(Some(&new)).is_empty());
        assert!(chosen(75).is_empty(), "not enough");
        drop(waits);
        assert_eq!(chosen(50), ["a", "d"]);
        assert_eq!(chosen(75), ["a", "d", "b"]);
        drop(busy);
        assert_eq!(chosen(100).len(), 4, "who is idle is not spared");
    }

    #[test]
    fn those_in_use_are_sorted_while_that_changes() {
        let room = Room::new(1_000);
        let entries: Vec<_> = (0..200)
            .map(|number| entry(&room, &number.to_string(), 5, State::Loaded))
            .collect();
        let new = entry(&room, "new", 500, State::Loading);
        std::thread::scope(|scope| {
            let choosing = scope.spawn(|| {
                for _ in 0..2_000 {
                    let chosen = room.choose_in_use(Some(&new));
                    chosen.iter().for_each(|entry| room.put_back(entry));
                }
            });
            let mut in_flight: Vec<_> = entries.iter().map(|_| None).collect();
            while !choosing.is_finished() {
                for (entry, held) in entries.iter().zip(&mut in_flight) {
                    *held = match held.take() {
                        Some(_) => None,
                        None => entry.enter(),
                    };
                }
            }
        });
    }

    #[test]
    fn what_is_found_in_memory_counts_even_beyond_the_total() {
        let room = Room::new(100);
        let [a, _b] = ["a", "b"].map(|name| entry(&room, name, 60, State::Loaded));
        assert!(!room.is_within());
        assert_eq!(names(&room.choose(None)), ["a"]);
        a.state.send_replace(State::Gone);
        assert!(room.follow(&a));
        let free = entry(&room, "free", 0, State::Loading);
        assert!(room.hold(&free));
        assert!(
            room.refuses(&entry(&room, "huge", 101, State::Loading))
                .is_some()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_nothing_is_freed() {
        let room = Room::new(100);
        let a = entry(&room, "a", 60, State::Loaded);
        let begun = Instant::now();
        let free_later = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            room.free(&a);
        };
        tokio::join!(room.stalled(Duration::from_secs(9)), free_later);
        assert_eq!(begun.elapsed(), Duration::from_secs(14));
    }
}
