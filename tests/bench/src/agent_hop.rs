//! The agent's proxy at saturation, and the whole path.
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::HeaderValue;
use seldon_load::{cpu, driver::Shot};
use seldon_local::Component;

use crate::{
    fleet::{Fleet, Wanted},
    report::Report,
    shots::{BODY, grpc, median, saturate},
};

const SECTION: &str = "agent";
const CONNECTIONS: usize = 16;
const AGENT: Component = Component::Agent(0);
const ENVOY: Component = Component::Envoy(0);

/// Runs the section.
pub async fn run(seconds: u64, report: &mut Report) -> Result<()> {
    let fleet = Fleet::start(1, |_| ()).await?;
    let iris = [Wanted {
        name: "iris".into(),
        bytes: 1000,
        replicas: 1,
    }];
    fleet.load(&iris).await?;
    fleet.settled(&[0], &iris, Duration::from_secs(60)).await?;
    let duration = Duration::from_secs(seconds);
    let replica = &fleet.system.ports().replicas[0];
    let (agent_rest, agent_grpc) = (
        format!("127.0.0.1:{}", replica.rest),
        format!("127.0.0.1:{}", replica.grpc),
    );
    let envoy = fleet.envoy();
    let (agent_pid, envoy_pid) = (fleet.pid(AGENT)?, fleet.pid(ENVOY)?);

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
    fleet.stop().await
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
