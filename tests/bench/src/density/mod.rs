//! Ten thousand models of mixed sizes on ten replicas: loaded, moved and unloaded, while others answer.
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use seldon_load::driver::{Load, Running, Shot};
use seldon_local::Component;
use seldon_proto::scheduler::{ModelVersionStatus, ServerStatusResponse};
use tokio::time::Instant;

use crate::{
    dice::Dice,
    fleet::{Fleet, Wanted},
    report::Report,
    shots::BODY,
};

const SECTION: &str = "density";
const REPLICAS: u32 = 10;
/// Models that are asked all the time, two replicas each.
const ASKED: usize = 60;
const LIMIT: Duration = Duration::from_secs(1200);

/// Runs the section.
pub async fn run(models: usize, report: &mut Report) -> Result<()> {
    steps::run(models, report)?;
    ensure!(models > ASKED, "--models: more than {ASKED} are needed");
    let fleet = Fleet::start(REPLICAS as usize, |config| {
        config.memory_bytes = 1 << 30;
        config.over_commit_percentage = 0;
    })
    .await?;
    let mut dice = Dice::new(7);
    let all: Vec<Wanted> = (0..models).map(|n| wanted(n, &mut dice)).collect();
    let everyone: Vec<u32> = (0..REPLICAS).collect();

    fleet.load(&all[..ASKED]).await?;
    let placed = fleet.settled(&everyone, &all[..ASKED], LIMIT).await?;
    let victim = *replicas_of(&placed["model-00000"])
        .first()
        .context("model-00000 is nowhere")?;
    let on_victim = |name: &String| replicas_of(&placed[name]).contains(&victim);
    let (moved, others): (Vec<String>, Vec<String>) = placed.keys().cloned().partition(on_victim);
    let others = ask(&fleet, &others, 100.0)?;
    let moved = ask(&fleet, &moved, 50.0)?;

    let before = Usage::of(&fleet)?;
    let start = Instant::now();
    // What the first ones cost in memory is buffers as well, which later ones use again.
    let part = ASKED + (models - ASKED) / 4;
    fleet.load(&all[ASKED..part]).await?;
    fleet.settled(&everyone, &all[..part], LIMIT).await?;
    let at_part = Usage::of(&fleet)?;
    fleet.load(&all[part..]).await?;
    let asked_for = start.elapsed().as_secs_f64();
    let placed = fleet.settled(&everyone, &all, LIMIT).await?;
    let took = start.elapsed().as_secs_f64();
    let after = Usage::of(&fleet)?;
    let more = models - ASKED;
    let what = format!("{more} models more on {REPLICAS} replicas");
    report.shown(
        SECTION,
        format!("{what}: all calls answered"),
        asked_for,
        "s",
    );
    report.shown(SECTION, format!("{what}: available"), took, "s");
    cpu(&before, &after, &all[ASKED..], report);
    memory(&at_part, &after, &all[part..], report);
    shape(&placed, &fleet.server().await?, report);

    lose(&fleet, victim, &all, report).await?;

    let before = Usage::of(&fleet)?;
    let start = Instant::now();
    fleet.unload(&all[ASKED..]).await?;
    fleet.settled(&everyone, &all[..ASKED], LIMIT).await?;
    let took = start.elapsed().as_secs_f64();
    let scheduler = Usage::of(&fleet)?.scheduler_cpu - before.scheduler_cpu;
    report.shown(SECTION, format!("{more} unloaded"), took, "s");
    report.shown(SECTION, "the same: scheduler CPU", scheduler, "s");

    answered("on other replicas", others, report).await?;
    answered("with a second replica", moved, report).await?;
    fleet.stop().await
}

fn wanted(number: usize, dice: &mut Dice) -> Wanted {
    Wanted {
        name: format!("model-{number:05}"),
        bytes: 100 + dice.roll(900) as u64,
        replicas: match number < ASKED {
            true => 2,
            false => [1, 1, 2, 3][dice.roll(4)],
        },
    }
}

fn replicas_of(model: &ModelVersionStatus) -> BTreeSet<u32> {
    let replicas = model.model_replica_state.keys();
    replicas
        .filter_map(|index| (*index).try_into().ok())
        .collect()
}

/// Asks these models in turn, at a fixed rate, for as long as the section runs.
fn ask(fleet: &Fleet, names: &[String], rate: f64) -> Result<Running> {
    let load = Load {
        targets: vec![fleet.envoy()],
        shots: names.iter().map(|name| Shot::rest(name, BODY)).collect(),
        connections: 16,
        rate: Some(rate),
        deadline: Duration::from_secs(30),
    };
    load.start()
}

async fn answered(which: &str, running: Running, report: &mut Report) -> Result<()> {
    let load = running.stop().await?;
    for (why, count) in &load.failures {
        eprintln!("{SECTION}: {count} × {why}");
    }
    report.at_most(
        SECTION,
        format!(
            "failed of {} requests to models {which}, all the time",
            load.sent
        ),
        load.failed() as f64,
        "",
        0.0,
    );
    report.shown(
        SECTION,
        format!("the same: p99 latency of models {which}"),
        load.latency.value_at_quantile(0.99) as f64 / 1e3,
        "ms",
    );
    Ok(())
}

struct Usage {
    scheduler_cpu: f64,
    scheduler_memory: f64,
    agents_cpu: f64,
    agents_memory: f64,
    envoy_cpu: f64,
    envoy_memory: f64,
}

impl Usage {
    fn of(fleet: &Fleet) -> Result<Self> {
        let agents = (0..fleet.replicas).map(Component::Agent);
        let (scheduler, envoy) = (Component::Scheduler, Component::Envoy(0));
        Ok(Self {
            scheduler_cpu: fleet.cpu(scheduler)?,
            scheduler_memory: fleet.memory(scheduler)?,
            agents_cpu: agents.clone().map(|a| fleet.cpu(a)).sum::<Result<f64>>()?,
            agents_memory: agents.map(|a| fleet.memory(a)).sum::<Result<f64>>()?,
            envoy_cpu: fleet.cpu(envoy)?,
            envoy_memory: fleet.memory(envoy)?,
        })
    }
}

fn replicas(models: &[Wanted]) -> f64 {
    f64::from(models.iter().map(|model| model.replicas).sum::<u32>())
}

fn cpu(before: &Usage, after: &Usage, models: &[Wanted], report: &mut Report) {
    let cpu = after.scheduler_cpu - before.scheduler_cpu;
    report.shown(SECTION, "the same: scheduler CPU", cpu, "s");
    report.shown(
        SECTION,
        "scheduler CPU a model, all that it does",
        cpu * 1e6 / models.len() as f64,
        "µs",
    );
    report.shown(
        SECTION,
        "agent CPU a load, all that it does",
        (after.agents_cpu - before.agents_cpu) * 1e3 / replicas(models),
        "ms",
    );
    let envoy = after.envoy_cpu - before.envoy_cpu;
    report.shown(SECTION, "Envoy CPU, requests included", envoy, "s");
}

fn memory(before: &Usage, after: &Usage, models: &[Wanted], report: &mut Report) {
    let each = |before: f64, after: f64, count: f64| (after - before) / count / 1024.0;
    let count = models.len() as f64;
    report.at_most(
        SECTION,
        "scheduler memory a model, of the last three quarters",
        each(before.scheduler_memory, after.scheduler_memory, count),
        "KB",
        4.0,
    );
    report.at_most(
        SECTION,
        "agent memory a registered model, of the last three quarters",
        each(before.agents_memory, after.agents_memory, replicas(models)),
        "KB",
        2.0,
    );
    report.shown(
        SECTION,
        "Envoy memory a model, of the last three quarters",
        each(before.envoy_memory, after.envoy_memory, count),
        "KB",
    );
}

/// How many distinct sets of replicas there are, and how even memory is.
fn shape(
    models: &BTreeMap<String, ModelVersionStatus>,
    server: &ServerStatusResponse,
    report: &mut Report,
) {
    let mut sets: BTreeMap<usize, BTreeSet<BTreeSet<u32>>> = BTreeMap::new();
    for model in models.values() {
        let set = replicas_of(model);
        sets.entry(set.len()).or_default().insert(set);
    }
    for (size, sets) in sets {
        report.at_most(
            SECTION,
            format!("distinct sets of {size} replicas"),
            sets.len() as f64,
            "",
            f64::from(2 * REPLICAS),
        );
    }
    let used = server.resources.iter();
    let used: Vec<f64> = used
        .map(|r| (r.total_memory_bytes - r.available_memory_bytes) as f64)
        .collect();
    let most = used.iter().copied().fold(f64::MIN, f64::max);
    let least = used.iter().copied().fold(f64::MAX, f64::min);
    let mean = used.iter().sum::<f64>() / used.len() as f64;
    let skew = 100.0 * (most - least) / mean;
    report.at_most(SECTION, "memory booked, most − least", skew, "%", 5.0);
}

/// One agent is killed, its models go elsewhere, it comes back.
async fn lose(fleet: &Fleet, victim: u32, all: &[Wanted], report: &mut Report) -> Result<()> {
    let everyone: Vec<u32> = (0..REPLICAS).collect();
    let left: Vec<u32> = everyone.iter().copied().filter(|r| *r != victim).collect();
    let resources = fleet.server().await?.resources;
    let lost = resources.iter().find(|r| r.replica_idx == victim);
    let lost = f64::from(lost.context("no such replica")?.num_loaded_models);
    let agent = Component::Agent(victim as usize);
    let cpu = fleet.cpu(Component::Scheduler)?;
    let start = Instant::now();
    fleet.system.kill(agent, Signal::SIGKILL)?;
    fleet.settled(&left, all, LIMIT).await?;
    let took = start.elapsed().as_secs_f64();
    let cpu = fleet.cpu(Component::Scheduler)? - cpu;
    report.shown(
        SECTION,
        format!("agent killed: {lost} models available elsewhere, 5 s of patience included"),
        took,
        "s",
    );
    report.shown(
        SECTION,
        "the same: scheduler CPU a model",
        cpu * 1e6 / lost,
        "µs",
    );

    let cpu = fleet.cpu(Component::Scheduler)?;
    let start = Instant::now();
    fleet.system.restart(agent).await?;
    fleet.settled(&everyone, all, LIMIT).await?;
    let took = start.elapsed().as_secs_f64();
    let cpu = fleet.cpu(Component::Scheduler)? - cpu;
    report.shown(
        SECTION,
        "agent back: ready, and rid of what has moved",
        took,
        "s",
    );
    report.shown(SECTION, "the same: scheduler CPU", cpu, "s");
    Ok(())
}
