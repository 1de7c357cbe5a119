//! The scheduler in this process on real sockets, and scripted agents.
use seldon_core::Config;
use seldon_grpc::{
    agent::agent_service_client::AgentServiceClient, scheduler::scheduler_client::SchedulerClient,
};
use seldon_proto::{
    agent::{
        AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage, ModelVersion,
        ReplicaConfig, model_event_message, model_operation_message::Operation,
    },
    scheduler::{model_status::ModelState, *},
};
use seldon_scheduler::{sockets::Sockets, store::Store, system::run};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::common::{PATIENCE, channel, options, socket};

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long: {what}"),
    }
}

pub struct Scheduler {
    pub api: u16,
    pub agents: u16,
    pub health: u16,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Scheduler {
    pub async fn start<S: Store>(store: S) -> Self {
        Self::start_with(store, |_| {}).await
    }

    /// With other rules than usual.
    pub async fn start_with<S: Store>(store: S, change: impl FnOnce(&mut Config)) -> Self {
        let (xds, _) = socket().await;
        let (scheduler, api) = socket().await;
        let (agent, agents) = socket().await;
        let (probes, health) = socket().await;
        let sockets = Sockets {
            xds,
            scheduler: Some(scheduler),
            scheduler_mtls: None,
            agents: Some(agent),
            agents_mtls: None,
            dataflow: None,
            health: probes,
        };
        let stop = CancellationToken::new();
        let mut options = options(store);
        change(&mut options.rules);
        let task = tokio::spawn(run(options, sockets, stop.clone()));
        Self {
            api,
            agents,
            health,
            stop,
            task,
        }
    }

    pub async fn api(&self) -> SchedulerClient<Channel> {
        SchedulerClient::new(channel(self.api).await)
    }

    pub async fn agents(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(channel(self.agents).await)
    }

    /// Ends it and waits until it has ended.
    pub async fn end(self) {
        self.stop.cancel();
        soon("the end", self.task).await.unwrap().unwrap();
    }
}

pub fn model(name: &str) -> Model {
    Model {
        meta: Some(MetaData {
            name: name.into(),
            kubernetes_meta: Some(KubernetesMeta {
                namespace: "n".into(),
                generation: 7,
            }),
            ..Default::default()
        }),
        model_spec: Some(ModelSpec {
            uri: "gs://bucket/model".into(),
            requirements: vec!["sklearn".into()],
            ..Default::default()
        }),
        deployment_spec: Some(DeploymentSpec {
            replicas: 1,
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn load(name: &str) -> LoadModelRequest {
    LoadModelRequest {
        model: Some(model(name)),
    }
}

pub fn subscription(replica: u32, loaded: Vec<ModelVersion>) -> AgentSubscribeRequest {
    AgentSubscribeRequest {
        server_name: "mlserver".into(),
        shared: true,
        replica_idx: replica,
        replica_config: Some(ReplicaConfig {
            inference_svc: "127.0.0.1".into(),
            inference_http_port: 8080,
            inference_grpc_port: 8080,
            memory_bytes: 1 << 40,
            capabilities: vec!["sklearn".into()],
            over_commit_percentage: 0,
        }),
        loaded_models: loaded,
        available_memory_bytes: 1 << 40,
    }
}

/// Answers every command with success, until its stream ends.
pub async fn obey(
    mut client: AgentServiceClient<Channel>,
    replica: u32,
) -> JoinHandle<Vec<String>> {
    let stream = client
        .subscribe(subscription(replica, vec![]))
        .await
        .unwrap();
    let mut commands = stream.into_inner();
    tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Ok(Some(command)) = commands.message().await {
            seen.push(report(&mut client, replica, command).await);
        }
        seen
    })
}

pub async fn report(
    client: &mut AgentServiceClient<Channel>,
    replica: u32,
    command: ModelOperationMessage,
) -> String {
    use model_event_message::Event;
    let (event, verb) = match command.operation() {
        Operation::LoadModel => (Event::Loaded, "load"),
        _ => (Event::Unloaded, "unload"),
    };
    let version = command.model_version.unwrap();
    let name = version.model.unwrap().meta.unwrap().name;
    let message = ModelEventMessage {
        server_name: "mlserver".into(),
        replica_idx: replica,
        model_name: name.clone(),
        model_version: version.version,
        event: event.into(),
        available_memory_bytes: 1 << 40,
        ..Default::default()
    };
    client.agent_event(message).await.unwrap();
    format!("{verb} {name}")
}

/// Follows a model until it has the state.
pub async fn until(
    api: &mut SchedulerClient<Channel>,
    name: &str,
    state: ModelState,
) -> ModelStatusResponse {
    let request = ModelSubscriptionRequest {
        subscriber_name: "test".into(),
        is_model_gateway: false,
    };
    let mut statuses = api
        .subscribe_model_status(request)
        .await
        .unwrap()
        .into_inner();
    soon(&format!("{name} to be {state:?}"), async {
        loop {
            let status = statuses
                .message()
                .await
                .unwrap()
                .expect("the stream goes on");
            let now = status.versions.last().and_then(|v| v.state.clone());
            if status.model_name == name && now.is_some_and(|s| s.state() == state) {
                return status;
            }
        }
    })
    .await
}
