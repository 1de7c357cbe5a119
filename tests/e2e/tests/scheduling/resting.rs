//! Models that nobody asks for take no memory, and the next request finds them all the same: also when the scheduler, or the
//! replica that keeps them, has fallen meanwhile.
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::faults::{Fleet, model, none_failed};
use seldon_e2e::{Ask, eventually_async};
use seldon_load::driver::Load;
use seldon_local::{Component, Signal, System};

use seldon_proto::scheduler::model_replica_status::ModelReplicaState::Available;

use crate::scene::shots;

const MODELS: usize = 20;
const CALLERS: usize = 200;
/// Seconds in which they are at rest, or as before a fall.
const SOON: u64 = 40;
const LOADED: &str = "seldon_loaded_model_memory_bytes_gauge";
const EVICTED: &str = "seldon_evicted_model_memory_bytes_gauge";

#[tokio::main]
pub(crate) async fn rested() -> Result<()> {
    let builder = System::builder()
        .servers(2)
        .envoys(2)
        .arg("scheduler", "--enable-model-autoscaling")
        .arg("scheduler", "--model-scale-to-zero-seconds=2")
        .arg("scheduler", "--model-scale-down-pause-seconds=1")
        .env("agent", "SELDON_MODEL_INACTIVE_SECONDS_THRESHOLD", "2")
        .env("agent", "SELDON_SCALING_STATS_PERIOD_SECONDS", "1");
    let fleet = Fleet::start_from(builder, &[("FAKE_LOAD_MS", "200")]).await?;
    let names: Vec<String> = (0..MODELS).map(|number| format!("rest-{number}")).collect();
    for name in &names {
        let mut wanted = model(name, 1000, 1);
        wanted.deployment_spec.get_or_insert_default().max_replicas = 2;
        fleet.load(wanted).await?;
    }
    at_rest(&fleet, &names).await.context("after the load")?;
    asked(&fleet, &names, "at rest").await?;

    at_rest(&fleet, &names).await.context("after requests")?;
    let both = keepers(&fleet, &names).await?;
    ensure!(both == BTreeSet::from([0, 1]), "{both:?}");
    for victim in [Component::Agent(0), Component::MlServer(1)] {
        fleet.system.kill(victim, Signal::SIGKILL)?;
        let (lost, left) = match victim {
            Component::Agent(index) | Component::MlServer(index) => (index, 1 - index),
            _ => unreachable!(),
        };
        let moved = async || {
            let now = keepers(&fleet, &names).await?;
            ensure!(now == BTreeSet::from([left]), "{victim}: {now:?}");
            fleet.whole(&names, 0, 1).await
        };
        eventually_async(SOON, moved)
            .await
            .with_context(|| format!("replica {lost} is lost"))?;
        asked(&fleet, &names, "moved at rest").await?;
        fleet.system.restart(victim).await?;
        at_rest(&fleet, &names)
            .await
            .with_context(|| format!("replica {lost} is back"))?;
    }

    fleet.system.kill(Component::Scheduler, Signal::SIGKILL)?;
    asked(&fleet, &names, "at rest, without a scheduler").await?;
    fleet.system.restart(Component::Scheduler).await?;
    at_rest(&fleet, &names)
        .await
        .context("after the scheduler was back")
}

/// Replicas that are asked for one of the models.
async fn keepers(fleet: &Fleet, names: &[String]) -> Result<BTreeSet<usize>> {
    let mut found = BTreeSet::new();
    for name in names {
        let status = fleet.status(name).await?;
        let replicas = status.model_replica_state.iter();
        for (replica, _) in replicas.filter(|(_, status)| status.state() == Available) {
            found.insert(usize::try_from(*replica)?);
        }
    }
    Ok(found)
}

/// Waits until all models are at rest, and the inference servers have none in memory.
async fn at_rest(fleet: &Fleet, names: &[String]) -> Result<()> {
    let look = async || {
        fleet.whole(names, 0, 1).await?;
        let mut evicted = 0;
        for replica in &fleet.system.ports().replicas {
            let answer = Ask::get("/metrics").send(replica.metrics)?;
            let metrics = String::from_utf8(answer.body)?;
            let of = |name| {
                let lines = metrics.lines().filter(move |line| line.starts_with(name));
                lines.filter(|line| !line.ends_with(" 0"))
            };
            let held: Vec<&str> = of(LOADED).collect();
            ensure!(held.is_empty(), "{held:?}");
            evicted += of(EVICTED).count();
        }
        ensure!(evicted >= names.len(), "only {evicted} are on disk");
        Ok(())
    };
    eventually_async(SOON, look).await
}

/// Many callers ask at once for models at rest: all are answered, and the models are awake.
async fn asked(fleet: &Fleet, names: &[String], when: &str) -> Result<()> {
    let begin = Instant::now();
    let load = Load {
        targets: fleet.targets(),
        shots: names.iter().flat_map(|name| shots(name)).collect(),
        connections: CALLERS,
        rate: None,
        deadline: Duration::from_secs(30),
    }
    .start()?;
    let enough = async || {
        let answered = load.answered();
        ensure!(answered > 20_000, "{answered} answers");
        Ok(())
    };
    eventually_async(SOON, enough).await?;
    let report = load.stop().await?;
    println!(
        "{when}: {} requests in {:.1} s, {} failed, the slowest {:.2} s",
        report.sent,
        begin.elapsed().as_secs_f64(),
        report.failed(),
        report.latency.max() as f64 / 1e6
    );
    none_failed(&report)
}
