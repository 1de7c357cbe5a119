//! The system under test, and the clients a user has.
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result};
use seldon_components::Cache;
use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_local::{Builder, System, make_artefacts};
use seldon_proto::scheduler as pb;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::command::Done;

/// The workspace's folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// A running system with its own artefacts, logs and home folder.
pub struct Running {
    runtime: Runtime,
    system: System,
    cache: Cache,
    folder: TempDir,
    variables: BTreeMap<&'static str, OsString>,
    /// Held by cases that use the documented name `iris`.
    pub iris: Mutex<()>,
}

impl Running {
    /// Starts a system. `gs://seldon-models/…` are the sample artefacts, `gs://e2e/…` those in `artefacts/`.
    pub fn start(builder: Builder) -> Result<Self> {
        let runtime = Runtime::new()?;
        let cache = Cache::open()?;
        let folder = tempfile::Builder::new().prefix("seldon-e2e-").tempdir()?;
        let artefacts = artefacts(&cache, folder.path(), builder.has_runtimes())?;
        let builder = builder
            .artefacts(artefacts)
            .run_dir(folder.path().join("run"));
        // The failure itself says what the process concerned has printed last.
        let system = runtime.block_on(builder.start())?;
        let variables = variables(&cache, &system, folder.path())?;
        Ok(Self {
            runtime,
            system,
            cache,
            folder,
            variables,
            iris: Mutex::default(),
        })
    }

    pub fn system(&self) -> &System {
        &self.system
    }

    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A folder for a case's files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the data port of the first Envoy.
    pub fn data(&self) -> u16 {
        self.system.ports().envoys[0].data
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// A client of the scheduler; it connects when it is used.
    pub fn scheduler(&self) -> SchedulerClient<Channel> {
        let _here = self.runtime.enter();
        SchedulerClient::new(channel(self.system.ports().scheduler.api))
    }

    /// A client of the inference protocol, through an Envoy.
    pub fn inference(&self) -> GrpcInferenceServiceClient<Channel> {
        const LARGE: usize = 200 << 20;
        let _here = self.runtime.enter();
        GrpcInferenceServiceClient::new(channel(self.data()))
            .max_decoding_message_size(LARGE)
            .max_encoding_message_size(LARGE)
    }

    /// Returns what the scheduler says of a model.
    pub async fn model_status(&self, name: &str) -> Result<pb::ModelStatusResponse> {
        let request = pb::ModelStatusRequest {
            subscriber_name: "e2e".to_owned(),
            model: Some(pb::ModelReference {
                name: name.to_owned(),
                version: None,
            }),
            all_versions: false,
        };
        let mut answers = self.scheduler().model_status(request).await?.into_inner();
        answers
            .message()
            .await?
            .with_context(|| format!("nothing about {name}"))
    }

    /// Runs `seldon` with arguments, in the folder of the samples.
    pub fn cli(&self, words: &[&str]) -> Result<Done> {
        let mut command = Command::new(&self.system.config().parts.cli);
        command.args(words);
        self.run(format!("seldon {}", words.join(" ")), command, "samples")
    }

    /// Runs a documented line in a shell, in a folder of the workspace. The documented addresses are ours.
    pub fn shell(&self, folder: &str, line: &str) -> Result<Done> {
        let data = format!("127.0.0.1:{}", self.data());
        let api = format!("127.0.0.1:{}", self.system.ports().scheduler.api);
        let metrics = format!("127.0.0.1:{}", self.system.ports().replicas[0].metrics);
        let tritons = self.system.ports().tritons.first();
        let triton = tritons.map_or(0, |ports| ports.metrics);
        let triton = format!("127.0.0.1:{triton}");
        let here = line
            .replace("0.0.0.0:9000", &data)
            .replace("localhost:9000", &data)
            .replace("0.0.0.0:9004", &api)
            // As the documentation writes it.
            .replace("0.0.0:9006", &metrics)
            .replace("0.0.0:9007", &triton);
        let mut command = Command::new("sh");
        command.arg("-c").arg(&here);
        self.run(here, command, folder)
    }

    fn run(&self, line: String, mut command: Command, folder: &str) -> Result<Done> {
        command
            .current_dir(root().join(folder))
            .envs(&self.variables);
        self.block_on(Done::run(line, command))
    }

    /// Reads every file that the processes have printed to, and the CLI's answers about all models.
    pub fn logs(&self) -> Result<String> {
        let mut all = String::new();
        for entry in fs::read_dir(&self.system.config().run_dir)? {
            let path = entry?.path();
            if path.is_file() {
                all.push_str(&String::from_utf8_lossy(&fs::read(path)?));
            }
        }
        Ok(all)
    }

    /// Ends it; logs are kept after a failure.
    pub fn stop(self, failed: bool) {
        for ended in self.system.ended() {
            eprintln!("{ended} ended by itself:\n{}", self.system.tail(ended));
        }
        self.runtime.block_on(self.system.stop());
        if failed {
            eprintln!("logs and data are kept in {}", self.folder.keep().display());
        }
    }
}

pub(crate) fn channel(port: u16) -> Channel {
    let address = format!("http://127.0.0.1:{port}");
    Endpoint::from_shared(address)
        .expect("the address is one")
        .connect_lazy()
}

fn artefacts(cache: &Cache, folder: &Path, runtimes: bool) -> Result<PathBuf> {
    let samples = cache.root().join("artefacts");
    make_artefacts(cache, &samples, runtimes)?;
    let folder = folder.join("artefacts");
    fs::create_dir(&folder)?;
    let link = |from: PathBuf, name: &str| std::os::unix::fs::symlink(from, folder.join(name));
    link(samples.join("seldon-models"), "seldon-models")?;
    link(root().join("tests/e2e/artefacts"), "e2e")?;
    Ok(folder)
}

/// What the documentation's commands find in their environment.
fn variables(
    cache: &Cache,
    system: &System,
    folder: &Path,
) -> Result<BTreeMap<&'static str, OsString>> {
    let parts = &system.config().parts;
    let home = folder.join("home");
    fs::create_dir(&home)?;
    let data = format!("127.0.0.1:{}", system.ports().envoys[0].data);
    let api = format!("127.0.0.1:{}", system.ports().scheduler.api);
    let kafka = system.config().kafka_bootstrap().unwrap_or_default();
    let (grpcurl, mlserver) = (cache.grpcurl()?, cache.mlserver()?);
    let mut folders: Vec<PathBuf> = [&parts.cli, &grpcurl, &mlserver]
        .iter()
        .filter_map(|program| program.parent())
        .map(Path::to_owned)
        .collect();
    folders.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    Ok(BTreeMap::from([
        ("PATH", std::env::join_paths(folders)?),
        ("HOME", home.into()),
        ("SELDON_INFER_HOST", data.clone().into()),
        ("INFER_ENDPOINT", data.clone().into()),
        ("MESH_IP", data.into()),
        ("SELDON_SCHEDULE_HOST", api.into()),
        ("SELDON_KAFKA_BROKER", kafka.into()),
        ("TRITONCLIENT", cache.clients_python()?.into()),
        ("OUT", folder.into()),
    ]))
}
