//! How long a request takes at a fixed rate, against as many bare hops and the models' own time.
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use seldon_load::driver::{Load, Shot};

use crate::report::Report;
use crate::shots::median;

use super::relay::Relay;
use super::scene::{Kind, Scene, chain, echoes, grpc, grpc_model};
use super::topics::answers;

const STEPS: [usize; 3] = [1, 3, 5];
const RATES: [f64; 3] = [1.0, 10.0, 100.0];
/// All take turns so many times: machines are noisy.
const ROUNDS: usize = 3;

/// Runs the part.
pub(super) async fn run(kind: Kind, seconds: u64, report: &mut Report) -> Result<()> {
    let scene = Scene::start(kind).await?;
    let models = echoes(STEPS[STEPS.len() - 1]);
    scene.models(&models, "sklearn").await?;
    let pipelines: Vec<_> = STEPS
        .iter()
        .map(|steps| chain(&name(*steps), &models[..*steps]))
        .collect();
    scene.load(&pipelines).await?;
    scene.pipelines_ready(pipelines.len()).await?;
    answers(&scene.envoy(), &STEPS.map(name)).await?;
    for steps in STEPS {
        let relay = Arc::new(Relay::new(&scene.settings, steps).await?);
        at_rate(&scene, grpc(&name(steps)), 20.0, Duration::from_secs(1)).await?;
        for rate in RATES {
            one(kind, &scene, &relay, (steps, rate), seconds, report).await?;
        }
    }
    scene.stop().await;
    Ok(())
}

fn name(steps: usize) -> String {
    format!("chain-{steps}")
}

async fn one(
    kind: Kind,
    scene: &Scene,
    relay: &Arc<Relay>,
    (steps, rate): (usize, f64),
    seconds: u64,
    report: &mut Report,
) -> Result<()> {
    // At one a second a figure needs more time.
    let lasts = Duration::from_secs(if rate < 2.0 { seconds.max(5) } else { seconds });
    let (mut ratios, mut ours, mut floors, mut tails) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let hops = median(relay.at_rate(rate, lasts).await?);
        let model = at_rate(scene, grpc_model("echo-1"), rate, lasts).await?.0;
        let (pipeline, tail) = at_rate(scene, grpc(&name(steps)), rate, lasts).await?;
        let floor = hops + steps as f64 * model;
        ratios.push(pipeline / floor);
        ours.push(pipeline / 1e3);
        floors.push(floor / 1e3);
        tails.push(tail / 1e3);
    }
    let section = kind.section();
    let what = format!("{steps} step(s) at {rate}/s");
    report.at_most(
        section,
        format!("{what}: p50 / (bare hops + models)"),
        median(ratios),
        "×",
        1.25,
    );
    report.shown(section, format!("{what}: p50"), median(ours), "ms");
    report.shown(section, format!("{what}: p99"), median(tails), "ms");
    report.shown(
        section,
        format!("{what}: bare hops + models"),
        median(floors),
        "ms",
    );
    Ok(())
}

/// Median and 99th percentile, µs.
async fn at_rate(scene: &Scene, shot: Shot, rate: f64, lasts: Duration) -> Result<(f64, f64)> {
    let load = Load {
        targets: vec![scene.envoy()],
        shots: vec![shot],
        // Enough that none is late, few enough that each is used.
        connections: (rate / 4.0).ceil() as usize,
        rate: Some(rate),
        deadline: Duration::from_secs(30),
    };
    let done = load.run(lasts).await?;
    ensure!(done.failed() == 0, "requests failed: {:?}", done.failures);
    ensure!(done.succeeded > 0, "no request was answered");
    let at = |quantile| done.latency.value_at_quantile(quantile) as f64;
    Ok((at(0.5), at(0.99)))
}
