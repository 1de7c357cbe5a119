//! Memory for models that come, taken from those that were used least recently.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Registry;
use super::entry::{Entry, State};
use super::room::Leaving;
use crate::server::ServerError;

/// How long one model may keep others waiting that came later: what it waits for may take long, and less may do for them.
const FIRST_IN_LINE: Duration = Duration::from_secs(3);

/// How often the models in use are looked at anew while nothing can be evicted.
const LOOK: Duration = Duration::from_millis(10);

/// The longest time without a look, whatever is told or not.
const LOOK_ANYWAY: Duration = Duration::from_millis(200);

/// How long an eviction is counted upon, before others are begun in its place.
const COUNTED_UPON: Duration = Duration::from_secs(10);

/// Who has waited for so long, while memory was neither freed nor given, has models yield that are always in use.
pub(super) const FAIR: Duration = Duration::from_secs(2);

/// How long their requests are held for that; what is still answered then goes on, and need not yield for a while.
const YIELDING: Duration = Duration::from_secs(2);
const SPARED: Duration = Duration::from_secs(60);

/// Whether a model has left the inference server's memory.
enum Left {
    Yes,
    No(ServerError),
    Unknown(ServerError),
}

/// Holds requests of a model until this is dropped.
struct Yielding<'a>(&'a Entry);

impl<'a> Yielding<'a> {
    fn begin(entry: &'a Entry) -> Self {
        entry.set_yielding(true);
        Self(entry)
    }
}

impl Drop for Yielding<'_> {
    fn drop(&mut self) {
        self.0.set_yielding(false);
    }
}

/// Memory was neither freed nor given for too long.
pub(super) struct NoRoom;

impl Registry {
    /// Gives a model its memory, evicting others where needed. Gives up when nothing moves for as long as `patience`.
    pub(super) async fn make_room(
        &self,
        entry: &Arc<Entry>,
        patience: Duration,
    ) -> Result<(), NoRoom> {
        tokio::select! {
            biased;
            () = self.queue_for_room(Some(entry)) => Ok(()),
            () = self.0.room.stalled(patience) => Err(NoRoom),
        }
    }

    /// Evicts what is too much in memory: a server may be found with more in it than an agent with new settings allows.
    pub(super) fn trim(&self) {
        if self.0.room.trimming.swap(true, Ordering::SeqCst) {
            return;
        }
        let registry = self.clone();
        tokio::spawn(async move {
            registry.queue_for_room(None).await;
            registry.0.room.trimming.store(false, Ordering::SeqCst);
            if !registry.0.room.is_within() {
                registry.trim();
            }
        });
    }

    /// Gives a model its memory when it is its turn and there is as much. Without a model: evicts what is too much.
    pub(super) async fn queue_for_room(&self, entry: Option<&Arc<Entry>>) {
        let since = Instant::now();
        loop {
            let _first_in_line = self.0.room.door.lock().await;
            if self.take_room(entry, since).await {
                return;
            }
        }
    }

    /// Says whether there is as much now; not for longer than others should wait for that.
    async fn take_room(&self, entry: Option<&Arc<Entry>>, since: Instant) -> bool {
        let room = &self.0.room;
        let wanted = entry.map(|entry| &**entry);
        let first_since = Instant::now();
        // Held by those that are to yield: what they free is for whoever asked for it.
        let yielding = Arc::new(());
        let mut asked_to_yield: Option<Instant> = None;
        let listener = room.bell.listen();
        loop {
            // Listened to first: whoever ends a request after it was found in use rings.
            let mut rung = std::pin::pin!(listener.rung());
            rung.as_mut().enable();
            let given = entry.map_or_else(|| room.is_within(), |entry| room.hold(entry));
            if given {
                return true;
            }
            let chosen = room.choose(wanted);
            // An eviction rings when it begins, too, and has freed nothing then: its next ring is not slept through.
            let none = chosen.is_empty() && !room.will_fit(wanted);
            for (victim, leaving) in chosen {
                tokio::spawn(self.clone().evict(victim, leaving));
            }
            let recently = |time| asked_to_yield.is_some_and(|asked| asked.elapsed() < time);
            // As others must not wait for an inference server that hangs, they are waited for like any eviction.
            let awaited = Arc::strong_count(&yielding) > 1 && recently(COUNTED_UPON);
            if !awaited && first_since.elapsed() >= FIRST_IN_LINE {
                return false;
            }
            let stuck = none && since.elapsed().min(room.unchanged()) >= FAIR;
            if stuck && !awaited && !recently(LOOK_ANYWAY) {
                asked_to_yield = Some(Instant::now());
                for victim in room.choose_in_use(wanted) {
                    let (wanted, under_way) = (entry.cloned(), yielding.clone());
                    tokio::spawn(self.clone().have_yield(victim, wanted, under_way));
                }
            }
            let _ = tokio::time::timeout(LOOK_ANYWAY, rung).await;
            if none {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Takes an idle model out of memory; its files stay.
    async fn evict(self, victim: Arc<Entry>, leaving: Leaving) {
        let Ok(_turn) = victim.turn.try_lock() else {
            return self.0.room.put_back(&victim);
        };
        self.evict_in_turn(&victim, leaving).await;
    }

    /// The same for a model that is always in use, so that `wanted` gets its memory: requests that come wait until it is
    /// gone, and bring it back in their turn.
    async fn have_yield(self, victim: Arc<Entry>, wanted: Option<Arc<Entry>>, _under_way: Arc<()>) {
        let room = &self.0.room;
        let Ok(_turn) = victim.turn.try_lock() else {
            return room.put_back(&victim);
        };
        let _yielding = Yielding::begin(&victim);
        if tokio::time::timeout(YIELDING, victim.idle()).await.is_err() {
            tracing::debug!(
                model = victim.internal,
                "still answering: it need not yield"
            );
            victim.spare(SPARED);
            return room.put_back(&victim);
        }
        // Others may have made room meanwhile.
        if room.will_fit(wanted.as_deref()) {
            return room.put_back(&victim);
        }
        let leaving = room.leave(&victim);
        self.evict_in_turn(&victim, leaving).await;
    }

    /// The same for one whose turn the caller holds.
    pub(super) async fn evict_in_turn(&self, victim: &Arc<Entry>, leaving: Leaving) {
        let former = victim.state();
        let next = match former {
            State::Loaded => State::Evicted,
            State::Releasing => State::Released,
            _ => return,
        };
        // First the state, then the count: a request that is not counted yet finds the new state.
        if !self.shift(victim, former, next) {
            return;
        }
        if victim.is_answering() {
            self.shift(victim, next, former);
            return;
        }
        let mut unload = std::pin::pin!(self.unload_victim(victim));
        let mut leaving = Some(leaving);
        let left = match tokio::time::timeout(COUNTED_UPON, &mut unload).await {
            Ok(left) => left,
            Err(_) => {
                leaving = None;
                unload.await
            }
        };
        self.conclude(victim, (former, next), left);
        drop(leaving);
    }

    fn conclude(&self, victim: &Arc<Entry>, (former, next): (State, State), left: Left) {
        match left {
            Left::Yes => {
                victim.absent.store(true, Ordering::SeqCst);
                self.0.room.free(victim);
                self.0.metrics.gauges().count_eviction();
                tracing::debug!(model = victim.internal, "evicted");
            }
            Left::No(error) => {
                tracing::warn!(model = victim.internal, %error, "a model could not be evicted: others are tried");
                self.shift(victim, next, former);
                self.0.room.put_back(victim);
            }
            Left::Unknown(error) => {
                tracing::warn!(model = victim.internal, %error, "a model may be left in memory: its memory is not used for others");
            }
        }
    }

    async fn unload_victim(&self, victim: &Entry) -> Left {
        let error = match self.0.server.unload(&victim.internal).await {
            // A server that ended holds nothing; should it live, what it holds is compared when it is found again.
            Ok(()) | Err(ServerError::Unreachable) => return Left::Yes,
            Err(error) => error,
        };
        // What requests of it will meet.
        let Ok(index) = self.0.server.index().await else {
            return Left::Unknown(error);
        };
        let held = index
            .iter()
            .any(|model| model.name == victim.internal && model.is_resident());
        if held { Left::No(error) } else { Left::Yes }
    }
}
