//! Reading records.
use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer as _, ConsumerGroupMetadata, StreamConsumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers as _},
    types::RDKafkaErrorCode as Code,
};
use seldon_records::{Headers, Record};
use tokio::task::spawn_blocking;

use crate::{ReadError, Result, Settings, context::Context};

const PATIENCE: Duration = Duration::from_secs(20);

/// Where to begin to read a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// At what is oldest.
    Beginning,
    /// At what comes next. Found out when reading begins: what must not be missed is given by [`Consumer::ends`].
    End,
    /// There.
    Offset(i64),
    /// Where the group is, else at the end. Asks the broker: see [`Consumer::positions`] for a way that does not block.
    Committed,
}

/// Reads the partitions it is told to; its group only holds offsets. Never a member of a rebalancing group.
pub struct Consumer {
    client: Arc<StreamConsumer<Context>>,
    /// One allocation per topic rather than per record.
    topics: Mutex<HashSet<Arc<str>>>,
}

impl Consumer {
    /// `group` holds its offsets. `committed_only`: nothing of aborted or unfinished transactions is read.
    pub fn new(settings: &Settings, group: &str, committed_only: bool) -> Result<Self> {
        let (config, context) = settings.consumer(group, committed_only)?;
        let client = config
            .create_with_context(context)
            .map_err(|error| anyhow::anyhow!("no Kafka consumer: {error}"))?;
        let this = Self {
            client: Arc::new(client),
            topics: Mutex::default(),
        };
        this.first_token();
        Ok(this)
    }

    /// librdkafka asks for the first token as it asks for all: by an event that is only seen where the client is polled.
    /// What is asked of brokers before anything is read would wait for it in vain.
    fn first_token(&self) {
        if self.client.context().grant.is_some() {
            let mut waiting = std::task::Context::from_waker(std::task::Waker::noop());
            // Nothing is assigned yet, so that there is no record that this could drop.
            let _ = pin!(self.client.recv()).poll(&mut waiting);
        }
    }

    /// Begins to read these too; none of them is read already.
    pub fn assign(&self, partitions: &[(Arc<str>, i32, Position)]) -> Result<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        let committed: Vec<_> = partitions
            .iter()
            .filter(|(.., position)| *position == Position::Committed)
            .map(|(topic, partition, _)| (Arc::clone(topic), *partition))
            .collect();
        let mut resolved = resolve(&self.client, &committed)?.into_iter();
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition, position) in partitions {
            let offset = match position {
                Position::Beginning => Offset::Beginning,
                Position::End => Offset::End,
                Position::Offset(offset) => Offset::Offset(*offset),
                Position::Committed => resolved.next().map_or(Offset::End, Offset::Offset),
            };
            list.add_partition_offset(topic, *partition, offset)?;
        }
        let assigned = self.client.incremental_assign(&list);
        assigned.with_context(|| format!("cannot read {}", named(partitions.iter().map(|p| &p.0))))
    }

    /// Reads these no more; nothing of them comes after this.
    pub fn unassign(&self, partitions: &[(Arc<str>, i32)]) -> Result<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        self.client.incremental_unassign(&list(partitions))?;
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, _) in partitions {
            topics.remove(topic);
        }
        Ok(())
    }

    /// Goes on at another offset; nothing read before comes after this.
    pub fn seek(&self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        let sought = self
            .client
            .seek(topic, partition, Offset::Offset(offset), Duration::ZERO);
        sought.with_context(|| format!("cannot go to {offset} in {topic}/{partition}"))
    }

    /// Nothing of these comes until they are resumed.
    pub fn pause(&self, partitions: &[(Arc<str>, i32)]) {
        if let Err(error) = self.client.pause(&list(partitions)) {
            tracing::debug!("cannot pause: {error}");
        }
    }

    /// Goes on with these.
    pub fn resume(&self, partitions: &[(Arc<str>, i32)]) {
        if let Err(error) = self.client.resume(&list(partitions)) {
            tracing::debug!("cannot resume: {error}");
        }
    }

    /// The next record of any partition. Cancelling loses nothing.
    pub async fn recv(&self) -> Result<Record, ReadError> {
        let error = match self.client.recv().await {
            Ok(message) => {
                self.client.context().access.passed();
                return Ok(self.record(&message));
            }
            Err(error) => ReadError::from(&error),
        };
        Err(match (error, self.client.context().access.refused()) {
            (ReadError::Retryable(_) | ReadError::Unauthorized(_), Some(refusal)) => {
                ReadError::Unauthorized(refusal)
            }
            (error, _) => error,
        })
    }

    fn record(&self, message: &BorrowedMessage<'_>) -> Record {
        // The key and all headers are one allocation, apart from the value: what holds a header must not hold that.
        let headers = || message.headers().into_iter().flat_map(|all| all.iter());
        let key = message.key();
        let size = headers().map(|header| header.value.map_or(0, <[u8]>::len));
        let mut small = BytesMut::with_capacity(size.sum::<usize>() + key.map_or(0, <[u8]>::len));
        let mut part = |bytes: &[u8]| {
            small.put_slice(bytes);
            small.split().freeze()
        };
        let key = key.map(&mut part);
        let headers: Headers = headers()
            .map(|header| (header.key, part(header.value.unwrap_or_default())))
            .collect();
        Record {
            topic: self.topic(message.topic()),
            partition: message.partition(),
            offset: message.offset(),
            key,
            value: message.payload().map(Bytes::copy_from_slice),
            headers,
            timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
        }
    }

    fn topic(&self, name: &str) -> Arc<str> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        match topics.get(name) {
            Some(topic) => Arc::clone(topic),
            None => {
                let topic: Arc<str> = name.into();
                topics.insert(Arc::clone(&topic));
                topic
            }
        }
    }

    /// The group's offsets, `None` where it has none.
    pub async fn committed(&self, partitions: &[(Arc<str>, i32)]) -> Result<Vec<Option<i64>>> {
        let partitions = partitions.to_vec();
        let found = self
            .blocking(move |client| committed(client, &partitions))
            .await?;
        Ok(found.into_iter().map(|one| Some(one?.0)).collect())
    }

    /// The offsets of what will be written next, of many partitions at once.
    pub async fn ends(&self, partitions: &[(Arc<str>, i32)]) -> Result<Vec<i64>> {
        let partitions = partitions.to_vec();
        self.blocking(move |client| bounds(client, &partitions, Offset::End))
            .await
    }

    /// The offsets of what is oldest, of many partitions at once.
    pub async fn beginnings(&self, partitions: &[(Arc<str>, i32)]) -> Result<Vec<i64>> {
        let partitions = partitions.to_vec();
        self.blocking(move |client| bounds(client, &partitions, Offset::Beginning))
            .await
    }

    /// Where the group goes on: its offsets, else the ends.
    pub async fn positions(&self, partitions: &[(Arc<str>, i32)]) -> Result<Vec<i64>> {
        let partitions = partitions.to_vec();
        self.blocking(move |client| resolve(client, &partitions))
            .await
    }

    /// Stores the offsets to go on at.
    pub async fn commit(&self, offsets_: &[(Arc<str>, i32, i64)]) -> Result<()> {
        if offsets_.is_empty() {
            return Ok(());
        }
        let list = offsets(offsets_)?;
        self.blocking(move |client| Ok(client.commit(&list, CommitMode::Sync)?))
            .await
            .context("offsets cannot be stored")
    }

    /// As [`Consumer::commit`], with a note of who works on what follows.
    pub async fn commit_by(&self, of: &[(Arc<str>, i32, i64)], owner: &str) -> Result<()> {
        if of.is_empty() {
            return Ok(());
        }
        let list = owned_offsets(of, owner)?;
        self.blocking(move |client| Ok(client.commit(&list, CommitMode::Sync)?))
            .await
            .context("offsets cannot be stored")
    }

    /// The group's offsets with their notes of who works on what follows.
    pub async fn committed_by(
        &self,
        partitions: &[(Arc<str>, i32)],
    ) -> Result<Vec<Option<(i64, String)>>> {
        let partitions = partitions.to_vec();
        self.blocking(move |client| committed(client, &partitions))
            .await
    }

    /// The oldest offset and the one written next.
    pub async fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let name = topic.to_owned();
        self.blocking(move |client| Ok(client.fetch_watermarks(&name, partition, PATIENCE)?))
            .await
            .with_context(|| format!("the offsets of {topic}/{partition} cannot be found out"))
    }

    pub(crate) fn group(&self) -> Result<ConsumerGroupMetadata> {
        self.client.group_metadata().context("there is no group")
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StreamConsumer<Context>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let client = Arc::clone(&self.client);
        let done = spawn_blocking(move || work(&client)).await?;
        let access = &self.client.context().access;
        match access.refused() {
            Some(refusal) if done.is_err() => done.context(refusal),
            _ => {
                if done.is_ok() {
                    access.passed();
                }
                done
            }
        }
    }
}

fn committed(
    client: &StreamConsumer<Context>,
    partitions: &[(Arc<str>, i32)],
) -> Result<Vec<Option<(i64, String)>>> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let found = client
        .committed_offsets(list(partitions), PATIENCE)
        .context("the group's offsets cannot be read")?;
    let offset = |(topic, partition): &(Arc<str>, i32)| {
        let found = found.find_partition(topic, *partition);
        match found
            .as_ref()
            .map(|found| (found.offset(), found.metadata()))
        {
            Some((Offset::Offset(offset), owner)) => Some((offset, owner.to_owned())),
            _ => None,
        }
    };
    Ok(partitions.iter().map(offset).collect())
}

/// One request per broker, however many partitions: asking for a time of "the end" answers with the end, and of "the
/// beginning" with that.
fn bounds(
    client: &StreamConsumer<Context>,
    partitions: &[(Arc<str>, i32)],
    which: Offset,
) -> Result<Vec<i64>> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let mut asked = list(partitions);
    asked.set_all_offsets(which)?;
    let found = settled(client, partitions, &asked);
    let found = found.context("the bounds of topics cannot be found out")?;
    let offset = |(topic, partition): &(Arc<str>, i32)| {
        let name = || format!("{which:?} of {topic}/{partition} cannot be found out");
        let found = found.find_partition(topic, *partition).with_context(name)?;
        found.error().with_context(name)?;
        match found.offset() {
            Offset::Offset(offset) => Ok(offset),
            other => anyhow::bail!("{}: {other:?}", name()),
        }
    };
    partitions.iter().map(offset).collect()
}

/// Asks until brokers lead what they are to lead. A topic that was just made, or a broker that has just come back, has
/// its metadata a moment before it leads, and one such partition fails the request for all.
fn settled(
    client: &StreamConsumer<Context>,
    partitions: &[(Arc<str>, i32)],
    asked: &TopicPartitionList,
) -> Result<TopicPartitionList, KafkaError> {
    let deadline = Instant::now() + PATIENCE;
    let (mut pause, mut looked) = (Duration::from_millis(20), false);
    loop {
        let error = match client.offsets_for_times(asked.clone(), PATIENCE) {
            Err(error) => error,
            found => return found,
        };
        let code = error.rdkafka_error_code();
        if code == Some(Code::UnknownPartition) && !looked {
            // A topic has more partitions than when this client looked last.
            looked = true;
            look(client, partitions)?;
        } else if code.is_some_and(unsettled) && Instant::now() < deadline {
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        } else {
            return Err(error);
        }
    }
}

/// The client's own knowledge of topics, made new: of a few by name.
fn look(
    client: &StreamConsumer<Context>,
    partitions: &[(Arc<str>, i32)],
) -> Result<(), KafkaError> {
    const FEW: usize = 4;
    let topics: HashSet<&str> = partitions.iter().map(|(topic, _)| &**topic).collect();
    if topics.len() > FEW {
        client.fetch_metadata(None, PATIENCE)?;
        return Ok(());
    }
    for topic in topics {
        client.fetch_metadata(Some(topic), PATIENCE)?;
    }
    Ok(())
}

/// Another broker leads, or this one does in a moment.
fn unsettled(code: Code) -> bool {
    matches!(
        code,
        Code::NotLeaderForPartition
            | Code::LeaderNotAvailable
            | Code::ReplicaNotAvailable
            | Code::OffsetNotAvailable
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
    )
}

fn resolve(client: &StreamConsumer<Context>, partitions: &[(Arc<str>, i32)]) -> Result<Vec<i64>> {
    let committed = committed(client, partitions)?;
    let without: Vec<_> = partitions
        .iter()
        .zip(&committed)
        .filter(|(_, committed)| committed.is_none())
        .map(|(partition, _)| partition.clone())
        .collect();
    let mut ends = bounds(client, &without, Offset::End)?.into_iter();
    let mut offset = |committed: Option<(i64, String)>| {
        let committed = committed.map(|(offset, _)| offset);
        committed.or_else(|| ends.next()).unwrap_or(0)
    };
    Ok(committed.into_iter().map(&mut offset).collect())
}

fn list(partitions: &[(Arc<str>, i32)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    list
}

pub(crate) fn offsets(of: &[(Arc<str>, i32, i64)]) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(of.len());
    for (topic, partition, offset) in of {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(list)
}

pub(crate) fn owned_offsets(
    of: &[(Arc<str>, i32, i64)],
    owner: &str,
) -> Result<TopicPartitionList> {
    let list = offsets(of)?;
    for (topic, partition, _) in of {
        if let Some(mut found) = list.find_partition(topic, *partition) {
            found.set_metadata(owner);
        }
    }
    Ok(list)
}

fn named<'a>(topics: impl Iterator<Item = &'a Arc<str>>) -> String {
    let mut topics: Vec<&str> = topics.map(|topic| &**topic).collect();
    topics.dedup();
    match topics.len() {
        0..=3 => topics.join(", "),
        more => format!("{} and {} more topics", topics[..2].join(", "), more - 2),
    }
}
