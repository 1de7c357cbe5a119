//! An agent that loads nothing: it reports every model as loaded at once, at the address of a server that answers all.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use seldon_grpc::agent::agent_service_client::AgentServiceClient;
use seldon_proto::agent::{
    AgentSubscribeRequest, ModelEventMessage, ModelVersion, ReplicaConfig,
    model_event_message::Event, model_operation_message::Operation,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

/// Models that were reported as loaded: the last one and when.
pub type Loaded = watch::Receiver<Option<(Arc<str>, Instant)>>;

/// Subscribes as the only replica of `server`, which serves models that require its name, and reports for ever, also to a
/// scheduler that was started again.
pub async fn start(scheduler: String, server: &'static str, port: u16) -> Result<Loaded> {
    let mut client: AgentServiceClient<Channel> = AgentServiceClient::connect(scheduler).await?;
    let subscription = AgentSubscribeRequest {
        server_name: server.into(),
        shared: true,
        replica_idx: 0,
        replica_config: Some(ReplicaConfig {
            inference_svc: "127.0.0.1".into(),
            inference_http_port: port.into(),
            inference_grpc_port: port.into(),
            memory_bytes: 1 << 40,
            capabilities: vec![server.into()],
            over_commit_percentage: 0,
        }),
        loaded_models: vec![],
        available_memory_bytes: 1 << 40,
    };
    let mut orders = client.subscribe(subscription.clone()).await?.into_inner();
    let (sender, loaded) = watch::channel(None);
    tokio::spawn(async move {
        let mut has: BTreeMap<(String, u32), ModelVersion> = BTreeMap::new();
        loop {
            let Ok(Some(order)) = orders.message().await else {
                // The scheduler has gone: it is told of the models when it is back.
                sleep(Duration::from_millis(50)).await;
                let subscription = AgentSubscribeRequest {
                    loaded_models: has.values().cloned().collect(),
                    ..subscription.clone()
                };
                if let Ok(again) = client.subscribe(subscription).await {
                    orders = again.into_inner();
                }
                continue;
            };
            let loads = order.operation() == Operation::LoadModel;
            let Some(version) = order.model_version else {
                continue;
            };
            let meta = version.model.as_ref().and_then(|m| m.meta.as_ref());
            let name = meta.map(|m| m.name.clone()).unwrap_or_default();
            let model_version = version.version;
            let key = (name.clone(), model_version);
            if loads {
                has.insert(key, version);
            } else {
                has.remove(&key);
            }
            let event = if loads {
                Event::Loaded
            } else {
                Event::Unloaded
            };
            let message = ModelEventMessage {
                server_name: server.into(),
                replica_idx: 0,
                model_name: name.clone(),
                model_version,
                event: event.into(),
                available_memory_bytes: 1 << 40,
                ..Default::default()
            };
            let (mut client, sender) = (client.clone(), sender.clone());
            tokio::spawn(async move {
                let now = Instant::now();
                if client.agent_event(message).await.is_ok() && loads {
                    sender.send_replace(Some((name.into(), now)));
                }
            });
        }
    });
    Ok(loaded)
}
