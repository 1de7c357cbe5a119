//! The services on real sockets, with a scripted agent in place of a real one, and without Envoys.
#![allow(clippy::unwrap_used)] // a test may
#[path = "../common/mod.rs"]
mod common;
mod harness;
mod scaling;

use std::path::PathBuf;

use common::channel;
use harness::{Scheduler, load, obey, soon, subscription, until};
use seldon_grpc::{
    health::health_check_service_client::HealthCheckServiceClient,
    introspect::introspect_client::IntrospectClient, scheduler::scheduler_client::SchedulerClient,
};
use seldon_proto::{
    agent::{AgentDrainRequest, AgentSubscribeRequest, ModelScalingTriggerMessage},
    introspect::{
        ExplainExperimentRequest, ExplainModelRequest, ExplainRouteRequest, Header,
        XdsStatusRequest,
    },
    scheduler::{control_plane_response::Event as Marker, model_status::ModelState, *},
};
use seldon_scheduler::store::{Disk, Forgetful, Store, StoreError, Write};
use tonic::{Code, transport::Channel};

#[tokio::test]
async fn a_model_is_loaded_shown_and_unloaded() {
    let scheduler = Scheduler::start(Forgetful).await;
    let mut api = scheduler.api().await;
    let agent = obey(scheduler.agents().await, 0).await;
    api.load_model(load("iris")).await.unwrap();
    let status = until(&mut api, "iris", ModelState::ModelAvailable).await;
    let meta = status.versions[0].kubernetes_meta.clone();
    assert_eq!(
        meta.map(|m| m.generation),
        Some(7),
        "kubernetesMeta is echoed"
    );
    let one = ModelStatusRequest {
        model: Some(ModelReference {
            name: "iris".into(),
            version: None,
        }),
        ..Default::default()
    };
    let mut stream = api.model_status(one).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().model_name, "iris");
    assert!(
        stream.message().await.unwrap().is_none(),
        "one message, then the end"
    );
    let servers = ServerStatusRequest::default();
    let mut stream = api.server_status(servers).await.unwrap().into_inner();
    let server = stream.message().await.unwrap().unwrap();
    assert_eq!(
        (server.server_name.as_str(), server.available_replicas),
        ("mlserver", 1)
    );
    let unload = UnloadModelRequest {
        model: Some(ModelReference {
            name: "iris".into(),
            version: None,
        }),
        kubernetes_meta: None,
    };
    api.unload_model(unload).await.unwrap();
    until(&mut api, "iris", ModelState::ModelTerminated).await;
    scheduler.end().await;
    let seen = soon("the agent's stream to end", agent).await.unwrap();
    assert_eq!(seen, ["load iris", "unload iris"]);
}

#[tokio::test]
async fn what_is_unknown_or_not_built_is_said_so() {
    let scheduler = Scheduler::start(Forgetful).await;
    let mut api = scheduler.api().await;
    let unknown = ModelStatusRequest {
        model: Some(ModelReference {
            name: "nope".into(),
            version: None,
        }),
        ..Default::default()
    };
    let refused = api.model_status(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("nope"));
    let refused = api
        .server_status(ServerStatusRequest {
            name: Some("nope".into()),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert!(refused.message().contains("[nope]"));
    let refused = api.load_model(load("Not_A_Name")).await.unwrap_err();
    assert!(refused.message().contains("Not_A_Name"), "{refused}");
    let refused = api
        .load_pipeline(LoadPipelineRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = api
        .pipeline_status(PipelineStatusRequest {
            name: Some("nope".into()),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("nope"), "{refused}");
    let mut agents = scheduler.agents().await;
    let triggers = tokio_stream::iter([ModelScalingTriggerMessage::default()]);
    // Of a model that nobody knows: it may have gone since.
    agents.model_scaling_trigger(triggers).await.unwrap();
    let mut portless = subscription(0, vec![]);
    if let Some(config) = &mut portless.replica_config {
        config.inference_http_port = 70_000;
    }
    let refused = agents.subscribe(portless).await.unwrap_err();
    assert!(refused.message().contains("70000"), "{refused}");
    let nobody = AgentSubscribeRequest::default();
    let refused = agents.subscribe(nobody).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let mut introspect = IntrospectClient::new(channel(scheduler.api).await);
    let status = introspect.xds_status(XdsStatusRequest {}).await.unwrap();
    assert!(status.into_inner().envoys.is_empty());
    let asked = ExplainModelRequest {
        model: "nope".into(),
    };
    let refused = introspect.explain_model(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for port in [scheduler.api, scheduler.agents] {
        let mut health = HealthCheckServiceClient::new(channel(port).await);
        let answer = health
            .health_check(seldon_proto::health::HealthCheckRequest {})
            .await;
        assert!(answer.unwrap().into_inner().ok);
    }
    assert!(
        http_get(scheduler.health, "/ready")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        http_get(scheduler.health, "/metrics")
            .await
            .contains("seldon_scheduler_models 0")
    );
    scheduler.end().await;
}

async fn http_get(port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_control_plane_is_asked_in_order() {
    let scheduler = Scheduler::start(Forgetful).await;
    let mut api = scheduler.api().await;
    let request = ControlPlaneSubscriptionRequest::default();
    let mut markers = api
        .subscribe_control_plane(request)
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(
            soon("a marker", markers.message())
                .await
                .unwrap()
                .unwrap()
                .event(),
        );
    }
    use Marker::*;
    assert_eq!(
        seen,
        [SendServers, SendExperiments, SendModels, SendPipelines]
    );
    scheduler.end().await;
    let last = soon("the stream to end", markers.message()).await;
    assert!(
        !matches!(last, Ok(Some(_))),
        "a stopping scheduler closes its streams"
    );
}

#[tokio::test]
async fn a_drained_replica_hands_its_model_over() {
    let scheduler = Scheduler::start(Forgetful).await;
    let mut api = scheduler.api().await;
    let _first = obey(scheduler.agents().await, 0).await;
    api.load_model(load("iris")).await.unwrap();
    until(&mut api, "iris", ModelState::ModelAvailable).await;
    let _second = obey(scheduler.agents().await, 1).await;
    let mut agents = scheduler.agents().await;
    let request = AgentDrainRequest {
        server_name: "mlserver".into(),
        replica_idx: 0,
    };
    let drained = soon("the drain", agents.agent_drain(request))
        .await
        .unwrap();
    assert!(drained.into_inner().success);
    let mut introspect = IntrospectClient::new(channel(scheduler.api).await);
    let asked = ExplainModelRequest {
        model: "iris".into(),
    };
    let explained = introspect.explain_model(asked).await.unwrap().into_inner();
    assert_eq!(explained.route.len(), 1);
    assert_eq!(
        explained.route[0].replicas,
        [1],
        "nothing is routed to replica 0 any more"
    );
    scheduler.end().await;
}

#[tokio::test]
async fn acknowledged_models_are_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: PathBuf| Disk::open(&path).unwrap();
    let scheduler = Scheduler::start(open(folder.path().into())).await;
    let mut api = scheduler.api().await;
    for name in ["iris", "wine"] {
        api.load_model(load(name)).await.unwrap();
    }
    scheduler.end().await;
    let scheduler = Scheduler::start(open(folder.path().into())).await;
    let mut api = scheduler.api().await;
    let all = ModelStatusRequest::default();
    let mut stream = api.model_status(all).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(status) = stream.message().await.unwrap() {
        names.push(status.model_name);
    }
    assert_eq!(names, ["iris", "wine"]);
    let _agent = obey(scheduler.agents().await, 0).await;
    until(&mut api, "wine", ModelState::ModelAvailable).await;
    scheduler.end().await;
}

fn experiment(name: &str, weights: [u32; 2]) -> StartExperimentRequest {
    let candidate = |(name, weight): (&str, u32)| ExperimentCandidate {
        name: name.into(),
        weight,
    };
    let candidates = [("iris", weights[0]), ("wine", weights[1])].map(candidate);
    StartExperimentRequest {
        experiment: Some(Experiment {
            name: name.into(),
            default: Some("iris".into()),
            candidates: candidates.into(),
            ..Default::default()
        }),
    }
}

/// Follows an experiment until its status is as wanted.
async fn experiment_until(
    api: &mut SchedulerClient<Channel>,
    name: &str,
    wanted: impl Fn(&ExperimentStatusResponse) -> bool,
) -> ExperimentStatusResponse {
    let request = ExperimentSubscriptionRequest {
        subscriber_name: "test".into(),
    };
    let statuses = api.subscribe_experiment_status(request).await.unwrap();
    let mut statuses = statuses.into_inner();
    soon(&format!("experiment {name}"), async {
        loop {
            let status = statuses.message().await.unwrap().expect("it goes on");
            if status.experiment_name == name && wanted(&status) {
                return status;
            }
        }
    })
    .await
}

async fn running(api: &mut SchedulerClient<Channel>) -> Vec<String> {
    let all = ExperimentStatusRequest::default();
    let mut stream = api.experiment_status(all).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(status) = stream.message().await.unwrap() {
        names.push(status.experiment_name);
    }
    names
}

#[tokio::test]
async fn an_experiment_is_started_shown_explained_kept_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: PathBuf| Disk::open(&path).unwrap();
    let scheduler = Scheduler::start(open(folder.path().into())).await;
    let mut api = scheduler.api().await;
    let _agent = obey(scheduler.agents().await, 0).await;
    api.load_model(load("iris")).await.unwrap();
    api.start_experiment(experiment("a.b", [70, 30]))
        .await
        .unwrap();
    let waiting = experiment_until(&mut api, "a.b", |s| !s.active).await;
    assert!(!waiting.candidates_ready, "{waiting:?}");
    assert!(
        waiting.status_description.contains("wine"),
        "{}",
        waiting.status_description
    );
    api.load_model(load("wine")).await.unwrap();
    let active = experiment_until(&mut api, "a.b", |s| s.active).await;
    assert_eq!(active.status_description, "experiment active");
    let hijack = api.start_experiment(experiment("other", [1, 1])).await;
    assert_eq!(hijack.unwrap_err().code(), Code::FailedPrecondition);
    scheduler.end().await;

    let scheduler = Scheduler::start(open(folder.path().into())).await;
    let mut api = scheduler.api().await;
    let _agent = obey(scheduler.agents().await, 0).await;
    experiment_until(&mut api, "a.b", |s| s.active).await;
    assert_eq!(running(&mut api).await, ["a.b"]);
    let mut introspect = IntrospectClient::new(channel(scheduler.api).await);
    let asked = ExplainExperimentRequest {
        experiment: "a.b".into(),
    };
    let explained = introspect.explain_experiment(asked).await.unwrap();
    let explained = explained.into_inner();
    let shares: Vec<f64> = explained
        .candidates
        .iter()
        .map(|c| c.in_force_percent)
        .collect();
    assert_eq!(shares, [70.0, 30.0], "{explained:?}");
    explain_routes(&mut introspect).await;

    let stop = || StopExperimentRequest { name: "a.b".into() };
    api.stop_experiment(stop()).await.unwrap();
    api.stop_experiment(stop()).await.unwrap();
    let unknown = StopExperimentRequest {
        name: "nope".into(),
    };
    let refused = api.stop_experiment(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let stopped = experiment_until(&mut api, "a.b", |s| !s.active).await;
    assert_eq!(stopped.status_description, "experiment stopped");
    assert!(running(&mut api).await.is_empty());
    scheduler.end().await;
    let kept = Disk::open(folder.path()).unwrap().restore().unwrap();
    let is_experiment =
        |r: &seldon_core::Record| matches!(r, seldon_core::Record::Experiment { .. });
    assert!(!kept.unwrap().iter().any(is_experiment), "stopped for good");
}

async fn explain_routes(introspect: &mut IntrospectClient<Channel>) {
    for (name, route, rule, versions) in [
        ("iris", "", "split", vec!["iris_7", "wine_7"]),
        (
            "a.b.experiment",
            ":old_3::wine_7:",
            "x-seldon-route",
            vec!["wine_7"],
        ),
        ("iris", ":old_3:", "split", vec!["iris_7", "wine_7"]),
        ("wine", "", "model", vec!["wine_7"]),
        ("nope", "", "unknown", vec![]),
    ] {
        let header = Header {
            name: "X-Seldon-Route".into(),
            value: route.into(),
        };
        let asked = ExplainRouteRequest {
            name: name.into(),
            headers: vec![header],
        };
        let explained = introspect.explain_route(asked).await.unwrap().into_inner();
        let seen: Vec<&str> = explained
            .chances
            .iter()
            .map(|c| c.version.as_str())
            .collect();
        assert_eq!(
            (explained.rule.as_str(), seen),
            (rule, versions),
            "{name} {route}: {explained:?}"
        );
    }
}

/// A disk that is full for the first write of a model.
struct FullOnce(Disk, bool);

impl Store for FullOnce {
    fn restore(&self) -> Result<Option<Vec<seldon_core::Record>>, StoreError> {
        self.0.restore()
    }
    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        match std::mem::take(&mut self.1) {
            true => Err(StoreError::Failed("no space left".into())),
            false => self.0.commit(writes),
        }
    }
}

#[tokio::test]
async fn what_could_not_be_stored_is_stored_when_it_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let scheduler = Scheduler::start(FullOnce(disk, true)).await;
    let mut api = scheduler.api().await;
    let refused = api.load_model(load("iris")).await.unwrap_err();
    assert!(refused.message().contains("send it again"), "{refused}");
    // Nothing is new about it, so the rules ask for no other write.
    api.load_model(load("iris")).await.unwrap();
    scheduler.end().await;
    let kept = Disk::open(folder.path()).unwrap().restore().unwrap();
    assert!(
        matches!(kept.unwrap().as_slice(), [seldon_core::Record::Model { name, .. }] if &**name == "iris")
    );
}
