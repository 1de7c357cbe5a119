//! The broker as a process: killed under load it loses nothing it has acknowledged; flooded it stays small.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, FromClientConfig as _, FromClientConfigAndContext as _};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const LONG: Duration = Duration::from_secs(60);

/// The broker's process; killed when dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(port: u16, folder: Option<&Path>, memory: usize) -> Self {
        Self::with(port, folder, memory, &[])
    }

    fn with(port: u16, folder: Option<&Path>, memory: usize, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seldon-broker"));
        command.args([
            "--port",
            &port.to_string(),
            "--memory-bytes",
            &memory.to_string(),
            "--log-level",
            "warn",
        ]);
        if let Some(folder) = folder {
            command.arg("--data-dir").arg(folder);
        }
        command.args(more);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < LONG, "the broker does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, port }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", format!("127.0.0.1:{}", self.port))
            .set("reconnect.backoff.max.ms", "200");
        config
    }

    fn create(&self, topic: &str) {
        let wanted = NewTopic::new(topic, 2, TopicReplication::Fixed(1));
        let created = wait(self.admin().create_topics([&wanted], &AdminOptions::new())).unwrap();
        created.into_iter().for_each(|one| drop(one.unwrap()));
    }

    fn set(&self, topic: &str, name: &str, value: &str) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        let changed = wait(self.admin().alter_configs([&change], &AdminOptions::new())).unwrap();
        changed.into_iter().for_each(|one| drop(one.unwrap()));
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        AdminClient::from_config(&self.config()).unwrap()
    }

    /// The first offset that is left, and the next one.
    fn ends(&self, topic: &str) -> (i64, i64) {
        let reader: BaseConsumer = self.config().create().unwrap();
        reader.fetch_watermarks(topic, 0, LONG).unwrap()
    }

    /// Waits until that holds of a partition's ends.
    fn until(&self, topic: &str, holds: impl Fn((i64, i64)) -> bool) -> (i64, i64) {
        let start = Instant::now();
        loop {
            let ends = self.ends(topic);
            if holds(ends) {
                return ends;
            }
            assert!(start.elapsed() < LONG, "{ends:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its resident memory now, in bytes.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            << 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(work)
}

/// Below the range that the kernel hands to connections; each call gives another, since tests run side by side.
fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 1000 * 12) as u16;
    loop {
        let port = first + TAKEN.fetch_add(1, Ordering::SeqCst);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Collects what is acknowledged.
#[derive(Default)]
struct Acknowledged(Mutex<HashSet<String>>);

impl rdkafka::ClientContext for Acknowledged {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Ok(message) = result {
            let value = String::from_utf8_lossy(message.payload().unwrap()).into_owned();
            self.0.lock().unwrap().insert(value);
        }
    }
}

fn send(producer: &ThreadedProducer<Acknowledged>, topic: &str, value: &[u8]) {
    let mut record = BaseRecord::<str, [u8]>::to(topic).payload(value);
    while let Err((error, same)) = producer.send(record) {
        assert_eq!(
            error,
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)
        );
        std::thread::sleep(Duration::from_millis(1));
        record = same;
    }
}

fn read_all(server: &Server, topic: &str) -> Vec<String> {
    let mut config = server.config();
    config
        .set("group.id", "all")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false");
    let reader: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    (0..2).for_each(|index| {
        list.add_partition_offset(topic, index, Offset::Beginning)
            .unwrap()
    });
    reader.assign(&list).unwrap();
    let (mut got, mut ends) = (Vec::new(), HashSet::new());
    let start = Instant::now();
    while ends.len() < 2 {
        assert!(start.elapsed() < LONG, "the end is not reached");
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                got.push(String::from_utf8_lossy(message.payload().unwrap()).into_owned())
            }
            Some(Err(KafkaError::PartitionEOF(index))) => drop(ends.insert(index)),
            // It connects again by itself.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            )))
            | None => {}
            Some(Err(error)) => panic!("{error}"),
        }
    }
    got
}

#[test]
fn killed_five_times_under_load_it_loses_nothing_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut server = Server::start(port, Some(folder.path()), 16 << 20);
    server.create("load");
    let mut config = server.config();
    config
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("message.timeout.ms", "60000");
    let producer =
        ThreadedProducer::from_config_and_context(&config, Acknowledged::default()).unwrap();
    let stop = AtomicBool::new(false);
    let acknowledged = || producer.context().0.lock().unwrap().len();
    let server = &mut server;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                send(&producer, "load", format!("{number}").as_bytes());
                if number % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for round in 1..=5 {
            let (before, start) = (acknowledged(), Instant::now());
            while acknowledged() < before + 2000 {
                assert!(start.elapsed() < LONG, "no progress in round {round}");
                std::thread::sleep(Duration::from_millis(1));
            }
            let reader: BaseConsumer = server.config().set("group.id", "kept").create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_offset("load", 0, Offset::Offset(round))
                .unwrap();
            reader.commit(&list, CommitMode::Sync).unwrap();
            server.kill();
            // What is on the disk and what is with the system is the same to who comes after a kill.
            let more: &[&str] = if round % 2 == 1 { &["--fsync"] } else { &[] };
            let mut next = Server::with(port, Some(folder.path()), 16 << 20, more);
            std::mem::swap(server, &mut next);
            let found = reader.committed_offsets(list, LONG).unwrap().elements()[0].offset();
            assert_eq!(found, Offset::Offset(round), "the committed offset");
        }
        stop.store(true, Ordering::SeqCst);
    });
    producer.flush(LONG).unwrap();
    let got = read_all(server, "load");
    let distinct: HashSet<&String> = got.iter().collect();
    let known = producer.context().0.lock().unwrap();
    let lost = known
        .iter()
        .filter(|value| !distinct.contains(value))
        .count();
    assert_eq!(
        (lost, got.len() - distinct.len()),
        (0, 0),
        "lost and doubled of {}",
        known.len()
    );
    println!("{} records, none lost or doubled by 5 kills", known.len());
}

#[test]
fn a_flood_does_not_outgrow_the_limit() {
    const LIMIT: usize = 32 << 20;
    const RECORDS: usize = 3000;
    for on_disk in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(free_port(), on_disk.then_some(folder.path()), LIMIT);
        server.create("flood");
        let mut config = server.config();
        config
            .set("message.timeout.ms", "60000")
            .set("queue.buffering.max.kbytes", "32768");
        let producer =
            ThreadedProducer::from_config_and_context(&config, Acknowledged::default()).unwrap();
        for number in 0..RECORDS {
            let mut value = format!("{number}:").into_bytes();
            value.resize(100_000, b'x');
            send(&producer, "flood", &value);
        }
        producer.flush(LONG).unwrap();
        assert_eq!(producer.context().0.lock().unwrap().len(), RECORDS);
        let got = read_all(&server, "flood");
        if on_disk {
            assert_eq!(got.len(), RECORDS, "what left memory is read from files");
        } else {
            assert!(
                got.len() < RECORDS && !got.is_empty(),
                "the oldest are gone, {} left",
                got.len()
            );
        }
        let memory = server.memory();
        println!(
            "on disk {on_disk}: {} records of 100 kB through, {} MiB at most",
            RECORDS,
            memory >> 20
        );
        assert!(
            memory < LIMIT * 2 + (32 << 20),
            "it took {} MiB",
            memory >> 20
        );
    }
}

#[test]
fn size_and_age_take_the_oldest_and_a_restart_brings_nothing_back() {
    const RECORDS: i64 = 80;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut server = Server::start(port, Some(folder.path()), 16 << 20);
    server.create("bounded");
    server.set("bounded", "retention.bytes", &(32 << 20).to_string());
    let config = server.config();
    let producer =
        ThreadedProducer::from_config_and_context(&config, Acknowledged::default()).unwrap();
    let write = |count: i64| {
        for _ in 0..count {
            let value = vec![b'x'; 900_000];
            let record = BaseRecord::<str, [u8]>::to("bounded")
                .partition(0)
                .payload(&value[..]);
            producer.send(record).map_err(|(error, _)| error).unwrap();
            producer.flush(LONG).unwrap();
        }
    };
    write(RECORDS);
    // By whole files of 16 MiB: no less than the limit stays, and no more than a file beyond it.
    let kept = |(first, next): (i64, i64)| (next - first) * 900_000;
    let ends = server.until("bounded", |ends| kept(ends) < 50 << 20);
    assert!(kept(ends) > 31 << 20 && ends.1 == RECORDS, "{ends:?}");
    server.kill();
    server = Server::start(port, Some(folder.path()), 16 << 20);
    assert_eq!(server.ends("bounded"), ends);

    server.set("bounded", "retention.ms", "1");
    let gone = server.until("bounded", |(first, next)| first == next);
    assert_eq!(gone, (RECORDS, RECORDS));
    server.kill();
    server = Server::start(port, Some(folder.path()), 16 << 20);
    assert_eq!(
        server.ends("bounded"),
        gone,
        "offsets go on where they were"
    );
}
