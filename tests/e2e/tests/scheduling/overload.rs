//! A model is asked for five times what it can answer: it answers as much as ever, the rest is told so at once, and
//! nobody else notices.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::Ask;
use seldon_e2e::faults::{Fleet, long, model};
use seldon_load::cpu;
use seldon_load::driver::{Load, Report, Running};
use seldon_local::Component::{Agent, Envoy};
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;

use crate::scene::{Scene, passes, shots};

const BUSY: &str = "busy-1";
/// 4 requests at a time, each for 20 ms: 200 a second.
pub(crate) const BEHAVIOUR: [(&str, &str); 3] = [
    ("FAKE_SLOW_PREFIX", "busy-"),
    ("FAKE_SLOW_MS", "20"),
    ("FAKE_SLOW_SLOTS", "4"),
];
/// What one replica can answer in a second.
const CAPACITY: f64 = 200.0;
const OFFERED: f64 = 1000.0;
/// Of what it answers when it is just busy.
const GOODPUT: f64 = 0.9;
/// Seconds after which everything that can wait waits.
const FULL: u64 = 8;
/// More than noise, and less than anything that grows with time.
const MEMORY: u64 = 32 << 20;

#[tokio::main]
pub(crate) async fn overloaded() -> Result<()> {
    let seconds = if long() { 60 } else { 30 };
    let scene = Scene::new(Fleet::start(&BEHAVIOUR).await?).await?;
    scene.fleet.load(model(BUSY, 1000, 1)).await?;
    scene.fleet.reaches(BUSY, ModelAvailable, 1, 30).await?;
    let peak = busy(&scene, 16, None)?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let peak = peak.stop().await?.per_second();

    let neighbours = Load {
        targets: scene.targets.clone(),
        shots: scene.names.iter().flat_map(|name| shots(name)).collect(),
        connections: 64,
        rate: Some(crate::scene::RATE),
        deadline: Duration::from_secs(5),
    }
    .start()?;
    passes(&neighbours, 1).await?;
    let flood = busy(&scene, 4000, Some(OFFERED))?;
    let begin = Instant::now();
    // By then all connections are open and the queue is full.
    passes(&neighbours, FULL).await?;
    let (before, mut most, mut refusals) = (memory(&scene)?, 0, 0);
    while begin.elapsed() < Duration::from_secs(seconds) {
        passes(&neighbours, 1).await?;
        most = most.max(memory(&scene)?);
        refusals += u64::from(refused(&scene)?);
    }
    let flooded = flood.stop().await?;
    // What waited is answered after the last one was sent.
    let goodput = flooded.succeeded as f64 / begin.elapsed().as_secs_f64();
    let quiet = neighbours.stop().await?;
    println!(
        "{BUSY}: {peak:.0} a second at most, {goodput:.0} under {OFFERED:.0} a second ({:.0} %), {} refused; memory of agents and Envoys {:+.1} MB",
        goodput / peak * 100.0,
        flooded.failed(),
        (most as f64 - before as f64) / 1e6
    );
    println!(
        "its neighbours: {} requests, {} failed, p99 {:.1} ms",
        quiet.sent,
        quiet.failed(),
        quiet.latency.value_at_quantile(0.99) as f64 / 1e3
    );
    ensure!(
        (CAPACITY * 0.5..CAPACITY * 1.1).contains(&peak),
        "the model is not as busy as it should be: {peak}"
    );
    ensure!(goodput >= peak * GOODPUT, "it answers less than it could");
    ensure!(most < before + MEMORY, "memory grows: {before} to {most}");
    ensure!(refusals > 0, "nobody was refused in so many words");
    only_refusals(&flooded)?;
    ensure!(
        quiet.failed() == 0,
        "its neighbours failed: {:?}",
        quiet.failures
    );
    scene.fleet.whole(&scene.names, 2, 10).await
}

fn busy(scene: &Scene, connections: usize, rate: Option<f64>) -> Result<Running> {
    Load {
        targets: scene.targets.clone(),
        shots: shots(BUSY).to_vec(),
        connections,
        rate,
        deadline: Duration::from_secs(60),
    }
    .start()
}

/// One more request: if it is refused, then with 429 or 503, a reason, and a time after which to come again.
fn refused(scene: &Scene) -> Result<bool> {
    let port = scene.fleet.system.ports().envoys[0].data;
    let answer = Ask::post(&format!("/v2/models/{BUSY}/infer"), r#"{"inputs":[]}"#)
        .header("seldon-model", BUSY)
        .send(port)?;
    if answer.status == 200 {
        return Ok(false);
    }
    ensure!(
        matches!(answer.status, 429 | 503),
        "refused with {}: {}",
        answer.status,
        answer.text()
    );
    let wait: u64 = answer
        .field("retry-after")
        .parse()
        .context("Retry-After of a refusal")?;
    ensure!(
        wait > 0 && answer.json()?["error"].is_string(),
        "{}",
        answer.text()
    );
    Ok(true)
}

/// REST: 429 or 503; gRPC: RESOURCE_EXHAUSTED or UNAVAILABLE.
fn only_refusals(flooded: &Report) -> Result<()> {
    let known = |text: &str| {
        ["429 ", "503 ", "grpc 8", "grpc 14"]
            .iter()
            .any(|refusal| text.starts_with(refusal))
    };
    let others: Vec<_> = flooded
        .failures
        .iter()
        .filter(|(text, _)| !known(text))
        .collect();
    ensure!(others.is_empty(), "failures that say nothing: {others:?}");
    Ok(())
}

/// What agents and Envoys have resident.
fn memory(scene: &Scene) -> Result<u64> {
    let system = &scene.fleet.system;
    let of = |component| {
        let pid = system.pid(component).context("a process is gone")?;
        cpu::resident(pid).context("no VmRSS")
    };
    let components = [Agent(0), Agent(1), Envoy(0), Envoy(1)];
    components.into_iter().map(of).sum()
}
