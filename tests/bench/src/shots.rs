//! Load for one figure, and what it cost a process.
use std::time::Duration;

use anyhow::{Result, ensure};
use seldon_load::{
    cpu,
    driver::{Load, Report, Shot},
};
use seldon_proto::inference::ModelInferRequest;

/// A small REST inference.
pub const BODY: &str =
    r#"{"inputs":[{"name":"predict","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}"#;

/// What a run of load cost and gave.
pub struct Cost {
    /// Microseconds of CPU of each process asked for, per request.
    pub cpu_us: Vec<f64>,
    pub report: Report,
}

/// Sends as fast as answers come over `connections` for so long, and counts the CPU time of `pids`.
pub async fn saturate(
    targets: Vec<String>,
    shots: Vec<Shot>,
    connections: usize,
    duration: Duration,
    pids: &[u32],
) -> Result<Cost> {
    let load = Load {
        targets,
        shots,
        connections,
        rate: None,
        deadline: Duration::from_secs(10),
    };
    let times = || -> Vec<Duration> {
        pids.iter()
            .map(|p| cpu::time(*p).unwrap_or_default())
            .collect()
    };
    let before = times();
    let report = load.run(duration).await?;
    let after = times();
    ensure!(
        report.failed() == 0,
        "requests failed: {:?}",
        report.failures
    );
    ensure!(report.succeeded > 0, "no request was answered");
    let cpu_us = before
        .iter()
        .zip(&after)
        .map(|(b, a)| a.saturating_sub(*b).as_secs_f64() * 1e6 / report.succeeded as f64)
        .collect();
    Ok(Cost { cpu_us, report })
}

/// A gRPC inference for a model.
pub fn grpc(model: &str) -> Shot {
    Shot::grpc(
        model,
        &ModelInferRequest {
            model_name: model.into(),
            ..Default::default()
        },
    )
}

/// The middle one of a few figures.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
