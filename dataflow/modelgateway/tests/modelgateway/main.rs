//! The gateway between the embedded broker, a scheduler and an Envoy of the test.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    process::{Child, Command},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Json, Router, routing::post};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prost::Message as _;
use seldon_broker::{Broker, Config, Running};
use seldon_grpc::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use seldon_kafka::{Admin, Consumer, Position, Producer, Settings};
use seldon_proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse,
    model_infer_request::InferInputTensor,
};
use seldon_proto::scheduler::{
    ModelStatusResponse, ModelUpdateStatusMessage, model_status_response::ModelOperation,
};
use seldon_records::{Headers, Names, Outgoing, Record, header};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::spawn_blocking, time::timeout};
use tonic::Code;

mod foreign;
mod models;
mod scheduler;
mod topics;
mod unloaded;
use models::Models;
use scheduler::Scheduler;

const LIMIT: Duration = Duration::from_secs(30);

struct Scene {
    broker: Running,
    settings: Settings,
    names: Names,
    models: Models,
    scheduler: Scheduler,
    acks: mpsc::UnboundedReceiver<ModelUpdateStatusMessage>,
    flags: Vec<String>,
    folder: TempDir,
    producer: Producer,
    admin: Admin,
}

/// The process; it does not outlive the test.
struct Gateway(Child);

impl Gateway {
    /// As `kill -9`.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Ends by itself when told to.
    async fn stop(mut self) {
        let id = i32::try_from(self.0.id()).unwrap();
        kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
        let ended = spawn_blocking(move || self.0.wait().unwrap());
        assert!(timeout(LIMIT, ended).await.unwrap().unwrap().success());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Scene {
    async fn new() -> Self {
        let broker = Broker::start(Config::default()).await.unwrap();
        let settings = Settings::local(&broker.bootstrap());
        let models = Models::default();
        let rest = post(|Json(request): Json<serde_json::Value>| async move {
            Json(serde_json::json!({"model_name": "json", "outputs": request["inputs"]}))
        });
        let router = Router::new()
            .route("/v2/models/json/infer", rest)
            .fallback_service(
                tonic::service::Routes::new(GrpcInferenceServiceServer::new(models.clone()))
                    .into_axum_router(),
            );
        let envoy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let envoy_port = envoy.local_addr().unwrap().port().to_string();
        tokio::spawn(async move { axum::serve(envoy, router).await });
        let (scheduler, port, acks) = scheduler::start().await;
        let folder = TempDir::new().unwrap();
        let bootstrap = broker.bootstrap();
        let kafka = folder.path().join("kafka.json");
        std::fs::write(&kafka, format!(r#"{{"bootstrap.servers": "{bootstrap}"}}"#)).unwrap();
        let flags = [
            "--scheduler-host=127.0.0.1",
            "--envoy-host=127.0.0.1",
            &format!("--scheduler-plaintxt-port={port}"),
            &format!("--envoy-port={envoy_port}"),
            &format!("--kafka-config-path={}", kafka.display()),
            "--name=gw",
            "--worker-timeout-ms=5000",
            "--log-level=warn",
        ];
        let flags = flags.map(str::to_owned).into();
        Self {
            names: settings.names("").unwrap(),
            producer: Producer::new(&settings).unwrap(),
            admin: Admin::new(&settings).unwrap(),
            broker,
            settings,
            models,
            scheduler,
            acks,
            flags,
            folder,
        }
    }

    fn gateway(&self) -> Gateway {
        let probes = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = probes.local_addr().unwrap().port();
        drop(probes);
        let child = Command::new(env!("CARGO_BIN_EXE_seldon-modelgateway"))
            .args(&self.flags)
            .arg(format!("--health-probe-port={port}"))
            .current_dir(&self.folder)
            .spawn();
        Gateway(child.unwrap())
    }

    /// Orders a model to be read (or not any more); returns the order's timestamp.
    async fn send(&self, model: &str, operation: ModelOperation) -> u64 {
        let timestamp = self.scheduler.order(ModelStatusResponse {
            model_name: model.to_owned(),
            operation: operation.into(),
            ..Default::default()
        });
        timeout(LIMIT, timestamp).await.unwrap()
    }

    /// Has a model read (or not any more), and waits for the acknowledgement.
    async fn order(&mut self, model: &str, operation: ModelOperation) {
        let timestamp = self.send(model, operation).await;
        let heard = async {
            loop {
                let ack = self.acks.recv().await.unwrap();
                let update = ack.update.unwrap();
                if update.model == model && update.timestamp == timestamp {
                    assert!(ack.success, "{}", ack.reason);
                    assert_eq!(update.stream, "gw");
                    return;
                }
            }
        };
        timeout(LIMIT, heard).await.unwrap();
    }

    fn reader(&self, topic: &str) -> Consumer {
        let consumer = Consumer::new(&self.settings, "test", false).unwrap();
        consumer
            .assign(&[(topic.into(), 0, Position::Beginning)])
            .unwrap();
        consumer
    }

    async fn write(&self, model: &str, key: &str, headers: Headers, value: Vec<u8>) {
        let record = Outgoing {
            topic: self.names.model_inputs(model).into(),
            partition: Some(0),
            key: Some(key.to_owned().into()),
            value: Some(value.into()),
            headers,
        };
        self.producer.send(record).await.unwrap();
    }
}

fn request(number: i32) -> Vec<u8> {
    let request = ModelInferRequest {
        inputs: vec![InferInputTensor {
            name: "x".into(),
            datatype: "INT32".into(),
            shape: vec![1],
            contents: Some(InferTensorContents {
                int_contents: vec![number],
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    };
    request.encode_to_vec()
}

fn number(record: &Record) -> i32 {
    let value = record.value.as_deref().unwrap();
    let response = ModelInferResponse::decode(value).unwrap();
    response.outputs[0].contents.as_ref().unwrap().int_contents[0]
}

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

fn headers(pairs: &[(&str, &str)]) -> Headers {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| (*name, value.as_bytes().to_vec()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_and_errors() {
    let mut scene = Scene::new().await;
    let gateway = scene.gateway();
    for model in ["double", "json", "invalid", "missing", "slow", "flaky"] {
        scene.order(model, ModelOperation::ModelCreate).await;
    }
    let results = scene.reader(&scene.names.model_outputs("double"));
    let errors = scene.reader(&scene.names.errors());

    let sent = headers(&[
        ("pipeline", "p"),
        ("x-request-id", "r"),
        ("x-seldon-route", ":before:"),
        ("seldon-batch", "b"),
    ]);
    scene.write("double", "k", sent, request(21)).await;
    let result = next(&results).await;
    assert_eq!(number(&result), 42);
    assert_eq!(result.key.as_deref(), Some(&b"k"[..]));
    for (name, value) in [
        ("pipeline", "p"),
        ("x-request-id", "r"),
        ("seldon-batch", "b"),
    ] {
        assert_eq!(result.headers.text(name), Some(value));
    }
    let routes: Vec<_> = result
        .headers
        .iter()
        .filter(|(name, _)| *name == header::ROUTE)
        .collect();
    assert_eq!(routes.len(), 2);
    assert_eq!(result.headers.text(header::ROUTE), Some(":double_1:"));
    assert!(!result.headers.has(header::REPEAT));
    let asked = scene.models.headers.lock().unwrap().clone();
    assert_eq!(asked["x-request-id"], "r");
    assert_eq!(asked["x-seldon-route"], ":before:");

    let json =
        br#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[9007199254740993]}]}"#;
    scene
        .write("json", "k", Headers::new(), json.to_vec())
        .await;
    let of_json = scene.reader(&scene.names.model_outputs("json"));
    let answer = next(&of_json).await;
    let answer: serde_json::Value =
        serde_json::from_slice(answer.value.as_deref().unwrap()).unwrap();
    assert_eq!(answer["outputs"][0]["data"][0], 9_007_199_254_740_993_i64);

    let past = [(header::DEADLINE, "1")];
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let soon = (since.as_millis() + 300).to_string();
    let soon = [(header::DEADLINE, soon.as_str())];
    for (model, sent, value, status, code) in [
        (
            "invalid",
            headers(&[]),
            request(1),
            "400",
            Code::InvalidArgument,
        ),
        ("missing", headers(&[]), request(1), "404", Code::NotFound),
        (
            "double",
            headers(&[]),
            b"\xff\xff".to_vec(),
            "400",
            Code::InvalidArgument,
        ),
        (
            "double",
            headers(&[("seldon-infer-type", "xml")]),
            request(1),
            "400",
            Code::InvalidArgument,
        ),
        (
            "double",
            headers(&past),
            request(1),
            "504",
            Code::DeadlineExceeded,
        ),
        (
            "slow",
            headers(&soon),
            request(1),
            "504",
            Code::DeadlineExceeded,
        ),
    ] {
        scene.write(model, "e", sent, value).await;
        let error = next(&errors).await;
        assert_eq!(error.headers.text(header::ERROR), Some(model));
        assert_eq!(error.headers.text(header::STATUS), Some(status), "{model}");
        let code = (code as i32).to_string();
        assert_eq!(
            error.headers.text(header::GRPC_STATUS),
            Some(code.as_str()),
            "{model}"
        );
        assert!(!error.value.unwrap().is_empty());
    }

    scene.write("flaky", "k", Headers::new(), request(3)).await;
    let of_flaky = scene.reader(&scene.names.model_outputs("flaky"));
    assert_eq!(number(&next(&of_flaky).await), 6);

    scene.order("double", ModelOperation::ModelDelete).await;
    assert!(
        scene
            .admin
            .partitions(&scene.names.model_inputs("double"))
            .await
            .unwrap()
            .is_some()
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_per_key_and_repeats() {
    let mut scene = Scene::new().await;
    let gateway = scene.gateway();
    scene.order("ordered", ModelOperation::ModelCreate).await;
    let results = scene.reader(&scene.names.model_outputs("ordered"));
    for n in 0..20 {
        for key in ["a", "b", "c"] {
            scene
                .write("ordered", key, Headers::new(), request(n))
                .await;
        }
    }
    let mut last: HashMap<Vec<u8>, i32> = HashMap::new();
    for _ in 0..60 {
        let result = next(&results).await;
        let key = result.key.clone().unwrap().to_vec();
        let before = last.insert(key, number(&result)).unwrap_or(-2);
        assert_eq!(number(&result), before + 2);
    }
    // The same request again, marked by who wrote it: not asked again. Another visit is.
    let first = headers(&[(header::ID, "i"), (header::VISITS, "ordered=1")]);
    scene.write("ordered", "z", first, request(1)).await;
    let again = [
        (header::ID, "i"),
        (header::VISITS, "ordered=1"),
        (header::REPEAT, "1"),
    ];
    scene
        .write("ordered", "z", headers(&again), request(2))
        .await;
    let visit = [
        (header::ID, "i"),
        (header::VISITS, "ordered=2"),
        (header::REPEAT, "1"),
    ];
    scene
        .write("ordered", "z", headers(&visit), request(3))
        .await;
    assert_eq!(number(&next(&results).await), 2);
    let second = next(&results).await;
    assert_eq!(number(&second), 6);
    assert!(second.headers.has(header::REPEAT));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_what_was_not_answered_is_asked_again_and_marked() {
    let mut scene = Scene::new().await;
    let crashing = scene.gateway();
    scene.order("held", ModelOperation::ModelCreate).await;
    let results = scene.reader(&scene.names.model_outputs("held"));
    scene.models.held.notify_one();
    scene.write("held", "a", Headers::new(), request(1)).await;
    let first = next(&results).await;
    assert!(!first.headers.has(header::REPEAT));
    // This one is on its way when the process dies; the next comes while there is none.
    scene.write("held", "b", Headers::new(), request(2)).await;
    crashing.kill();
    scene.write("held", "c", Headers::new(), request(3)).await;

    let successor = scene.gateway();
    scene.order("held", ModelOperation::ModelCreate).await;
    let mut found = Vec::new();
    while !(found.contains(&4) && found.contains(&6)) {
        scene.models.held.notify_one();
        if let Ok(result) = timeout(Duration::from_millis(50), results.recv()).await {
            let result = result.unwrap();
            assert!(result.headers.has(header::REPEAT));
            found.push(number(&result));
        }
    }
    // What comes from now on is not marked.
    scene.models.held.notify_one();
    scene.write("held", "d", Headers::new(), request(4)).await;
    let last = loop {
        scene.models.held.notify_one();
        if let Ok(result) = timeout(Duration::from_millis(50), results.recv()).await {
            let result = result.unwrap();
            if number(&result) == 8 {
                break result;
            }
        }
    };
    assert!(!last.headers.has(header::REPEAT));
    successor.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_once_writes_each_result_once() {
    let mut scene = Scene::new().await;
    scene
        .flags
        .push("--processing-guarantee=exactly-once".into());
    let mut crashing = Some(scene.gateway());
    scene.order("double", ModelOperation::ModelCreate).await;
    let consumer = Consumer::new(&scene.settings, "test", true).unwrap();
    let outputs: Arc<str> = scene.names.model_outputs("double").into();
    consumer
        .assign(&[(outputs, 0, Position::Beginning)])
        .unwrap();
    for n in 0..100 {
        scene
            .write("double", &n.to_string(), Headers::new(), request(n))
            .await;
        if n == 50 {
            crashing.take().unwrap().kill();
        }
    }
    let successor = scene.gateway();
    scene.order("double", ModelOperation::ModelCreate).await;
    for n in 0..100 {
        let result = next(&consumer).await;
        assert_eq!(number(&result), 2 * n);
        assert!(!result.headers.has(header::REPEAT));
    }
    successor.stop().await;
}
