//! A model that misbehaves is its own problem.
use std::time::Duration;

use anyhow::{Result, ensure};
use seldon_e2e::faults::{Fleet, long, model};
use seldon_load::driver::{Load, Report, Running};
use seldon_proto::scheduler::model_status::ModelState::{ModelAvailable, ModelFailed};

use crate::scene::{RATE, Scene, passes, shots};

/// Seconds of load next to the misbehaving model.
fn seconds() -> u64 {
    if long() { 60 } else { 6 }
}

#[tokio::main]
pub(crate) async fn failing() -> Result<()> {
    let scene = Scene::new(Fleet::start(&[("FAKE_REFUSE_PREFIX", "refused-")]).await?).await?;
    let load = steady(&scene)?;
    passes(&load, 1).await?;
    scene.fleet.load(model("refused-1", 1000, 2)).await?;
    passes(&load, seconds()).await?;
    let status = scene.fleet.reaches("refused-1", ModelFailed, 0, 60).await?;
    let reason = status.state.unwrap_or_default().reason;
    ensure!(
        reason.contains("cannot be loaded"),
        "the server's reason is lost: {reason:?}"
    );
    untouched("a model that fails", load.stop().await?)?;
    scene.fleet.whole(&scene.names, 2, 10).await
}

#[tokio::main]
pub(crate) async fn hanging() -> Result<()> {
    let scene = Scene::new(Fleet::start(&[("FAKE_HANG_PREFIX", "hanging-")]).await?).await?;
    scene.fleet.load(model("hanging-1", 1000, 2)).await?;
    scene
        .fleet
        .reaches("hanging-1", ModelAvailable, 2, 30)
        .await?;
    let load = steady(&scene)?;
    passes(&load, 1).await?;
    let flood = Load {
        targets: scene.targets.clone(),
        shots: shots("hanging-1").to_vec(),
        connections: 3000,
        rate: Some(1500.0),
        deadline: Duration::from_secs(30),
    }
    .start()?;
    passes(&load, seconds()).await?;
    let refused = flood.answered();
    untouched("a model that hangs", load.stop().await?)?;
    println!("{refused} requests of the hanging model were refused meanwhile");
    scene.fleet.whole(&scene.names, 2, 10).await
}

fn steady(scene: &Scene) -> Result<Running> {
    Load {
        targets: scene.targets.clone(),
        shots: scene.names.iter().flat_map(|name| shots(name)).collect(),
        connections: 64,
        rate: Some(RATE),
        deadline: Duration::from_secs(5),
    }
    .start()
}

/// The machine is shared with other tests, so of the times only a hang is told.
fn untouched(what: &str, report: Report) -> Result<()> {
    println!(
        "{what}: {} requests of its neighbours, {} failed, p99 {:.1} ms",
        report.sent,
        report.failed(),
        report.latency.value_at_quantile(0.99) as f64 / 1e3
    );
    ensure!(
        report.failed() == 0,
        "requests of neighbours failed: {:?}",
        report.failures
    );
    ensure!(
        report.latency.value_at_quantile(0.99) < 1_000_000,
        "neighbours are slow: {:?}",
        report.latency.max()
    );
    Ok(())
}
