//! Clients with short words: each case says what it asks, not how.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, FromClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

pub(crate) type Done = Result<(), String>;

/// The longest that anything may take.
pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const SHORT: Duration = Duration::from_millis(100);

pub(crate) fn text(what: impl std::fmt::Debug) -> String {
    format!("{what:?}")
}

pub(crate) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Done {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Asks until it holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool, String>) -> Done {
    let start = Instant::now();
    while !holds()? {
        ensure(start.elapsed() < LONG, || format!("not in time: {what}"))?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

pub(crate) struct Broker {
    pub(crate) bootstrap: String,
    pub(crate) embedded: bool,
}

pub(crate) type Settings<'a> = &'a [(&'a str, &'a str)];

/// What a client has heard of the broker.
#[derive(Clone, Default)]
pub(crate) struct Heard {
    delivered: Arc<AtomicUsize>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Heard {
    pub(crate) fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }
}

impl ClientContext for Heard {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.errors
            .lock()
            .unwrap()
            .push(format!("{error:?}: {reason}"));
    }
}

impl ConsumerContext for Heard {}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.delivered.fetch_add(1, Ordering::SeqCst);
            }
            Err((error, _)) => self.errors.lock().unwrap().push(text(error)),
        }
    }
}

pub(crate) type Reader = BaseConsumer<Heard>;

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) value: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

pub(crate) struct Writer {
    pub(crate) producer: ThreadedProducer<Heard>,
    heard: Heard,
    sent: AtomicUsize,
}

impl Broker {
    /// A name that no other case or run has.
    pub(crate) fn name(&self, start: &str) -> String {
        static RUN: std::sync::OnceLock<u128> = std::sync::OnceLock::new();
        let run = RUN.get_or_init(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_micros()
        });
        format!("{start}-{run:x}")
    }

    pub(crate) fn config(&self, settings: Settings<'_>) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("broker.address.family", "v4");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        config
    }

    pub(crate) fn admin(&self) -> AdminClient<DefaultClientContext> {
        AdminClient::from_config(&self.config(&[])).unwrap()
    }

    /// Asks the administrative client, and waits.
    pub(crate) fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, KafkaError>>,
    ) -> Result<T, String> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(question)
            .map_err(text)
    }

    /// Creates a topic and waits until it can be used.
    pub(crate) fn create(&self, topic: &str, partitions: i32, settings: Settings<'_>) -> Done {
        let mut wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in settings {
            wanted = wanted.set(name, value);
        }
        let admin = self.admin();
        for created in self.ask(admin.create_topics([&wanted], &AdminOptions::new()))? {
            created.map_err(|(name, error)| format!("{name}: {error:?}"))?;
        }
        until("the topic is visible", || {
            Ok(self.partitions(topic)? == Some(partitions as usize))
        })
    }

    pub(crate) fn delete(&self, topic: &str) -> Done {
        let admin = self.admin();
        let deleted = self.ask(admin.delete_topics(&[topic], &AdminOptions::new()))?;
        deleted
            .into_iter()
            .try_for_each(|one| one.map(drop).map_err(text))
    }

    /// The partitions of a topic, if it is there.
    pub(crate) fn partitions(&self, topic: &str) -> Result<Option<usize>, String> {
        let client: BaseConsumer = self.config(&[]).create().map_err(text)?;
        let all = client.fetch_metadata(None, LONG).map_err(text)?;
        let found = all.topics().iter().find(|known| known.name() == topic);
        Ok(found.map(|known| known.partitions().len()))
    }

    pub(crate) fn writer(&self, settings: Settings<'_>) -> Result<Writer, String> {
        let mut config = self.config(&[("message.timeout.ms", "30000"), ("linger.ms", "0")]);
        for (name, value) in settings {
            config.set(*name, *value);
        }
        let heard = Heard::default();
        let producer =
            ThreadedProducer::from_config_and_context(&config, heard.clone()).map_err(text)?;
        Ok(Writer {
            producer,
            heard,
            sent: AtomicUsize::new(0),
        })
    }

    /// Writes records `<start><number>` and waits until they are there.
    pub(crate) fn write(
        &self,
        topic: &str,
        partition: Option<i32>,
        numbers: std::ops::Range<usize>,
        start: &str,
        settings: Settings<'_>,
    ) -> Done {
        let writer = self.writer(settings)?;
        writer.send(topic, partition, numbers, start)?;
        writer.flush()
    }

    pub(crate) fn reader(&self, group: &str, settings: Settings<'_>) -> Result<Reader, String> {
        let mut config = self.config(&[
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "earliest"),
            ("session.timeout.ms", "10000"),
            ("heartbeat.interval.ms", "300"),
            ("topic.metadata.refresh.interval.ms", "500"),
            ("allow.auto.create.topics", "false"),
            ("group.id", group),
        ]);
        for (name, value) in settings {
            config.set(*name, *value);
        }
        BaseConsumer::from_config_and_context(&config, Heard::default()).map_err(text)
    }

    /// Reads a topic from its beginning to where its end is now.
    pub(crate) fn read_all(&self, topic: &str, isolation: &str) -> Result<Vec<Got>, String> {
        let settings = [
            ("isolation.level", isolation),
            ("enable.partition.eof", "true"),
        ];
        let reader = self.reader(&self.name("all"), &settings)?;
        let partitions = self.partitions(topic)?.ok_or("no topic")? as i32;
        assign(&reader, topic, 0..partitions, Offset::Beginning)?;
        let (mut got, mut ended) = (Vec::new(), HashSet::new());
        let start = Instant::now();
        while ended.len() < partitions as usize {
            ensure(start.elapsed() < LONG, || {
                format!("the end of {topic} is not reached, {} read", got.len())
            })?;
            match reader.poll(SHORT) {
                Some(Ok(message)) => got.push(Got::from(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                Some(Err(error)) => return Err(text(error)),
                None => {}
            }
        }
        Ok(got)
    }
}

impl<M: Message> From<&M> for Got {
    fn from(message: &M) -> Self {
        let value = String::from_utf8_lossy(message.payload().unwrap_or(b"<null>")).into_owned();
        Self {
            value,
            partition: message.partition(),
            offset: message.offset(),
        }
    }
}

impl Writer {
    pub(crate) fn send(
        &self,
        topic: &str,
        partition: Option<i32>,
        numbers: std::ops::Range<usize>,
        start: &str,
    ) -> Done {
        for number in numbers {
            let (key, value) = (format!("k{number}"), format!("{start}{number}"));
            let mut record = BaseRecord::to(topic).key(&key).payload(&value);
            record.partition = partition;
            self.record(record)?;
        }
        Ok(())
    }

    pub(crate) fn record<
        K: rdkafka::message::ToBytes + ?Sized,
        V: rdkafka::message::ToBytes + ?Sized,
    >(
        &self,
        mut record: BaseRecord<'_, K, V>,
    ) -> Done {
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), same)) => {
                    std::thread::sleep(Duration::from_millis(1));
                    record = same;
                }
                Err((error, _)) => return Err(text(error)),
            }
        }
        self.sent.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Waits until all that was sent is delivered.
    pub(crate) fn flush(&self) -> Done {
        self.producer.flush(LONG).map_err(text)?;
        let (sent, delivered) = (
            self.sent.load(Ordering::SeqCst),
            self.heard.delivered.load(Ordering::SeqCst),
        );
        ensure(sent == delivered, || {
            format!("{delivered} of {sent} delivered: {:?}", self.heard.errors())
        })
    }
}

pub(crate) fn assign(
    reader: &Reader,
    topic: &str,
    partitions: std::ops::Range<i32>,
    offset: Offset,
) -> Done {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, partition, offset)
            .map_err(text)?;
    }
    reader.assign(&list).map_err(text)
}

/// Reads so many records.
pub(crate) fn read(reader: &Reader, count: usize) -> Result<Vec<Got>, String> {
    let mut got = Vec::with_capacity(count);
    let mut errors = Vec::new();
    let start = Instant::now();
    while got.len() < count {
        ensure(start.elapsed() < LONG, || {
            format!("{} of {count} read: {errors:?}", got.len())
        })?;
        match reader.poll(SHORT) {
            Some(Ok(message)) => got.push(Got::from(&message)),
            Some(Err(error)) => errors.push(text(error)),
            None => {}
        }
    }
    Ok(got)
}

pub(crate) fn distinct(got: &[Got]) -> usize {
    got.iter()
        .map(|one| &one.value)
        .collect::<HashSet<_>>()
        .len()
}

/// Where a group stands in a partition.
pub(crate) fn committed(reader: &Reader, topic: &str, partition: i32) -> Result<Offset, String> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let found = reader.committed_offsets(list, LONG).map_err(text)?;
    Ok(found.elements()[0].offset())
}

/// Polls until so many partitions are assigned.
pub(crate) fn joined(reader: &Reader, partitions: usize) -> Done {
    until("partitions are assigned", || {
        reader.poll(Duration::from_millis(20));
        Ok(reader.assignment().map_err(text)?.count() == partitions)
    })
}
