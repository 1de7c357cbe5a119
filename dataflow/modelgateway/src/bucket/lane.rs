//! Partitions of a bucket: where each is begun, and how far it is.
use std::sync::Arc;

use seldon_records::Outgoing;

use crate::{
    model::{Key, Model},
    progress::Progress,
};

/// One partition.
pub(super) struct Lane {
    /// Tells it from that of a topic of the same name before.
    pub(super) number: u64,
    pub(super) progress: Progress<Option<Outgoing>>,
    pub(super) bytes: usize,
    pub(super) paused: bool,
    /// What is below may have been worked on by another.
    pub(super) replay_until: i64,
    /// What the group's offset is.
    pub(super) stored: i64,
    /// The first record that came of those before what was begun.
    pub(super) rewound: Option<i64>,
}

/// How far a partition is.
pub(crate) struct Reach {
    pub(crate) key: Key,
    pub(crate) model: Arc<Model>,
    /// Behind all that is done.
    pub(crate) position: i64,
    /// Behind all that is begun.
    pub(crate) next: i64,
    /// The first record since the last look that came of those before.
    pub(crate) rewound: Option<i64>,
}

/// A model with the partitions of its inputs and where each is gone on with.
pub(crate) struct Owned {
    pub(crate) model: Arc<Model>,
    pub(crate) partitions: Vec<Start>,
}

/// Where a partition is gone on with.
pub(crate) struct Start {
    pub(crate) partition: i32,
    pub(crate) position: i64,
    pub(crate) end: i64,
}

impl Start {
    /// Where a partition that ends at `end` is begun: behind what is stored. What is stored of a topic that was deleted and
    /// made anew means nothing for this one.
    pub(crate) fn of(partition: i32, stored: Option<i64>, end: i64, unread: Unread) -> Self {
        let position = match (stored, unread) {
            (Some(stored), _) if stored <= end => stored,
            (Some(_), _) | (None, Unread::FromTheBeginning) => 0,
            (None, Unread::FromTheEnd) => end,
        };
        Self {
            partition,
            position,
            // What nobody has stored a position of, nobody has worked on.
            end: if stored.is_some() { end } else { position },
        }
    }
}

/// Where a partition is begun that nobody has read.
#[derive(Clone, Copy)]
pub(crate) enum Unread {
    FromTheBeginning,
    FromTheEnd,
}
