//! Producers' ids, and transactions: who holds an id, what it has written to, how it ended.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

use crate::groups::{self, Groups};
use crate::journal::Journal;
use crate::node::now_ms;
use crate::topic::Topics;

const TRANSACTION: &str = "transaction\0";
const PRODUCERS: &str = "producers";
/// Ids are kept in blocks, so that most take no writing.
const BLOCK: i64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Idle,
    Open,
    /// Decided; it is being made known to partitions and groups.
    Ending {
        commit: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Transaction {
    pub(crate) producer: i64,
    pub(crate) epoch: i16,
    timeout_ms: u64,
    state: State,
    /// How the one before ended, for a producer that asks twice.
    last: Option<bool>,
    pub(crate) partitions: BTreeSet<(String, i32)>,
    pub(crate) groups: BTreeSet<String>,
    #[serde(skip)]
    started: Option<Instant>,
}

#[derive(Debug, Default)]
pub(crate) struct Transactions(Mutex<Known>);

#[derive(Debug, Default)]
pub(crate) struct Known {
    by_id: HashMap<String, Transaction>,
    next: i64,
    reserved: i64,
}

/// What a transaction reaches.
pub(crate) struct Parts<'a> {
    pub(crate) topics: &'a Topics,
    pub(crate) groups: &'a Groups,
    pub(crate) journal: &'a Journal,
}

fn storage(error: io::Error) -> ResponseError {
    tracing::error!(%error, "a transaction cannot be kept");
    ResponseError::KafkaStorageError
}

impl Transactions {
    /// Loads them; those that were decided when the process ended are ended now.
    pub(crate) fn load(parts: &Parts<'_>) -> io::Result<Self> {
        let reserved = parts
            .journal
            .all::<i64>(PRODUCERS)?
            .first()
            .map_or(BLOCK, |(_, id)| *id);
        let mut by_id: HashMap<String, Transaction> =
            parts.journal.all(TRANSACTION)?.into_iter().collect();
        for (id, transaction) in &mut by_id {
            match transaction.state {
                State::Ending { commit } => {
                    transaction.end(id, commit, parts).map_err(|error| {
                        io::Error::other(format!("transaction {id} cannot be ended: {error}"))
                    })?
                }
                State::Open => transaction.started = Some(Instant::now()),
                State::Idle => {}
            }
        }
        Ok(Self(Mutex::new(Known {
            by_id,
            next: reserved,
            reserved,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Returns an id that no producer had before.
    pub(crate) fn new_producer(&mut self, journal: &Journal) -> Result<i64, ResponseError> {
        if self.next >= self.reserved {
            journal
                .put(PRODUCERS, &(self.next + BLOCK))
                .map_err(storage)?;
            self.reserved = self.next + BLOCK;
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Gives the id to who asks, and fences who held it: an open transaction is aborted.
    pub(crate) fn init(
        &mut self,
        id: &str,
        timeout: Duration,
        holder: Option<(i64, i16)>,
        parts: &Parts<'_>,
    ) -> Result<(i64, i16), ResponseError> {
        let Some(known) = self.by_id.get_mut(id) else {
            let producer = self.new_producer(parts.journal)?;
            return self.begin_anew(id, producer, timeout, parts.journal);
        };
        if holder.is_some_and(|holder| holder != (known.producer, known.epoch)) {
            return Err(ResponseError::ProducerFenced);
        }
        if let State::Ending { commit } = known.state {
            known.end(id, commit, parts)?;
        }
        if known.epoch >= i16::MAX - 2 {
            known.abort_open(id, parts)?;
            let producer = self.new_producer(parts.journal)?;
            return self.begin_anew(id, producer, timeout, parts.journal);
        }
        known.epoch += 1;
        known.abort_open(id, parts)?;
        known.timeout_ms = timeout.as_millis() as u64;
        known.last = None;
        known.keep(id, parts.journal)?;
        Ok((known.producer, known.epoch))
    }

    fn begin_anew(
        &mut self,
        id: &str,
        producer: i64,
        timeout: Duration,
        journal: &Journal,
    ) -> Result<(i64, i16), ResponseError> {
        let transaction = Transaction {
            producer,
            epoch: 0,
            timeout_ms: timeout.as_millis() as u64,
            state: State::Idle,
            last: None,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
            started: None,
        };
        transaction.keep(id, journal)?;
        self.by_id.insert(id.to_owned(), transaction);
        Ok((producer, 0))
    }

    /// Returns the transaction of who holds the id now.
    pub(crate) fn held(
        &mut self,
        id: &str,
        producer: i64,
        epoch: i16,
    ) -> Result<&mut Transaction, ResponseError> {
        let known = self
            .by_id
            .get_mut(id)
            .filter(|known| known.producer == producer);
        let known = known.ok_or(ResponseError::InvalidProducerIdMapping)?;
        if known.epoch != epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        if matches!(known.state, State::Ending { .. }) {
            return Err(ResponseError::ConcurrentTransactions);
        }
        Ok(known)
    }

    /// Checks that a producer may write to a partition within its transaction.
    pub(crate) fn may_write(
        &mut self,
        id: &str,
        producer: i64,
        epoch: i16,
        place: (&str, i32),
    ) -> Result<(), ResponseError> {
        let held = self.held(id, producer, epoch)?;
        let added = held
            .partitions
            .iter()
            .any(|(topic, index)| topic == place.0 && *index == place.1);
        if added {
            Ok(())
        } else {
            Err(ResponseError::InvalidTxnState)
        }
    }

    /// Ends a transaction as its producer asks.
    pub(crate) fn end(
        &mut self,
        id: &str,
        producer: i64,
        epoch: i16,
        commit: bool,
        parts: &Parts<'_>,
    ) -> Result<(), ResponseError> {
        if let Some(known) = self.by_id.get_mut(id)
            && let State::Ending { commit } = known.state
        {
            known.end(id, commit, parts)?;
        }
        let known = self.held(id, producer, epoch)?;
        match known.state {
            State::Open => known.end(id, commit, parts),
            _ if known.last == Some(commit) => Ok(()),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    /// Aborts what is open for too long; returns when to look again.
    pub(crate) fn tick(&mut self, now: Instant, parts: &Parts<'_>) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for (id, known) in &mut self.by_id {
            let Some(deadline) = known
                .started
                .map(|started| started + Duration::from_millis(known.timeout_ms))
            else {
                continue;
            };
            if deadline > now {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
                continue;
            }
            tracing::warn!(transaction = %id, "a transaction is open for too long and is aborted");
            known.epoch = known.epoch.saturating_add(1);
            if let Err(error) = known.end(id, false, parts) {
                tracing::error!(transaction = %id, %error, "a transaction cannot be aborted");
            }
        }
        next
    }
}

impl Transaction {
    /// Opens it, if it is not, with one more partition or group in it. Kept before anything is written.
    pub(crate) fn extend(
        &mut self,
        id: &str,
        partitions: Vec<(String, i32)>,
        group: Option<String>,
        journal: &Journal,
    ) -> Result<(), ResponseError> {
        let known = partitions
            .iter()
            .all(|place| self.partitions.contains(place))
            && group
                .as_ref()
                .is_none_or(|group| self.groups.contains(group));
        if known && self.state == State::Open {
            return Ok(());
        }
        if self.state == State::Idle {
            self.state = State::Open;
            self.started = Some(Instant::now());
        }
        self.partitions.extend(partitions);
        self.groups.extend(group);
        self.keep(id, journal)
    }

    fn abort_open(&mut self, id: &str, parts: &Parts<'_>) -> Result<(), ResponseError> {
        if self.state == State::Open {
            self.end(id, false, parts)
        } else {
            Ok(())
        }
    }

    fn end(&mut self, id: &str, commit: bool, parts: &Parts<'_>) -> Result<(), ResponseError> {
        self.state = State::Ending { commit };
        self.keep(id, parts.journal)?;
        for (topic, index) in &self.partitions {
            if let Some(partition) = parts.topics.partition(topic, *index) {
                let ended =
                    partition
                        .lock()
                        .end_transaction(self.producer, self.epoch, commit, now_ms());
                ended.map_err(storage)?;
            }
        }
        let mut all = parts.groups.lock();
        for name in &self.groups {
            let group = all.entry(name.clone()).or_default();
            groups::end_transaction(group, name, self.producer, commit, parts.journal)
                .map_err(storage)?;
        }
        drop(all);
        self.partitions.clear();
        self.groups.clear();
        self.state = State::Idle;
        self.last = Some(commit);
        self.started = None;
        self.keep(id, parts.journal)
    }

    fn keep(&self, id: &str, journal: &Journal) -> Result<(), ResponseError> {
        journal
            .put(&format!("{TRANSACTION}{id}"), self)
            .map_err(storage)
    }
}
