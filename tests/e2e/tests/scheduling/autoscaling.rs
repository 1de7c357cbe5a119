//! A model gets replicas while it is asked for more than it can answer, and loses them when nobody asks.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::faults::{Fleet, model, none_failed};
use seldon_load::driver::Load;
use seldon_local::System;
use seldon_proto::scheduler as pb;
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;

use crate::overload::BEHAVIOUR;
use crate::scene::shots;

const REPLICAS: u32 = 3;
const NAME: &str = "busy-scaled";

#[tokio::main]
pub(crate) async fn followed() -> Result<()> {
    let builder = System::builder()
        .servers(REPLICAS as usize)
        .envoys(2)
        .arg("scheduler", "--enable-model-autoscaling")
        .arg("scheduler", "--model-scale-up-pause-seconds=1")
        .arg("scheduler", "--model-scale-down-pause-seconds=2")
        .env("agent", "SELDON_MODEL_INFERENCE_LAG_THRESHOLD", "8")
        .env("agent", "SELDON_MODEL_INACTIVE_SECONDS_THRESHOLD", "3")
        .env("agent", "SELDON_SCALING_STATS_PERIOD_SECONDS", "1");
    let fleet = Fleet::start_from(builder, &BEHAVIOUR).await?;
    let mut wanted = model(NAME, 1000, 1);
    wanted.deployment_spec = Some(pb::DeploymentSpec {
        replicas: 1,
        min_replicas: 1,
        max_replicas: REPLICAS,
        ..Default::default()
    });
    fleet.load(wanted.clone()).await?;
    fleet.reaches(NAME, ModelAvailable, 1, 30).await?;

    let load = Load {
        targets: fleet.targets(),
        shots: shots(NAME).to_vec(),
        connections: 60,
        rate: None,
        deadline: Duration::from_secs(30),
    }
    .start()?;
    let begin = Instant::now();
    let status = fleet.reaches(NAME, ModelAvailable, REPLICAS, 30).await;
    let (grown, status) = (begin.elapsed(), status.context("under load")?);
    let reason = status.state.unwrap_or_default().reason;
    ensure!(
        reason.contains("scaled from 2 to 3 replicas") && reason.contains("lag "),
        "the decision has no reason: {reason:?}"
    );
    // A scheduler that starts anew goes on with what it had decided.
    fleet.system.kill(
        seldon_local::Component::Scheduler,
        seldon_local::Signal::SIGKILL,
    )?;
    fleet
        .system
        .restart(seldon_local::Component::Scheduler)
        .await?;
    fleet.reaches(NAME, ModelAvailable, REPLICAS, 10).await?;
    // The same manifest again is no wish for fewer.
    fleet.load(wanted).await?;
    fleet.reaches(NAME, ModelAvailable, REPLICAS, 10).await?;
    let report = load.stop().await?;
    none_failed(&report)?;
    let begin = Instant::now();
    fleet
        .reaches(NAME, ModelAvailable, 1, 60)
        .await
        .context("without load")?;
    println!(
        "from 1 to {REPLICAS} replicas in {:.1} s under load, back in {:.1} s without; {} requests, 0 failed",
        grown.as_secs_f64(),
        begin.elapsed().as_secs_f64(),
        report.sent
    );
    Ok(())
}
