//! Topics: their partitions and settings.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::disk::Disk;
use crate::groups::SEPARATOR;
use crate::journal::Journal;
use crate::log::{Memory, Partition};

/// Settings as they were given, by name.
pub(crate) type Settings = BTreeMap<String, String>;

#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: String,
    shape: RwLock<Shape>,
}

#[derive(Debug)]
struct Shape {
    partitions: Vec<Arc<Partition>>,
    settings: Settings,
    folder: String,
}

/// What the journal keeps of a topic. Its folder has a number of its own: a new topic of the name of one that is deleted
/// starts empty, whatever a crash left.
#[derive(Serialize, Deserialize)]
struct Kept {
    partitions: i32,
    settings: Settings,
    folder: String,
}

impl Topic {
    fn shape(&self) -> RwLockReadGuard<'_, Shape> {
        self.shape.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn shape_mut(&self) -> RwLockWriteGuard<'_, Shape> {
        self.shape.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn partition(&self, index: i32) -> Option<Arc<Partition>> {
        self.shape()
            .partitions
            .get(usize::try_from(index).ok()?)
            .cloned()
    }

    pub(crate) fn partitions(&self) -> Vec<Arc<Partition>> {
        self.shape().partitions.clone()
    }

    pub(crate) fn count(&self) -> i32 {
        self.shape().partitions.len() as i32
    }

    pub(crate) fn settings(&self) -> Settings {
        self.shape().settings.clone()
    }

    /// The number that a setting gives: none where it is absent, not a number, or negative (no limit).
    pub(crate) fn number(&self, name: &str, default: Option<i64>) -> Option<i64> {
        match self
            .shape()
            .settings
            .get(name)
            .map(|value| value.parse::<i64>())
        {
            Some(Ok(number)) => (number >= 0).then_some(number),
            _ => default,
        }
    }

    /// True if the policy has this word: `delete`, `compact`.
    pub(crate) fn policy(&self, word: &str) -> bool {
        match self.shape().settings.get("cleanup.policy") {
            Some(policy) => policy.split(',').any(|known| known.trim() == word),
            None => word == "delete",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Topics {
    by_name: RwLock<HashMap<String, Arc<Topic>>>,
    memory: Arc<Memory>,
    disk: Arc<Disk>,
    folder: Option<PathBuf>,
}

const TOPIC: &str = "topic\0";
const START: &str = "start\0";
const FOLDERS: &str = "folders";
/// What a Kafka allows.
const NAME: usize = 249;
/// More than one machine has use for.
const PARTITIONS: i32 = 10_000;

fn start_key(topic: &str, partition: i32) -> String {
    format!("{START}{topic}{SEPARATOR}{partition}")
}

fn storage(error: io::Error) -> ResponseError {
    tracing::error!(%error, "a topic cannot be kept");
    ResponseError::KafkaStorageError
}

/// Checks the name of a topic.
pub(crate) fn valid_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty()
        && name.len() <= NAME
        && name != "."
        && name != ".."
        && name.bytes().all(allowed)
}

/// Checks the settings of a topic: those that the broker acts on have to make sense, others are kept as they are.
pub(crate) fn valid_settings(settings: &Settings) -> bool {
    settings.iter().all(|(name, value)| match name.as_str() {
        "retention.ms" | "retention.bytes" => value.parse::<i64>().is_ok_and(|number| number >= -1),
        "max.message.bytes" => value.parse::<i32>().is_ok_and(|number| number >= 0),
        "cleanup.policy" => value
            .split(',')
            .all(|word| matches!(word.trim(), "delete" | "compact")),
        _ => true,
    })
}

impl Topics {
    pub(crate) fn load(
        config: &Config,
        memory: Arc<Memory>,
        disk: Arc<Disk>,
        journal: &Journal,
    ) -> io::Result<Self> {
        let folder = config.data_dir.as_ref().map(|folder| folder.join("topics"));
        let topics = Self {
            by_name: RwLock::new(HashMap::new()),
            memory,
            disk,
            folder,
        };
        let starts: HashMap<String, i64> = journal.all(START)?.into_iter().collect();
        let mut folders = std::collections::HashSet::new();
        for (name, kept) in journal.all::<Kept>(TOPIC)? {
            let start = |index| {
                starts
                    .get(&format!("{name}{SEPARATOR}{index}"))
                    .copied()
                    .unwrap_or(0)
            };
            let partitions = (0..kept.partitions)
                .map(|index| topics.open(&kept.folder, index, start(index)))
                .collect::<io::Result<_>>()?;
            folders.insert(kept.folder.clone());
            let shape = Shape {
                partitions,
                settings: kept.settings,
                folder: kept.folder,
            };
            let topic = Topic {
                name: name.clone(),
                shape: RwLock::new(shape),
            };
            topics.write().insert(name, Arc::new(topic));
        }
        topics.remove_others(&folders)?;
        Ok(topics)
    }

    /// Removes folders of topics that were deleted, or never quite created, when the process ended.
    fn remove_others(&self, known: &std::collections::HashSet<String>) -> io::Result<()> {
        let Some(folder) = self.folder.as_ref().filter(|folder| folder.exists()) else {
            return Ok(());
        };
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if !known.contains(&*entry.file_name().to_string_lossy()) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    fn open(&self, folder: &str, index: i32, start: i64) -> io::Result<Arc<Partition>> {
        let folder = self
            .folder
            .as_ref()
            .map(|root| root.join(folder).join(index.to_string()));
        Partition::open(self.memory.clone(), &self.disk, folder.as_deref(), start).map(Arc::new)
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Arc<Topic>>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Arc<Topic>>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Topic>> {
        self.read().get(name).cloned()
    }

    pub(crate) fn partition(&self, name: &str, index: i32) -> Option<Arc<Partition>> {
        self.read().get(name)?.partition(index)
    }

    /// All of them by name.
    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        let mut all: Vec<Arc<Topic>> = self.read().values().cloned().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// Creates a topic, or only says whether it could be.
    pub(crate) fn create(
        &self,
        name: &str,
        partitions: i32,
        settings: Settings,
        only_check: bool,
        journal: &Journal,
    ) -> Result<Arc<Topic>, ResponseError> {
        if !valid_name(name) {
            return Err(ResponseError::InvalidTopicException);
        }
        if !(1..=PARTITIONS).contains(&partitions) {
            return Err(ResponseError::InvalidPartitions);
        }
        if !valid_settings(&settings) {
            return Err(ResponseError::InvalidConfig);
        }
        let mut topics = self.write();
        if topics.contains_key(name) {
            return Err(ResponseError::TopicAlreadyExists);
        }
        let folder = if only_check {
            String::new()
        } else {
            Self::new_folder(journal).map_err(storage)?
        };
        let open = |index| {
            if only_check {
                Partition::open(self.memory.clone(), &self.disk, None, 0).map(Arc::new)
            } else {
                self.open(&folder, index, 0)
            }
        };
        let opened = (0..partitions)
            .map(open)
            .collect::<io::Result<_>>()
            .map_err(storage)?;
        let shape = Shape {
            partitions: opened,
            settings,
            folder,
        };
        let topic = Arc::new(Topic {
            name: name.to_owned(),
            shape: RwLock::new(shape),
        });
        if !only_check {
            Self::keep(&topic, journal).map_err(storage)?;
            topics.insert(name.to_owned(), topic.clone());
        }
        Ok(topic)
    }

    fn new_folder(journal: &Journal) -> io::Result<String> {
        let last = journal
            .all::<u64>(FOLDERS)?
            .first()
            .map_or(0, |(_, last)| *last);
        journal.put(FOLDERS, &(last + 1))?;
        Ok((last + 1).to_string())
    }

    fn keep(topic: &Topic, journal: &Journal) -> io::Result<()> {
        let shape = topic.shape();
        let kept = Kept {
            partitions: shape.partitions.len() as i32,
            settings: shape.settings.clone(),
            folder: shape.folder.clone(),
        };
        journal.put(&format!("{TOPIC}{}", topic.name), &kept)
    }

    pub(crate) fn delete(&self, name: &str, journal: &Journal) -> Result<(), ResponseError> {
        let topic = self
            .write()
            .remove(name)
            .ok_or(ResponseError::UnknownTopicOrPartition)?;
        journal.remove(&format!("{TOPIC}{name}")).map_err(storage)?;
        journal
            .remove_all(&format!("{START}{name}{SEPARATOR}"))
            .map_err(storage)?;
        for partition in topic.partitions() {
            partition.lock().remove().map_err(storage)?;
        }
        if let Some(root) = &self.folder {
            std::fs::remove_dir_all(root.join(&topic.shape().folder)).map_err(storage)?;
        }
        Ok(())
    }

    /// Gives a topic more partitions.
    pub(crate) fn grow(
        &self,
        name: &str,
        count: i32,
        only_check: bool,
        journal: &Journal,
    ) -> Result<(), ResponseError> {
        let topic = self
            .get(name)
            .ok_or(ResponseError::UnknownTopicOrPartition)?;
        {
            let mut shape = topic.shape_mut();
            let known = shape.partitions.len() as i32;
            if count <= known || count > PARTITIONS {
                return Err(ResponseError::InvalidPartitions);
            }
            if only_check {
                return Ok(());
            }
            for index in known..count {
                let partition = self.open(&shape.folder, index, 0).map_err(storage)?;
                shape.partitions.push(partition);
            }
        }
        Self::keep(&topic, journal).map_err(storage)
    }

    pub(crate) fn set(
        &self,
        topic: &Topic,
        settings: Settings,
        journal: &Journal,
    ) -> Result<(), ResponseError> {
        if !valid_settings(&settings) {
            return Err(ResponseError::InvalidConfig);
        }
        topic.shape_mut().settings = settings;
        Self::keep(topic, journal).map_err(storage)
    }

    /// Removes the records before an offset; returns where the partition starts now.
    pub(crate) fn delete_records(
        &self,
        name: &str,
        index: i32,
        offset: i64,
        journal: &Journal,
    ) -> Result<i64, ResponseError> {
        let partition = self
            .partition(name, index)
            .ok_or(ResponseError::UnknownTopicOrPartition)?;
        let mut log = partition.lock();
        let offset = if offset < 0 { log.ends().next } else { offset };
        if offset > log.ends().next {
            return Err(ResponseError::OffsetOutOfRange);
        }
        journal
            .put(&start_key(name, index), &offset.max(log.ends().start))
            .map_err(storage)?;
        log.delete_before(offset)
    }
}
