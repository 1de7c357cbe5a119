//! More models than memory on a real MLServer, which tells itself what it loads, unloads and answers.
#![allow(clippy::unwrap_used)] // a test may
mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Agent, World, get, metric, model, until};
use futures_util::future::join_all;
use seldon_proto::agent::model_event_message::Event;
use seldon_proto::agent::model_operation_message::Operation::LoadModel;

const IRIS: &str = "gs://seldon-models/iris";
const LOADED_BYTES: &str = "seldon_loaded_model_memory_bytes_gauge";
const MODELS: usize = 12;

/// A third of what is registered has room: three models, and nine more.
const TIGHT: [&str; 2] = ["--memory-bytes=300", "--over-commit-percentage=300"];

/// Writes down what happens to it; answers after as many seconds as it is told.
const COUNTED: &str = r#"
import asyncio, os
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput

class Counted(MLModel):
    def say(self, what):
        with open(os.environ["MODEL_LOG"], "a") as log:
            log.write(f"{what} {self.name}\n")

    async def load(self):
        await asyncio.sleep(0.2)
        self.say("load")
        return True

    async def unload(self):
        self.say("unload")
        return True

    async def predict(self, payload):
        self.say("begin")
        await asyncio.sleep(payload.inputs[0].data[0])
        self.say("end")
        output = ResponseOutput(name="y", shape=[1], datatype="INT64", data=[1])
        return InferenceResponse(model_name=self.name, outputs=[output])
"#;

/// Trains the model that says 2 for `[1, 2, 3, 4]`.
const TRAIN: &str = r#"
import sys, joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
x, y = load_iris(return_X_y=True)
joblib.dump(OneVsRestClassifier(LogisticRegression(solver="liblinear")).fit(x, y), sys.argv[1])
"#;

/// How often something is the case, by the name of the model.
type Counts<'a> = BTreeMap<&'a str, usize>;

/// MLServer, killed when dropped.
struct Mlserver {
    child: Child,
    program: PathBuf,
    models: PathBuf,
    log: PathBuf,
    ports: [u16; 3],
}

impl Mlserver {
    /// Starts one in place of the world's own and waits until it is ready.
    async fn start(world: &mut World) -> Self {
        let program = tokio::task::spawn_blocking(|| seldon_components::Cache::open()?.mlserver());
        let program = program.await.unwrap().unwrap();
        let root = world.folder.path();
        let (models, log) = (root.join("agent/models"), root.join("models.log"));
        std::fs::create_dir_all(&models).unwrap();
        let held = [0; 3].map(|_| common::bind(0).unwrap());
        let ports = held.map(|listener| listener.local_addr().unwrap().port());
        let child = Self::spawn(&program, &models, &log, ports);
        world.inference_port = ports[1];
        let started = Self {
            child,
            program,
            models,
            log,
            ports,
        };
        started.ready().await;
        started
    }

    fn spawn(program: &Path, models: &Path, log: &Path, ports: [u16; 3]) -> Child {
        use std::os::unix::process::CommandExt;
        Command::new(program)
            .arg("start")
            .arg(models)
            .env("MLSERVER_HOST", "127.0.0.1")
            .env("MLSERVER_HTTP_PORT", ports[0].to_string())
            .env("MLSERVER_GRPC_PORT", ports[1].to_string())
            .env("MLSERVER_METRICS_PORT", ports[2].to_string())
            .env("MLSERVER_MODEL_REPOSITORY_ROOT", models)
            .env("MLSERVER_LOAD_MODELS_AT_STARTUP", "false")
            .env("MLSERVER_PARALLEL_WORKERS", "0")
            .env("MODEL_LOG", log)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap()
    }

    /// Python takes its time on a machine that is busy.
    async fn ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while tokio::net::TcpStream::connect(("127.0.0.1", self.ports[0]))
            .await
            .is_err()
            || get(self.ports[0], "/v2/health/live").await.0 != 200
        {
            assert!(Instant::now() < deadline, "MLServer does not start");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// `kill -9`, and a new one in its place.
    fn kill_and_restart(&mut self) {
        self.kill();
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        writeln!(log, "killed all").unwrap();
        self.child = Self::spawn(&self.program, &self.models, &self.log, self.ports);
    }

    fn kill(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// What the models wrote down, checked: none was unloaded while it answered, and no more than three were in memory
    /// at a time. Returns how often each was loaded.
    fn account(&self) -> BTreeMap<String, usize> {
        let mut loads = BTreeMap::new();
        // A load of what is in memory replaces it: the old one is unloaded afterwards.
        let (mut resident, mut answering) = (Counts::new(), Counts::new());
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        for line in text.lines() {
            let (what, name) = line.split_once(' ').unwrap();
            match what {
                "load" => {
                    *loads.entry(name.to_owned()).or_default() += 1;
                    *resident.entry(name).or_default() += 1;
                }
                "unload" => {
                    let left = resident.get_mut(name).expect("it is in memory");
                    *left -= 1;
                    let answers = answering.get(name).copied().unwrap_or(0);
                    assert!(
                        *left > 0 || answers == 0,
                        "{name} was unloaded while it answered"
                    );
                }
                "begin" => *answering.entry(name).or_default() += 1,
                "end" => *answering.get_mut(name).unwrap() -= 1,
                _ => {
                    resident.clear();
                    answering.clear();
                }
            }
            resident.retain(|_, count| *count > 0);
            assert!(resident.len() <= 3, "in memory: {resident:?}");
        }
        loads
    }
}

impl Drop for Mlserver {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

/// Status and body, or nothing where the connection was cut.
async fn infer(agent: &Agent, internal: &str, body: &str) -> Option<(u16, String)> {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::TokioIo;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", agent.proxy))
        .await
        .ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    tokio::spawn(connection);
    let request = http::Request::post("/v2/models/any/infer")
        .header("host", "agent")
        .header("content-type", "application/json")
        .header("seldon-internal-model", internal)
        .header("seldon-model", "any")
        .body(Full::new(hyper::body::Bytes::from(body.to_owned())))
        .unwrap();
    let response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

async fn iris(agent: &Agent, internal: &str) -> Result<(), String> {
    let body =
        r#"{"inputs":[{"name":"predict","shape":[1,4],"datatype":"FP32","data":[[1,2,3,4]]}]}"#;
    let answer = infer(agent, internal, body).await;
    let good = answer.as_ref().is_some_and(|(status, body)| {
        *status == 200 && body.contains(internal) && body.contains(r#""data":[2]"#)
    });
    good.then_some(())
        .ok_or_else(|| format!("{internal}: {answer:?}"))
}

/// Asks a model that takes `seconds` to answer.
async fn counted(agent: &Agent, internal: &str, seconds: f64) -> Result<(), String> {
    let body = format!(
        r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP64","data":[{seconds}]}}]}}"#
    );
    let answer = infer(agent, internal, &body).await;
    let good = answer.as_ref().is_some_and(|(status, _)| *status == 200);
    good.then_some(())
        .ok_or_else(|| format!("{internal}: {answer:?}"))
}

/// An agent with twelve models of the artefact, which have loaded.
async fn agent_with_models(
    world: &World,
    mlserver: &Mlserver,
    uri: &str,
    requirement: &str,
) -> Agent {
    let http = format!("--inference-http-port={}", mlserver.ports[0]);
    let capabilities = format!("--capabilities={requirement}");
    let agent = world
        .agent(&[&TIGHT[..], &[&http, &capabilities]].concat())
        .await;
    world.scheduler.subscription(0).await;
    for number in 0..MODELS {
        let mut version = model(&format!("m{number}"), 1, uri);
        let spec = version.model.as_mut().unwrap().model_spec.as_mut().unwrap();
        spec.requirements = vec![requirement.to_owned()];
        world.scheduler.order(LoadModel, &version);
    }
    for number in 0..MODELS {
        let event = world.scheduler.event(&format!("m{number}")).await;
        assert_eq!(event.event(), Event::Loaded, "{}", event.message);
    }
    agent
}

fn name(number: usize) -> String {
    format!("m{}_1", number % MODELS)
}

#[tokio::test(flavor = "multi_thread")]
async fn iris_twelve_times_where_three_have_room() {
    let mut world = World::new().await;
    let python =
        tokio::task::spawn_blocking(|| seldon_components::Cache::open()?.mlserver_python());
    let trained = Command::new(python.await.unwrap().unwrap())
        .args(["-c", TRAIN])
        .arg(world.store().join("seldon-models/iris/model.joblib"))
        .status()
        .unwrap();
    assert!(trained.success());
    let mlserver = Mlserver::start(&mut world).await;
    let agent = agent_with_models(&world, &mlserver, IRIS, "sklearn").await;
    // Four at a time for each model, all models at a time.
    let asked = join_all((0..MODELS * 20).map(|number| {
        let agent = &agent;
        async move { iris(agent, &name(number)).await }
    }));
    let watched = async {
        let mut looks = 0;
        loop {
            let bytes = metric(&agent, LOADED_BYTES).await;
            assert!(bytes <= 300.0, "{bytes} after {looks} looks");
            looks += 1;
        }
    };
    tokio::select! {
        answers = asked => {
            let failed: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
            assert_eq!(failed, Vec::<String>::new());
        }
        () = watched => {}
    }
    assert!(metric(&agent, "seldon_cache_miss_count").await >= 9.0);
    assert!(metric(&agent, "seldon_cache_evict_count").await >= 18.0);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_loaded_once_a_miss_and_never_leave_while_they_answer() {
    let mut world = World::new().await;
    let artefact = world.store().join("seldon-models/counted");
    std::fs::create_dir_all(&artefact).unwrap();
    std::fs::write(artefact.join("counted.py"), COUNTED).unwrap();
    let mut mlserver = Mlserver::start(&mut world).await;
    let agent = agent_with_models(&world, &mlserver, "gs://seldon-models/counted", "python").await;

    // Many callers of one that was evicted.
    let evicted = (0..MODELS).map(name).find(|internal| {
        let loads = mlserver.account();
        loads.get(internal) == Some(&1) && !resident(&mlserver, internal)
    });
    let evicted = evicted.unwrap();
    let callers = join_all((0..50).map(|_| counted(&agent, &evicted, 0.0))).await;
    assert!(callers.iter().all(Result::is_ok), "{callers:?}");
    assert_eq!(mlserver.account()[&evicted], 2, "one more for all");

    // One answers for long, while all others come and go.
    let before = mlserver.account()[&evicted];
    let long = counted(&agent, &evicted, 3.0);
    let others = join_all((0..MODELS * 8).map(|number| {
        let agent = &agent;
        async move { counted(agent, &name(number), 0.01).await }
    }));
    let (long, others) = tokio::join!(long, others);
    assert_eq!(long, Ok(()));
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert_eq!(mlserver.account()[&evicted], before);

    // MLServer is killed under load, while models come and go.
    let agent = Arc::new(agent);
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..MODELS)
        .map(|number| {
            let (agent, stop) = (agent.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // May fail: the server that answers is killed, and there is no other.
                    let _ = counted(&agent, &name(number), 0.01).await;
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let evictions = metric(&agent, "seldon_cache_evict_count").await;
        until("evictions", async || {
            let now = metric(&agent, "seldon_cache_evict_count").await;
            (now >= evictions + 5.0).then_some(())
        })
        .await;
        mlserver.kill_and_restart();
        mlserver.ready().await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    for number in 0..MODELS {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(why) = counted(&agent, &name(number), 0.0).await {
            assert!(Instant::now() < deadline, "{why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    mlserver.account();
    assert!(metric(&agent, LOADED_BYTES).await <= 300.0);
    Arc::into_inner(agent).unwrap().end().await;
}

/// Whether a model is in memory, by what it wrote down last.
fn resident(mlserver: &Mlserver, internal: &str) -> bool {
    let text = std::fs::read_to_string(&mlserver.log).unwrap_or_default();
    let last = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, name)| *name == internal)
        .map(|(what, _)| what)
        .next_back();
    last.is_some_and(|what| what != "unload")
}
