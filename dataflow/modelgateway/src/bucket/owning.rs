//! Which models and partitions a bucket reads: begun, begun anew, given up.
use std::sync::Arc;

use seldon_kafka::Position;
use tokio::time::{Instant, timeout_at};

use super::{Bucket, Owned, Start, State, lane::Lane};
use crate::{
    model::{Key, Model},
    progress::Progress,
};

impl Bucket {
    /// Begins to read models.
    pub(crate) fn own(&self, models: Vec<Owned>) -> anyhow::Result<()> {
        let mut state = self.state();
        for Owned { model, .. } in &models {
            let inputs = Arc::clone(&model.inputs);
            state.models.insert(inputs, Arc::clone(model));
        }
        drop(state);
        let inputs: Vec<_> = models
            .iter()
            .map(|owned| Arc::clone(&owned.model.inputs))
            .collect();
        let done = self.extend(models);
        if done.is_err() {
            // The order fails, and is given again: it must not find that they are read.
            let State { models, lanes, .. } = &mut *self.state();
            models.retain(|topic, _| {
                !inputs.contains(topic) || lanes.keys().any(|(read, _)| read == topic)
            });
        }
        done
    }

    /// Begins to read more partitions of models, unless they have been given up meanwhile.
    pub(crate) fn extend(&self, models: Vec<Owned>) -> anyhow::Result<()> {
        let mut assigned = Vec::new();
        // Held until they are assigned: whoever gives a model up finds all that is.
        let mut state = self.state();
        for Owned { model, partitions } in models {
            if state.reads(&model) {
                for start in partitions {
                    assigned.extend(self.begin(&mut state, &model.inputs, &start));
                }
            }
        }
        let done = self.consumer.assign(&assigned);
        if done.is_err() {
            for (topic, partition, _) in assigned {
                state.lanes.remove(&(topic, partition));
            }
        }
        done
    }

    /// Begins a partition, unless it is read already.
    fn begin(
        &self,
        state: &mut State,
        inputs: &Arc<str>,
        start: &Start,
    ) -> Option<(Arc<str>, i32, Position)> {
        let key = (Arc::clone(inputs), start.partition);
        if state.lanes.contains_key(&key) {
            return None;
        }
        state.born += 1;
        let exactly_once = self.shared.exactly_once();
        let lane = Lane {
            number: state.born,
            progress: Progress::new(start.position),
            bytes: 0,
            paused: false,
            replay_until: if exactly_once { 0 } else { start.end },
            stored: start.position,
            rewound: None,
        };
        state.lanes.insert(key.clone(), lane);
        Some((key.0, key.1, Position::Offset(start.position)))
    }

    /// Has a topic that was made anew read from there.
    pub(crate) fn read_anew(&self, model: &Arc<Model>, partitions: Vec<Start>) {
        self.state().anew.push((Arc::clone(model), partitions));
        self.anew.notify_one();
    }

    /// Only between two records: one of the former topic must not be taken for one of the new.
    pub(super) fn begin_anew(&self) {
        let mut state = self.state();
        for (model, partitions) in std::mem::take(&mut state.anew) {
            if !state.reads(&model) {
                continue;
            }
            let inputs = &model.inputs;
            let former = state.lanes.keys().filter(|(topic, _)| topic == inputs);
            if let Err(error) = self.consumer.unassign(&former.cloned().collect::<Vec<_>>()) {
                tracing::warn!(topic = &**inputs, "the former one is still read: {error:#}");
            }
            state.lanes.retain(|(topic, _), _| topic != inputs);
            let mut assigned = Vec::new();
            for start in &partitions {
                assigned.extend(self.begin(&mut state, inputs, start));
            }
            if let Err(error) = self.consumer.assign(&assigned) {
                self.shared.fail(format!(
                    "topic {inputs} was made anew and cannot be read: {error:#}"
                ));
            }
        }
        drop(state);
        self.moved.notify_waiters();
    }

    /// Reads a model no more, finishes what was begun of it until `deadline`, and stores how far it is.
    pub(crate) async fn release(&self, inputs: &str, deadline: Instant) {
        self.state().leaving.insert(inputs.into());
        let keys = self.lanes(inputs);
        if let Err(error) = self.consumer.unassign(&keys) {
            tracing::warn!(topic = inputs, "still read: {error:#}");
        }
        loop {
            let moved = self.moved.notified();
            if self.is_done(&keys) {
                break;
            }
            if timeout_at(deadline, moved).await.is_err() {
                tracing::warn!(
                    topic = inputs,
                    "not all that was begun is finished: it will be repeated"
                );
                break;
            }
        }
        if !self.shared.exactly_once() {
            self.store().await;
        }
        let mut state = self.state();
        state.models.remove(inputs);
        state.leaving.remove(inputs);
        state.lanes.retain(|(topic, _), _| &**topic != inputs);
    }

    fn is_done(&self, keys: &[Key]) -> bool {
        let exactly_once = self.shared.exactly_once();
        let state = self.state();
        keys.iter()
            .filter_map(|key| state.lanes.get(key))
            .all(|lane| {
                let stored = !exactly_once || lane.stored == lane.progress.position();
                lane.progress.outstanding() == 0 && stored
            })
    }

    /// Reads nothing any more, of any model.
    pub(crate) async fn release_all(&self, deadline: Instant) {
        let all: Vec<Arc<str>> = self.state().models.keys().cloned().collect();
        let releases = all.iter().map(|inputs| self.release(inputs, deadline));
        futures_util::future::join_all(releases).await;
    }
}
