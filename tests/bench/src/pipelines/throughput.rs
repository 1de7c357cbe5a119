//! Requests a second at saturation, and what each costs each process.
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use seldon_local::Component;

use crate::report::Report;
use crate::shots::{median, saturate};

use super::process::Meter;
use super::relay::Relay;
use super::scene::{ENGINE, Kind, MODELS, PIPELINES, Scene, chain, echoes, grpc, rest};
use super::topics::answers;

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 3;
/// In this order their costs are told.
const PARTS: [(&str, Component); 7] = [
    ("engine", ENGINE),
    ("model gateway", MODELS),
    ("pipeline gateway", PIPELINES),
    ("broker", Component::Broker),
    ("Envoy", Component::Envoy(0)),
    ("agent", Component::Agent(0)),
    ("inference server", Component::MlServer(0)),
];
/// Of them, ours whose sum has a target.
const OURS: usize = 3;

/// Runs the part.
pub(super) async fn run(kind: Kind, seconds: u64, report: &mut Report) -> Result<()> {
    let scene = Scene::start(kind).await?;
    let models = echoes(2);
    scene.models(&models, "sklearn").await?;
    let pipelines = [1, 2].map(|steps| chain(&format!("chain-{steps}"), &models[..steps]));
    scene.load(&pipelines).await?;
    scene.pipelines_ready(2).await?;
    let names = pipelines.map(|pipeline| pipeline.name);
    answers(&scene.envoy(), &names).await?;
    let lasts = Duration::from_secs(seconds);
    for steps in [1, 2] {
        ceiling(kind, &scene, steps, lasts, report).await?;
        for protocol in ["gRPC", "REST"] {
            saturation(kind, &scene, (steps, protocol), lasts, report).await?;
        }
    }
    scene.stop().await;
    Ok(())
}

/// The broker's own: records through as many hops by bare clients.
async fn ceiling(
    kind: Kind,
    scene: &Scene,
    steps: usize,
    lasts: Duration,
    report: &mut Report,
) -> Result<()> {
    let relay = Arc::new(Relay::new(&scene.settings, steps).await?);
    relay
        .saturated(CONNECTIONS as u64, Duration::from_secs(1))
        .await?;
    let pids = [scene.pid(Component::Broker)?, std::process::id()];
    let meter = Meter::start(&pids);
    let (count, took) = relay.saturated(CONNECTIONS as u64, lasts).await?;
    let each = meter.each(count);
    let what = format!("{} bare hops, {CONNECTIONS} at a time", 2 + 2 * steps);
    let rate = count as f64 / took.as_secs_f64();
    report.shown(
        kind.section(),
        format!("{what}: records a second"),
        rate,
        "/s",
    );
    report.shown(kind.section(), format!("{what}: broker CPU"), each[0], "µs");
    report.shown(
        kind.section(),
        format!("{what}: clients' CPU"),
        each[1],
        "µs",
    );
    Ok(())
}

async fn saturation(
    kind: Kind,
    scene: &Scene,
    (steps, protocol): (usize, &str),
    lasts: Duration,
    report: &mut Report,
) -> Result<()> {
    let pipeline = format!("chain-{steps}");
    let shot = match protocol {
        "gRPC" => grpc(&pipeline),
        _ => rest(&pipeline),
    };
    let parts = PARTS.iter().map(|(_, component)| scene.pid(*component));
    let mut pids: Vec<u32> = parts.collect::<Result<_>>()?;
    pids.push(std::process::id());
    let (mut rates, mut costs, mut tails) = (vec![], vec![], vec![]);
    for round in 0..=ROUNDS {
        let targets = vec![scene.envoy()];
        let cost = saturate(targets, vec![shot.clone()], CONNECTIONS, lasts, &pids).await?;
        // The first one warms up.
        if round > 0 {
            rates.push(cost.report.per_second());
            tails.push(cost.report.latency.value_at_quantile(0.99) as f64 / 1e3);
            costs.push(cost.cpu_us);
        }
    }
    let section = kind.section();
    let what = format!("{steps} step(s), {protocol}, {CONNECTIONS} connections");
    let rate = median(rates);
    match kind {
        Kind::Embedded => {
            let target = if steps == 1 { 1000.0 } else { 700.0 };
            report.at_least(
                section,
                format!("{what}: requests a second"),
                rate,
                "/s",
                target,
            );
        }
        Kind::Kafka => {
            report.shown(section, format!("{what}: requests a second"), rate, "/s");
        }
    }
    let ours = costs
        .iter()
        .map(|cost| cost[..OURS].iter().sum::<f64>() / 1e3);
    let ours = median(ours.collect());
    let of_ours = format!("{what}: CPU of engine and gateways");
    if steps == 1 {
        report.at_most(section, of_ours, ours, "ms", 0.45);
    } else {
        report.shown(section, of_ours, ours, "ms");
    }
    let names = PARTS.iter().map(|(name, _)| *name).chain(["driver"]);
    for (place, name) in names.enumerate() {
        let cost = median(costs.iter().map(|cost| cost[place]).collect());
        report.shown(section, format!("{what}: {name} CPU"), cost, "µs");
    }
    report.shown(section, format!("{what}: p99"), median(tails), "ms");
    Ok(())
}
