//! Guarded roll-outs: step by step while it holds, and back when it does not.
use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::{Fleet, experiment, percent_of};
use seldon_proto::introspect::ExplainExperimentResponse;
use seldon_proto::scheduler as pb;

use crate::scene::{Case, grpc, lossless, models, rest, send, steady};

pub(crate) const CASES: &[Case] = &[
    ("rollouts::a_good_candidate_goes_through", |stages| {
        stages.fleet(good)
    }),
    ("rollouts::a_failing_candidate_goes_back", |stages| {
        stages.fleet(async |fleet: &Fleet| bad(fleet, "fail-x", &["error"]).await)
    }),
    ("rollouts::a_slow_candidate_goes_back", |stages| {
        stages.fleet(async |fleet: &Fleet| bad(fleet, "slow-x", &SLOW).await)
    }),
];

/// What is said of a slow candidate: its answers take long, or too many are still on their way, whichever is seen first.
const SLOW: [&str; 2] = ["on average", "have no end yet"];

pub(crate) fn rollout(name: &str, default: &str, candidate: &str, steps: &[u32]) -> pb::Experiment {
    pb::Experiment {
        rollout: Some(pb::ExperimentRollout {
            steps: steps.to_vec(),
            interval_seconds: 1,
            min_requests: 20,
            // The machine is busy, and both answer within a millisecond; slow means forty.
            max_latency_ratio: Some(4.0),
            ..Default::default()
        }),
        ..experiment(name, Some(default), &[(default, 100), (candidate, 0)])
    }
}

/// Waits until a roll-out is in a state.
pub(crate) async fn comes_to(
    fleet: &Fleet,
    name: &str,
    state: &str,
    seconds: u64,
) -> Result<ExplainExperimentResponse> {
    eventually_async(seconds, async || {
        let told = fleet.explain_experiment(name).await?;
        let rollout = told.rollout.as_ref().context("no roll-out")?;
        ensure!(rollout.state == state, "{rollout:?}");
        Ok(told)
    })
    .await
}

async fn good(fleet: &Fleet) -> Result<()> {
    models(fleet, &["xa", "xb"], 2).await?;
    let load = steady(fleet, vec![rest("xa"), grpc("xa")], 200.0)?;
    fleet
        .start_experiment(rollout("x", "xa", "xb", &[20, 60, 100]))
        .await?;
    let told = comes_to(fleet, "x", "complete", 40).await?;
    let rollout = told.rollout.as_ref().context("no roll-out")?;
    let percents: Vec<u32> = rollout.history.iter().map(|event| event.percent).collect();
    println!("a good roll-out: {:?}", rollout.history);
    let mut distinct = percents.clone();
    distinct.dedup();
    ensure!(distinct == [20, 60, 100], "steps taken: {percents:?}");
    ensure!(
        rollout
            .history
            .iter()
            .all(|event| !event.reason.is_empty() && event.at > 0),
        "{rollout:?}"
    );
    let ordered = rollout.history.is_sorted_by_key(|event| event.at);
    ensure!(
        ordered && percent_of(&told, "xb") == 100.0 && percent_of(&told, "xa") == 0.0,
        "{told:?}"
    );
    let report = send(fleet, vec![rest("xa"), grpc("x.experiment")], 300).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":xb_1:"),
        "{:?}",
        report.routes
    );
    let status = fleet.experiment_status("x").await?;
    ensure!(
        status.active
            && status.status_description.starts_with("experiment active; ")
            && status.status_description.contains("complete"),
        "{status:?}"
    );
    let report = lossless(load, "a good roll-out").await?;
    ensure!(report.routes.len() == 2, "{:?}", report.routes);
    fleet.stop_experiment("x").await
}

async fn bad(fleet: &Fleet, candidate: &str, words: &[&str]) -> Result<()> {
    models(fleet, &["ya", candidate], 2).await?;
    let load = steady(fleet, vec![rest("ya"), grpc("ya")], 200.0)?;
    fleet
        .start_experiment(rollout("y", "ya", candidate, &[30, 100]))
        .await?;
    let told = comes_to(fleet, "y", "rolled back", 30).await?;
    let rollout = told.rollout.as_ref().context("no roll-out")?;
    println!("{candidate}: {:?}", rollout.history);
    let last = rollout.history.last().context("no history")?;
    let told = words.iter().any(|word| last.reason.contains(word));
    ensure!(last.percent == 0 && told, "{last:?}");
    ensure!(
        rollout.history.iter().all(|event| event.percent < 100),
        "{rollout:?}"
    );
    let told = fleet
        .in_force("y", 10, |told| percent_of(told, candidate) == 0.0)
        .await?;
    ensure!(percent_of(&told, "ya") == 100.0, "{told:?}");
    let report = send(
        fleet,
        vec![rest("ya"), grpc("ya"), rest("y.experiment")],
        300,
    )
    .await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":ya_1:"),
        "{:?}",
        report.routes
    );
    let status = fleet.experiment_status("y").await?;
    ensure!(
        status.status_description.contains("rolled back")
            && words
                .iter()
                .any(|word| status.status_description.contains(word)),
        "{status:?}"
    );
    let report = load.stop().await?;
    // Its callers have seen the failures of its share, and no other.
    let own = report
        .failures
        .keys()
        .all(|text| text.contains("this model fails") || text == "grpc 13");
    ensure!(
        own && (report.failed() > 0) == (candidate == "fail-x"),
        "{:?}",
        report.failures
    );
    ensure!(
        (report.failed() as f64) < report.sent as f64 * 0.5,
        "{} of {}",
        report.failed(),
        report.sent
    );
    fleet.stop_experiment("y").await
}
