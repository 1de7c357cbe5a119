//! A model that is read.
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

use bytes::Bytes;
use seldon_records::Record;
use tokio::sync::Semaphore;

use crate::absence::Absence;

/// A record to work on.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) record: Record,
    /// It may have been worked on before, by a process that died.
    pub(crate) replayed: bool,
    /// Which reading of its partition it belongs to.
    pub(crate) lane: u64,
}

impl Job {
    /// Where it stands.
    pub(crate) fn place(&self) -> Place {
        let value = self.record.value.as_ref();
        Place {
            key: (Arc::clone(&self.record.topic), self.record.partition),
            lane: self.lane,
            offset: self.record.offset,
            size: value.map_or(0, Bytes::len),
        }
    }
}

/// A topic's partition.
pub(crate) type Key = (Arc<str>, i32);

/// Where a record stands, and what it weighs.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) key: Key,
    pub(crate) lane: u64,
    pub(crate) offset: i64,
    pub(crate) size: usize,
}

/// A topic that is written to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) topic: Arc<str>,
    partitions: AtomicI32,
}

impl Target {
    pub(crate) fn new(topic: &str, partitions: i32) -> Self {
        Self {
            topic: topic.into(),
            partitions: AtomicI32::new(partitions.max(1)),
        }
    }

    pub(crate) fn set_partitions(&self, partitions: i32) {
        self.partitions.store(partitions.max(1), Ordering::Relaxed);
    }

    /// The same partition, as far as there are as many.
    pub(crate) fn partition(&self, of: i32) -> i32 {
        of % self.partitions.load(Ordering::Relaxed)
    }
}

/// A model this gateway owns.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: Arc<str>,
    pub(crate) inputs: Arc<str>,
    pub(crate) outputs: Target,
    /// Requests at a time.
    pub(crate) permits: Semaphore,
    pub(crate) absence: Absence,
    /// The inputs topic was not there when it was looked for last.
    pub(crate) gone: AtomicBool,
    /// Keys that are worked on, and what waits behind them.
    busy: Mutex<HashMap<Bytes, VecDeque<Job>>>,
}

impl Model {
    pub(crate) fn new(name: &str, inputs: &str, outputs: Target, workers: usize) -> Self {
        Self {
            name: name.into(),
            inputs: inputs.into(),
            outputs,
            permits: Semaphore::new(workers.max(1)),
            absence: Absence::default(),
            gone: AtomicBool::new(false),
            busy: Mutex::default(),
        }
    }

    /// The job, if its key is free; else it waits for those before it.
    pub(crate) fn start(&self, job: Job) -> Option<Job> {
        let Some(key) = job.record.key.clone() else {
            return Some(job);
        };
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        match busy.get_mut(&key) {
            Some(waiting) => {
                waiting.push_back(job);
                None
            }
            None => {
                busy.insert(key, VecDeque::new());
                Some(job)
            }
        }
    }

    /// What comes after a job of this key; the key is free if nothing does.
    pub(crate) fn next(&self, key: Option<&Bytes>) -> Option<Job> {
        let key = key?;
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let next = busy.get_mut(key).and_then(VecDeque::pop_front);
        if next.is_none() {
            busy.remove(key);
        }
        next
    }
}
