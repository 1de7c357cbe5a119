//! Requests: they find a model in memory, or wait until it is back.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use seldon_agent_proxy::{Lease, Models, NotServed};

use super::Registry;
use super::entry::{Entry, State};

/// How long a request waits for an inference server that restarts, before Envoy is made to try another replica.
const AWAY: Duration = Duration::from_secs(3);

/// How long a model waits for memory in which nothing is freed or given, as all models there are in use.
const PATIENCE: Duration = Duration::from_secs(10);

/// What clients are told then.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Failures in a row to load an evicted model, before the scheduler is told.
const FAILURES: u32 = 3;

/// After a failure a model is not loaded for a while, so that it does not keep the inference server busy.
fn pause(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(4))
}

impl Models for Registry {
    async fn acquire(&self, internal: &str) -> Result<Lease, NotServed> {
        let entry = self.find(internal).ok_or(NotServed::Unknown)?;
        if let Some(in_flight) = entry.enter() {
            return Ok(Lease::new(in_flight));
        }
        if entry.waiting() >= self.0.held_per_model {
            return Err(if *self.0.up.borrow() {
                NotServed::Crowded {
                    retry_after: RETRY_AFTER,
                }
            } else {
                // Another replica may have it in memory.
                NotServed::Away
            });
        }
        if entry.state().is_on_demand() {
            self.0.metrics.gauges().count_miss();
        }
        tokio::select! {
            biased;
            lease = self.wait_for(entry) => lease,
            () = self.given_up() => Err(NotServed::Away),
        }
    }
}

impl Registry {
    /// Resolves when the inference server has been away for so long that another replica should be tried.
    async fn given_up(&self) {
        let mut up = self.up();
        loop {
            let _ = up.wait_for(|up| !*up).await;
            let back = tokio::time::timeout(AWAY, up.wait_for(|up| *up)).await;
            if back.is_err() {
                return;
            }
        }
    }

    /// Waits until a model can answer; the caller bounds the wait. Loads go on without the caller.
    async fn wait_for(&self, mut entry: Arc<Entry>) -> Result<Lease, NotServed> {
        let mut failures = entry.failures();
        // Lives until the request is counted as in flight: nobody evicts the model in between.
        let mut waiting = entry.wait();
        loop {
            let mut state = entry.state.subscribe();
            let seen = *state.borrow_and_update();
            match seen {
                State::Loaded | State::Releasing => {
                    if let Some(in_flight) = entry.enter() {
                        drop(waiting);
                        return Ok(Lease::new(in_flight));
                    }
                    // It yields to others, or has changed meanwhile; both are told.
                    let _ = state.changed().await;
                }
                State::Gone => match self.find(&entry.internal) {
                    Some(newer) if !Arc::ptr_eq(&newer, &entry) => {
                        (failures, waiting) = (newer.failures(), newer.wait());
                        entry = newer;
                    }
                    _ => {
                        return Err(entry
                            .reason
                            .get()
                            .cloned()
                            .map_or(NotServed::Unknown, NotServed::Failed));
                    }
                },
                State::Evicted | State::Released => {
                    if let Some(refusal) = entry.refusal(failures) {
                        return Err(refusal);
                    }
                    self.bring_back(&entry);
                    let _ = state.changed().await;
                }
                State::Loading | State::Restoring => drop(state.changed().await),
            }
        }
    }

    /// Has a model brought back into memory, unless that is under way.
    fn bring_back(&self, entry: &Arc<Entry>) {
        if !entry.reviving.swap(true, Ordering::SeqCst) {
            tokio::spawn(self.clone().revive(Reviving(entry.clone())));
        }
    }

    /// Brings a model back into memory, for all requests that wait for it.
    async fn revive(self, reviving: Reviving) {
        let entry = &reviving.0;
        let _turn = entry.turn.lock().await;
        self.revive_in_turn(entry).await;
    }

    /// Brings one back by word alone: where others would have to leave for it, it waits until it is asked for.
    pub(super) async fn rouse(&self, entry: &Arc<Entry>) {
        if entry.reviving.swap(true, Ordering::SeqCst) {
            return;
        }
        let reviving = Reviving(entry.clone());
        let _turn = entry.turn.lock().await;
        let wanted = entry.state() == State::Evicted && !entry.is_resting();
        if wanted && self.0.room.hold_unless_awaited(entry) {
            self.revive_in_turn(&reviving.0).await;
        }
    }

    async fn revive_in_turn(&self, entry: &Arc<Entry>) {
        let former = entry.state();
        let next = match former {
            State::Evicted => State::Loaded,
            State::Released => State::Releasing,
            _ => return,
        };
        let mut state = entry.state.subscribe();
        let loaded = tokio::select! {
            biased;
            // Ordered to go: what waits for its turn takes it out of memory again.
            _ = state.wait_for(|state| *state != former) => return,
            loaded = self.load_again(entry) => loaded,
        };
        match loaded {
            Ok(()) => {
                entry.succeeded();
                entry.touch();
                self.shift(entry, former, next);
            }
            Err(why) => self.refuse(entry, former, why).await,
        }
    }

    async fn load_again(&self, entry: &Arc<Entry>) -> Result<(), NotServed> {
        if let Some(reason) = self.0.room.refuses(entry) {
            return Err(NotServed::Failed(reason));
        }
        // One that is roused has its memory already.
        if entry.held() == 0 {
            self.make_room(entry, PATIENCE)
                .await
                .map_err(|_| NotServed::Overloaded {
                    retry_after: RETRY_AFTER,
                })?;
        }
        entry.absent.store(false, Ordering::SeqCst);
        let load = self.0.revivals.run(self.load_on_server(entry));
        if let Err(reason) = load.await {
            self.clear_out(entry).await;
            self.0.room.free(entry);
            return Err(NotServed::Failed(reason));
        }
        Ok(())
    }

    /// Takes note that a model could not be brought back. It stays what it was, unless that happens again and again.
    async fn refuse(&self, entry: &Arc<Entry>, former: State, why: NotServed) {
        tracing::warn!(model = entry.internal, reason = %why, "an evicted model could not be loaded");
        let times = entry.failed(why.clone(), pause);
        let NotServed::Failed(reason) = why else {
            return;
        };
        if former == State::Released {
            self.drop_model(entry, &reason).await;
        } else if times >= FAILURES {
            let reason =
                format!("it was evicted and could not be loaded again, {times} times: {reason}");
            self.give_up(entry, reason).await;
        }
    }
}

/// The one who brings a model back; when this is dropped, those who wait look how it ended.
struct Reviving(Arc<Entry>);

impl Drop for Reviving {
    fn drop(&mut self) {
        self.0.reviving.store(false, Ordering::SeqCst);
        self.0.state.send_modify(|_| {});
    }
}
