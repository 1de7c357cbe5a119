//! The running system, and what is asked of its scheduler.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use seldon_grpc::introspect::introspect_client::IntrospectClient;
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_local::{Builder, Config, SchedulerPorts, System};
use seldon_proto::introspect::{self, XdsStatusRequest};
use seldon_proto::scheduler as pb;
use seldon_proto::scheduler::model_status::ModelState;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::faults::admin::Envoy;
use crate::faults::network::Wire;
use crate::wait::eventually_async;

/// Two replicas of the fake inference server, two Envoys.
pub struct Fleet {
    pub system: System,
    pub(super) scheduler: SchedulerClient<Channel>,
    pub(super) introspect: IntrospectClient<Channel>,
    _artefacts: TempDir,
}

/// Makes an artefact that has the form of a model; the fake inference server reads nothing of it.
fn artefacts() -> Result<TempDir> {
    let root = tempfile::tempdir()?;
    let folder = root.path().join("seldon-models/mlserver/iris");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("model.joblib"), "not read")?;
    Ok(root)
}

/// A model that any replica can load.
pub fn model(name: &str, memory: u64, replicas: u32) -> pb::Model {
    pb::Model {
        meta: Some(pb::MetaData {
            name: name.to_owned(),
            ..Default::default()
        }),
        model_spec: Some(pb::ModelSpec {
            uri: "gs://seldon-models/mlserver/iris".to_owned(),
            requirements: vec!["sklearn".to_owned()],
            memory_bytes: Some(memory),
            ..Default::default()
        }),
        deployment_spec: Some(pb::DeploymentSpec {
            replicas,
            ..Default::default()
        }),
        ..Default::default()
    }
}

const SILENCE: &str = "--max-elapsed-time-ready-sub-service-after-start-seconds=8";

impl Fleet {
    /// Starts it; the variables are the inference servers'.
    pub async fn start(variables: &[(&'static str, &'static str)]) -> Result<Self> {
        Self::start_with(variables, |_| ()).await
    }

    /// Starts it with a network that can be cut between the scheduler and all others.
    pub async fn start_wired() -> Result<(Self, [Wire; 2])> {
        let wires = [Wire::new()?, Wire::new()?];
        let (xds, agents) = (wires[0].port, wires[1].port);
        let targets = wires.each_ref().map(Wire::target);
        let through = move |config: &mut Config| {
            let own = config.ports.scheduler.clone();
            let [first, second] = &targets;
            first.get_or_init(|| own.xds);
            second.get_or_init(|| own.agents);
            config.scheduler_via = Some(SchedulerPorts { xds, agents, ..own });
        };
        Ok((Self::start_with(&[], through).await?, wires))
    }

    /// Starts it with another configuration.
    pub async fn start_with(
        variables: &[(&'static str, &'static str)],
        change: impl FnOnce(&mut Config) + Send + 'static,
    ) -> Result<Self> {
        let builder = System::builder().servers(2).envoys(2);
        Self::start_from(builder.config(change), variables).await
    }

    /// Starts what a builder describes, on fake inference servers with these variables.
    pub async fn start_from(
        builder: Builder,
        variables: &[(&'static str, &'static str)],
    ) -> Result<Self> {
        let artefacts = artefacts()?;
        let mut builder = builder.artefacts(artefacts.path()).config(|config| {
            config.parts.mlserver = config.parts.scheduler.with_file_name("fake-inference");
            config.memory_bytes = 1_000_000_000;
        });
        // A busy inference server has 30 s to answer by default; here it is stopped for less than that.
        builder = builder.arg("agent", SILENCE);
        for (name, value) in variables {
            builder = builder.env("mlserver", *name, *value);
        }
        let begin = Instant::now();
        let system = builder.start().await?;
        eprintln!(
            "the system started in {:.1} s",
            begin.elapsed().as_secs_f32()
        );
        let address = format!("http://127.0.0.1:{}", system.ports().scheduler.api);
        let channel = Endpoint::from_shared(address)?
            .connect_timeout(Duration::from_secs(1))
            .timeout(Duration::from_secs(10))
            .connect_lazy();
        Ok(Self {
            system,
            scheduler: SchedulerClient::new(channel.clone()),
            introspect: IntrospectClient::new(channel),
            _artefacts: artefacts,
        })
    }

    /// Returns where each Envoy takes requests.
    pub fn targets(&self) -> Vec<String> {
        let envoys = self.system.ports().envoys.iter();
        envoys
            .map(|envoy| format!("127.0.0.1:{}", envoy.data))
            .collect()
    }

    /// Returns the admin interface of each Envoy.
    pub fn envoys(&self) -> Vec<Envoy> {
        let envoys = self.system.ports().envoys.iter();
        envoys.map(|envoy| Envoy(envoy.admin)).collect()
    }

    pub async fn load(&self, model: pb::Model) -> Result<()> {
        let request = pb::LoadModelRequest { model: Some(model) };
        self.scheduler.clone().load_model(request).await?;
        Ok(())
    }

    pub async fn unload(&self, name: &str) -> Result<()> {
        let request = pb::UnloadModelRequest {
            model: Some(reference(name)),
            ..Default::default()
        };
        self.scheduler.clone().unload_model(request).await?;
        Ok(())
    }

    /// Returns what the scheduler says of a model's newest version.
    pub async fn status(&self, name: &str) -> Result<pb::ModelVersionStatus> {
        let request = pb::ModelStatusRequest {
            subscriber_name: "faults".to_owned(),
            model: Some(reference(name)),
            all_versions: false,
        };
        let mut answers = self
            .scheduler
            .clone()
            .model_status(request)
            .await?
            .into_inner();
        let answer = answers.message().await?.context("no answer")?;
        let newest = answer.versions.into_iter().next_back();
        newest.with_context(|| format!("nothing about {name}"))
    }

    /// Waits until a model is in a state, and returns its status.
    pub async fn reaches(
        &self,
        name: &str,
        state: ModelState,
        replicas: u32,
        seconds: u64,
    ) -> Result<pb::ModelVersionStatus> {
        let look = async || {
            let version = self.status(name).await?;
            let status = version.state.clone().unwrap_or_default();
            ensure!(
                status.state() == state && status.available_replicas == replicas,
                "{name} is {} with {} replicas: {}",
                status.state().as_str_name(),
                status.available_replicas,
                status.reason
            );
            Ok(version)
        };
        eventually_async(seconds, look).await
    }

    /// Waits until every named model is available on so many replicas, and both Envoys hold all of it without complaint.
    pub async fn whole(&self, names: &[String], replicas: u32, seconds: u64) -> Result<()> {
        for name in names {
            self.reaches(name, ModelState::ModelAvailable, replicas, seconds)
                .await?;
        }
        let look = async || {
            let status = self.xds().await?;
            let connected: Vec<_> = status
                .envoys
                .iter()
                .filter(|envoy| envoy.connected)
                .collect();
            ensure!(
                connected.len() == self.system.ports().envoys.len(),
                "Envoys: {:?}",
                status.envoys
            );
            for envoy in connected {
                ensure!(
                    envoy.rejections.is_empty(),
                    "refused: {:?}",
                    envoy.rejections
                );
                let pending: u64 = envoy.types.iter().map(|kind| kind.pending).sum();
                ensure!(
                    pending == 0,
                    "{} has {pending} resources to come",
                    envoy.stream
                );
            }
            Ok(())
        };
        eventually_async(seconds, look).await
    }

    pub async fn xds(&self) -> Result<introspect::XdsStatusResponse> {
        Ok(self
            .introspect
            .clone()
            .xds_status(XdsStatusRequest {})
            .await?
            .into_inner())
    }

    /// Follows every model's status.
    pub async fn statuses(&self) -> Result<Statuses> {
        let request = pb::ModelSubscriptionRequest {
            subscriber_name: "faults".to_owned(),
            ..Default::default()
        };
        // The time limit of the other calls would end the subscription.
        let address = format!("http://127.0.0.1:{}", self.system.ports().scheduler.api);
        let channel = Endpoint::from_shared(address)?.connect().await?;
        let answers = SchedulerClient::new(channel)
            .subscribe_model_status(request)
            .await?;
        let mut answers = answers.into_inner();
        let (sender, known) = watch::channel(BTreeMap::new());
        let task = tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                if let Some(newest) = answer.versions.into_iter().next_back() {
                    sender.send_modify(|all: &mut BTreeMap<_, _>| {
                        drop(all.insert(answer.model_name, newest))
                    });
                }
            }
        });
        Ok(Statuses { known, task })
    }
}

fn reference(name: &str) -> pb::ModelReference {
    pb::ModelReference {
        name: name.to_owned(),
        version: None,
    }
}

/// The newest status of every model, as the scheduler's stream tells it.
pub struct Statuses {
    known: watch::Receiver<BTreeMap<String, pb::ModelVersionStatus>>,
    task: JoinHandle<()>,
}

impl Statuses {
    /// Waits until a version of a model is in a state with so many replicas available.
    pub async fn wait(
        &self,
        name: &str,
        version: u32,
        state: ModelState,
        replicas: u32,
    ) -> Result<()> {
        let mut known = self.known.clone();
        let fits = |status: &pb::ModelVersionStatus| {
            let told = status.state.clone().unwrap_or_default();
            status.version >= version
                && told.state() == state
                && told.available_replicas == replicas
        };
        let waiting = known.wait_for(|all| all.get(name).is_some_and(fits));
        match tokio::time::timeout(Duration::from_secs(30), waiting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => bail!("the scheduler ended the stream of statuses"),
            Err(_) => bail!(
                "{name} is not {} in version {version} with {replicas} replicas: {:?}",
                state.as_str_name(),
                self.known.borrow().get(name)
            ),
        }
    }
}

impl Drop for Statuses {
    fn drop(&mut self) {
        self.task.abort();
    }
}
