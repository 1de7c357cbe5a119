//! Fairness between models: each has its own places at the inference server and its own bounded queue.
use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{frames, models::Limits, routes};

/// Every model that has answered lately.
#[derive(Default)]
pub(crate) struct Admission {
    models: RwLock<HashMap<Arc<str>, Arc<Turns>>>,
}

/// The places of one model, and how it is named to the inference server.
pub(crate) struct Turns {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Its path for REST.
    pub(crate) path: String,
    /// What names it in a gRPC request.
    pub(crate) suffix: Bytes,
}

/// The model has no place and no room to wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Busy;

impl Admission {
    /// The turns of a model that is known to exist.
    pub(crate) fn model(&self, internal: &str, limits: &Limits) -> Arc<Turns> {
        let known = self
            .models
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(internal)
            .cloned();
        known.unwrap_or_else(|| {
            let turns = || Arc::new(Turns::new(internal, limits));
            let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
            models.entry(internal.into()).or_insert_with(turns).clone()
        })
    }

    pub(crate) fn forget(&self, internal: &str) {
        self.models
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(internal);
    }
}

impl Turns {
    fn new(internal: &str, limits: &Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(
                limits.concurrent_per_model.clamp(1, Semaphore::MAX_PERMITS),
            )),
            waiting: AtomicUsize::new(0),
            path: routes::model_path(internal),
            suffix: frames::suffix(internal),
        }
    }

    /// Takes a place, or waits for one as long and behind as many as allowed.
    pub(crate) async fn take(&self, limits: &Limits) -> Result<OwnedSemaphorePermit, Busy> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let waiting = Waiting::join(&self.waiting, limits.queue_per_model)?;
        let place =
            tokio::time::timeout(limits.queue_deadline, self.places.clone().acquire_owned()).await;
        drop(waiting);
        place.ok().and_then(Result::ok).ok_or(Busy)
    }
}

/// A place in the queue, given up when the wait ends or is broken off.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn join(count: &'a AtomicUsize, most: usize) -> Result<Self, Busy> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let joined = Self(count);
        if before < most { Ok(joined) } else { Err(Busy) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
