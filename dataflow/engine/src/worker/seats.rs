//! Where partitions are read from, and which of them wait for room in a pipeline's joins.
use std::collections::BTreeSet;
use std::sync::Arc;

use seldon_kafka::Position;

use super::{At, Worker};

impl Worker {
    /// Lets partitions of a pipeline wait.
    pub(super) fn wait(&mut self, pipeline: &Arc<str>, paused: BTreeSet<At>) {
        let Some(owned) = self.pipelines.get_mut(pipeline) else {
            return;
        };
        for at in paused {
            let Some(spot) = owned.spots.get_mut(&at) else {
                continue;
            };
            if spot.cursor.is_suspended() {
                continue;
            }
            if let Some(position) = self.positions.get(&at) {
                spot.cursor.passed(*position);
            }
            spot.cursor.suspend();
            self.waiting.insert(pipeline.clone());
            if self.index.readers(&at.0).count() == 1 {
                self.context.consumer.pause(std::slice::from_ref(&at));
                self.paused.insert(at);
            }
        }
    }

    /// Lets all of a pipeline wait: topics that it writes to take no more for now.
    pub(super) fn wait_for_room(&mut self, pipeline: &Arc<str>, topics: Vec<Arc<str>>) {
        let Some(owned) = self.pipelines.get_mut(pipeline) else {
            return;
        };
        for topic in topics {
            if owned.full.insert(topic.clone()) {
                tracing::warn!(%pipeline, %topic, "too many results wait for the topic: the pipeline waits too");
            }
        }
        // Also what it reads only since.
        let all = owned.spots.keys().cloned().collect();
        self.wait(pipeline, all);
    }

    /// Lets pipelines go on that waited for room, as soon as there is some.
    pub(super) fn go_on_if_room(&mut self) {
        let has_room = |pipeline: &Arc<str>| {
            let full = self.pipelines.get(pipeline).map(|owned| &owned.full);
            full.is_some_and(|full| {
                !full.is_empty() && full.iter().all(|topic| self.writer.has_room_for(topic))
            })
        };
        if self.waiting.iter().any(has_room) {
            self.go_on();
        }
    }

    /// Lets partitions that waited go on where they may.
    pub(super) fn go_on(&mut self) {
        let waiting: Vec<Arc<str>> = self.waiting.iter().cloned().collect();
        for pipeline in waiting {
            let Some(owned) = self.pipelines.get_mut(&pipeline) else {
                self.waiting.remove(&pipeline);
                continue;
            };
            let writer = &self.writer;
            owned.full.retain(|topic| !writer.has_room_for(topic));
            let paused = owned.flow.paused();
            let (ending, entries, full) = (owned.ending, &owned.entries, !owned.full.is_empty());
            let may =
                |at: &At| !ending.leaves(entries.contains(&at.0)) && !full && !paused.contains(at);
            let mut resumed = Vec::new();
            let mut left = false;
            for (at, spot) in &mut owned.spots {
                if spot.cursor.is_suspended() && may(at) {
                    spot.cursor.resume();
                    resumed.push((at.clone(), spot.cursor.floor()));
                }
                left |= spot.cursor.is_suspended();
            }
            if !left {
                self.waiting.remove(&pipeline);
            }
            for (at, floor) in resumed {
                self.seat(&at, floor);
            }
        }
    }

    /// Sees to it that a partition is read from `start`, or from before.
    pub(super) fn seat(&mut self, at: &At, start: i64) {
        let consumer = &self.context.consumer;
        if self.paused.remove(at) {
            consumer.resume(std::slice::from_ref(at));
        }
        let (topic, partition) = at;
        let begin = (topic.clone(), *partition, Position::Offset(start));
        let read = match self.positions.get(at).copied() {
            None => consumer.assign(&[begin]),
            Some(position) if position <= start => return,
            Some(position) => {
                for reader in self.index.readers(topic) {
                    if let Some(owned) = self.pipelines.get_mut(reader)
                        && let Some(spot) = owned.spots.get_mut(at)
                        && spot.cursor.floor() != start
                    {
                        spot.cursor.passed(position);
                    }
                }
                // Not `seek`, which lets through what was fetched before.
                let again = consumer.unassign(std::slice::from_ref(at));
                again.and_then(|()| consumer.assign(&[begin]))
            }
        };
        if let Err(error) = read {
            tracing::error!(topic = %topic, partition, "a partition cannot be read: {error:#}");
            // Whoever needs it next tries again.
            self.positions.remove(at);
            return;
        }
        self.positions.insert(at.clone(), start);
    }
}
