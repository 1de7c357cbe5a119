//! A system with pipelines on one of the two brokers.
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, stream};
use seldon_components::Cache;
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_kafka::Settings;
use seldon_load::driver::Shot;
use seldon_local::kafka::{Options, RealKafka};
use seldon_local::{Builder, Component, System};
use seldon_proto::inference::{
    InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor,
};
use seldon_proto::scheduler as pb;
use seldon_proto::scheduler::{model_status::ModelState, pipeline_version_state::PipelineStatus};
use tokio::time::Instant;
use tonic::transport::Channel;

pub(super) const ENGINE: Component = Component::DataflowEngine(0);
pub(super) const MODELS: Component = Component::ModelGateway(0);
pub(super) const PIPELINES: Component = Component::PipelineGateway(0);

/// Changes under way at once.
const AT_ONCE: usize = 32;

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Embedded,
    Kafka,
}

impl Kind {
    pub(super) fn section(self) -> &'static str {
        match self {
            Self::Embedded => "pipelines, embedded broker",
            Self::Kafka => "pipelines, Kafka",
        }
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "kafka" => Ok(Self::Kafka),
            other => bail!("no broker {other}: name embedded or kafka"),
        }
    }
}

pub(super) struct Scene {
    pub(super) system: System,
    pub(super) settings: Settings,
    scheduler: SchedulerClient<Channel>,
    kafka: Option<RealKafka>,
}

impl Scene {
    /// With a real agent before the trivially fast inference server, whose models answer with what they are asked.
    pub(super) async fn start(kind: Kind) -> Result<Self> {
        let fake = std::env::current_exe()?.with_file_name("fake-inference");
        let builder = System::builder().servers(1).config(move |config| {
            config.parts.mlserver = fake;
            config.memory_bytes = 1_000_000_000;
        });
        Self::of(kind, builder.env("mlserver", "FAKE_ECHO_PREFIX", "echo")).await
    }

    /// What a builder describes, and pipelines.
    pub(super) async fn of(kind: Kind, builder: Builder) -> Result<Self> {
        let mut builder = builder
            .envoys(1)
            .pipelines()
            .config(|config| config.log_level = "warn".into());
        let kafka = match kind {
            Kind::Embedded => None,
            Kind::Kafka => {
                let start = || RealKafka::start(&Cache::open()?, Options::default());
                Some(tokio::task::spawn_blocking(start).await??)
            }
        };
        if let Some(kafka) = &kafka {
            builder = builder.kafka(kafka.bootstrap());
        }
        let system = builder.start().await?;
        let bootstrap = system.config().kafka_bootstrap().context("no Kafka")?;
        let api = system.ports().scheduler.api;
        Ok(Self {
            scheduler: SchedulerClient::connect(format!("http://127.0.0.1:{api}")).await?,
            settings: Settings::local(&bootstrap),
            system,
            kafka,
        })
    }

    pub(super) async fn stop(self) {
        self.system.stop().await;
    }

    pub(super) fn envoy(&self) -> String {
        format!("127.0.0.1:{}", self.system.ports().envoys[0].data)
    }

    /// The port of the broker on loopback.
    pub(super) fn broker_port(&self) -> Result<u16> {
        let bootstrap = self.system.config().kafka_bootstrap();
        let bootstrap = bootstrap.context("no Kafka")?;
        let port = bootstrap.rsplit_once(':').map(|(_, port)| port);
        Ok(port.context("no port")?.parse()?)
    }

    pub(super) fn pid(&self, component: Component) -> Result<u32> {
        let pid = match (&self.kafka, component) {
            (Some(kafka), Component::Broker) => kafka.pid(),
            _ => self.system.pid(component),
        };
        pid.with_context(|| format!("{component} is gone"))
    }

    /// Ends a process and starts it, without waiting for it. Returns when it was started.
    pub(super) async fn begin_again(&mut self, component: Component) -> Result<Instant> {
        if let (Some(kafka), Component::Broker) = (&mut self.kafka, component) {
            tokio::task::block_in_place(|| kafka.stop())?;
            let start = Instant::now();
            tokio::task::block_in_place(|| kafka.restart())?;
            return Ok(start);
        }
        self.system.stop_one(component).await;
        let start = Instant::now();
        self.system.start_one(component)?;
        Ok(start)
    }

    pub(super) async fn ready(&self, component: Component) -> Result<()> {
        if component == Component::Broker && self.kafka.is_some() {
            return Ok(());
        }
        self.system
            .wait_one(component, Duration::from_secs(120))
            .await
    }

    /// Loads models that require `capability` and waits until all are available.
    pub(super) async fn models(&self, names: &[String], capability: &str) -> Result<()> {
        let mut loads = stream::iter(names)
            .map(|name| self.load_model(name, capability))
            .buffer_unordered(AT_ONCE);
        while let Some(done) = loads.next().await {
            done?;
        }
        let what = format!("{} models are available", names.len());
        until(&what, Duration::from_secs(120), async || {
            Ok(self.available_models().await? >= names.len())
        })
        .await
    }

    async fn load_model(&self, name: &str, capability: &str) -> Result<()> {
        let model = pb::Model {
            meta: Some(pb::MetaData {
                name: name.to_owned(),
                ..Default::default()
            }),
            model_spec: Some(pb::ModelSpec {
                uri: "gs://seldon-models/mlserver/iris".to_owned(),
                requirements: vec![capability.to_owned()],
                memory_bytes: Some(1000),
                ..Default::default()
            }),
            deployment_spec: Some(pb::DeploymentSpec {
                replicas: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = pb::LoadModelRequest { model: Some(model) };
        self.scheduler.clone().load_model(request).await?;
        Ok(())
    }

    async fn available_models(&self) -> Result<usize> {
        let request = pb::ModelStatusRequest {
            subscriber_name: "bench".to_owned(),
            ..Default::default()
        };
        let mut scheduler = self.scheduler.clone();
        let mut answers = scheduler.model_status(request).await?.into_inner();
        let mut available = 0;
        while let Some(status) = answers.message().await? {
            let state = status.versions.first().and_then(|v| v.state.as_ref());
            available +=
                usize::from(state.is_some_and(|s| s.state() == ModelState::ModelAvailable));
        }
        Ok(available)
    }

    /// Loads pipelines; they are not ready when this returns.
    pub(super) async fn load(&self, pipelines: &[pb::Pipeline]) -> Result<()> {
        let mut loads = stream::iter(pipelines)
            .map(|pipeline| {
                let mut scheduler = self.scheduler.clone();
                async move {
                    let pipeline = Some(pipeline.clone());
                    let request = pb::LoadPipelineRequest { pipeline };
                    scheduler.load_pipeline(request).await
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(done) = loads.next().await {
            done?;
        }
        Ok(())
    }

    /// Waits until all pipelines there are, so many, are ready.
    pub(super) async fn pipelines_ready(&self, count: usize) -> Result<()> {
        let what = format!("{count} pipelines are ready");
        until(&what, Duration::from_secs(180), async || {
            Ok(self.ready_pipelines().await? >= count)
        })
        .await
    }

    async fn ready_pipelines(&self) -> Result<usize> {
        let request = pb::PipelineStatusRequest {
            subscriber_name: "bench".to_owned(),
            name: None,
            all_versions: false,
        };
        let mut scheduler = self.scheduler.clone();
        let mut answers = scheduler.pipeline_status(request).await?.into_inner();
        let mut ready = 0;
        while let Some(status) = answers.message().await? {
            let state = status.versions.last().and_then(|v| v.state.as_ref());
            ready +=
                usize::from(state.is_some_and(|s| s.status() == PipelineStatus::PipelineReady));
        }
        Ok(ready)
    }
}

/// Waits for a condition.
pub(super) async fn until(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !look().await? {
        ensure!(Instant::now() < deadline, "not so after {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A pipeline whose steps follow each other.
pub(super) fn chain(name: &str, steps: &[String]) -> pb::Pipeline {
    let mut all: Vec<pb::PipelineStep> = Vec::new();
    for step in steps {
        let before = all.last().map(|step| step.name.clone());
        all.push(pb::PipelineStep {
            name: step.clone(),
            inputs: before.into_iter().collect(),
            ..Default::default()
        });
    }
    pb::Pipeline {
        name: name.to_owned(),
        steps: all,
        output: Some(pb::PipelineOutput {
            steps: steps.last().cloned().into_iter().collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The names of echoing models.
pub(super) fn echoes(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("echo-{number}")).collect()
}

/// Two tensors of 16 numbers, as the documented examples have them.
pub(super) fn message(model: &str) -> ModelInferRequest {
    let tensor = |name: &str| InferInputTensor {
        name: name.to_owned(),
        datatype: "INT32".to_owned(),
        shape: vec![1, 16],
        contents: Some(InferTensorContents {
            int_contents: (1..=16).collect(),
            ..Default::default()
        }),
        ..Default::default()
    };
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![tensor("INPUT0"), tensor("INPUT1")],
        ..Default::default()
    }
}

/// Asks a pipeline by gRPC.
pub(super) fn grpc(pipeline: &str) -> Shot {
    Shot::grpc(&format!("{pipeline}.pipeline"), &message(pipeline))
}

/// Asks a model by gRPC.
pub(super) fn grpc_model(model: &str) -> Shot {
    Shot::grpc(model, &message(model))
}

/// Asks a pipeline by REST.
pub(super) fn rest(pipeline: &str) -> Shot {
    let numbers = (1..=16)
        .map(|n| n.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let tensor = |name| {
        format!(r#"{{"name":"{name}","shape":[1,16],"datatype":"INT32","data":[{numbers}]}}"#)
    };
    let body = format!(
        r#"{{"inputs":[{},{}]}}"#,
        tensor("INPUT0"),
        tensor("INPUT1")
    );
    let mut shot = Shot::rest(&format!("{pipeline}.pipeline"), &body);
    shot.path = format!("/v2/models/{pipeline}/infer");
    shot
}
