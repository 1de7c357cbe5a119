//! What goes in and out.
use std::sync::Arc;

use seldon_records::{Outgoing, Record};

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// As read.
    pub record: Record,
    /// It may have been handled before a crash; what follows from it is marked so.
    pub replayed: bool,
}

/// A record to be written.
#[derive(Clone, Debug)]
pub struct Emit {
    /// As to be written; the partition is the cause's, the shell fits it to the topic.
    pub record: Outgoing,
    /// What it follows from.
    pub causes: Vec<Arc<Input>>,
}

/// What a pipeline may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records that wait in joins; from here on the side that is ahead is paused, at twice as many the oldest join is
    /// given up and its caller answered.
    pub records: usize,
    /// Bytes of them, with the same rule.
    pub bytes: usize,
    /// Records and runs that are remembered, so that repeats are recognised and an update waits for what is in flight.
    pub remembered: usize,
    /// How long they are, in milliseconds.
    pub remembered_ms: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records: 100_000,
            bytes: 64 << 20,
            remembered: 100_000,
            remembered_ms: 10 * 60 * 1000,
        }
    }
}

/// An order that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pipeline {pipeline:?} version {version}: {reason}")]
pub struct BadPipeline {
    /// Which.
    pub pipeline: String,
    /// Of it.
    pub version: u32,
    /// What is wrong and where.
    pub reason: String,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that were taken.
    pub handled: u64,
    /// Records that were written.
    pub emitted: u64,
    /// Dropped: of another pipeline.
    pub foreign: u64,
    /// Answered with an error: of a version that is not live any more.
    pub gone: u64,
    /// Dropped: without a tensor that a step asks for.
    pub without_tensors: u64,
    /// Dropped: joins whose window closed with a side missing.
    pub half_joins: u64,
    /// Dropped: handled before.
    pub repeats: u64,
    /// Dropped: error answers of other pipelines that this one reads.
    pub foreign_errors: u64,
    /// Answered with an error record by the engine itself, `gone` included.
    pub errors: u64,
}
