//! Models on both replicas, asked by both protocols, while something falls.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::{Fleet, answer_once, ask_once, long, model};
use seldon_load::driver::{Load, Running, Shot};
use seldon_local::{Component, Signal};
use seldon_proto::inference::ModelInferRequest;
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;

/// How a process falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fall {
    Killed,
    /// Lives, but does nothing, for longer than it takes to find out.
    Stopped,
    Restarted,
}

pub(crate) const RATE: f64 = 200.0;
const MODELS: usize = 10;
/// A request that waits for a stopped process is freed by then.
const PATIENCE: Duration = Duration::from_secs(12);
/// Seconds of load while a process is down, and while it is stopped.
pub(crate) const DOWN: u64 = 6;
const STOPPED: u64 = 16;
/// All is as before so many seconds after the process is back.
const WHOLE: u64 = 40;

pub(crate) fn rounds() -> usize {
    if long() { 5 } else { 1 }
}

pub(crate) struct Scene {
    pub(crate) fleet: Fleet,
    pub(crate) names: Vec<String>,
    pub(crate) targets: Vec<String>,
}

impl Scene {
    pub(crate) async fn new(fleet: Fleet) -> Result<Self> {
        let names: Vec<String> = (0..MODELS).map(|number| format!("m{number}")).collect();
        for name in &names {
            fleet.load(model(name, 1000, 2)).await?;
        }
        fleet
            .whole(&names, 2, 30)
            .await
            .context("before anything falls")?;
        let targets = fleet.targets();
        Ok(Self {
            fleet,
            names,
            targets,
        })
    }

    /// Asks every model through these Envoys; so many connections that those that hang leave enough.
    pub(crate) fn load(&self, targets: &[String]) -> Result<Running> {
        Load {
            targets: targets.to_vec(),
            shots: self.names.iter().flat_map(|name| shots(name)).collect(),
            connections: 800,
            rate: Some(RATE),
            deadline: PATIENCE,
        }
        .start()
    }

    /// Lets a process fall under load, and come back.
    pub(crate) async fn falls(
        &self,
        component: Component,
        fall: Fall,
        load: &Running,
        meanwhile: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        let system = &self.fleet.system;
        passes(load, 1).await?;
        match fall {
            Fall::Killed => {
                system.kill(component, Signal::SIGKILL)?;
                if component != Component::Scheduler {
                    meanwhile().await?;
                }
                passes(load, DOWN).await?;
                system.restart(component).await?;
            }
            Fall::Stopped => {
                system.kill(component, Signal::SIGSTOP)?;
                if component != Component::Scheduler {
                    meanwhile().await?;
                }
                let stopped = passes(load, STOPPED).await;
                system.kill(component, Signal::SIGCONT)?;
                stopped?;
            }
            Fall::Restarted => system.restart(component).await?,
        }
        Ok(())
    }

    /// Nothing was lost, and everything is as before.
    pub(crate) async fn survived(&self, what: &str, load: Running) -> Result<()> {
        let begin = std::time::Instant::now();
        let whole = self.fleet.whole(&self.names, 2, WHOLE).await;
        let took = begin.elapsed();
        let lively = passes(&load, 1).await;
        let report = load.stop().await?;
        println!(
            "{what}: {} requests, {} failed, slowest {:.1} s; whole again after {:.1} s",
            report.sent,
            report.failed(),
            report.latency.max() as f64 / 1e6,
            took.as_secs_f64()
        );
        ensure!(
            report.failed() == 0,
            "{what}: requests failed: {:?}",
            report.failures
        );
        whole.with_context(|| format!("after {what}"))?;
        lively?;
        self.everywhere(&self.names).await
    }

    /// Every Envoy answers for every model.
    async fn everywhere(&self, names: &[String]) -> Result<()> {
        for target in &self.targets {
            for name in names {
                let (status, body) = answer_once(target, name).await?;
                ensure!(
                    status == 200,
                    "{target} answers {status} for {name}: {body}"
                );
            }
        }
        Ok(())
    }

    /// A model that is loaded while something is down comes to be served by what is left.
    pub(crate) async fn still_takes_changes(&self, round: usize) -> Result<()> {
        let name = format!("meanwhile-{round}");
        self.fleet.load(model(&name, 1000, 1)).await?;
        self.fleet.reaches(&name, ModelAvailable, 1, 30).await?;
        let answer = tokio::time::timeout(PATIENCE, ask_once(&self.targets[0], &name)).await??;
        ensure!(answer == 200, "{name} is available and answers {answer}");
        Ok(())
    }
}

pub(crate) fn shots(name: &str) -> [Shot; 2] {
    let message = ModelInferRequest {
        model_name: name.to_owned(),
        ..Default::default()
    };
    [
        Shot::rest(name, r#"{"inputs":[]}"#),
        Shot::grpc(name, &message),
    ]
}

/// Waits for as many answers as so many seconds bring.
pub(crate) async fn passes(load: &Running, seconds: u64) -> Result<()> {
    let wanted = load.answered() + (RATE * 0.9) as u64 * seconds;
    let look = async || {
        let answered = load.answered();
        ensure!(
            answered >= wanted,
            "the load stalls: {answered} of {wanted} answers"
        );
        Ok(())
    };
    eventually_async(seconds + 20, look).await
}
