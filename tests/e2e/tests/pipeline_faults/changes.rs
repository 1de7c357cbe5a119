//! A pipeline is changed again and again while it is used, and in the end taken away.
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::{chain, long};
use seldon_kafka::Admin;
use tokio::time::sleep;

use crate::callers::FIRST_KEY;
use crate::outputs::{Outputs, Seen};
use crate::processes::{Costs, groups};
use crate::scene::{CALLS, PARTITIONS, PIPELINE, Scene, small};

/// What must be the same after any number of updates.
#[derive(Debug, PartialEq)]
struct Left {
    topics: BTreeSet<String>,
    groups: Vec<String>,
}

async fn left(scene: &Scene) -> Result<Left> {
    let bootstrap = scene
        .fleet
        .system
        .config()
        .kafka_bootstrap()
        .context("a broker")?;
    let topics = Admin::new(&scene.settings)?.topics().await?;
    Ok(Left {
        topics: topics.into_iter().collect(),
        groups: groups(&bootstrap).await?,
    })
}

#[tokio::main]
pub(crate) async fn updated() -> Result<()> {
    let scene = Scene::new(small()).await?;
    let system = &scene.fleet.system;
    let outputs = scene.names.pipeline_outputs(PIPELINE);
    let outputs = Outputs::follow(&scene.settings, &outputs, PARTITIONS, false)?;
    let callers = scene.callers(FIRST_KEY, CALLS);
    let updates = if long() { 100 } else { 10 };
    let mut begin = None;
    // The first brings what any later one may need.
    for update in 0..=updates {
        let steps = [["echo-1", "echo-2"], ["echo-2", "echo-1"]][(update as usize + 1) % 2];
        scene.pipeline(chain(PIPELINE, &steps), 2 + update).await?;
        sleep(Duration::from_millis(500)).await;
        if update == 0 {
            begin = Some((left(&scene).await?, Costs::of(system)?));
        }
    }
    let answers = callers.stop().await?;
    answers.tell(&format!("{updates} updates"));
    answers.all_right()?;
    let repeated = outputs.with(Seen::repeated);
    ensure!(repeated == 0, "{repeated} results are there twice");
    let (first, costs) = begin.context("there was a first update")?;
    let now = Costs::of(system)?;
    println!("after the first: {costs}\nafter {updates}: {now}\n{first:?}");
    ensure!(
        left(&scene).await? == first,
        "{:?} became {:?}",
        first,
        left(&scene).await?
    );
    for (component, cost) in &now.0 {
        let was = costs.0.get(component).map_or(0, |cost| cost.threads);
        // Tokio's threads for calls that block come and go.
        ensure!(
            cost.threads <= was + 4,
            "{component} had {was} threads and has {}",
            cost.threads
        );
    }
    now.bounded(&costs, 32 << 10)?;
    unloaded(&scene).await
}

/// With `cleanTopicsOnDelete` nothing is left but what all pipelines share.
async fn unloaded(scene: &Scene) -> Result<()> {
    scene.fleet.unload_pipeline(PIPELINE).await?;
    let gone = async || {
        let topics = left(scene).await?.topics;
        let own: Vec<_> = topics
            .iter()
            .filter(|topic| topic.contains(".pipeline."))
            .collect();
        ensure!(own.is_empty(), "left: {own:?}");
        Ok(())
    };
    eventually_async(20, gone).await?;
    for model in ["echo-1", "echo-2"] {
        scene.fleet.unload(model).await?;
    }
    let shared = BTreeSet::from([scene.names.errors(), scene.names.progress()]);
    let gone = async || {
        let mut topics = left(scene).await?.topics;
        topics.retain(|topic| !topic.starts_with("__"));
        ensure!(topics.is_subset(&shared), "left: {topics:?}");
        Ok(())
    };
    eventually_async(20, gone).await
}
