//! Against the embedded broker.
#![allow(clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use seldon_broker::{Broker, Config, Running};
use seldon_kafka::{Admin, Consumer, Position, Producer, SendError, Settings, Transactions};
use seldon_records::{Headers, Outgoing, Record};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

struct Scene {
    settings: Settings,
    admin: Admin,
    broker: Running,
}

impl Scene {
    async fn new() -> Self {
        let broker = Broker::start(Config::default()).await.unwrap();
        let settings = Settings::local(&broker.bootstrap());
        let admin = Admin::new(&settings).unwrap();
        Self {
            settings,
            admin,
            broker,
        }
    }

    async fn topic(&self, name: &str) -> Arc<str> {
        self.admin.create(&[name.to_owned()], false).await.unwrap();
        name.into()
    }

    fn reader(&self, topic: &Arc<str>, position: Position, committed_only: bool) -> Consumer {
        let consumer = Consumer::new(&self.settings, "g", committed_only).unwrap();
        consumer
            .assign(&[(Arc::clone(topic), 0, position)])
            .unwrap();
        consumer
    }
}

fn outgoing(topic: &Arc<str>, value: &str) -> Outgoing {
    Outgoing {
        topic: Arc::clone(topic),
        partition: Some(0),
        key: Some("k".into()),
        value: Some(value.to_owned().into()),
        headers: Headers::new(),
    }
}

/// The next record; errors that pass are waited out.
async fn next(consumer: &Consumer) -> Record {
    let read = async {
        loop {
            match consumer.recv().await {
                Ok(record) => return record,
                Err(error) => eprintln!("{error}"),
            }
        }
    };
    timeout(LIMIT, read).await.unwrap()
}

fn value(record: &Record) -> &str {
    std::str::from_utf8(record.value.as_deref().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_go_round_with_all_they_have_and_positions_hold() {
    let scene = Scene::new().await;
    let topic = scene.topic("t").await;
    let producer = Producer::new(&scene.settings).unwrap();
    let headers: Headers = [("a", "1"), ("a", "2"), ("b", "")].into_iter().collect();
    let full = Outgoing {
        headers: headers.clone(),
        ..outgoing(&topic, "v0")
    };
    assert_eq!(producer.send(full).await.unwrap(), (0, 0));
    let bare = Outgoing {
        key: None,
        value: None,
        ..outgoing(&topic, "")
    };
    producer.send(bare).await.unwrap();
    let deliveries: Vec<_> = (2..100)
        .map(|n| {
            producer
                .enqueue(outgoing(&topic, &format!("v{n}")))
                .unwrap()
        })
        .collect();
    for (delivery, offset) in deliveries.into_iter().zip(2..) {
        assert_eq!(delivery.await.unwrap(), (0, offset));
    }

    let reader = scene.reader(&topic, Position::Beginning, false);
    let first = next(&reader).await;
    assert_eq!((first.offset, value(&first)), (0, "v0"));
    assert_eq!(first.headers, headers);
    assert_eq!(first.key.as_deref(), Some(&b"k"[..]));
    let second = next(&reader).await;
    assert_eq!((second.key, second.value), (None, None));
    for offset in 2..50 {
        assert_eq!(next(&reader).await.offset, offset);
    }
    reader.seek(&topic, 0, 10).unwrap();
    assert_eq!(next(&reader).await.offset, 10);
    let partition = [(Arc::clone(&topic), 0)];
    reader.pause(&partition);
    reader.resume(&partition);
    assert_eq!(next(&reader).await.offset, 11);
    reader.unassign(&partition).unwrap();
    assert!(
        timeout(Duration::from_millis(300), reader.recv())
            .await
            .is_err()
    );

    assert_eq!(reader.watermarks(&topic, 0).await.unwrap(), (0, 100));
    assert_eq!(reader.ends(&partition).await.unwrap(), [100]);
    assert_eq!(reader.beginnings(&partition).await.unwrap(), [0]);
    assert_eq!(reader.committed(&partition).await.unwrap(), [None]);
    assert_eq!(reader.positions(&partition).await.unwrap(), [100]);
    reader.commit(&[(Arc::clone(&topic), 0, 42)]).await.unwrap();
    assert_eq!(reader.committed(&partition).await.unwrap(), [Some(42)]);
    let other = scene.reader(&topic, Position::Committed, false);
    assert_eq!(next(&other).await.offset, 42);
    let partition = (Arc::clone(&topic), 0, 43);
    reader.commit_by(&[partition], "me").await.unwrap();
    let found = reader.committed_by(&[(topic, 0)]).await.unwrap();
    assert_eq!(found, [Some((43, "me".to_owned()))]);
    drop((reader, other, producer));
    scene.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_seen_whole_or_not_and_a_successor_fences() {
    let scene = Scene::new().await;
    let (topic, inputs) = (scene.topic("t").await, scene.topic("inputs").await);
    let reader = scene.reader(&topic, Position::Beginning, true);
    let transactions = Transactions::new(&scene.settings, "x").await.unwrap();

    transactions.begin().unwrap();
    let delivery = transactions.enqueue(outgoing(&topic, "aborted")).unwrap();
    delivery.await.unwrap();
    transactions.abort().await.unwrap();

    transactions.begin().unwrap();
    let delivery = transactions.enqueue(outgoing(&topic, "committed")).unwrap();
    delivery.await.unwrap();
    let position = [(Arc::clone(&inputs), 0, 7)];
    transactions
        .offsets_of(&reader, &position, "x")
        .await
        .unwrap();
    let start = Instant::now();
    transactions.commit().await.unwrap();
    eprintln!("commit took {:?}", start.elapsed());
    assert_eq!(value(&next(&reader).await), "committed");
    let committed = reader.committed_by(&[(inputs, 0)]).await.unwrap();
    assert_eq!(committed, [Some((7, "x".to_owned()))]);

    transactions.begin().unwrap();
    let delivery = transactions
        .enqueue(outgoing(&topic, "of the former"))
        .unwrap();
    delivery.await.unwrap();
    let successor = Transactions::new(&scene.settings, "x").await.unwrap();
    assert_eq!(transactions.commit().await, Err(SendError::Fenced));
    successor.begin().unwrap();
    let delivery = successor
        .enqueue(outgoing(&topic, "of the successor"))
        .unwrap();
    delivery.await.unwrap();
    successor.commit().await.unwrap();
    assert_eq!(value(&next(&reader).await), "of the successor");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_topics_are_made_at_once_and_can_be_used() {
    let scene = Scene::new().await;
    let topics: Vec<String> = (0..500)
        .map(|n| format!("seldon.default.model.m{n}.inputs"))
        .collect();
    let start = Instant::now();
    scene.admin.create(&topics, false).await.unwrap();
    scene.admin.create(&topics, false).await.unwrap();
    eprintln!("500 topics took {:?}", start.elapsed());
    assert_eq!(scene.admin.topics().await.unwrap().len(), 500);
    assert_eq!(
        scene
            .admin
            .partitions("seldon.default.model.m499.inputs")
            .await
            .unwrap(),
        Some(1)
    );
    assert_eq!(scene.admin.partitions("none").await.unwrap(), None);

    let consumer = Consumer::new(&scene.settings, "g", false).unwrap();
    let all: Vec<(Arc<str>, i32)> = topics.iter().map(|t| (t.as_str().into(), 0)).collect();
    assert_eq!(consumer.ends(&all).await.unwrap(), vec![0; 500]);
    let assigned: Vec<_> = all
        .iter()
        .map(|(topic, partition)| (Arc::clone(topic), *partition, Position::Offset(0)))
        .collect();
    consumer.assign(&assigned).unwrap();
    let producer = Producer::new(&scene.settings).unwrap();
    for (topic, _) in &all {
        drop(producer.enqueue(outgoing(topic, "v")).unwrap());
    }
    let mut seen = std::collections::HashSet::new();
    while seen.len() < topics.len() {
        seen.insert(next(&consumer).await.topic);
    }
    scene.admin.delete(&topics).await.unwrap();
    scene.admin.delete(&topics).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    while !scene.admin.topics().await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "topics are still there");
    }
    let gone = producer.send(outgoing(&all[0].0, "v")).await;
    assert!(matches!(gone, Err(SendError::UnknownTopic(_))), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_cannot_be_made_does_not_keep_others_from_it() {
    let scene = Scene::new().await;
    let names = ["a", "no topic", "b"].map(str::to_owned);
    let start = Instant::now();
    // Others ask at the same time, of whom each has its own answer.
    let (made, one, other) = tokio::join!(
        scene.admin.make(&names),
        scene.admin.create(&names[2..], false),
        scene.admin.create(&names[1..], false),
    );
    let unusable = made.unwrap();
    let reason = "topic no topic cannot be made: ";
    assert_eq!(unusable.len(), 1, "{unusable:?}");
    assert!(unusable["no topic"].starts_with(reason), "{unusable:?}");
    one.unwrap();
    let error = other.unwrap_err().to_string();
    assert!(error.starts_with(reason), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
    let found = scene.admin.all_partitions(&names).await.unwrap();
    assert_eq!(found, [("a".to_owned(), 1), ("b".to_owned(), 1)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_while_the_broker_is_away() {
    let settings = Settings::local("127.0.0.1:1");
    let producer = Producer::new(&settings).unwrap();
    let topic: Arc<str> = "t".into();
    let value = "x".repeat(1 << 20);
    let mut taken = 0;
    let refused = loop {
        match producer.enqueue(outgoing(&topic, &value)) {
            Ok(delivery) => drop(delivery),
            Err(error) => break error,
        }
        taken += 1;
    };
    assert_eq!(refused, SendError::Full);
    assert!((100..=128).contains(&taken), "{taken} MB");
}
