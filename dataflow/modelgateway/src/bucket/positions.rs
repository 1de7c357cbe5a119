//! How far a bucket's partitions are, and that it is stored.
use std::sync::Arc;

use seldon_records::Outgoing;

use super::{Bucket, Reach, State, lane::Lane};
use crate::model::Key;

/// A partition of a topic, and the offset behind all that is done in it.
type Reached = (Arc<str>, i32, i64);

impl Bucket {
    /// Takes all that is to be written next, in order, and the positions behind it.
    pub(crate) fn ready(&self) -> (Vec<Outgoing>, Vec<Reached>) {
        let (mut outgoing, mut positions) = (Vec::new(), Vec::new());
        let mut state = self.state();
        for (key, lane) in &mut state.lanes {
            outgoing.extend(lane.progress.take().into_iter().flatten());
            if lane.progress.position() > lane.stored {
                positions.push((Arc::clone(&key.0), key.1, lane.progress.position()));
            }
            self.resume(key, lane);
        }
        (outgoing, positions)
    }

    /// Positions are stored.
    pub(crate) fn stored(&self, positions: &[(Arc<str>, i32, i64)]) {
        let mut state = self.state();
        for (topic, partition, position) in positions {
            let lane = state.lanes.get_mut(&(Arc::clone(topic), *partition));
            // It may be one of a topic that was made anew meanwhile.
            if let Some(lane) = lane.filter(|lane| *position <= lane.progress.position()) {
                lane.stored = lane.stored.max(*position);
            }
        }
        drop(state);
        self.moved.notify_waiters();
    }

    /// Stores positions that have moved; what fails is tried again with the next.
    pub(super) async fn store(&self) {
        let (_, positions) = self.ready();
        match self.consumer.commit(&positions).await {
            Ok(()) => self.stored(&positions),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }

    /// How far all partitions are.
    pub(crate) fn reached(&self) -> Vec<Reach> {
        let state = self.state();
        let State { models, lanes, .. } = &*state;
        let of = |(key, lane): (&Key, &Lane)| {
            Some(Reach {
                key: key.clone(),
                model: Arc::clone(models.get(&key.0)?),
                position: lane.progress.position(),
                next: lane.progress.next(),
                rewound: lane.rewound,
            })
        };
        lanes.iter().filter_map(of).collect()
    }

    /// It is known what these going back meant: until then it is evidence.
    pub(crate) fn judged<'a>(&self, reached: impl Iterator<Item = &'a Reach>) {
        let mut state = self.state();
        for reach in reached {
            if let Some(lane) = state.lanes.get_mut(&reach.key)
                && lane.rewound == reach.rewound
            {
                lane.rewound = None;
            }
        }
    }
}
