//! What the rest of the engine asks of the worker, and what it answers.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::Outgoing;
use tokio::sync::oneshot;

use super::At;
use crate::takeover::Claimed;

/// What the rest of the engine asks of the worker.
pub enum Command {
    /// What a pipeline reads already, and whether it runs this very version.
    Look {
        update: Box<PipelineUpdateMessage>,
        answer: oneshot::Sender<Look>,
    },
    /// Lets versions of a pipeline run, from there in what was not read before. Those after the first that do already, or
    /// cannot, are passed over.
    Install {
        updates: Vec<PipelineUpdateMessage>,
        claimed: Claimed,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Lets a version end; answers whether it is the last one, and nothing where there is no such version. `at_once`:
    /// another engine goes on with what is in flight, and with the pipeline's other versions.
    Retire {
        pipeline: Arc<str>,
        version: u32,
        at_once: bool,
        answer: oneshot::Sender<Option<bool>>,
    },
    /// Whether nothing of it is on its way. What waits for more to come in a pipeline that is removed is given up in time.
    Idle {
        pipeline: Arc<str>,
        version: u32,
        answer: oneshot::Sender<bool>,
    },
    /// Takes a version away; with the last one the pipeline is released. Answers when that is written.
    Remove {
        pipeline: Arc<str>,
        version: u32,
        answer: oneshot::Sender<()>,
    },
    /// Progress records to be written in their order with all others.
    Write {
        records: Vec<Outgoing>,
        answer: oneshot::Sender<()>,
    },
    /// Reads partitions that a topic has got.
    Grow {
        pipeline: Arc<str>,
        claimed: Claimed,
    },
    /// A topic that is read does not exist.
    Gone { topic: Arc<str> },
    /// What is read: topic, partitions, positions, and by whom.
    Survey { answer: oneshot::Sender<Vec<Read>> },
}

/// See [`Command::Look`].
#[derive(Debug, Default)]
pub struct Look {
    pub runs: bool,
    pub places: HashSet<At>,
}

/// See [`Command::Survey`].
#[derive(Debug)]
pub struct Read {
    pub topic: Arc<str>,
    /// Pipelines, with what each reads of it.
    pub readers: Vec<(Arc<str>, HashSet<At>)>,
    /// By partition, the next offset.
    pub positions: HashMap<i32, i64>,
}

/// How a worker ended.
#[derive(Debug)]
pub enum Ended {
    /// As told; whether everything was given up for the next owners.
    Stopped { released: bool },
    /// It cannot go on: begin anew.
    Broken(String),
}
