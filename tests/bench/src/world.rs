//! A scheduler and its Envoys, models on scripted agents, and experiments.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, stream};
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_local::{Component, Config, System};
use seldon_proto::scheduler::{
    DeploymentSpec, Experiment, ExperimentStatusRequest, LoadModelRequest, MetaData, Model,
    ModelReference, ModelSpec, ModelStatusRequest, ModelStatusResponse, StartExperimentRequest,
    model_status::ModelState,
};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{
    admin, scripted,
    shots::{median, saturate},
};
use seldon_load::driver::Shot;

/// How many changes are under way at once while a world is filled.
const AT_ONCE: usize = 64;

pub struct World {
    pub system: System,
    pub client: SchedulerClient<Channel>,
    agents: String,
}

impl World {
    /// Starts a scheduler and Envoys.
    pub async fn start(
        envoys: usize,
        change: impl FnOnce(&mut Config) + Send + 'static,
    ) -> Result<Self> {
        let system = System::builder()
            .servers(0)
            .envoys(envoys)
            .config(|c| {
                c.log_level = "warn".into();
                change(c);
            })
            .start()
            .await?;
        let ports = system.ports().scheduler.clone();
        let client = SchedulerClient::connect(format!("http://127.0.0.1:{}", ports.api)).await?;
        Ok(Self {
            system,
            client,
            agents: format!("http://127.0.0.1:{}", ports.agents),
        })
    }

    /// Adds a server of one replica, for models that require its name.
    pub async fn server(&self, name: &'static str, port: u16) -> Result<scripted::Loaded> {
        scripted::start(self.agents.clone(), name, port).await
    }

    pub fn data(&self, envoy: usize) -> String {
        format!("127.0.0.1:{}", self.system.ports().envoys[envoy].data)
    }

    pub fn admin(&self, envoy: usize) -> u16 {
        self.system.ports().envoys[envoy].admin
    }

    pub fn pid(&self, component: Component) -> Result<u32> {
        self.system
            .pid(component)
            .with_context(|| format!("{component} is gone"))
    }

    pub fn target(&self, envoy: usize) -> Result<Target> {
        Ok(Target {
            data: self.data(envoy),
            pid: self.pid(Component::Envoy(envoy))?,
        })
    }

    /// Bytes that came to an Envoy from the scheduler.
    pub async fn discovered(&self, envoy: usize) -> Result<f64> {
        let name = "cluster.xds_cluster.upstream_cx_rx_bytes_total";
        admin::stat(self.admin(envoy), name).await
    }

    pub async fn load(&self, name: &str, server: &str) -> Result<()> {
        let model = Model {
            meta: Some(MetaData {
                name: name.into(),
                ..Default::default()
            }),
            model_spec: Some(ModelSpec {
                uri: "gs://seldon-models/mlserver/iris".into(),
                requirements: vec![server.into()],
                memory_bytes: Some(1000),
                ..Default::default()
            }),
            deployment_spec: Some(DeploymentSpec {
                replicas: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = LoadModelRequest { model: Some(model) };
        self.client.clone().load_model(request).await?;
        Ok(())
    }

    /// Loads models and waits until all there are, `total`, are available.
    pub async fn fill(&self, names: &[String], server: &str, total: usize) -> Result<()> {
        let mut loads = stream::iter(names)
            .map(|name| self.load(name, server))
            .buffer_unordered(AT_ONCE);
        while let Some(done) = loads.next().await {
            done?;
        }
        // Asking costs the scheduler as well, so only some are asked for often.
        let deadline = Instant::now() + Duration::from_secs(120);
        let some = [names.last(), names.first(), names.get(names.len() / 2)];
        for name in some.into_iter().flatten() {
            while !self.available(name).await? {
                ensure!(Instant::now() < deadline, "{name} is not available");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.all_available(total).await
    }

    /// One call tells of all models.
    async fn all_available(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let request = ModelStatusRequest {
                subscriber_name: "bench".into(),
                ..Default::default()
            };
            let mut answers = self
                .client
                .clone()
                .model_status(request)
                .await?
                .into_inner();
            let mut available = 0;
            while let Some(status) = answers.message().await? {
                available += usize::from(is_available(&status));
            }
            if available == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{available} of {count} models are available"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn available(&self, name: &str) -> Result<bool> {
        let request = ModelStatusRequest {
            subscriber_name: "bench".into(),
            model: Some(ModelReference {
                name: name.into(),
                version: None,
            }),
            all_versions: false,
        };
        let status = self
            .client
            .clone()
            .model_status(request)
            .await?
            .into_inner()
            .message()
            .await?;
        Ok(status.as_ref().is_some_and(is_available))
    }

    pub async fn experiment(&self, experiment: Experiment) -> Result<()> {
        let request = StartExperimentRequest {
            experiment: Some(experiment),
        };
        self.client.clone().start_experiment(request).await?;
        Ok(())
    }

    /// Starts experiments and waits until all of them are active.
    pub async fn experiments(&self, all: Vec<Experiment>) -> Result<()> {
        let names: Vec<String> = all.iter().map(|e| e.name.clone()).collect();
        let mut starts = stream::iter(all)
            .map(|experiment| self.experiment(experiment))
            .buffer_unordered(AT_ONCE);
        while let Some(done) = starts.next().await {
            done?;
        }
        let deadline = Instant::now() + Duration::from_secs(120);
        for name in &names {
            while let Some(why) = self.inactive(name).await? {
                ensure!(Instant::now() < deadline, "{name} is not active: {why}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Why an experiment is not active.
    async fn inactive(&self, name: &str) -> Result<Option<String>> {
        let request = ExperimentStatusRequest {
            subscriber_name: "bench".into(),
            name: Some(name.into()),
        };
        let status = self
            .client
            .clone()
            .experiment_status(request)
            .await?
            .into_inner()
            .message()
            .await?
            .with_context(|| format!("nothing about experiment {name}"))?;
        Ok((!status.active).then_some(status.status_description))
    }
}

fn is_available(status: &ModelStatusResponse) -> bool {
    let state = status.versions.first().and_then(|v| v.state.as_ref());
    state.is_some_and(|s| s.state() == ModelState::ModelAvailable)
}

/// An Envoy to send to, and its process.
#[derive(Clone, Debug)]
pub struct Target {
    pub data: String,
    pub pid: u32,
}

/// Something to send, and where.
pub struct Kind {
    pub target: Target,
    pub shot: Shot,
}

/// Envoy's CPU a request of each kind, µs, in rounds in which all kinds take turns: machines are noisy.
pub struct Costs {
    kinds: Vec<Vec<f64>>,
}

impl Costs {
    /// Of a kind, by its place in the list.
    pub fn median(&self, kind: usize) -> f64 {
        median(self.kinds[kind].clone())
    }

    /// One kind against another: the median of the rounds' ratios, which a slow spell of the machine leaves alone.
    pub fn ratio(&self, kind: usize, other: usize) -> f64 {
        let rounds = self.kinds[kind].iter().zip(&self.kinds[other]);
        median(rounds.map(|(one, other)| one / other).collect())
    }
}

/// Measures the kinds in turns.
pub async fn costs(
    kinds: &[Kind],
    rounds: usize,
    connections: usize,
    duration: Duration,
) -> Result<Costs> {
    let mut all = vec![Vec::with_capacity(rounds); kinds.len()];
    for _ in 0..rounds {
        for (kind, figures) in kinds.iter().zip(&mut all) {
            let cost = saturate(
                vec![kind.target.data.clone()],
                vec![kind.shot.clone()],
                connections,
                duration,
                &[kind.target.pid],
            )
            .await?;
            figures.extend(cost.cpu_us);
        }
    }
    Ok(Costs { kinds: all })
}
