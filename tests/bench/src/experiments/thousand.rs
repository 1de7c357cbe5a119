//! A thousand experiments: what they cost others, Envoy and whoever changes one.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seldon_load::{cpu, driver::Shot};
use seldon_local::Component;
use tokio::time::Instant;

use super::{
    CONNECTIONS, COUNT, Experiment, ExperimentCandidate, Frozen, Held, Kind, PLAIN, ROUNDS, Report,
    SECTION, SERVER, World, costs, halves,
};
use crate::{
    admin::Probe,
    shots::{BODY, grpc, median},
};

/// Workers of an Envoy whose memory is compared with that of one worker.
const WORKERS: usize = 5;
/// How often each Envoy of that comparison is started.
const STARTS: usize = 3;
const CHANGES: usize = 100;

pub(super) async fn run(
    world: &World,
    bare: &Held,
    seconds: u64,
    report: &mut Report,
) -> Result<()> {
    let before = count_models(world).await?;
    let names = |letter: char| -> Vec<String> {
        (0..COUNT)
            .map(|n| format!("model-{n:04}-{letter}"))
            .collect()
    };
    let (defaults, others) = (names('a'), names('b'));
    world.fill(&defaults, SERVER, before + COUNT).await?;
    world.fill(&others, SERVER, before + 2 * COUNT).await?;
    // The models are in both, the experiments in one.
    let mut without = Held::of(world.admin(0)).await?;
    *without.configuration() = bare.clone().configuration().clone();
    let envoy = world.system.config().parts.envoy.clone();
    let without_envoy = Frozen::start(&envoy, &without, 1).await?;
    let experiments = defaults.iter().zip(&others).enumerate();
    let experiments = experiments
        .map(|(number, (default, other))| Experiment {
            default: Some(default.clone()),
            ..halves(&experiment(number), [default, other])
        })
        .collect();
    world.experiments(experiments).await?;

    let mut held = Held::of(world.admin(0)).await?;
    let configuration = held.configuration().as_str().context("no text")?.to_owned();
    report.shown(
        SECTION,
        format!("filter configuration of {COUNT} experiments"),
        configuration.len() as f64 / 1e3,
        "KB",
    );
    let module = std::fs::metadata(&world.system.config().parts.filter_module)?.len();
    report.at_most(SECTION, "module", module as f64 / 1e3, "KB", 250.0);
    others_pay(world, &without_envoy, seconds, report).await?;
    drop(without_envoy);
    memory(&envoy, &without, &held, report).await?;
    one_change(world, report).await
}

fn experiment(number: usize) -> String {
    format!("experiment-{number:04}")
}

async fn count_models(world: &World) -> Result<usize> {
    let held = Held::of(world.admin(0)).await?;
    let models = held.scopes.keys().filter_map(|key| key.strip_prefix("c:"));
    Ok(models
        .filter(|name| !name.is_empty() && !name.ends_with(".experiment"))
        .count())
}

/// A plain model called with its header, while others have experiments and while nobody has.
async fn others_pay(
    world: &World,
    without: &Frozen,
    seconds: u64,
    report: &mut Report,
) -> Result<()> {
    let kind = |target, shot| Kind { target, shot };
    let (live, without) = (world.target(0)?, without.target.clone());
    let kinds = [
        kind(without.clone(), Shot::rest(PLAIN, BODY)),
        kind(live.clone(), Shot::rest(PLAIN, BODY)),
        kind(without, grpc(PLAIN)),
        kind(live, grpc(PLAIN)),
    ];
    let duration = Duration::from_secs(seconds) / 3;
    let costs = costs(&kinds, ROUNDS, CONNECTIONS, duration).await?;
    for (what, ratio) in [("REST", costs.ratio(1, 0)), ("gRPC", costs.ratio(3, 2))] {
        let what = format!("Envoy CPU, {what}, a plain model, {COUNT} experiments / none");
        report.at_most(SECTION, what, ratio, "×", 1.05);
    }
    Ok(())
}

/// Memory that the experiments' configuration adds, to a whole Envoy of one worker and to each worker more.
async fn memory(
    envoy: &std::path::Path,
    without: &Held,
    with: &Held,
    report: &mut Report,
) -> Result<()> {
    // Scopes are paid for once; only the filter's configuration differs.
    let mut empty = with.clone();
    *empty.configuration() = without.clone().configuration().clone();
    let mut sizes = [const { vec![] }; 4];
    for _ in 0..STARTS {
        let cases = [(&empty, 1), (&empty, WORKERS), (with, 1), (with, WORKERS)];
        for ((held, workers), sizes) in cases.into_iter().zip(&mut sizes) {
            let frozen = Frozen::start(envoy, held, workers).await?;
            sizes.push(anonymous(frozen.target.pid)?);
        }
    }
    let [empty_one, empty_many, one, many] = sizes.map(median);
    let each = ((many - one) - (empty_many - empty_one)) / (WORKERS - 1) as f64;
    let what = format!("Envoy memory of {COUNT} experiments in the filter, one worker");
    report.shown(SECTION, what, one - empty_one, "MB");
    let what = format!("Envoy memory of {COUNT} experiments in the filter, each worker more");
    report.shown(SECTION, what, each, "MB");
    Ok(())
}

/// Milliseconds, from a line about a configuration of all experiments.
fn read_time(line: &str) -> Option<f64> {
    let (before, time) = line.rsplit_once(" bytes read in ")?;
    let count = before.rsplit_once(" experiments, ")?.0.rsplit(' ').next()?;
    let time = time.split(' ').next()?.parse::<f64>().ok()?;
    count
        .parse()
        .is_ok_and(|count: usize| count >= COUNT)
        .then_some(time / 1e3)
}

/// Megabytes of a process that are no file's: heap, stacks, and what the VMs have.
fn anonymous(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Anonymous:"));
    let kilobytes = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kilobytes.context("no anonymous memory")? / 1e3)
}

/// Turns one experiment from one candidate to the other and back, again and again.
async fn one_change(world: &World, report: &mut Report) -> Result<()> {
    let number = COUNT / 2;
    let name = experiment(number);
    let request = format!("{name}.experiment");
    let candidates = ['a', 'b'].map(|letter| format!("model-{number:04}-{letter}"));
    let (scheduler, envoy) = (
        world.pid(Component::Scheduler)?,
        world.pid(Component::Envoy(0))?,
    );
    let mut probe = Probe::new(world.data(0));
    let mut waits = vec![];
    let (mut bytes, mut cpu_before) = (0.0, (None, None));
    // The first change is from half and half, and not counted.
    for turn in 0..=CHANGES {
        if turn == 1 {
            bytes = world.discovered(0).await?;
            cpu_before = (cpu::time(scheduler), cpu::time(envoy));
        }
        let chosen = &candidates[turn % 2];
        let weighted = |candidate: &String| ExperimentCandidate {
            name: candidate.clone(),
            weight: u32::from(candidate == chosen),
        };
        let change = Experiment {
            name: name.clone(),
            default: Some(candidates[0].clone()),
            candidates: candidates.iter().map(weighted).collect(),
            ..Default::default()
        };
        let since = Instant::now();
        world.experiment(change).await?;
        let route = format!(":{chosen}_1:");
        let mut in_a_row = 0;
        // Chance answers half of the requests rightly before the first change.
        let enough = if turn == 0 { 20 } else { 1 };
        while in_a_row < enough {
            ensure!(
                since.elapsed() < Duration::from_secs(10),
                "{request} never goes to {chosen}"
            );
            let answer = probe.ask(&request).await?;
            let there =
                answer.is_some_and(|h| h.get("x-seldon-route").is_some_and(|r| *r == route));
            in_a_row = if there { in_a_row + 1 } else { 0 };
        }
        if turn > 0 {
            waits.push(since.elapsed().as_secs_f64() * 1e3);
        }
    }
    let turns = CHANGES as f64;
    let each = |now: Option<Duration>, before: Option<Duration>| {
        (now.unwrap_or_default() - before.unwrap_or_default()).as_secs_f64() * 1e3 / turns
    };
    let what = format!("one of {COUNT} experiments changed");
    let (of_scheduler, of_envoy) = (
        each(cpu::time(scheduler), cpu_before.0),
        each(cpu::time(envoy), cpu_before.1),
    );
    let bytes = (world.discovered(0).await? - bytes) / turns;
    waits.sort_by(f64::total_cmp);
    let late = waits[CHANGES * 99 / 100];
    report.shown(
        SECTION,
        format!("{what}: start → in force, p50"),
        median(waits),
        "ms",
    );
    report.shown(
        SECTION,
        format!("{what}: start → in force, p99"),
        late,
        "ms",
    );
    report.shown(
        SECTION,
        format!("{what}: bytes to each Envoy"),
        bytes / 1e3,
        "KB",
    );
    report.shown(
        SECTION,
        format!("{what}: scheduler CPU"),
        of_scheduler,
        "ms",
    );
    report.shown(
        SECTION,
        format!("{what}: Envoy CPU, probes included"),
        of_envoy,
        "ms",
    );
    let log = std::fs::read_to_string(world.system.log(Component::Envoy(1)))?;
    let times: Vec<f64> = log.lines().filter_map(read_time).collect();
    ensure!(
        !times.is_empty(),
        "Envoy's log tells of no configuration of {COUNT} experiments"
    );
    let what = format!("{what}: all of them read by the module");
    report.at_most(SECTION, what, median(times), "ms", 1.0);
    Ok(())
}
