//! What a mirror adds to the request that is copied.
use std::time::Duration;

use anyhow::Result;
use seldon_load::{driver::Shot, fake::Behaviour};
use tokio::net::TcpListener;

use super::{Experiment, ExperimentMirror, Report, SECTION, World, halves, served};
use crate::shots::{BODY, median, saturate};

/// How long the slow mirror takes.
const SLOW: Duration = Duration::from_secs(1);
/// How long a model takes, which is little.
const MODEL: Duration = Duration::from_millis(2);
const ROUNDS: usize = 9;

/// Compares experiments of the same candidates with mirrors of all kinds, in turns.
pub(super) async fn run(world: &World, seconds: u64, report: &mut Report) -> Result<()> {
    let fast = served(Behaviour::default()).await?;
    let slow = served(Behaviour {
        infer: SLOW,
        ..Behaviour::default()
    })
    .await?;
    let model = served(Behaviour {
        infer: MODEL,
        ..Behaviour::default()
    })
    .await?;
    // Nobody listens here once this is dropped.
    let dead = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let servers = [
        ("mirror-fast", fast),
        ("mirror-slow", slow),
        ("mirror-dead", dead),
        ("model", model),
    ];
    for (server, port) in servers {
        world.server(server, port).await?;
    }
    let mut total = 3;
    for (server, models) in [
        ("mirror-fast", &["mirror-fast"][..]),
        ("mirror-slow", &["mirror-slow"]),
        ("mirror-dead", &["mirror-dead"]),
        ("model", &["timed-a", "timed-b"]),
    ] {
        total += models.len();
        let models: Vec<String> = models.iter().map(ToString::to_string).collect();
        world.fill(&models, server, total).await?;
    }
    compare(world, "at once", ["main", "other"], seconds, report).await?;
    compare(world, "after 2 ms", ["timed-a", "timed-b"], seconds, report).await
}

async fn compare(
    world: &World,
    answering: &str,
    candidates: [&str; 2],
    seconds: u64,
    report: &mut Report,
) -> Result<()> {
    let first = candidates[0];
    let mirrors = [
        None,
        Some("mirror-fast"),
        Some("mirror-dead"),
        Some("mirror-slow"),
    ];
    let name = |mirror: Option<&str>| format!("{first}-{}", mirror.unwrap_or("no-mirror"));
    let experiments = mirrors
        .iter()
        .map(|mirror| Experiment {
            mirror: mirror.map(|mirror| ExperimentMirror {
                name: mirror.into(),
                percent: 100,
            }),
            ..halves(&name(*mirror), candidates)
        })
        .collect();
    world.experiments(experiments).await?;
    let mut halfway = mirrors.map(|_| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for (mirror, found) in mirrors.iter().zip(&mut halfway) {
            let shot = Shot::rest(&format!("{}.experiment", name(*mirror)), BODY);
            // One connection: a request's own time, not its wait for others.
            let duration = Duration::from_secs(seconds) / 3;
            let cost = saturate(vec![world.data(0)], vec![shot], 1, duration, &[]).await?;
            found.push(cost.report.latency.value_at_quantile(0.5) as f64);
        }
    }
    let [without, fast, dead, slow] = halfway.map(median);
    let what = format!("p50 without a mirror, models answering {answering}");
    report.shown(SECTION, what, without / 1e3, "ms");
    for (mirror, figure) in [
        ("", fast),
        (" that is dead", dead),
        (" that takes 1 s", slow),
    ] {
        report.at_most(
            SECTION,
            format!("p50 with a mirror of 100 %{mirror} / without, answering {answering}"),
            figure / without,
            "×",
            1.05,
        );
    }
    Ok(())
}
