//! A whole agent beside a real Triton.
#![allow(clippy::unwrap_used)] // a test may
mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Agent, World, get, model, until};
use seldon_proto::agent::ModelVersion;
use seldon_proto::agent::model_event_message::Event;
use seldon_proto::agent::model_operation_message::Operation::{LoadModel, UnloadModel};
use seldon_proto::scheduler::model_runtime_info::ModelRuntimeInfo;

const SIMPLE: &str = "gs://seldon-models/triton/simple";
const CONFIG: &str = r#"name: "simple"
backend: "python"
max_batch_size: 8
instance_group [ { kind: KIND_CPU count: 2 } ]
version_policy { specific { versions: [ 2 ] } }
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 2 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 2 ] } ]
"#;

/// A model that adds a number.
fn adder(number: u32) -> String {
    format!(
        "import triton_python_backend_utils as pb\n\
         class TritonPythonModel:\n    \
             def execute(self, requests):\n        \
                 add = lambda r: pb.get_input_tensor_by_name(r, 'INPUT0').as_numpy() + {number}\n        \
                 return [pb.InferenceResponse(output_tensors=[pb.Tensor('OUTPUT0', add(r).astype('int32'))]) for r in requests]\n"
    )
}

/// Triton, killed with the models' own processes when dropped.
struct Triton {
    child: Child,
    program: std::path::PathBuf,
    models: std::path::PathBuf,
    ports: [u16; 3],
}

impl Triton {
    fn start(program: &Path, models: &Path, ports: [u16; 3]) -> Self {
        std::fs::create_dir_all(models).unwrap();
        Self {
            child: Self::spawn(program, models, ports),
            program: program.to_owned(),
            models: models.to_owned(),
            ports,
        }
    }

    fn spawn(program: &Path, models: &Path, ports: [u16; 3]) -> Child {
        use std::os::unix::process::CommandExt;
        Command::new(program)
            .arg(format!("--model-repository={}", models.display()))
            .arg("--model-control-mode=explicit")
            .arg(format!("--http-port={}", ports[0]))
            .arg(format!("--grpc-port={}", ports[1]))
            .arg(format!("--metrics-port={}", ports[2]))
            .arg(format!(
                "--backend-config=python,shm-region-prefix-name={}",
                shared()
            ))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap()
    }

    /// `kill -9` of the server and its models' processes.
    fn kill(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(&self.program, &self.models, self.ports);
    }
}

impl Drop for Triton {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
        // A killed one leaves its shared memory.
        for entry in std::fs::read_dir("/dev/shm")
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with(&shared()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn shared() -> String {
    format!("seldon-test-{}-", std::process::id())
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_a_model_of_a_real_triton() {
    let mut world = World::new().await;
    let artefact = world.store().join("seldon-models/triton/simple");
    for version in [1, 2] {
        let folder = artefact.join(version.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("model.py"), adder(version)).unwrap();
    }
    std::fs::write(artefact.join("config.pbtxt"), CONFIG).unwrap();
    let program = tokio::task::spawn_blocking(|| seldon_components::Cache::open()?.triton());
    let program = program.await.unwrap().unwrap();
    let held = [0; 3].map(|_| common::bind(0).unwrap());
    let ports = held.map(|listener| listener.local_addr().unwrap().port());
    let models = world.folder.path().join("agent/models");
    let mut triton = Triton::start(&program, &models, ports);
    world.inference_port = ports[1];
    let http = format!("--inference-http-port={}", ports[0]);
    let agent = world
        .agent(&["--server-type=triton", "--server-name=triton", &http])
        .await;
    let subscription = world.scheduler.subscription(0).await;
    let offered = subscription.replica_config.unwrap().capabilities;
    assert!(offered.contains(&"tensorflow".to_owned()), "{offered:?}");

    let mut first = model("tfsimple1", 1, SIMPLE);
    first
        .model
        .as_mut()
        .unwrap()
        .model_spec
        .as_mut()
        .unwrap()
        .artifact_version = Some(1);
    let newest = model("tfsimple1", 2, SIMPLE);
    for version in [&first, &newest] {
        load(&world, version).await;
    }
    // Two instances of 100 bytes each, of two versions.
    assert_eq!(answers(&agent, "tfsimple1_1").await, [2, 3]);
    assert_eq!(answers(&agent, "tfsimple1_2").await, [3, 4]);
    let (status, metadata) = get_model(&agent, "tfsimple1_1", "").await;
    assert_eq!(status, 200);
    assert!(metadata.contains(r#""name":"tfsimple1_1""#), "{metadata}");

    triton.kill();
    triton.restart();
    until("the restored model", async || {
        (rest(&agent, "tfsimple1_1").await.0 == 200).then_some(())
    })
    .await;
    assert_eq!(answers(&agent, "tfsimple1_2").await, [3, 4]);

    world.scheduler.order(UnloadModel, &first);
    let event = world.scheduler.event("tfsimple1").await;
    assert_eq!(
        (event.event(), event.available_memory_bytes),
        (Event::Unloaded, 800)
    );
    assert!(!in_memory(ports[0], "tfsimple1_1").await);
    assert!(in_memory(ports[0], "tfsimple1_2").await);
    agent.end().await;
}

async fn load(world: &World, version: &ModelVersion) {
    world.scheduler.order(LoadModel, version);
    let event = world.scheduler.event("tfsimple1").await;
    assert_eq!(event.event(), Event::Loaded, "{}", event.message);
    let left = 1000 - 200 * u64::from(version.version);
    assert_eq!(event.available_memory_bytes, left);
    let info = event.runtime_info.unwrap().model_runtime_info.unwrap();
    let ModelRuntimeInfo::Triton(info) = info else {
        panic!("not Triton's: {info:?}");
    };
    assert_eq!(info.cpu[0].instance_count, 2);
}

/// What both protocols answer to `[1, 2]`.
async fn answers(agent: &Agent, internal: &str) -> Vec<i32> {
    let (status, body) = rest(agent, internal).await;
    assert_eq!(status, 200, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["model_name"], internal);
    let by_rest: Vec<i32> = serde_json::from_value(body["outputs"][0]["data"].clone()).unwrap();
    assert_eq!(grpc_answer(agent, internal).await, by_rest);
    by_rest
}

async fn grpc_answer(agent: &Agent, internal: &str) -> Vec<i32> {
    use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
    use seldon_proto::inference::{InferTensorContents, ModelInferRequest, model_infer_request};
    let address = format!("http://127.0.0.1:{}", agent.proxy);
    let mut client = GrpcInferenceServiceClient::connect(address).await.unwrap();
    let mut request = tonic::Request::new(ModelInferRequest {
        model_name: "tfsimple1".into(),
        inputs: vec![model_infer_request::InferInputTensor {
            name: "INPUT0".into(),
            datatype: "INT32".into(),
            shape: vec![1, 2],
            contents: Some(InferTensorContents {
                int_contents: vec![1, 2],
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    });
    let headers = request.metadata_mut();
    headers.insert("seldon-internal-model", internal.parse().unwrap());
    headers.insert("seldon-model", "tfsimple1".parse().unwrap());
    let answer = client.model_infer(request).await.unwrap().into_inner();
    assert_eq!(answer.model_name, internal);
    let raw = &answer.raw_output_contents[0];
    raw.chunks_exact(4)
        .map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

async fn rest(agent: &Agent, internal: &str) -> (u16, String) {
    let body = r#"{"inputs":[{"name":"INPUT0","datatype":"INT32","shape":[1,2],"data":[1,2]}]}"#;
    exchange(
        agent.proxy,
        "POST",
        "/v2/models/tfsimple1/infer",
        internal,
        body,
    )
    .await
}

async fn get_model(agent: &Agent, internal: &str, tail: &str) -> (u16, String) {
    let path = format!("/v2/models/tfsimple1{tail}");
    exchange(agent.proxy, "GET", &path, internal, "").await
}

/// Asks Triton itself.
async fn in_memory(port: u16, internal: &str) -> bool {
    get(port, &format!("/v2/models/{internal}/ready")).await.0 == 200
}

async fn exchange(
    port: u16,
    method: &str,
    path: &str,
    internal: &str,
    body: &str,
) -> (u16, String) {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::TokioIo;
    let begun = Instant::now();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "agent")
        .header("content-type", "application/json")
        .header("seldon-internal-model", internal)
        .header("seldon-model", "tfsimple1")
        .body(Full::new(hyper::body::Bytes::copy_from_slice(
            body.as_bytes(),
        )))
        .unwrap();
    // A connection to a server that was killed may be reset: that is no answer.
    let Ok(response) = sender.send_request(request).await else {
        return (0, format!("no answer after {:?}", begun.elapsed()));
    };
    let status = response.status().as_u16();
    let body = tokio::time::timeout(Duration::from_secs(10), response.into_body().collect())
        .await
        .unwrap();
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    (status, String::from_utf8_lossy(&body).into_owned())
}
