//! The agent's proxy at saturation, and the whole path.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::HeaderValue;
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_load::{cpu, driver::Shot};
use seldon_local::{Component, System};
use seldon_proto::scheduler::{
    DeploymentSpec, LoadModelRequest, MetaData, Model, ModelReference, ModelSpec,
    ModelStatusRequest, model_status::ModelState,
};
use tokio::time::Instant;

use crate::{
    report::Report,
    shots::{BODY, grpc, median, saturate},
};

const SECTION: &str = "agent";
const CONNECTIONS: usize = 16;
const AGENT: Component = Component::Agent(0);
const ENVOY: Component = Component::Envoy(0);

/// Runs the section.
pub async fn run(seconds: u64, report: &mut Report) -> Result<()> {
    let fake = std::env::current_exe()?.with_file_name("fake-inference");
    let system = System::builder()
        .servers(1)
        .config(move |c| {
            c.parts.mlserver = fake;
            c.log_level = "warn".into();
        })
        .start()
        .await?;
    available(&system).await?;
    let duration = Duration::from_secs(seconds);
    let replica = &system.ports().replicas[0];
    let (agent_rest, agent_grpc) = (
        format!("127.0.0.1:{}", replica.rest),
        format!("127.0.0.1:{}", replica.grpc),
    );
    let envoy = format!("127.0.0.1:{}", system.ports().envoys[0].data);
    let agent_pid = system.pid(AGENT).context("the agent is gone")?;
    let envoy_pid = system.pid(ENVOY).context("Envoy is gone")?;

    for (what, target, shot, limit) in [
        ("REST", &agent_rest, Shot::rest("iris", BODY), 75.0),
        ("gRPC", &agent_grpc, grpc("iris"), 65.0),
    ] {
        let (mut rounds, mut rates) = (vec![], vec![]);
        for _ in 0..3 {
            let cost = saturate(
                vec![target.clone()],
                vec![internal(shot.clone())],
                CONNECTIONS,
                duration,
                &[agent_pid],
            )
            .await?;
            rates.push(cost.report.per_second());
            rounds.extend(cost.cpu_us);
        }
        report.at_most(
            SECTION,
            format!("agent CPU a {what} request, {CONNECTIONS} connections at saturation"),
            median(rounds),
            "µs",
            limit,
        );
        report.shown(
            SECTION,
            format!("{what} requests a second at the agent"),
            median(rates),
            "/s",
        );
    }
    for (what, shot) in [("REST", Shot::rest("iris", BODY)), ("gRPC", grpc("iris"))] {
        let cost = saturate(
            vec![envoy.clone()],
            vec![shot],
            CONNECTIONS,
            duration,
            &[envoy_pid, agent_pid],
        )
        .await?;
        report.at_least(
            SECTION,
            format!("whole path, {what}: requests a second"),
            cost.report.per_second(),
            "/s",
            5000.0,
        );
        report.shown(
            SECTION,
            format!("whole path, {what}: Envoy CPU"),
            cost.cpu_us[0],
            "µs",
        );
        report.shown(
            SECTION,
            format!("whole path, {what}: agent CPU"),
            cost.cpu_us[1],
            "µs",
        );
        report.shown(
            SECTION,
            format!("whole path, {what}: p99 at saturation"),
            cost.report.latency.value_at_quantile(0.99) as f64 / 1e3,
            "ms",
        );
    }
    large_bodies(&envoy, agent_pid, envoy_pid, report).await?;
    system.stop().await;
    Ok(())
}

/// What Envoy would add.
fn internal(mut shot: Shot) -> Shot {
    shot.headers
        .insert("seldon-internal-model", HeaderValue::from_static("iris_1"));
    shot
}

/// 64 MB bodies: memory must not follow them.
async fn large_bodies(
    envoy: &str,
    agent_pid: u32,
    envoy_pid: u32,
    report: &mut Report,
) -> Result<()> {
    let memory = |pid| cpu::resident(pid).unwrap_or_default() as f64 / 1e6;
    let (agent, proxy) = (memory(agent_pid), memory(envoy_pid));
    let mut shot = Shot::rest("iris", "");
    shot.body = Bytes::from(vec![b' '; 64 << 20]);
    saturate(
        vec![envoy.to_owned()],
        vec![shot],
        4,
        Duration::from_secs(4),
        &[],
    )
    .await?;
    report.at_most(
        SECTION,
        "agent memory gained by 64 MB bodies, 4 at once",
        memory(agent_pid) - agent,
        "MB",
        30.0,
    );
    report.shown(
        SECTION,
        "Envoy memory gained by them",
        memory(envoy_pid) - proxy,
        "MB",
    );
    Ok(())
}

async fn available(system: &System) -> Result<()> {
    let mut client =
        SchedulerClient::connect(format!("http://127.0.0.1:{}", system.ports().scheduler.api))
            .await?;
    let model = Model {
        meta: Some(MetaData {
            name: "iris".into(),
            ..Default::default()
        }),
        model_spec: Some(ModelSpec {
            uri: "gs://seldon-models/mlserver/iris".into(),
            requirements: vec!["sklearn".into()],
            memory_bytes: Some(1000),
            ..Default::default()
        }),
        deployment_spec: Some(DeploymentSpec {
            replicas: 1,
            ..Default::default()
        }),
        ..Default::default()
    };
    client
        .load_model(LoadModelRequest { model: Some(model) })
        .await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let request = ModelStatusRequest {
            subscriber_name: "bench".into(),
            model: Some(ModelReference {
                name: "iris".into(),
                version: None,
            }),
            all_versions: false,
        };
        let status = client
            .model_status(request)
            .await?
            .into_inner()
            .message()
            .await?;
        let state = status
            .and_then(|s| s.versions.into_iter().next())
            .and_then(|v| v.state);
        if state
            .as_ref()
            .is_some_and(|s| s.state() == ModelState::ModelAvailable)
        {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "iris is not available: {state:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
