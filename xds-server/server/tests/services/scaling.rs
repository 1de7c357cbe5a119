//! Autoscaling as agents and the operator see it on the wire.
use seldon_proto::{
    agent::{ModelScalingTriggerMessage, model_scaling_trigger_message::Trigger},
    scheduler::{
        DeploymentSpec, LoadModelRequest, ServerNotify, ServerNotifyRequest, ServerStatusResponse,
        ServerSubscriptionRequest, model_status::ModelState, server_status_response::Type,
    },
};
use seldon_scheduler::store::Forgetful;
use tonic::Streaming;

use crate::harness::{Scheduler, model, report, soon, subscription, until};

/// The next request for replicas among the statuses.
async fn asked(stream: &mut Streaming<ServerStatusResponse>) -> ServerStatusResponse {
    soon("a scaling request", async {
        loop {
            let told = stream.message().await.unwrap().unwrap();
            if told.r#type() == Type::ScalingRequest {
                return told;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_trigger_of_an_agent_becomes_a_request_for_replicas() {
    let scheduler = Scheduler::start_with(Forgetful, |rules| {
        rules.model_autoscaling = true;
    })
    .await;
    let mut api = scheduler.api().await;
    let subscribe = || ServerSubscriptionRequest {
        subscriber_name: "operator".into(),
    };
    let mut operator = api
        .subscribe_server_status(subscribe())
        .await
        .unwrap()
        .into_inner();
    let mut wanted = model("iris");
    wanted.deployment_spec = Some(DeploymentSpec {
        replicas: 1,
        min_replicas: 1,
        max_replicas: 3,
        ..Default::default()
    });
    let mut agents = scheduler.agents().await;
    let commands = agents.subscribe(subscription(0, vec![])).await.unwrap();
    let mut commands = commands.into_inner();
    api.server_notify(ServerNotifyRequest {
        servers: vec![ServerNotify {
            name: "mlserver".into(),
            expected_replicas: 1,
            min_replicas: 1,
            max_replicas: 2,
            ..Default::default()
        }],
        is_first_sync: false,
    })
    .await
    .unwrap();
    api.load_model(LoadModelRequest {
        model: Some(wanted),
    })
    .await
    .unwrap();
    let order = soon("the order", commands.message()).await;
    let order = order.unwrap().unwrap();
    assert!(order.autoscaling_enabled, "agents are to watch it");
    let version = order.model_version.clone().unwrap().version;
    report(&mut agents, 0, order).await;
    until(&mut api, "iris", ModelState::ModelAvailable).await;
    let trigger = ModelScalingTriggerMessage {
        server_name: "mlserver".into(),
        replica_idx: 0,
        model_name: "iris".into(),
        model_version: version,
        trigger: Trigger::ScaleUp.into(),
        amount: 1,
        metrics: [("lag".to_owned(), 31)].into(),
    };
    agents
        .model_scaling_trigger(tokio_stream::iter([trigger]))
        .await
        .unwrap();
    let request = asked(&mut operator).await;
    assert_eq!(request.server_name, "mlserver");
    assert_eq!(request.expected_replicas, 2);

    // An operator that begins anew is asked as well.
    let mut other = api
        .subscribe_server_status(subscribe())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(asked(&mut other).await.expected_replicas, 2);
    scheduler.end().await;
}
