//! Processes are killed one after the other, for long: no request fails, and each time all is soon as before.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::faults::{Fleet, long, model, none_failed};
use seldon_e2e::{Ask, eventually_async};
use seldon_local::Component::{self, Agent, MlServer, Scheduler};
use seldon_local::Signal;
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;

use crate::scene::{Scene, passes};

/// For so long the scheduler is killed, each time after so many seconds.
const MINUTES: u64 = 2;
const EVERY: u64 = 5;
/// State is as desired so many seconds after each start.
const SOON: u64 = 2;

/// Each time another model was loaded right before: what was acknowledged is there afterwards.
#[tokio::main]
pub(crate) async fn scheduler() -> Result<()> {
    let scene = Scene::new(Fleet::start(&[]).await?).await?;
    let rounds = if long() { 120 } else { MINUTES * 60 / EVERY };
    let load = scene.load(&scene.targets)?;
    let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
    for round in 0..rounds {
        let name = format!("kept-{round}");
        scene.fleet.load(model(&name, 1000, 1)).await?;
        scene.fleet.system.kill(Scheduler, Signal::SIGKILL)?;
        scene.fleet.system.restart(Scheduler).await?;
        let started = Instant::now();
        let reached = scene.fleet.reaches(&name, ModelAvailable, 1, SOON);
        reached.await.with_context(|| format!("kill {round}"))?;
        scene
            .fleet
            .whole(&scene.names, 2, SOON)
            .await
            .with_context(|| format!("kill {round}"))?;
        slowest = slowest.max(started.elapsed());
        let due = begin + Duration::from_secs(EVERY * (round + 1));
        passes(
            &load,
            due.saturating_duration_since(Instant::now()).as_secs(),
        )
        .await?;
    }
    let report = load.stop().await?;
    println!(
        "{rounds} kills of the scheduler in {:.0} s: {} requests, {} failed; whole again after {:.1} s at most",
        begin.elapsed().as_secs_f64(),
        report.sent,
        report.failed(),
        slowest.as_secs_f64()
    );
    none_failed(&report)
}

/// A healthy replica is there all the time, so no client sees an error.
#[tokio::main]
pub(crate) async fn replicas() -> Result<()> {
    let scene = Scene::new(Fleet::start(&[]).await?).await?;
    let rounds = if long() { 200 } else { 20 };
    let victims: [Component; 4] = [Agent(0), MlServer(1), Agent(1), MlServer(0)];
    let load = scene.load(&scene.targets)?;
    let (mut slowest, mut sum) = (Duration::ZERO, Duration::ZERO);
    for (round, victim) in (0..rounds).zip(victims.into_iter().cycle()) {
        scene.fleet.system.kill(victim, Signal::SIGKILL)?;
        passes(&load, 1).await?;
        scene.fleet.system.restart(victim).await?;
        let started = Instant::now();
        eventually_async(40, async || healthy(&scene).await)
            .await
            .with_context(|| format!("kill {round}, {victim}"))?;
        slowest = slowest.max(started.elapsed());
        sum += started.elapsed();
    }
    let report = load.stop().await?;
    println!(
        "{rounds} kills of agents and inference servers: {} requests, {} failed, slowest {:.1} s; whole again after {:.1} s (mean), {:.1} s at most",
        report.sent,
        report.failed(),
        report.latency.max() as f64 / 1e6,
        sum.as_secs_f64() / f64::from(rounds),
        slowest.as_secs_f64()
    );
    none_failed(&report)
}

/// Both replicas answer for every model, and every Envoy uses both: the next one may fall.
async fn healthy(scene: &Scene) -> Result<()> {
    scene.fleet.whole(&scene.names, 2, 1).await?;
    for envoy in scene.fleet.envoys() {
        let ejected = envoy.ejected().await?;
        ensure!(ejected.is_empty(), "an Envoy does not use {ejected:?}");
    }
    let replicas = scene.fleet.system.ports().replicas.clone();
    let names = scene.names.clone();
    tokio::task::spawn_blocking(move || {
        for (replica, name) in replicas
            .iter()
            .flat_map(|r| names.iter().map(move |n| (r, n)))
        {
            Ask::post(&format!("/v2/models/{name}/infer"), r#"{"inputs":[]}"#)
                .header("seldon-internal-model", &format!("{name}_1"))
                .send(replica.rest)?
                .ok()?;
        }
        Ok(())
    })
    .await?
}
