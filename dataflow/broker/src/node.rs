//! All that a broker knows, shared by its connections.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kafka_protocol::protocol::StrBytes;
use tokio::sync::{Notify, Semaphore};

use crate::config::Config;
use crate::disk::Disk;
use crate::groups::Groups;
use crate::journal::Journal;
use crate::log::{Memory, Partition};
use crate::topic::Topics;
use crate::transactions::{Parts, Transactions};

/// How often old records are looked for.
const RETAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) host: StrBytes,
    pub(crate) port: u16,
    pub(crate) topics: Topics,
    pub(crate) groups: Groups,
    pub(crate) transactions: Transactions,
    pub(crate) journal: Journal,
    memory: Arc<Memory>,
    /// Whoever finds room for all does it alone.
    evicting: Mutex<()>,
    /// Large requests under way, in KiB.
    pub(crate) in_flight: Semaphore,
    /// A deadline may have come nearer.
    pub(crate) deadlines: Notify,
}

pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Node {
    pub(crate) fn open(config: Config, port: u16) -> io::Result<Self> {
        let disk = Arc::new(Disk::new(config.fsync));
        let journal = match &config.data_dir {
            Some(folder) => Journal::open(folder, disk.clone())?,
            None => Journal::default(),
        };
        let memory = Arc::new(Memory::new(config.memory_bytes));
        let topics = Topics::load(&config, memory.clone(), disk, &journal)?;
        let groups = Groups::load(&journal)?;
        let transactions = Transactions::load(&Parts {
            topics: &topics,
            groups: &groups,
            journal: &journal,
        })?;
        let host = config
            .advertised_host
            .clone()
            .unwrap_or_else(|| config.listen.ip().to_string());
        Ok(Self {
            host: StrBytes::from_string(host),
            port: config.advertised_port.unwrap_or(port),
            topics,
            groups,
            transactions,
            journal,
            memory,
            evicting: Mutex::new(()),
            in_flight: Semaphore::new(config.in_flight() >> 10),
            deadlines: Notify::new(),
            config,
        })
    }

    pub(crate) fn parts(&self) -> Parts<'_> {
        Parts {
            topics: &self.topics,
            groups: &self.groups,
            journal: &self.journal,
        }
    }

    /// Drops the oldest batches of all partitions from memory once they take more than they may.
    pub(crate) fn make_room(&self) {
        if !self.memory.over() {
            return;
        }
        let Ok(_alone) = self.evicting.try_lock() else {
            return;
        };
        let partitions: Vec<Arc<Partition>> = self
            .topics
            .all()
            .iter()
            .flat_map(|topic| topic.partitions())
            .collect();
        let age = |index: usize| {
            partitions[index]
                .lock()
                .oldest()
                .map(|age| Reverse((age, index)))
        };
        let mut oldest: BinaryHeap<_> = (0..partitions.len()).filter_map(age).collect();
        while let Some(Reverse((_, index))) = oldest.pop()
            && self.memory.tight()
        {
            let next = oldest.peek().map_or(u64::MAX, |Reverse((age, _))| *age);
            partitions[index].lock().evict(next);
            oldest.extend(age(index));
        }
    }

    /// Lets groups and transactions see the time; returns when to call again.
    pub(crate) fn tick(&self, now: Instant) -> Instant {
        let groups = self.groups.tick(now);
        let transactions = self.transactions.lock().tick(now, &self.parts());
        groups
            .into_iter()
            .chain(transactions)
            .chain([now + RETAIN])
            .min()
            .unwrap_or(now + RETAIN)
    }

    /// Removes what is too old or too much, and cleans compacted topics.
    pub(crate) fn retain(&self) {
        let now = now_ms();
        let default_bytes = self
            .config
            .retention_bytes
            .and_then(|bytes| i64::try_from(bytes).ok());
        for topic in self.topics.all() {
            let deletes = topic.policy("delete");
            let compacts = topic.policy("compact");
            let ms = topic
                .number("retention.ms", self.config.retention_ms)
                .filter(|_| deletes);
            let bytes = topic
                .number("retention.bytes", default_bytes)
                .filter(|_| deletes);
            for partition in topic.partitions() {
                let mut log = partition.lock();
                let done = log
                    .retain(now, ms, bytes.map(i64::unsigned_abs))
                    .and_then(|()| if compacts { log.clean() } else { Ok(()) });
                if let Err(error) = done {
                    tracing::error!(topic = topic.name, %error, "old records cannot be removed");
                }
            }
        }
    }
}
