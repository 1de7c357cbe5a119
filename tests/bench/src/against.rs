//! Load at an installation that runs already.
use std::time::Duration;

use anyhow::Result;
use seldon_load::driver::Load;

use crate::report::Report;

const SECTION: &str = "installation";

/// Sends for so long, and reports rate, latency and failures.
pub async fn run(load: Load, duration: Duration, report: &mut Report) -> Result<()> {
    let seen = load.run(duration).await?;
    report.shown(SECTION, "answered", seen.per_second(), "/s");
    for (what, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let micros = seen.latency.value_at_quantile(quantile) as f64;
        report.shown(SECTION, what, micros / 1e3, "ms");
    }
    report.at_most(SECTION, "failed", seen.failed() as f64, "requests", 0.0);
    for (reason, count) in &seen.failures {
        report.shown(
            SECTION,
            format!("failed: {reason}"),
            *count as f64,
            "requests",
        );
    }
    Ok(())
}
