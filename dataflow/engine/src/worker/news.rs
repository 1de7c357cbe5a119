//! How far pipelines have come: written down, read, given up.
use std::collections::HashSet;
use std::sync::Arc;

use seldon_records::{Outgoing, Record};

use super::{ALL, At, FLUSH, Worker};
use crate::ledger::{News, Place, outgoing};

/// Records that all pipelines remember together: about 70 bytes each.
const REMEMBERED: usize = 1_000_000;

impl Worker {
    /// In transactions: progress of all that had results, which ends a group.
    pub(super) fn transact(&mut self) {
        if !self.context.exact || self.touched.is_empty() {
            return;
        }
        let touched = std::mem::take(&mut self.touched);
        let news = self.news(&touched, false);
        // Even without news: results must end in a group.
        drop(self.writer.progress(news));
    }

    pub(super) fn news(&mut self, of: &HashSet<Arc<str>>, released: bool) -> Vec<Outgoing> {
        let context = &self.context;
        let positions = &self.positions;
        let mut records = Vec::new();
        for pipeline in of {
            if let Some(owned) = self.pipelines.get_mut(pipeline) {
                let news = owned.progress(|at| positions.get(at).copied(), context.exact, released);
                let written = news
                    .iter()
                    .map(|(place, entry)| outgoing(&context.progress, place, Some(entry)));
                records.extend(written);
            }
        }
        context.metrics.progress(records.len());
        records
    }

    pub(super) fn period(&mut self) {
        self.go_on();
        self.periods = (self.periods + 1) % ALL;
        if self.periods == 0 {
            self.remember();
        }
        let of: HashSet<Arc<str>> = if self.periods == 0 {
            self.pipelines.keys().cloned().collect()
        } else {
            std::mem::take(&mut self.dirty)
        };
        let records = self.news(&of, false);
        if !records.is_empty() {
            drop(self.writer.progress(records));
        }
        let metrics = &self.context.metrics;
        metrics.state(self.pipelines.len(), self.writer.on_way());
        for pipeline in of {
            let Some(owned) = self.pipelines.get_mut(&pipeline) else {
                continue;
            };
            let (counts, held) = (owned.flow.counts(), owned.held());
            metrics.count(&pipeline, &owned.counted, &counts);
            metrics.held(&pipeline, held);
            owned.counted = counts;
            if held > 0 {
                self.dirty.insert(pipeline);
            }
        }
        self.context.beat();
    }

    /// Keeps what all pipelines remember together within bounds: those that remember most forget first.
    fn remember(&mut self) {
        let all = self.pipelines.values();
        let most = share(all.map(|owned| owned.flow.remembered()).collect());
        for owned in self.pipelines.values_mut() {
            if owned.flow.remembered() > most {
                owned.flow.remember_at_most(most);
            }
        }
    }

    pub(super) fn progress_read(&mut self, record: &Record) {
        match self.context.ledger.apply(&self.context.me, record) {
            News::None => {}
            News::Lost(place) => {
                if self.pipelines.contains_key(&place.pipeline) {
                    tracing::warn!(pipeline = %place.pipeline, "another engine has taken this pipeline over");
                    self.forget(&place.pipeline);
                }
            }
            News::Overwritten(place) => self.write_again(&place),
        }
    }

    /// A former owner wrote after us: what we had written comes again.
    fn write_again(&mut self, place: &Place) {
        let at = (place.topic.clone(), place.partition);
        let Some(owned) = self.pipelines.get_mut(&place.pipeline) else {
            return;
        };
        if let Some(spot) = owned.spots.get(&at) {
            let record = outgoing(&self.context.progress, place, Some(&spot.written));
            drop(self.writer.progress(vec![record]));
        }
    }

    /// A pipeline without its readings.
    pub(super) fn forget(&mut self, pipeline: &Arc<str>) {
        let Some(owned) = self.pipelines.remove(pipeline) else {
            return;
        };
        if let Some(deadline) = owned.deadline {
            self.deadlines.remove(&(deadline, pipeline.clone()));
        }
        self.index
            .put(pipeline, HashSet::new(), &self.context.names);
        self.unread(owned.spots.keys());
        self.context.metrics.forget(pipeline);
        self.waiting.remove(pipeline);
    }

    /// Stops reading what nobody wants.
    pub(super) fn unread<'a>(&mut self, places: impl Iterator<Item = &'a At>) {
        let gone: Vec<At> = places
            .filter(|at| self.index.readers(&at.0).next().is_none())
            .filter(|at| self.positions.contains_key(*at))
            .cloned()
            .collect();
        for at in &gone {
            self.positions.remove(at);
            self.paused.remove(at);
            self.stamps.remove(at);
        }
        if let Err(error) = self.context.consumer.unassign(&gone) {
            tracing::warn!("partitions are still read: {error:#}");
        }
    }

    /// At the end: what is on its way is written, and all is given up for the next owner. Whether it knows of that.
    pub(super) async fn release(&mut self) -> bool {
        let _ = tokio::time::timeout(FLUSH, self.writer.drained()).await;
        let all: HashSet<Arc<str>> = self.pipelines.keys().cloned().collect();
        if all.is_empty() {
            return true;
        }
        let records = self.news(&all, true);
        let written = self.writer.progress(records);
        let released = matches!(tokio::time::timeout(FLUSH, written).await, Ok(Ok(())));
        if released {
            tracing::info!(pipelines = all.len(), "pipelines released");
        } else {
            tracing::warn!("pipelines could not be released: what follows is repeated");
        }
        released
    }
}

/// How much each may have at most, so that all together have no more than [`REMEMBERED`]. Pure.
fn share(mut each: Vec<usize>) -> usize {
    each.sort_unstable();
    let mut left = REMEMBERED;
    for (at, has) in each.iter().enumerate() {
        let share = left / (each.len() - at);
        if *has > share {
            return share;
        }
        left -= has;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_remember_most_forget_first() {
        assert_eq!(share(Vec::new()), usize::MAX);
        assert_eq!(share(vec![REMEMBERED]), usize::MAX);
        assert_eq!(share(vec![REMEMBERED, 2, REMEMBERED]), REMEMBERED / 2 - 1);
        let each = vec![100_000; 40];
        assert_eq!(share(each), REMEMBERED / 40);
    }
}
