//! Replicas with real agents, each before a trivially fast inference server of its own.
use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_load::{cpu, ledger::Asked};
use seldon_local::{Component, Config, System};
use seldon_proto::scheduler::{
    DeploymentSpec, LoadModelRequest, MetaData, Model, ModelReference, ModelSpec,
    ModelStatusRequest, ModelVersionStatus, ServerStatusRequest, ServerStatusResponse,
    UnloadModelRequest, model_status::ModelState,
};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::admin;

/// Changes under way at once.
const AT_ONCE: usize = 64;

/// A model to load.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    pub bytes: u64,
    pub replicas: u32,
}

pub struct Fleet {
    pub system: System,
    pub replicas: usize,
    client: SchedulerClient<Channel>,
}

impl Fleet {
    /// Starts a scheduler, an Envoy and replicas.
    pub async fn start(
        replicas: usize,
        change: impl FnOnce(&mut Config) + Send + 'static,
    ) -> Result<Self> {
        let fake = std::env::current_exe()?.with_file_name("fake-inference");
        let system = System::builder()
            .servers(replicas)
            .envoys(1)
            .config(|config| {
                config.parts.mlserver = fake;
                config.log_level = "warn".into();
                change(config);
            })
            .start()
            .await?;
        let api = system.ports().scheduler.api;
        Ok(Self {
            client: SchedulerClient::connect(format!("http://127.0.0.1:{api}")).await?,
            system,
            replicas,
        })
    }

    /// Where Envoy takes requests.
    pub fn envoy(&self) -> String {
        format!("127.0.0.1:{}", self.system.ports().envoys[0].data)
    }

    pub fn pid(&self, component: Component) -> Result<u32> {
        let pid = self.system.pid(component);
        pid.with_context(|| format!("{component} is gone"))
    }

    /// CPU time of a process so far, in seconds.
    pub fn cpu(&self, component: Component) -> Result<f64> {
        let time = cpu::time(self.pid(component)?);
        Ok(time.context("no CPU time")?.as_secs_f64())
    }

    /// Resident memory of a process, in bytes.
    pub fn memory(&self, component: Component) -> Result<f64> {
        let memory = cpu::resident(self.pid(component)?);
        Ok(memory.context("no memory")? as f64)
    }

    /// Asks for models; they are not loaded yet when this returns.
    pub async fn load(&self, models: &[Wanted]) -> Result<()> {
        let calls = stream::iter(models).map(Ok);
        calls
            .try_for_each_concurrent(AT_ONCE, async |wanted| {
                self.client.clone().load_model(request(wanted)).await?;
                Ok(())
            })
            .await
    }

    /// Asks for models to go; they are not gone yet when this returns.
    pub async fn unload(&self, models: &[Wanted]) -> Result<()> {
        let calls = stream::iter(models).map(Ok);
        calls
            .try_for_each_concurrent(AT_ONCE, async |wanted| {
                let model = ModelReference {
                    name: wanted.name.clone(),
                    version: None,
                };
                let request = UnloadModelRequest {
                    model: Some(model),
                    ..Default::default()
                };
                self.client.clone().unload_model(request).await?;
                Ok(())
            })
            .await
    }

    /// The server with its replicas.
    pub async fn server(&self) -> Result<ServerStatusResponse> {
        let request = ServerStatusRequest {
            subscriber_name: "bench".into(),
            name: Some("mlserver".into()),
        };
        let answers = self.client.clone().server_status(request).await?;
        let answer = answers.into_inner().message().await?;
        answer.context("nothing about the server")
    }

    /// The newest version of every model.
    pub async fn models(&self) -> Result<BTreeMap<String, ModelVersionStatus>> {
        let request = ModelStatusRequest {
            subscriber_name: "bench".into(),
            ..Default::default()
        };
        let answers = self.client.clone().model_status(request).await?;
        let mut answers = answers.into_inner();
        let mut models = BTreeMap::new();
        while let Some(answer) = answers.message().await? {
            let newest = answer.versions.into_iter().next();
            models.extend(newest.map(|version| (answer.model_name, version)));
        }
        Ok(models)
    }

    /// Waits until the replicas `present`, and no others, are there, and have all of these models loaded as often as is wanted
    /// and nothing else, and each model is available. One cheap question is asked again and again, the other in the end.
    pub async fn settled(
        &self,
        present: &[u32],
        models: &[Wanted],
        limit: Duration,
    ) -> Result<BTreeMap<String, ModelVersionStatus>> {
        let wanted: u32 = models.iter().map(|model| model.replicas).sum();
        let deadline = Instant::now() + limit;
        loop {
            let server = self.server().await?;
            let there: Vec<u32> = server.resources.iter().map(|r| r.replica_idx).collect();
            let loaded = server.num_loaded_model_replicas;
            if there == present && i64::from(loaded) == i64::from(wanted) {
                let status = self.models().await?;
                let available = models.iter().filter(|model| {
                    let state = status.get(&model.name).and_then(|v| v.state.as_ref());
                    state.is_some_and(|s| s.state() == ModelState::ModelAvailable)
                });
                if available.count() == models.len() {
                    return Ok(status);
                }
            }
            if Instant::now() > deadline {
                bail!(
                    "replicas {there:?} have {loaded} models loaded, not {wanted} on {present:?}, after {} s",
                    limit.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A metric of a replica's agent.
    pub async fn metric(&self, replica: usize, name: &str) -> Result<f64> {
        let port = self.system.ports().replicas[replica].metrics;
        let text = admin::get(port, "/metrics").await?;
        let mut found = None;
        for line in text.lines() {
            let rest = line.strip_prefix(name);
            if rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && let Some((_, value)) = line.rsplit_once(' ')
            {
                found = Some(found.unwrap_or(0.0) + value.parse::<f64>()?);
            }
        }
        found.with_context(|| format!("no metric {name} of agent {replica}"))
    }

    /// A metric, all replicas together.
    pub async fn metrics(&self, name: &str) -> Result<f64> {
        let mut sum = 0.0;
        for replica in 0..self.replicas {
            sum += self.metric(replica, name).await?;
        }
        Ok(sum)
    }

    /// What a replica's inference server was asked.
    pub async fn asked(&self, replica: usize) -> Result<Asked> {
        let port = self.system.ports().replicas[replica].server_rest;
        let text = admin::get(port, "/fake/asked").await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Ends all processes; fails where one has ended by itself.
    pub async fn stop(self) -> Result<()> {
        let ended = self.system.ended();
        self.system.stop().await;
        ensure!(ended.is_empty(), "{ended:?} ended while being measured");
        Ok(())
    }
}

fn request(wanted: &Wanted) -> LoadModelRequest {
    let model = Model {
        meta: Some(MetaData {
            name: wanted.name.clone(),
            ..Default::default()
        }),
        model_spec: Some(ModelSpec {
            uri: "gs://seldon-models/mlserver/iris".into(),
            requirements: vec!["sklearn".into()],
            memory_bytes: Some(wanted.bytes),
            ..Default::default()
        }),
        deployment_spec: Some(DeploymentSpec {
            replicas: wanted.replicas,
            ..Default::default()
        }),
        ..Default::default()
    };
    LoadModelRequest { model: Some(model) }
}
