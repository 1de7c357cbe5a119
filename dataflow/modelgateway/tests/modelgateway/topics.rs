//! Topics that change while they are read.
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    config::ClientConfig,
};
use seldon_kafka::{Consumer, Producer};
use seldon_proto::scheduler::model_status_response::ModelOperation;
use seldon_records::{Headers, Outgoing, header};

use tokio::time::timeout;

use crate::{LIMIT, Scene, next, number, request};

const MODES: [&str; 2] = ["at-least-once", "exactly-once"];

async fn scene(mode: &str) -> Scene {
    let mut scene = Scene::new().await;
    let flags = [
        "--processing-guarantee",
        mode,
        "--partition-refresh-seconds=1",
    ];
    scene.flags.extend(flags.map(str::to_owned));
    scene
}

impl Scene {
    async fn write_to(&self, producer: &Producer, partition: i32, value: i32) {
        let record = Outgoing {
            topic: self.names.model_inputs("double").into(),
            partition: Some(partition),
            key: Some(format!("{partition} {value}").into()),
            value: Some(request(value).into()),
            headers: Headers::new(),
        };
        producer.send(record).await.unwrap();
    }

    async fn grow(&self, topic: &str, partitions: usize) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.bootstrap());
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let more = NewPartitions::new(topic, partitions);
        let done = admin.create_partitions(&[more], &AdminOptions::new()).await;
        done.unwrap().remove(0).unwrap();
    }
}

/// Results as they come, sorted.
async fn results(consumer: &Consumer, count: usize) -> Vec<i32> {
    let mut found = Vec::new();
    while found.len() < count {
        let result = next(consumer).await;
        assert!(!result.headers.has(header::REPEAT), "{result:?}");
        found.push(number(&result));
    }
    found.sort_unstable();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_are_read_from_their_beginning() {
    for mode in MODES {
        let mut scene = scene(mode).await;
        let gateway = scene.gateway();
        scene.order("double", ModelOperation::ModelCreate).await;
        let outputs = scene.reader(&scene.names.model_outputs("double"));
        scene.write_to(&scene.producer, 0, 1).await;
        assert_eq!(results(&outputs, 1).await, [2], "{mode}");

        scene.grow(&scene.names.model_inputs("double"), 3).await;
        // Written before the gateway can have looked, by one who knows the partitions from the start.
        let producer = Producer::new(&scene.settings).unwrap();
        for (partition, value) in [(2, 10), (1, 20), (2, 30), (0, 40)] {
            scene.write_to(&producer, partition, value).await;
        }
        assert_eq!(results(&outputs, 4).await, [20, 40, 60, 80], "{mode}");

        // Each goes on where it was.
        gateway.stop().await;
        scene.write_to(&producer, 1, 5).await;
        let successor = scene.gateway();
        scene.order("double", ModelOperation::ModelCreate).await;
        assert_eq!(number(&next(&outputs).await), 10, "{mode}");
        successor.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_deleted_and_made_again_is_read_from_its_beginning() {
    for mode in MODES {
        let mut scene = scene(mode).await;
        let gateway = scene.gateway();
        scene.order("double", ModelOperation::ModelCreate).await;
        let outputs = scene.reader(&scene.names.model_outputs("double"));
        let inputs = [scene.names.model_inputs("double")];
        for value in 0..5 {
            scene.write_to(&scene.producer, 0, value).await;
        }
        assert_eq!(results(&outputs, 5).await, [0, 2, 4, 6, 8], "{mode}");

        for round in 0..2 {
            scene.admin.delete(&inputs).await.unwrap();
            scene.admin.create(&inputs, false).await.unwrap();
            let producer = Producer::new(&scene.settings).unwrap();
            let mut found = Vec::new();
            for value in [100, 200] {
                scene.write_to(&producer, 0, value).await;
            }
            // Whether it was seen to be gone or only to be shorter: in the second case its results are marked.
            for _ in 0..2 {
                found.push(number(&next(&outputs).await));
            }
            // Records without a key have no order among them.
            found.sort_unstable();
            assert_eq!(found, [200, 400], "{mode}, round {round}");
            // It goes on as any other.
            scene.write_to(&producer, 0, 300).await;
            assert_eq!(number(&next(&outputs).await), 600, "{mode}, round {round}");
        }
        gateway.stop().await;

        // The former position means nothing for a topic that was made again while nobody looked.
        scene.admin.delete(&inputs).await.unwrap();
        scene.admin.create(&inputs, false).await.unwrap();
        let successor = scene.gateway();
        scene.order("double", ModelOperation::ModelCreate).await;
        let producer = Producer::new(&scene.settings).unwrap();
        scene.write_to(&producer, 0, 7).await;
        assert_eq!(number(&next(&outputs).await), 14, "{mode}");
        successor.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_models_at_once_one_without_topics_fails_alone() {
    let mut scene = Scene::new().await;
    let gateway = scene.gateway();
    // While this is carried out the others come, so that they are carried out together.
    scene.send("first", ModelOperation::ModelCreate).await;
    let mut wanted: Vec<String> = (0..100).map(|number| format!("m{number}")).collect();
    wanted.insert(50, "no topic".to_owned());
    for model in &wanted {
        scene.send(model, ModelOperation::ModelCreate).await;
    }
    wanted.push("first".to_owned());
    while !wanted.is_empty() {
        let ack = timeout(LIMIT, scene.acks.recv()).await.unwrap().unwrap();
        let model = ack.update.unwrap().model;
        wanted.retain(|one| *one != model);
        if model == "no topic" {
            let reason = ack.reason;
            assert!(
                !ack.success && reason.contains("no topic.inputs cannot be made"),
                "{reason}"
            );
        } else {
            assert!(ack.success, "{model}: {}", ack.reason);
        }
    }
    gateway.stop().await;
}
