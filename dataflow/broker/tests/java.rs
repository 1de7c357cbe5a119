//! Java's clients, by the tools of Kafka's own distribution, on the embedded broker.
#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use seldon_broker::{Broker, Config, Running};
use seldon_components::{Cache, Kafka};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(90);

struct Scene {
    kafka: Kafka,
    broker: Running,
}

impl Scene {
    async fn start() -> Self {
        let kafka = tokio::task::spawn_blocking(|| Cache::open().unwrap().kafka_tools().unwrap());
        Self {
            kafka: kafka.await.unwrap(),
            broker: Broker::start(Config::default()).await.unwrap(),
        }
    }

    /// Runs a tool; returns whether it succeeded, and all that it said.
    async fn run(&self, class: &str, arguments: &[&str], input: &str) -> (bool, String) {
        let (program, before) = self.kafka.program();
        let mut child = Command::new(program)
            .args(before)
            .arg("-Xmx128m")
            .arg(format!("org.apache.kafka.tools.{class}"))
            .args(arguments)
            .args(["--bootstrap-server", &self.broker.bootstrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let ended = timeout(LONG, child.wait_with_output()).await;
        let output = ended
            .unwrap_or_else(|_| panic!("{class} {arguments:?} does not end"))
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        println!("{class} {arguments:?}\n{said}");
        (output.status.success(), said.into_owned())
    }

    async fn tool(&self, class: &str, arguments: &[&str]) -> String {
        self.with_input(class, arguments, "").await
    }

    async fn with_input(&self, class: &str, arguments: &[&str], input: &str) -> String {
        let (success, said) = self.run(class, arguments, input).await;
        assert!(success, "{class} {arguments:?}: {said}");
        said
    }
}

const TOPICS: &str = "TopicCommand";
const GROUPS: &str = "consumer.group.ConsumerGroupCommand";
const CONSUMER: &str = "consumer.ConsoleConsumer";

fn has(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_records_and_groups() {
    let scene = Scene::start().await;
    let create =
        "--create --topic java --partitions 2 --replication-factor 1 --config retention.ms=3600000";
    scene.tool(TOPICS, &words(create)).await;
    scene
        .tool(TOPICS, &words("--alter --topic java --partitions 3"))
        .await;
    let described = scene.tool(TOPICS, &words("--describe --topic java")).await;
    has(
        &described,
        &[
            "PartitionCount: 3",
            "retention.ms=3600000",
            "Partition: 2",
            "Leader: ",
        ],
    );
    has(&scene.tool(TOPICS, &words("--list")).await, &["java"]);

    let produce =
        "--topic java --reader-property parse.key=true --reader-property parse.headers=true";
    let input: String = (0..20).map(|n| format!("h:{n}\tk{n}\tv{n}\n")).collect();
    scene
        .with_input("ConsoleProducer", &words(produce), &input)
        .await;
    let consume = "--topic java --group g --from-beginning --max-messages 20 --timeout-ms 60000 \
                   --formatter-property print.key=true --formatter-property print.headers=true";
    let read = scene.tool(CONSUMER, &words(consume)).await;
    for n in 0..20 {
        has(&read, &[&format!("h:{n}\tk{n}\tv{n}\n")]);
    }

    has(&scene.tool(GROUPS, &words("--list")).await, &["g"]);
    let described = scene.tool(GROUPS, &words("--describe --group g")).await;
    let lags: Vec<(i64, i64)> = offsets(&described);
    assert_eq!(
        lags.iter().map(|(offset, _)| offset).sum::<i64>(),
        20,
        "{described}"
    );
    assert_eq!(
        lags.iter().map(|(_, lag)| lag).sum::<i64>(),
        0,
        "{described}"
    );
    let reset = "--reset-offsets --to-earliest --execute --topic java --group g";
    scene.tool(GROUPS, &words(reset)).await;
    let described = scene.tool(GROUPS, &words("--describe --group g")).await;
    assert_eq!(
        offsets(&described).iter().map(|(_, lag)| lag).sum::<i64>(),
        20,
        "{described}"
    );
    scene.tool(GROUPS, &words("--delete --group g")).await;
    has(
        &scene.tool("GetOffsetShell", &words("--topic java")).await,
        &["java:0:", "java:2:"],
    );
    scene.tool(TOPICS, &words("--delete --topic java")).await;
    let (found, _) = scene
        .run(TOPICS, &words("--describe --topic java"), "")
        .await;
    assert!(!found, "the topic is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idempotent_and_transactional_producers() {
    let scene = Scene::start().await;
    for topic in ["plain", "transactions"] {
        let create = format!("--create --topic {topic} --partitions 2 --replication-factor 1");
        scene.tool(TOPICS, &words(&create)).await;
    }
    let verified = scene
        .tool(
            "VerifiableProducer",
            &words("--topic plain --max-messages 500 --acks -1"),
        )
        .await;
    has(&verified, &[r#""acked":500"#]);
    let perf = "--topic transactions --num-records 5000 --record-size 100 --throughput -1 --transactional-id java \
                --transaction-duration-ms 50";
    has(
        &scene.tool("ProducerPerformance", &words(perf)).await,
        &["5000 records sent"],
    );
    let read = "--topic transactions --from-beginning --isolation-level read_committed --max-messages 5000 \
                --timeout-ms 60000";
    has(
        &scene.tool(CONSUMER, &words(read)).await,
        &["Processed a total of 5000 messages"],
    );
    let consumer = "--topic plain --group-id v --max-messages 500 --reset-policy earliest --group-protocol classic";
    has(
        &scene.tool("VerifiableConsumer", &words(consumer)).await,
        &[r#""partitions_assigned""#, r#""offsets_committed""#],
    );
}

/// What is not there is said: the newer group protocol.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_group_protocol_is_refused_by_name() {
    let scene = Scene::start().await;
    scene
        .tool(
            TOPICS,
            &words("--create --topic t --partitions 1 --replication-factor 1"),
        )
        .await;
    let consume = "--topic t --group n --max-messages 1 --timeout-ms 20000 --command-property group.protocol=consumer";
    let (_, said) = scene.run(CONSUMER, &words(consume), "").await;
    has(&said, &["UnsupportedVersionException"]);
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// CURRENT-OFFSET and LAG of each partition.
fn offsets(described: &str) -> Vec<(i64, i64)> {
    let rows = described.lines().filter(|line| line.starts_with("g "));
    rows.map(|row| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let number = |at: usize| columns[at].parse().unwrap();
        (number(3), number(5))
    })
    .collect()
}
