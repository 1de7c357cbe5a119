//! What a pipeline does with each record: no I/O, no clock, no async.
#![warn(missing_docs)]

use std::{collections::BTreeSet, sync::Arc};

use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::{Names, Outgoing, Record};

/// One pipeline, all its live versions.
#[derive(Debug)]
pub struct Flow {
    pipeline: Arc<str>,
    names: Names,
    limits: Limits,
}

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
    /// Records that wait in joins and batches.
    pub records: usize,
    /// Bytes of them.
    pub bytes: usize,
    /// Records that are remembered so that repeats are recognised.
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
    /// Dropped: of a version that is not live.
    pub gone: u64,
    /// Dropped: without any of the tensors a source asks for.
    pub without_tensors: u64,
    /// Dropped: joins whose window closed with a side missing.
    pub half_joins: u64,
    /// Dropped: handled before.
    pub repeats: u64,
    /// Answered with an error record by the engine.
    pub errors: u64,
}

impl Flow {
    /// Without any version yet.
    pub fn new(pipeline: &str, names: Names, limits: Limits) -> Self {
        Self {
            pipeline: pipeline.into(),
            names,
            limits,
        }
    }

    /// Adds a version or replaces it; what enters goes to the newest from then on.
    pub fn put(&mut self, _update: &PipelineUpdateMessage) -> Result<(), BadPipeline> {
        Ok(())
    }

    /// Lets a version end: what is in flight in it goes on, nothing new enters it.
    pub fn retire(&mut self, _version: u32) {}

    /// Whether a version is retired and holds nothing any more (or was never there).
    pub fn idle(&self, _version: u32) -> bool {
        true
    }

    /// All topics it reads.
    pub fn topics(&self) -> BTreeSet<Arc<str>> {
        let _ = (&self.pipeline, &self.names, &self.limits);
        BTreeSet::new()
    }

    /// Takes a record.
    pub fn handle(&mut self, _input: Arc<Input>, _now_ms: i64) -> Vec<Emit> {
        Vec::new()
    }

    /// Lets time pass.
    pub fn tick(&mut self, _now_ms: i64) -> Vec<Emit> {
        Vec::new()
    }

    /// When [`Flow::tick`] is due.
    pub fn next_deadline(&self) -> Option<i64> {
        None
    }

    /// Topics and partitions that must wait because joins hold all they may: the side that is ahead, never the
    /// missing one.
    pub fn paused(&self) -> BTreeSet<(Arc<str>, i32)> {
        BTreeSet::new()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        Counts::default()
    }
}
