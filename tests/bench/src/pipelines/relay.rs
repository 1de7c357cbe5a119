//! The floor: records of a pipeline's size handed from topic to topic by bare clients, as often as the pipeline's own are,
//! by as many clients as its processes have, and with nothing done to them.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use prost::Message as _;
use seldon_kafka::{Admin, Consumer, Position, Producer, Settings};
use seldon_records::{Headers, Outgoing, Record};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::scene::message;

/// Where a record is, in turns: the pipeline gateway writes, the engine and a model gateway pass it to and fro.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Gateway,
    Engine,
    Models,
}

/// Hops in a row: topic `i` is written by one place and read by another.
pub(super) struct Relay {
    hops: Hops,
    gateway: Producer,
    waiting: Arc<Mutex<HashMap<Bytes, oneshot::Sender<()>>>>,
    _readers: JoinSet<()>,
}

#[derive(Clone)]
struct Hops(Arc<[Arc<str>]>);

impl Hops {
    fn reader(&self, hop: usize) -> Place {
        match hop {
            hop if hop + 1 == self.0.len() => Place::Gateway,
            hop if hop % 2 == 0 => Place::Engine,
            _ => Place::Models,
        }
    }
}

impl Relay {
    /// For a pipeline of so many steps.
    pub(super) async fn new(settings: &Settings, steps: usize) -> Result<Self> {
        let name = |hop| Arc::from(format!("bench.relay.{steps}.{hop}"));
        let hops = Hops((0..2 + 2 * steps).map(name).collect());
        let topics: Vec<String> = hops.0.iter().map(ToString::to_string).collect();
        Admin::new(settings)?.create(&topics, false).await?;
        let waiting = Arc::default();
        let mut readers = JoinSet::new();
        let gateway = Producer::new(settings)?;
        for place in [Place::Gateway, Place::Engine, Place::Models] {
            let producer = match place {
                Place::Gateway => gateway.clone(),
                _ => Producer::new(settings)?,
            };
            let consumer = Consumer::new(settings, "bench-relay", false)?;
            let read: Vec<(Arc<str>, i32)> = (0..hops.0.len())
                .filter(|hop| hops.reader(*hop) == place)
                .map(|hop| (hops.0[hop].clone(), 0))
                .collect();
            let ends = consumer.ends(&read).await?;
            let read: Vec<_> = read
                .into_iter()
                .zip(ends)
                .map(|((topic, partition), end)| (topic, partition, Position::Offset(end)))
                .collect();
            consumer.assign(&read)?;
            readers.spawn(pass_on(
                consumer,
                producer,
                hops.clone(),
                Arc::clone(&waiting),
            ));
        }
        let relay = Self {
            hops,
            gateway,
            waiting,
            _readers: readers,
        };
        // Connections are made and topics are known after a first one.
        relay.once(0).await?;
        Ok(relay)
    }

    /// Sends one record through all hops.
    async fn once(&self, number: u64) -> Result<()> {
        let key = Bytes::from(format!("{number:020}"));
        let (sender, done) = oneshot::channel();
        self.waiting().insert(key.clone(), sender);
        let headers: Headers = [
            ("x-request-id", "dc2vun25otfg4lqvlvu0"),
            ("x-forwarded-proto", "http"),
            ("pipeline", "chain-1"),
            ("x-pipeline-version", "1"),
            ("seldon-id", "643a0d743a71bb25c02f8091867b12af"),
            ("seldon-deadline", "1795555284062"),
        ]
        .into_iter()
        .map(|(name, value)| (name, Bytes::from_static(value.as_bytes())))
        .collect();
        drop(self.gateway.enqueue(Outgoing {
            topic: self.hops.0[0].clone(),
            partition: Some(0),
            key: Some(key),
            value: Some(message("chain-1").encode_to_vec().into()),
            headers,
        })?);
        let done = tokio::time::timeout(Duration::from_secs(20), done).await;
        done.context("a bare record does not come through")??;
        Ok(())
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<Bytes, oneshot::Sender<()>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At a fixed rate for so long: how long each took, µs.
    pub(super) async fn at_rate(self: &Arc<Self>, rate: f64, lasts: Duration) -> Result<Vec<f64>> {
        let start = Instant::now();
        let count = (rate * lasts.as_secs_f64()).max(1.0) as u64;
        let mut all = JoinSet::new();
        for number in 0..count {
            tokio::time::sleep_until(start + Duration::from_secs_f64(number as f64 / rate)).await;
            let relay = Arc::clone(self);
            all.spawn(async move {
                let sent = Instant::now();
                relay.once(number).await?;
                anyhow::Ok(sent.elapsed().as_secs_f64() * 1e6)
            });
        }
        all.join_all().await.into_iter().collect()
    }

    /// So many at a time for so long: how many came through, and in what time.
    pub(super) async fn saturated(
        self: &Arc<Self>,
        lanes: u64,
        lasts: Duration,
    ) -> Result<(u64, Duration)> {
        let start = Instant::now();
        let mut all = JoinSet::new();
        for lane in 0..lanes {
            let relay = Arc::clone(self);
            all.spawn(async move {
                let mut done = 0;
                while start.elapsed() < lasts {
                    relay.once(lane << 32 | done).await?;
                    done += 1;
                }
                anyhow::Ok(done)
            });
        }
        let done: Result<Vec<u64>> = all.join_all().await.into_iter().collect();
        Ok((done?.into_iter().sum(), start.elapsed()))
    }
}

async fn pass_on(
    consumer: Consumer,
    producer: Producer,
    hops: Hops,
    waiting: Arc<Mutex<HashMap<Bytes, oneshot::Sender<()>>>>,
) {
    let next: HashMap<Arc<str>, Arc<str>> = hops
        .0
        .windows(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect();
    loop {
        let Ok(record) = consumer.recv().await else {
            continue;
        };
        match next.get(&record.topic) {
            Some(topic) => {
                // A record that is lost here is missed where it is waited for.
                drop(producer.enqueue(onward(record, topic)));
            }
            None => {
                let key = record.key.unwrap_or_default();
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(done) = waiting.remove(&key) {
                    let _ = done.send(());
                }
            }
        }
    }
}

fn onward(record: Record, topic: &Arc<str>) -> Outgoing {
    Outgoing {
        topic: topic.clone(),
        partition: Some(record.partition),
        key: record.key,
        value: record.value,
        headers: record.headers,
    }
}
