//! Many processes are killed at the same time: all agents, then everything there is.
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::{Fleet, answer_once, experiment, model};
use seldon_local::Component::{self, Agent, Envoy, MlServer, Scheduler};
use seldon_local::Signal;
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;

use crate::scene::Scene;

/// All is as desired so many seconds after the processes run again.
const SOON: u64 = 15;
const UNLOADED: &str = "unloaded";
const SPLIT: &str = "split";

#[tokio::main]
pub(crate) async fn killed() -> Result<()> {
    let scene = Scene::new(Fleet::start(&[]).await?).await?;
    scene.fleet.load(model(UNLOADED, 1000, 2)).await?;
    scene.fleet.reaches(UNLOADED, ModelAvailable, 2, 30).await?;
    let split = experiment(SPLIT, Some("m0"), &[("m0", 50), ("m1", 50)]);
    scene.fleet.run_experiment(split).await?;
    // What was acknowledged last is not in any agent's memory yet, or still is.
    scene.fleet.unload(UNLOADED).await?;
    let agents = [Agent(0), Agent(1)];
    falls(&scene, &agents, "all agents").await?;
    let late = model("late", 1000, 2);
    scene.fleet.load(late).await?;
    let everything = [
        Scheduler,
        Envoy(0),
        Envoy(1),
        Agent(0),
        Agent(1),
        MlServer(0),
        MlServer(1),
    ];
    falls(&scene, &everything, "everything").await?;
    scene.fleet.reaches("late", ModelAvailable, 2, SOON).await?;
    Ok(())
}

async fn falls(scene: &Scene, victims: &[Component], what: &str) -> Result<()> {
    let fleet = &scene.fleet;
    for victim in victims {
        fleet.system.kill(*victim, Signal::SIGKILL)?;
    }
    let starts = victims.iter().map(|victim| fleet.system.restart(*victim));
    let begin = Instant::now();
    futures_util::future::try_join_all(starts).await?;
    let started = begin.elapsed();
    let desired = async || {
        fleet.whole(&scene.names, 2, 1).await?;
        for target in &scene.targets {
            for name in &scene.names {
                let (status, body) = answer_once(target, name).await?;
                ensure!(status == 200, "{target}, {name}: {status} {body}");
            }
            let (status, body) = answer_once(target, UNLOADED).await?;
            ensure!(status == 404, "{target}, {UNLOADED}: {status} {body}");
        }
        fleet.active(SPLIT, 1).await
    };
    eventually_async(SOON, desired)
        .await
        .with_context(|| format!("{what} killed"))?;
    println!(
        "{what} killed: processes ready after {:.1} s, all as desired after {:.1} s",
        started.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}
