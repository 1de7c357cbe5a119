//! What a round trip costs the broker: `cargo test --release --test speed -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// The time that its process has had on processors.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse().unwrap())
            .collect();
        Duration::from_millis(fields.iter().sum::<u64>() * 10)
    }
}

struct Client(TcpStream);

impl Client {
    fn ask<T: Decodable>(&mut self, key: ApiKey, version: i16, body: &impl Encodable) -> T {
        let mut bytes = BytesMut::new();
        bytes.put_i32(0);
        let header = RequestHeader::default()
            .with_request_api_key(key as i16)
            .with_request_api_version(version);
        header
            .encode(&mut bytes, key.request_header_version(version))
            .unwrap();
        body.encode(&mut bytes, version).unwrap();
        let size = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&size.to_be_bytes());
        self.0.write_all(&bytes).unwrap();
        let mut size = [0; 4];
        self.0.read_exact(&mut size).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(size) as usize];
        self.0.read_exact(&mut answer).unwrap();
        let mut answer =
            Bytes::from(answer).split_off(if key.response_header_version(version) > 0 {
                5
            } else {
                4
            });
        T::decode(&mut answer, version).unwrap()
    }
}

fn batch() -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let record = Record {
        transactional: false,
        control: false,
        partition_leader_epoch: 0,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: 0,
        sequence: -1,
        // Now: what is old goes by retention, under the reader's hands.
        timestamp: now.as_millis() as i64,
        delete_horizon: false,
        key: Some(Bytes::from_static(b"request")),
        value: Some(Bytes::from_static(&[7; 200])),
        headers: Default::default(),
    };
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    RecordBatchEncoder::encode(&mut bytes, [&record], &options).unwrap();
    bytes.freeze()
}

/// One writer and one reader that waits for each record, on a partition of their own.
fn round_trips(port: u16, topic: &TopicName, partition: i32, until: Instant) -> Vec<Duration> {
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(stream)
    };
    let (mut writer, mut reader) = (connect(), connect());
    let data = produce_request::PartitionProduceData::default()
        .with_index(partition)
        .with_records(Some(batch()));
    let data = produce_request::TopicProduceData::default()
        .with_name(topic.clone())
        .with_partition_data(vec![data]);
    let produce = ProduceRequest::default()
        .with_acks(-1)
        .with_topic_data(vec![data]);
    let mut times = Vec::new();
    for offset in 0.. {
        let start = Instant::now();
        if start > until {
            break;
        }
        let written: ProduceResponse = writer.ask(ApiKey::Produce, 9, &produce);
        assert_eq!(
            written.responses[0].partition_responses[0].base_offset,
            offset
        );
        let wanted = fetch_request::FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(1 << 20);
        let wanted = fetch_request::FetchTopic::default()
            .with_topic(topic.clone())
            .with_partitions(vec![wanted]);
        let fetch = FetchRequest::default()
            .with_max_wait_ms(500)
            .with_min_bytes(1)
            .with_max_bytes(1 << 20)
            .with_topics(vec![wanted]);
        let read: FetchResponse = reader.ask(ApiKey::Fetch, 11, &fetch);
        assert!(
            read.responses[0].partitions[0]
                .records
                .as_ref()
                .unwrap()
                .len()
                > 200
        );
        times.push(start.elapsed());
    }
    times
}

#[test]
#[ignore = "a measurement"]
fn round_trips_a_second() {
    for on_disk in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let port = (20_000..32_000)
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_seldon-broker"));
        command.args(["--port", &port.to_string()]);
        if on_disk {
            command.arg("--data-dir").arg(folder.path());
        }
        let server = Server(command.spawn().unwrap());
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let topic = TopicName(StrBytes::from_static_str("speed"));
        let wanted = create_topics_request::CreatableTopic::default()
            .with_name(topic.clone())
            .with_num_partitions(8)
            .with_replication_factor(1);
        let create = CreateTopicsRequest::default().with_topics(vec![wanted]);
        let _: CreateTopicsResponse = Client(TcpStream::connect(("127.0.0.1", port)).unwrap()).ask(
            ApiKey::CreateTopics,
            5,
            &create,
        );
        let (start, before) = (Instant::now(), server.cpu());
        let until = start + Duration::from_secs(5);
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|partition| {
                    scope.spawn({
                        let topic = &topic;
                        move || round_trips(port, topic, partition, until)
                    })
                })
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap())
                .collect()
        });
        let (took, cpu) = (start.elapsed(), server.cpu() - before);
        times.sort();
        let each = cpu.as_secs_f64() / times.len() as f64;
        println!(
            "on disk {on_disk}: {:.0} round trips a second, median {:?}; the broker {:.1} µs each, so {:.0} a second on one core",
            times.len() as f64 / took.as_secs_f64(),
            times[times.len() / 2],
            each * 1e6,
            1.0 / each
        );
    }
}
