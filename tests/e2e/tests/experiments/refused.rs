//! Experiments that are refused, or taken and not put in force; nothing else changes.
use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::{Fleet, experiment, percent_of};
use seldon_proto::scheduler as pb;
use tonic::Code;

use crate::scene::{Case, models, rest, send, shares};

pub(crate) const CASES: &[Case] = &[
    ("refused::with_one_reason_and_no_change", |stages| {
        stages.fleet(refused)
    }),
    ("refused::taken_and_not_in_force", |stages| {
        stages.fleet(taken)
    }),
];

fn mirror(name: &str, percent: u32) -> pb::ExperimentMirror {
    pb::ExperimentMirror {
        name: name.to_owned(),
        percent,
    }
}

fn rollout(steps: &[u32]) -> pb::ExperimentRollout {
    pb::ExperimentRollout {
        steps: steps.to_vec(),
        ..Default::default()
    }
}

const SPLIT: &[(&str, u32)] = &[("ta", 50), ("tb", 50)];

/// Each with a word that the reason must have.
fn bad() -> Vec<(&'static str, pb::Experiment)> {
    let two = |name: &str| experiment(name, Some("ta"), SPLIT);
    let cohort = |header: &str| pb::Experiment {
        cohort: Some(pb::ExperimentCohort {
            header: header.to_owned(),
        }),
        ..experiment("bad", None, SPLIT)
    };
    let rolling = |steps: &[u32]| pb::Experiment {
        rollout: Some(rollout(steps)),
        ..experiment("bad", Some("tb"), SPLIT)
    };
    let limits = |errors: Option<f64>, latency: Option<f64>| pb::Experiment {
        rollout: Some(pb::ExperimentRollout {
            max_error_rate_increase: errors,
            max_latency_ratio: latency,
            ..Default::default()
        }),
        ..experiment("bad", Some("tb"), SPLIT)
    };
    vec![
        // The other experiment's default; the reason names who has it.
        ("good", two("bad")),
        ("missing", experiment("bad", Some("missing"), SPLIT)),
        ("candidate", experiment("bad", None, &[])),
        (
            "ta",
            experiment("bad", None, &[("ta", 50), ("tb", 20), ("ta", 30)]),
        ),
        (
            "ta",
            pb::Experiment {
                mirror: Some(mirror("ta", 10)),
                ..experiment("bad", None, SPLIT)
            },
        ),
        ("name", experiment("", None, SPLIT)),
        ("Bad", experiment("Bad", None, SPLIT)),
        ("bad_name", experiment("bad_name", None, SPLIT)),
        ("bad:name", experiment("bad:name", None, SPLIT)),
        ("bad/name", experiment("bad/name", None, SPLIT)),
        ("name", experiment("bad", None, &[("", 50), ("tb", 50)])),
        (
            "i:tb_1",
            experiment("bad", None, &[("i:tb_1", 50), ("tb", 50)]),
        ),
        ("header", cohort("")),
        ("header", cohort("x user")),
        ("header", cohort(":path")),
        ("header", cohort("x-seldon-scope")),
        ("percent", rolling(&[10, 101])),
        ("steps", rolling(&[50, 25])),
        ("steps", rolling(&[10, 10, 100])),
        ("steps", rolling(&[0, 100])),
        (
            "default",
            pb::Experiment {
                default: None,
                ..rolling(&[])
            },
        ),
        (
            "two candidates",
            pb::Experiment {
                rollout: Some(rollout(&[])),
                ..experiment("bad", Some("tb"), &[("tb", 1), ("tc", 1), ("td", 1)])
            },
        ),
        ("rror", limits(Some(-1.0), None)),
        ("rror", limits(Some(f64::NAN), None)),
        ("atency", limits(None, Some(0.0))),
        ("atency", limits(None, Some(f64::INFINITY))),
    ]
}

async fn refused(fleet: &Fleet) -> Result<()> {
    models(fleet, &["ta", "tb"], 2).await?;
    fleet
        .run_experiment(experiment("good", Some("ta"), SPLIT))
        .await?;
    let before = (fleet.explain_experiment("good").await?, names(fleet).await?);
    for (word, manifest) in bad() {
        let shown = format!("{manifest:?}");
        let refusal = fleet.start_experiment(manifest).await.err();
        let refusal = refusal.with_context(|| format!("taken: {shown}"))?;
        let status = refusal.downcast_ref::<tonic::Status>();
        let status = status.with_context(|| format!("{refusal:?}"))?;
        ensure!(
            status.code() == Code::FailedPrecondition,
            "{status:?} for {shown}"
        );
        let text = status.message();
        println!("refused: {text}");
        ensure!(
            text.contains(word) && !text.contains('\n'),
            "{text:?} has no {word:?}: {shown}"
        );
    }
    // A running experiment is as it was after a bad change of it.
    let bad_change = experiment("good", Some("missing"), &[("ta", 0), ("tb", 100)]);
    ensure!(
        fleet.start_experiment(bad_change).await.is_err(),
        "a bad change is taken"
    );
    let mut after = (fleet.explain_experiment("good").await?, names(fleet).await?);
    // Counters go on.
    for candidate in &mut after.0.candidates {
        candidate.measured = None;
    }
    let mut wanted = before;
    for candidate in &mut wanted.0.candidates {
        candidate.measured = None;
    }
    ensure!(wanted == after, "{wanted:?}\nis now\n{after:?}");
    let status = fleet.experiment_status("good").await?;
    ensure!(
        status.active && status.status_description == "experiment active",
        "{status:?}"
    );
    ensure!(
        fleet.experiment_status("bad").await.is_err(),
        "the refused one is there"
    );
    shares(
        &send(fleet, vec![rest("ta")], 1_000).await?,
        &[(":ta_1:", 1), (":tb_1:", 1)],
    )?;

    let unknown = fleet
        .stop_experiment("never")
        .await
        .err()
        .context("stopped")?;
    let status = unknown
        .downcast_ref::<tonic::Status>()
        .context("a status")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    fleet.stop_experiment("good").await?;
    fleet.stop_experiment("good").await.context("again")?;
    let stopped = fleet.experiment_status("good").await?;
    ensure!(
        !stopped.active && stopped.status_description == "experiment stopped",
        "{stopped:?}"
    );
    ensure!(
        !names(fleet).await?.contains(&"good".to_owned()),
        "a stopped one is listed"
    );
    // The default is free for another.
    fleet
        .run_experiment(experiment("next", Some("ta"), SPLIT))
        .await?;
    fleet.stop_experiment("next").await?;
    // And a new life of the first.
    fleet
        .run_experiment(experiment("good", Some("ta"), SPLIT))
        .await?;
    fleet.stop_experiment("good").await
}

async fn names(fleet: &Fleet) -> Result<Vec<String>> {
    let all = fleet.experiments().await?;
    Ok(all
        .into_iter()
        .map(|status| status.experiment_name)
        .collect())
}

async fn reason(fleet: &Fleet, name: &str, words: &[&str]) -> Result<String> {
    eventually_async(10, async || {
        let status = fleet.experiment_status(name).await?;
        let text = status.status_description;
        ensure!(
            !status.active && words.iter().all(|word| text.contains(word)),
            "{name}: active {}, {text:?} should have {words:?}",
            status.active
        );
        Ok(text)
    })
    .await
}

async fn taken(fleet: &Fleet) -> Result<()> {
    models(fleet, &["ua", "ub"], 2).await?;
    let good = || experiment("u", Some("ua"), &[("ua", 50), ("ub", 50)]);
    fleet.run_experiment(good()).await?;
    let halves = [(":ua_1:", 1), (":ub_1:", 1)];
    // No weight at all, and a mirror beyond a hundred: the last good split stays.
    let zero = experiment("u", Some("ua"), &[("ua", 0), ("ub", 0)]);
    let beyond = pb::Experiment {
        mirror: Some(mirror("rec-um", 101)),
        ..experiment("u", Some("ua"), &[("ua", 100), ("ub", 0)])
    };
    for (manifest, word) in [(zero, "weight"), (beyond, "percent")] {
        fleet.start_experiment(manifest).await?;
        println!("not in force: {}", reason(fleet, "u", &[word]).await?);
        shares(&send(fleet, vec![rest("ua")], 1_000).await?, &halves)?;
    }
    fleet.run_experiment(good()).await?;
    // A candidate that does not exist has no share, and says so.
    let missing = experiment("u", Some("ua"), &[("ua", 50), ("ub", 25), ("uc", 25)]);
    fleet.start_experiment(missing).await?;
    println!("not in force: {}", reason(fleet, "u", &["uc"]).await?);
    let told = fleet
        .in_force("u", 10, |told| told.candidates.len() == 3)
        .await?;
    ensure!(percent_of(&told, "uc") == 0.0, "{told:?}");
    let why = told
        .candidates
        .iter()
        .find(|candidate| candidate.name == "uc");
    ensure!(
        why.is_some_and(|candidate| !candidate.reason.is_empty()),
        "{told:?}"
    );
    let status = fleet.experiment_status("u").await?;
    ensure!(
        !status.candidates_ready && status.mirror_ready,
        "{status:?}"
    );
    shares(
        &send(fleet, vec![rest("ua")], 1_000).await?,
        &[(":ua_1:", 2), (":ub_1:", 1)],
    )?;
    // It comes by itself once it is there.
    models(fleet, &["uc"], 2).await?;
    fleet.active("u", 10).await?;
    let thirds = [(":ua_1:", 2), (":ub_1:", 1), (":uc_1:", 1)];
    shares(&send(fleet, vec![rest("ua")], 1_000).await?, &thirds)?;
    // A mirror that does not exist holds nobody back.
    let lone = pb::Experiment {
        mirror: Some(mirror("rec-um", 100)),
        ..good()
    };
    fleet.start_experiment(lone).await?;
    reason(fleet, "u", &["rec-um"]).await?;
    let status = fleet.experiment_status("u").await?;
    ensure!(
        status.candidates_ready && !status.mirror_ready,
        "{status:?}"
    );
    fleet
        .in_force("u", 10, |told| told.candidates.len() == 2)
        .await?;
    shares(&send(fleet, vec![rest("ua")], 1_000).await?, &halves)?;
    // Nought percent is a mirror without copies.
    models(fleet, &["rec-um"], 1).await?;
    let nought = pb::Experiment {
        mirror: Some(mirror("rec-um", 0)),
        ..good()
    };
    fleet.start_experiment(nought).await?;
    fleet
        .in_force("u", 10, |told| {
            told.mirror
                .as_ref()
                .is_some_and(|mirror| mirror.percent == 0)
        })
        .await?;
    let before = fleet.asked_of("rec-um_1")?;
    send(fleet, vec![rest("ua")], 500).await?;
    ensure!(
        fleet.asked_of("rec-um_1")? == before,
        "copies at nought percent"
    );
    fleet.stop_experiment("u").await
}
