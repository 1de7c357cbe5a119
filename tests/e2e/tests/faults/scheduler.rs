//! The scheduler goes away: Envoys serve on, and nothing is shrunk when it is back.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use seldon_e2e::faults::{Envoy, Fleet, long, model};
use seldon_local::{Component, Signal};
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;
use tokio::task::JoinHandle;

use crate::scene::{self, Fall, Scene, passes};

#[tokio::main]
pub(crate) async fn falls(fall: Fall) -> Result<()> {
    let scene = Scene::new(Fleet::start(&[]).await?).await?;
    for round in 0..scene::rounds() {
        let load = scene.load(&scene.targets)?;
        let guard = Guard::start(&scene.fleet).await?;
        scene
            .falls(Component::Scheduler, fall, &load, async || Ok(()))
            .await?;
        scene.survived(&format!("scheduler {fall:?}"), load).await?;
        guard.stop().await?;
        scene.still_takes_changes(round).await?;
    }
    Ok(())
}

#[tokio::main]
pub(crate) async fn network_cut() -> Result<()> {
    let (fleet, wires) = Fleet::start_wired().await?;
    let scene = Scene::new(fleet).await?;
    for round in 0..scene::rounds() {
        let load = scene.load(&scene.targets)?;
        passes(&load, 1).await?;
        let guard = Guard::start(&scene.fleet).await?;
        wires.iter().for_each(|wire| wire.cut());
        // Longer than it takes the scheduler to see that nobody is there.
        let cut = passes(&load, 16).await;
        wires.iter().for_each(|wire| wire.mend());
        cut?;
        scene.survived("control network cut", load).await?;
        guard.stop().await?;
        scene.still_takes_changes(round).await?;
    }
    Ok(())
}

#[tokio::main]
pub(crate) async fn acknowledged() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let rounds = if long() { 100 } else { 10 };
    for round in 0..rounds {
        fleet
            .load(model(&format!("kept-{round}"), 1000, 1 + round % 2))
            .await?;
        fleet.system.kill(Component::Scheduler, Signal::SIGKILL)?;
        fleet.system.restart(Component::Scheduler).await?;
    }
    for round in 0..rounds {
        let name = format!("kept-{round}");
        fleet
            .reaches(&name, ModelAvailable, 1 + round % 2, 60)
            .await?;
    }
    println!("{rounds} loads acknowledged, each followed by a kill: all are there");
    Ok(())
}

type World = (
    BTreeMap<String, BTreeSet<String>>,
    BTreeMap<String, BTreeSet<String>>,
);

async fn world(envoy: Envoy) -> Result<World> {
    Ok((envoy.scopes().await?, envoy.clusters().await?))
}

/// Looks at both Envoys all the time: no scope, cluster or endpoint that was there may be missing.
struct Guard {
    task: JoinHandle<Result<()>>,
    end: tokio::sync::oneshot::Sender<()>,
}

impl Guard {
    async fn start(fleet: &Fleet) -> Result<Self> {
        let mut before = Vec::new();
        for envoy in fleet.envoys() {
            let (scopes, mut clusters) = world(envoy).await?;
            // One that no scope names any more stays a while for retries; it may go.
            clusters.retain(|name, _| scopes.values().any(|named| named.contains(name)));
            before.push((envoy, (scopes, clusters)));
        }
        let (end, mut ended) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            while ended
                .try_recv()
                .is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty)
            {
                for (envoy, (scopes, clusters)) in &before {
                    let (now_scopes, now_clusters) = world(*envoy).await?;
                    covers(scopes, &now_scopes).context("a scope")?;
                    covers(clusters, &now_clusters).context("an endpoint")?;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        });
        Ok(Self { task, end })
    }

    async fn stop(self) -> Result<()> {
        // The task has ended if something was missing.
        let _ = self.end.send(());
        self.task.await?.context("the world was shrunk")
    }
}

fn covers(
    before: &BTreeMap<String, BTreeSet<String>>,
    now: &BTreeMap<String, BTreeSet<String>>,
) -> Result<()> {
    for (name, parts) in before {
        let Some(held) = now.get(name) else {
            bail!("{name} is gone");
        };
        ensure!(
            parts.is_subset(held),
            "{name} had {parts:?} and has {held:?}"
        );
    }
    Ok(())
}
