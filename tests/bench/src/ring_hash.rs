//! Over-committed replicas: each model kept to one of them, as the scheduler has it, against Envoy's least request. Both by Envoys
//! that no scheduler drives, with the same of all but this.
use anyhow::Result;
use serde_json::json;

use crate::{
    dice::{Dice, zipf},
    fleet::Fleet,
    frozen::{Frozen, Held},
    lru,
    over_commit::{MISSES, RATE, TIMES, fleet, send},
    report::Report,
};

const SECTION: &str = "ring hash";
/// Models that fit into one replica.
const FIT: usize = 50;
const LENGTH: usize = 8_000;

/// Runs the section.
pub async fn run(report: &mut Report) -> Result<()> {
    for replicas in [2, 4] {
        let fleet = fleet(replicas, FIT, FIT * TIMES).await?;
        compare(&fleet, replicas, report).await?;
        fleet.stop().await?;
    }
    Ok(())
}

async fn compare(fleet: &Fleet, replicas: usize, report: &mut Report) -> Result<()> {
    let envoy = fleet.system.config();
    let shipped = Held::of(fleet.system.ports().envoys[0].admin).await?;
    let mut least = shipped.clone();
    let mut changed = 0;
    for cluster in &mut least.clusters {
        if cluster["lb_policy"] == "RING_HASH"
            && let Some(fields) = cluster.as_object_mut()
        {
            fields.insert("lb_policy".into(), json!("LEAST_REQUEST"));
            fields.remove("common_lb_config");
            changed += 1;
        }
    }
    anyhow::ensure!(changed > 0, "no cluster has a ring");

    let which = format!(
        "{replicas} replicas, {} models where {FIT} fit",
        FIT * TIMES
    );
    let trace = zipf(FIT * TIMES, 1.1, 2 * LENGTH, &mut Dice::new(5));
    for (what, size) in [
        ("one replica", FIT),
        ("all replicas together", FIT * replicas),
    ] {
        let ideal = 100.0 * lru::misses(&trace, size, LENGTH) as f64 / LENGTH as f64;
        report.shown(
            SECTION,
            format!("{which}: misses of an ideal LRU as large as {what}"),
            ideal,
            "%",
        );
    }
    let mut misses = Vec::new();
    for (how, held) in [("ring hash", &shipped), ("least request", &least)] {
        let frozen = Frozen::start(&envoy.parts.envoy, held, 1).await?;
        send(frozen.target.data.clone(), &trace[..LENGTH], RATE).await?;
        let before = (fleet.metrics(MISSES).await?, asked(fleet).await?);
        let main = send(frozen.target.data.clone(), &trace[LENGTH..], RATE).await?;
        let missed = fleet.metrics(MISSES).await? - before.0;
        let each: Vec<u64> = asked(fleet)
            .await?
            .iter()
            .zip(before.1)
            .map(|(after, before)| after - before)
            .collect();
        let mean = each.iter().sum::<u64>() as f64 / replicas as f64;
        let busiest = each.iter().max().copied().unwrap_or_default() as f64 / mean;
        let rate = 100.0 * missed / main.sent as f64;
        misses.push(rate);
        report.shown(SECTION, format!("{which}: misses, {how}"), rate, "%");
        report.shown(
            SECTION,
            format!("{which}: busiest replica / mean, {how}"),
            busiest,
            "×",
        );
        report.shown(
            SECTION,
            format!("{which}: p99, {how}, a load takes 10 ms"),
            main.latency.value_at_quantile(0.99) as f64 / 1e3,
            "ms",
        );
        report.at_most(
            SECTION,
            format!("{which}: failed of {} requests, {how}", main.sent),
            main.failed() as f64,
            "",
            0.0,
        );
    }
    report.at_most(
        SECTION,
        format!("{which}: misses, ring hash / least request"),
        misses[0] / misses[1],
        "×",
        1.0,
    );
    Ok(())
}

/// Inferences of each replica so far.
async fn asked(fleet: &Fleet) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for replica in 0..fleet.replicas {
        all.push(fleet.asked(replica).await?.counts.values().sum());
    }
    Ok(all)
}
