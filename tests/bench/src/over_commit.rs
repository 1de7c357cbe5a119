//! Ten times as many models as fit into memory, with Zipf traffic: hit rate, loads, and what a hit costs.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use http::HeaderValue;
use seldon_load::driver::{Load, Report as Loaded, Shot};
use seldon_local::Component;

use crate::{
    admin::Probe,
    dice::{Dice, zipf},
    fleet::{Fleet, Wanted},
    lru,
    report::Report,
    shots::{BODY, median, saturate},
};

const SECTION: &str = "over-commit";
/// So many times more models than fit.
pub const TIMES: usize = 10;
/// Models of the larger case.
const LARGE: usize = 10_000;
/// What a model counts for.
const BYTES: u64 = 1000;
const EXPONENT: f64 = 1.1;
const AGENT: Component = Component::Agent(0);
const LIMIT: Duration = Duration::from_secs(600);
/// Models that are asked to see what a hit costs.
const HOT: usize = 64;
const ROUNDS: usize = 15;

/// Runs the section.
pub async fn run(seconds: u64, report: &mut Report) -> Result<()> {
    let small = fleet(1, 20, TIMES * 20).await?;
    // Few fit: at a higher rate, models being loaded would be a large part of them.
    traffic(&small, 20, 4_000, 100.0, report).await?;
    small.stop().await?;

    let over = fleet(1, LARGE / TIMES, 0).await?;
    let fits = fleet(1, LARGE, 0).await?;
    memory(&over, "over-committed, 250 at a time", 250, report).await?;
    memory(&fits, "all in memory, 7,500 at once", LARGE, report).await?;
    traffic(&over, LARGE / TIMES, 20_000, RATE, report).await?;
    callers(&over, LARGE, report).await?;
    hits(&over, &fits, seconds, report).await?;
    over.stop().await?;
    fits.stop().await
}

pub fn name(number: usize) -> String {
    format!("model-{number:05}")
}

pub fn wanted(number: usize, replicas: usize) -> Wanted {
    Wanted {
        name: name(number),
        bytes: BYTES,
        replicas: replicas as u32,
    }
}

/// Replicas with memory for `fit` models and ten times as many registered, of which the first `load` are loaded on all.
pub async fn fleet(replicas: usize, fit: usize, load: usize) -> Result<Fleet> {
    let fleet = Fleet::start(replicas, move |config| {
        config.memory_bytes = fit as u64 * BYTES;
        config.over_commit_percentage = (TIMES as u32 - 1) * 100;
        // A load takes its time, so that callers meet in it.
        let env = config.env.entry("mlserver".into()).or_default();
        env.insert("FAKE_LOAD_MS".into(), "10".into());
    })
    .await?;
    let models: Vec<Wanted> = (0..load).map(|n| wanted(n, replicas)).collect();
    register(&fleet, &models, 0).await?;
    Ok(fleet)
}

/// Loads the models from `from` on, after those before it.
async fn register(fleet: &Fleet, models: &[Wanted], from: usize) -> Result<()> {
    let present: Vec<u32> = (0..fleet.replicas as u32).collect();
    fleet.load(&models[from..]).await?;
    fleet.settled(&present, models, LIMIT).await?;
    Ok(())
}

/// What the agent needs for one model more. Orders that wait for their turn need memory as well, which is not all given back:
/// so it matters how many are ordered at a time.
async fn memory(fleet: &Fleet, how: &str, step: usize, report: &mut Report) -> Result<()> {
    let models: Vec<Wanted> = (0..LARGE).map(|n| wanted(n, fleet.replicas)).collect();
    let first = LARGE / 4;
    let grow = async |from: usize, to: usize| -> Result<()> {
        for from in (from..to).step_by(step) {
            let to = to.min(from + step);
            register(fleet, &models[..to], from).await?;
        }
        Ok(())
    };
    grow(0, first).await?;
    let before = fleet.memory(AGENT)?;
    grow(first, LARGE).await?;
    let more = fleet.memory(AGENT)? - before;
    report.at_most(
        SECTION,
        format!("agent memory a registered model, {LARGE} models {how}"),
        more / (LARGE - first) as f64 / 1024.0,
        "KB",
        2.0,
    );
    Ok(())
}

/// Sends so much of a trace at a fixed rate.
pub async fn send(target: String, trace: &[usize], rate: f64) -> Result<Loaded> {
    let kinds: Vec<Shot> = (0..=trace.iter().copied().max().unwrap_or(0))
        .map(|number| Shot::rest(&name(number), BODY))
        .collect();
    let load = Load {
        targets: vec![target],
        shots: trace.iter().map(|number| kinds[*number].clone()).collect(),
        connections: 32,
        rate: Some(rate),
        deadline: Duration::from_secs(30),
    };
    let running = load.start()?;
    while running.answered() < trace.len() as u64 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let loaded = running.stop().await?;
    for (why, count) in &loaded.failures {
        eprintln!("{SECTION}: {count} × {why}");
    }
    Ok(loaded)
}

pub async fn loads(fleet: &Fleet) -> Result<u64> {
    let mut sum = 0;
    for replica in 0..fleet.replicas {
        sum += fleet.asked(replica).await?.loads.values().sum::<u64>();
    }
    Ok(sum)
}

pub const MISSES: &str = "seldon_cache_miss_count";
const EVICTIONS: &str = "seldon_cache_evict_count";
pub const RATE: f64 = 400.0;

/// Zipf traffic through Envoy, against an ideal cache.
async fn traffic(
    fleet: &Fleet,
    fit: usize,
    length: usize,
    rate: f64,
    report: &mut Report,
) -> Result<()> {
    let models = fit * TIMES;
    let which = format!("{models} models where {fit} fit, {rate}/s");
    let warm = length / 3;
    let trace = zipf(models, EXPONENT, warm + length, &mut Dice::new(3));
    let first = send(fleet.envoy(), &trace[..warm], rate).await?;
    let before = (
        fleet.metrics(MISSES).await?,
        fleet.metrics(EVICTIONS).await?,
        loads(fleet).await?,
    );
    let main = send(fleet.envoy(), &trace[warm..], rate).await?;
    let missed = fleet.metrics(MISSES).await? - before.0;
    let evicted = fleet.metrics(EVICTIONS).await? - before.1;
    let loaded = (loads(fleet).await? - before.2) as f64;

    let hits = 100.0 - 100.0 * missed / main.sent as f64;
    let ideal = lru::misses(&trace, fit, warm) as f64;
    let best = 100.0 - 100.0 * ideal / length as f64;
    report.shown(SECTION, format!("{which}: hits"), hits, "%");
    report.shown(SECTION, format!("{which}: hits of an ideal LRU"), best, "%");
    report.at_most(
        SECTION,
        format!("{which}: hits fewer than an ideal LRU's"),
        best - hits,
        "points",
        2.0,
    );
    report.at_most(
        SECTION,
        format!("{which}: loads a request that missed; the others met in one"),
        loaded / missed,
        "",
        1.0,
    );
    report.shown(
        SECTION,
        format!("{which}: loads an eviction"),
        loaded / evicted,
        "",
    );
    report.at_most(
        SECTION,
        format!("{which}: failed of {} requests", first.sent + main.sent),
        (first.failed() + main.failed()) as f64,
        "",
        0.0,
    );
    for (what, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        report.shown(
            SECTION,
            format!("{which}: {what}, a load takes 10 ms"),
            main.latency.value_at_quantile(quantile) as f64 / 1e3,
            "ms",
        );
    }
    Ok(())
}

/// Many callers at once of models that are evicted.
async fn callers(fleet: &Fleet, models: usize, report: &mut Report) -> Result<()> {
    const CALLERS: usize = 50;
    let mut most = 0;
    let mut loaded = 0;
    for number in (0..models).step_by(models / 40) {
        let before = fleet.asked(0).await?.loads;
        let calls = (0..CALLERS).map(|_| {
            let mut probe = Probe::new(fleet.envoy());
            async move { probe.ask(&name(number)).await }
        });
        let answers = try_join_all(calls).await?;
        ensure!(
            answers.iter().all(Option::is_some),
            "one of {CALLERS} callers of {} was refused",
            name(number)
        );
        let internal = format!("{}_1", name(number));
        let after = fleet.asked(0).await?.loads;
        let count = |loads: &std::collections::BTreeMap<String, u64>| {
            loads.get(&internal).copied().unwrap_or_default()
        };
        let loads = count(&after) - count(&before);
        most = most.max(loads);
        loaded += usize::from(loads > 0);
    }
    ensure!(loaded > 0, "none of the models asked was evicted");
    report.at_most(
        SECTION,
        format!("loads of an evicted model that {CALLERS} ask at once, most of {loaded} models"),
        most as f64,
        "",
        1.0,
    );
    Ok(())
}

/// The agent's CPU for requests to models that are in memory, with over-commit and without, in turns.
async fn hits(over: &Fleet, fits: &Fleet, seconds: u64, report: &mut Report) -> Result<()> {
    let shots: Vec<Shot> = (0..HOT)
        .map(|number| {
            let mut shot = Shot::rest(&name(number), BODY);
            // What Envoy would add.
            let internal: HeaderValue = format!("{}_1", name(number)).parse()?;
            shot.headers.insert("seldon-internal-model", internal);
            Ok(shot)
        })
        .collect::<Result<_>>()?;
    let duration = Duration::from_millis(seconds * 300);
    let once = async |fleet: &Fleet| -> Result<f64> {
        let agent = format!("127.0.0.1:{}", fleet.system.ports().replicas[0].rest);
        let pids = [fleet.pid(AGENT)?];
        let cost = saturate(vec![agent], shots.clone(), 16, duration, &pids).await?;
        cost.cpu_us.first().copied().context("no CPU time")
    };
    // Into memory, and both processes warm.
    for fleet in [over, fits] {
        once(fleet).await?;
    }
    let missed = over.metrics(MISSES).await?;
    let (mut with, mut without, mut differences) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        // Whoever comes second finds a warmer machine.
        let (one, other) = match round % 2 {
            0 => {
                let one = once(over).await?;
                (one, once(fits).await?)
            }
            _ => {
                let other = once(fits).await?;
                (once(over).await?, other)
            }
        };
        with.push(one);
        without.push(other);
        differences.push(one - other);
    }
    ensure!(
        over.metrics(MISSES).await? <= missed,
        "these were to be hits"
    );
    report.shown(
        SECTION,
        "a hit: agent CPU, over-committed",
        median(with),
        "µs",
    );
    report.shown(
        SECTION,
        "a hit: agent CPU, all in memory",
        median(without),
        "µs",
    );
    differences.sort_by(f64::total_cmp);
    let quarter = ROUNDS / 4;
    eprintln!(
        "{SECTION}: differences, the middle half: {:.2} to {:.2} µs",
        differences[quarter],
        differences[ROUNDS - 1 - quarter]
    );
    report.at_most(
        SECTION,
        format!("a hit: agent CPU more than without, median of {ROUNDS} rounds"),
        median(differences),
        "µs",
        2.0,
    );
    Ok(())
}
