//! A broker, a scheduler that only knows engines, models that answer what they are asked, and engines as processes.
#![allow(dead_code)]
use std::collections::{HashMap, HashSet};
use std::net::TcpListener as StdListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use seldon_broker::{Broker, Config, Running};
use seldon_grpc::chainer::chainer_server::{Chainer, ChainerServer};
use seldon_kafka::{Admin, Consumer, Position, Producer, Settings};
use seldon_proto::chainer::{
    PipelineStepUpdate, PipelineSubscriptionRequest, PipelineTopic, PipelineUpdateMessage,
    PipelineUpdateStatusMessage, PipelineUpdateStatusResponse,
    pipeline_step_update::PipelineJoinType, pipeline_update_message::PipelineOperation,
};
use seldon_proto::inference::{ModelInferRequest, model_infer_request::InferInputTensor};
use seldon_records::{
    Contents, Headers, Identity, Names, Outgoing, Record, decode_request, header,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Nothing comes any more.
pub const QUIET: Duration = Duration::from_millis(700);

type Stream = mpsc::UnboundedSender<Result<PipelineUpdateMessage, Status>>;

/// What engines see of a scheduler.
#[derive(Clone, Default)]
pub struct Scheduler(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    engines: HashMap<String, Stream>,
    left: Vec<String>,
    acks: Vec<PipelineUpdateStatusMessage>,
    clock: u64,
}

#[tonic::async_trait]
impl Chainer for Scheduler {
    type SubscribePipelineUpdatesStream =
        UnboundedReceiverStream<Result<PipelineUpdateMessage, Status>>;

    async fn subscribe_pipeline_updates(
        &self,
        request: Request<PipelineSubscriptionRequest>,
    ) -> Result<Response<Self::SubscribePipelineUpdatesStream>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let name = request.into_inner().name;
        self.0.lock().unwrap().engines.insert(name, sender);
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn pipeline_update_event(
        &self,
        request: Request<PipelineUpdateStatusMessage>,
    ) -> Result<Response<PipelineUpdateStatusResponse>, Status> {
        let report = request.into_inner();
        let update = report.update.clone().unwrap_or_default();
        let mut state = self.0.lock().unwrap();
        if update.op() == PipelineOperation::Rebalance && update.pipeline.is_empty() {
            state.left.push(update.stream);
        }
        state.acks.push(report);
        Ok(Response::new(PipelineUpdateStatusResponse {}))
    }
}

impl Scheduler {
    /// Waits for an engine and tells it something; returns the order's number.
    pub async fn tell(&self, engine: &str, mut update: PipelineUpdateMessage) -> u64 {
        let deadline = Instant::now() + LIMIT;
        loop {
            assert!(
                Instant::now() < deadline,
                "engine {engine} does not subscribe"
            );
            {
                let mut state = self.0.lock().unwrap();
                state.clock += 1;
                update.timestamp = state.clock;
                if let Some(stream) = state.engines.get(engine)
                    && stream.send(Ok(update.clone())).is_ok()
                {
                    return update.timestamp;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for the answer to an order.
    pub async fn acked(&self, timestamp: u64) -> PipelineUpdateStatusMessage {
        let of = |ack: &&PipelineUpdateStatusMessage| {
            ack.update
                .as_ref()
                .is_some_and(|u| u.timestamp == timestamp)
        };
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(ack) = self.0.lock().unwrap().acks.iter().find(of) {
                return ack.clone();
            }
            assert!(
                Instant::now() < deadline,
                "order {timestamp} is not answered"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether an order was answered, and well.
    pub fn has_succeeded(&self, timestamp: u64) -> bool {
        let state = self.0.lock().unwrap();
        let of = |ack: &PipelineUpdateStatusMessage| {
            ack.success
                && ack
                    .update
                    .as_ref()
                    .is_some_and(|u| u.timestamp == timestamp)
        };
        state.acks.iter().any(of)
    }

    /// Tells, and expects success.
    pub async fn carry_out(&self, engine: &str, update: PipelineUpdateMessage) {
        let order = self.tell(engine, update).await;
        let ack = self.acked(order).await;
        assert!(ack.success, "{}", ack.reason);
    }

    /// Whether an engine has said that it leaves.
    pub fn has_left(&self, engine: &str) -> bool {
        let state = self.0.lock().unwrap();
        state.left.iter().any(|left| left == engine)
    }

    /// An engine that was killed does not count as subscribed any more.
    pub fn forget(&self, engine: &str) {
        self.0.lock().unwrap().engines.remove(engine);
    }
}

/// An engine's process.
pub struct Engine {
    pub name: String,
    child: Child,
    scheduler: Scheduler,
}

impl Engine {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, such as `-STOP`.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// As by `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.scheduler.forget(&self.name);
    }

    /// As by SIGTERM; returns when it has ended.
    pub async fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(12);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success());
                break;
            }
            assert!(Instant::now() < deadline, "the engine does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.scheduler.forget(&self.name);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of it.
pub struct World {
    pub broker: Option<Running>,
    pub config: Config,
    pub settings: Settings,
    pub names: Names,
    pub scheduler: Scheduler,
    pub producer: Producer,
    pub admin: Admin,
    port: u16,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Self {
        let broker = Broker::start(config.clone()).await.unwrap();
        let settings = Settings::local(&format!("127.0.0.1:{}", broker.port()));
        let scheduler = Scheduler::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(ChainerServer::new(scheduler.clone()))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self {
            names: settings.names("").unwrap(),
            producer: Producer::new(&settings).unwrap(),
            admin: Admin::new(&settings).unwrap(),
            config: Config {
                listen: ([127, 0, 0, 1], broker.port()).into(),
                ..config
            },
            broker: Some(broker),
            settings,
            scheduler,
            port,
        }
    }

    pub fn engine(&self, name: &str, more: &[&str]) -> Engine {
        let free = StdListener::bind("127.0.0.1:0").unwrap();
        let health = free.local_addr().unwrap().port();
        drop(free);
        let bootstrap = format!("127.0.0.1:{}", self.config.listen.port());
        let child = Command::new(env!("CARGO_BIN_EXE_seldon-dataflow-engine"))
            .args([
                "--dataflow-replica-id",
                name,
                "--upstream-host",
                "127.0.0.1",
            ])
            .args(["--upstream-port", &self.port.to_string()])
            .args(["--kafka-bootstrap-servers", &bootstrap])
            .args(["--health-server-host", "127.0.0.1"])
            .args(["--health-server-port", &health.to_string()])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Engine {
            name: name.to_owned(),
            child,
            scheduler: self.scheduler.clone(),
        }
    }

    /// Models that answer with what they are asked, as the model gateway would write it.
    pub async fn models(&self, models: &[&str]) {
        let inputs: Vec<String> = models.iter().map(|m| self.names.model_inputs(m)).collect();
        let outputs: Vec<String> = models.iter().map(|m| self.names.model_outputs(m)).collect();
        self.admin
            .create(&[inputs.clone(), outputs.clone()].concat(), false)
            .await
            .unwrap();
        let consumer = Consumer::new(&self.settings, "models", true).unwrap();
        for topic in &inputs {
            let count = self.admin.partitions(topic).await.unwrap().unwrap();
            for partition in 0..count {
                let at = (topic.as_str().into(), partition, Position::Beginning);
                consumer.assign(&[at]).unwrap();
            }
        }
        let to: HashMap<String, String> = inputs.into_iter().zip(outputs).collect();
        let producer = self.producer.clone();
        tokio::spawn(async move {
            loop {
                let Ok(record) = consumer.recv().await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let value = record.value.as_deref().unwrap();
                let request = decode_request(&record.headers, value).unwrap();
                let response = Contents::Request(request).into_response();
                let answer = Outgoing {
                    topic: to[&*record.topic].as_str().into(),
                    partition: Some(record.partition),
                    key: record.key,
                    value: Some(prost::Message::encode_to_vec(&response).into()),
                    headers: record.headers,
                };
                let producer = producer.clone();
                let delivery = loop {
                    match producer.enqueue(answer.clone()) {
                        Ok(delivery) => break delivery,
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                };
                tokio::spawn(async move {
                    if delivery.await.is_err() {
                        let _ = producer.send(answer).await;
                    }
                });
            }
        });
    }

    /// A pipeline whose steps follow each other.
    pub fn chain(&self, pipeline: &str, version: u32, models: &[&str]) -> PipelineUpdateMessage {
        let topic = |topic_name: String| PipelineTopic {
            pipeline_name: pipeline.to_owned(),
            topic_name,
            tensor: None,
        };
        let names = &self.names;
        let mut from = names.pipeline_inputs(pipeline);
        let mut updates = Vec::new();
        let mut step = |source: String, sink: String| {
            updates.push(PipelineStepUpdate {
                sources: vec![topic(source)],
                sink: Some(topic(sink)),
                input_join_ty: PipelineJoinType::Inner.into(),
                triggers_join_ty: PipelineJoinType::Inner.into(),
                ..Default::default()
            });
        };
        for model in models {
            step(from, names.model_inputs(model));
            from = names.model_outputs(model);
        }
        step(from, names.pipeline_outputs(pipeline));
        step(names.errors(), names.pipeline_outputs(pipeline));
        PipelineUpdateMessage {
            op: PipelineOperation::Create.into(),
            pipeline: pipeline.to_owned(),
            version,
            uid: format!("{pipeline}-{version}"),
            updates,
            pipeline_output_topic: names.pipeline_outputs(pipeline),
            pipeline_error_topic: names.errors(),
            ..Default::default()
        }
    }

    /// The order to let a version go at once.
    pub fn hand_over(&self, pipeline: &str, version: u32) -> PipelineUpdateMessage {
        PipelineUpdateMessage {
            op: PipelineOperation::Rebalance.into(),
            ..self.delete(pipeline, version, false)
        }
    }

    pub fn delete(&self, pipeline: &str, version: u32, clean: bool) -> PipelineUpdateMessage {
        let create = self.chain(pipeline, version, &[]);
        PipelineUpdateMessage {
            op: PipelineOperation::Delete.into(),
            updates: create
                .updates
                .into_iter()
                .take(usize::from(clean))
                .collect(),
            ..create
        }
    }

    /// Sends requests `from..to` into a pipeline.
    pub async fn send(&self, pipeline: &str, numbers: std::ops::Range<usize>) {
        for number in numbers {
            self.producer
                .send(self.request(pipeline, number))
                .await
                .unwrap();
        }
    }

    pub fn request(&self, pipeline: &str, number: usize) -> Outgoing {
        let request = ModelInferRequest {
            inputs: vec![InferInputTensor {
                name: "x".to_owned(),
                datatype: "INT32".to_owned(),
                shape: vec![1],
                contents: Some(seldon_proto::inference::InferTensorContents {
                    int_contents: vec![i32::try_from(number).unwrap()],
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let id = Identity::derived(&[pipeline.as_bytes(), &number.to_le_bytes()]);
        let headers = [
            (header::PIPELINE, pipeline.to_owned()),
            (header::ID, id.to_string()),
            (header::REQUEST_ID, number.to_string()),
        ];
        Outgoing {
            topic: self.names.pipeline_inputs(pipeline).into(),
            partition: Some(0),
            key: Some(number.to_string().into()),
            value: Some(prost::Message::encode_to_vec(&request).into()),
            headers: headers.into_iter().collect::<Headers>(),
        }
    }

    /// Gives a topic more partitions: CreatePartitions, version 0.
    pub async fn grow(&self, topic: &str, partitions: i32) {
        let mut request = b"\0\x25\0\0\0\0\0\x01\xff\xff\0\0\0\x01".to_vec();
        request.extend((topic.len() as u16).to_be_bytes());
        request.extend(topic.as_bytes());
        request.extend(partitions.to_be_bytes());
        // No assignments, a second, not only tried.
        request.extend(b"\xff\xff\xff\xff\0\0\x03\xe8\0");
        let mut stream = TcpStream::connect(self.config.listen).await.unwrap();
        stream.write_u32(request.len() as u32).await.unwrap();
        stream.write_all(&request).await.unwrap();
        let mut answer = vec![0; stream.read_u32().await.unwrap() as usize];
        stream.read_exact(&mut answer).await.unwrap();
        let deadline = Instant::now() + LIMIT;
        while self.admin.partitions(topic).await.unwrap() != Some(partitions) {
            assert!(Instant::now() < deadline, "{topic} does not grow");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A reader of a topic from its beginning, of committed records.
    pub fn reader(&self, topic: &str) -> Reader {
        let consumer = Consumer::new(&self.settings, "reader", true).unwrap();
        let at = (topic.into(), 0, Position::Beginning);
        consumer.assign(&[at]).unwrap();
        Reader {
            consumer,
            seen: Vec::new(),
        }
    }
}

/// Reads a topic.
pub struct Reader {
    consumer: Consumer,
    pub seen: Vec<Record>,
}

impl Reader {
    /// Reads until so many different keys were seen, and nothing after that.
    pub async fn until(&mut self, keys: usize) {
        let deadline = Instant::now() + LIMIT;
        let mut known: HashSet<_> = self.seen.iter().map(|record| record.key.clone()).collect();
        while known.len() < keys {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.consumer.recv()).await {
                Ok(Ok(record)) => {
                    known.insert(record.key.clone());
                    self.seen.push(record);
                }
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(_) => panic!("{} of {keys} answers within {LIMIT:?}", known.len()),
            }
        }
    }

    /// Reads until there are so many records, repeats too.
    pub async fn all(&mut self, records: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.seen.len() < records {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.consumer.recv()).await {
                Ok(Ok(record)) => self.seen.push(record),
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(_) => panic!("{} of {records} records within {LIMIT:?}", self.seen.len()),
            }
        }
    }

    /// Reads what is there, until nothing came for `quiet`.
    pub async fn some(&mut self, quiet: Duration) {
        while let Ok(record) = tokio::time::timeout(quiet, self.consumer.recv()).await {
            match record {
                Ok(record) => self.seen.push(record),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Records beyond the first of each key, and how many of them are marked.
    pub fn repeats(&self) -> (usize, usize) {
        let (mut known, mut repeats, mut marked) = (HashSet::new(), 0, 0);
        for record in &self.seen {
            if !known.insert(record.key.clone()) {
                repeats += 1;
                marked += usize::from(record.headers.has(header::REPEAT));
            }
        }
        (repeats, marked)
    }

    pub fn marked(&self) -> usize {
        let marked = |record: &&Record| record.headers.has(header::REPEAT);
        self.seen.iter().filter(marked).count()
    }
}
