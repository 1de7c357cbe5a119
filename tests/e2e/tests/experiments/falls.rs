//! The filter panics, the scheduler is killed, an Envoy starts again, or both, while an experiment runs.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::{Fleet, experiment, percent_of};
use seldon_load::driver::Load;
use seldon_local::{Component, Signal};
use seldon_proto::introspect::ExplainExperimentResponse;

use crate::mirrors::mirrored;
use crate::rollouts::{comes_to, rollout};
use crate::scene::{Case, Stages, ask, grpc, lossless, models, rest, send, shares, steady};

pub(crate) const CASES: &[Case] = &[
    ("falls::the_filter_panics", |stages| panics(stages)),
    ("falls::a_roll_out_goes_on_after_a_restart", |stages| {
        stages.own_fleet(|_| (), goes_on)
    }),
    ("falls::scheduler_and_envoys_restart", |stages| {
        stages.own_fleet(|_| (), restarts)
    }),
];

/// The test-only module panics once in a hundred requests that enter it.
fn panics(stages: &Stages) -> Result<()> {
    let module = |config: &mut seldon_local::Config| {
        let module = &mut config.parts.filter_module;
        *module = module.with_file_name("seldon-filter-panicking.wasm");
    };
    stages.own_fleet(module, async |fleet| {
        models(fleet, &["qa", "qb", "plain"], 2).await?;
        fleet
            .run_experiment(experiment("q", Some("qa"), &[("qa", 50), ("qb", 50)]))
            .await?;
        let plain = Load {
            targets: fleet.targets(),
            shots: vec![rest("plain"), grpc("plain")],
            connections: 16,
            rate: Some(200.0),
            deadline: Duration::from_secs(10),
        }
        .start()?;
        let outcomes = [
            one_by_one(fleet, 0, 1_000).await,
            one_by_one(fleet, 1, 1_000).await,
        ];
        let plain = lossless(plain, "plain models while the filter panics").await;
        for outcome in outcomes {
            let (failed, longest) = outcome?;
            println!("the filter panicked: {failed} of 1000 requests failed, the longest outage {longest:.1?}");
            ensure!((4..=100).contains(&failed), "{failed} of 1000 failed, about 10 should have panicked");
            ensure!(longest < Duration::from_secs(1), "experiments were out for {longest:?}");
        }
        plain?;
        Ok(())
    })
}

/// Asks one request after the other; returns how many failed, and the longest time without an answer.
async fn one_by_one(fleet: &Fleet, envoy: usize, count: usize) -> Result<(usize, Duration)> {
    let port = fleet.system.ports().envoys[envoy].data;
    let (mut failed, mut longest, mut since) = (0, Duration::ZERO, None);
    for number in 0..count {
        let name = if number % 2 == 0 {
            "qa"
        } else {
            "q.experiment"
        };
        let answer = ask(name).send(port);
        if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
            longest = longest.max(
                since
                    .take()
                    .map_or(Duration::ZERO, |since: Instant| since.elapsed()),
            );
            // A pause that is no wait: the rate at which an interactive client asks.
            tokio::time::sleep(Duration::from_millis(2)).await;
        } else {
            failed += 1;
            since.get_or_insert_with(Instant::now);
            ensure!(
                since.is_some_and(|since| since.elapsed() < Duration::from_secs(10)),
                "{answer:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok((failed, longest))
}

/// What must be the same after a fall.
fn wanted(told: &ExplainExperimentResponse) -> Vec<(String, f64, f64)> {
    let share = |candidate: &seldon_proto::introspect::CandidateState| {
        (
            candidate.name.clone(),
            candidate.wanted_percent,
            candidate.in_force_percent,
        )
    };
    told.candidates.iter().map(share).collect()
}

async fn restarts(fleet: &Fleet) -> Result<()> {
    models(fleet, &["ia", "ib", "im", "ja", "fail-j"], 2).await?;
    let mut manifest = mirrored("i", "ia", "im", 100);
    manifest.candidates = experiment("i", None, &[("ia", 70), ("ib", 30)]).candidates;
    fleet.run_experiment(manifest).await?;
    fleet
        .run_experiment(experiment("gone", None, &[("ia", 1), ("ib", 1)]))
        .await?;
    fleet.stop_experiment("gone").await?;
    // A roll-out that has come to its end, by failing.
    let failing = steady(fleet, vec![rest("ja")], 100.0)?;
    fleet
        .start_experiment(rollout("j", "ja", "fail-j", &[30, 100]))
        .await?;
    comes_to(fleet, "j", "rolled back", 30).await?;
    failing.stop().await?;
    let before = fleet.explain_experiment("i").await?;
    let history = fleet
        .explain_experiment("j")
        .await?
        .rollout
        .context("no roll-out")?;

    for what in ["the scheduler", "an Envoy", "both"] {
        let targets = fleet.targets();
        let spared = if what == "the scheduler" {
            &targets[..]
        } else {
            &targets[..1]
        };
        let load = Load {
            targets: spared.to_vec(),
            shots: vec![
                rest("ia"),
                grpc("ia"),
                rest("i.experiment"),
                grpc("i.experiment"),
            ],
            connections: 64,
            rate: Some(200.0),
            deadline: Duration::from_secs(12),
        }
        .start()?;
        let fallen = fall(fleet, what, &load).await;
        let same = async {
            fallen?;
            fleet.active("i", 40).await?;
            fleet
                .in_force("i", 20, |told| told.envoys_connected == 2)
                .await
        }
        .await;
        let report = lossless(load, what).await?;
        let same = same.with_context(|| format!("after the fall of {what}"))?;
        ensure!(wanted(&same) == wanted(&before), "after {what}: {same:?}");
        let halves = [(":ia_1:", 70), (":ib_1:", 30)];
        shares(&report, &halves).with_context(|| format!("during the fall of {what}"))?;
        shares(
            &send(fleet, vec![rest("ia"), grpc("i.experiment")], 1_000).await?,
            &halves,
        )?;
        let copies = fleet.asked_of("im_1")?;
        send(fleet, vec![rest("ia")], 50).await?;
        seldon_e2e::eventually(5, || {
            ensure!(fleet.asked_of("im_1")? >= copies + 50, "copies have ended");
            Ok(())
        })?;
        // What was decided stays decided, with its history.
        let told = comes_to(fleet, "j", "rolled back", 10).await?;
        let rollout = told.rollout.as_ref().context("no roll-out")?;
        ensure!(
            rollout.history == history.history,
            "{rollout:?}\nwas\n{history:?}"
        );
        ensure!(percent_of(&told, "ja") == 100.0, "{told:?}");
        let all = fleet.experiments().await?;
        let names: Vec<&str> = all
            .iter()
            .map(|status| status.experiment_name.as_str())
            .collect();
        ensure!(
            names.len() == 2 && names.contains(&"i") && names.contains(&"j"),
            "{names:?}"
        );
    }
    Ok(())
}

/// A roll-out that has come to its second step is there still, and ends from there.
async fn goes_on(fleet: &Fleet) -> Result<()> {
    models(fleet, &["ha", "hb"], 2).await?;
    let load = steady(fleet, vec![rest("ha")], 200.0)?;
    fleet
        .start_experiment(rollout("h", "ha", "hb", &[20, 60, 100]))
        .await?;
    let second = async || {
        let told = fleet.explain_experiment("h").await?;
        let rollout = told.rollout.clone().context("no roll-out")?;
        ensure!(rollout.step >= 2, "{rollout:?}");
        Ok(rollout)
    };
    let reached = eventually_async(20, second).await;
    // Without requests no step ends.
    lossless(load, "the first step").await?;
    let reached = reached?;
    ensure!(
        reached.step == 2 && reached.state != "complete",
        "{reached:?}"
    );
    fleet.system.kill(Component::Scheduler, Signal::SIGKILL)?;
    fleet.system.restart(Component::Scheduler).await?;
    fleet.active("h", 40).await?;
    let told = fleet
        .in_force("h", 20, |told| percent_of(told, "hb") == 60.0)
        .await?;
    let rollout = told.rollout.context("no roll-out")?;
    ensure!(
        (rollout.step, &rollout.history) == (2, &reached.history),
        "{rollout:?}\nwas\n{reached:?}"
    );
    let load = steady(fleet, vec![rest("ha"), grpc("h.experiment")], 200.0)?;
    let told = comes_to(fleet, "h", "complete", 30).await;
    lossless(load, "the last steps").await?;
    let history = told?.rollout.context("no roll-out")?.history;
    ensure!(
        history.starts_with(&reached.history) && history.len() > reached.history.len(),
        "{history:?}"
    );
    Ok(())
}

async fn fall(fleet: &Fleet, what: &str, load: &seldon_load::driver::Running) -> Result<()> {
    passes(load, 200).await?;
    let system = &fleet.system;
    if what != "an Envoy" {
        system.kill(Component::Scheduler, Signal::SIGKILL)?;
        passes(load, 400).await?;
    }
    if what != "the scheduler" {
        system.kill(Component::Envoy(1), Signal::SIGKILL)?;
        passes(load, 200).await?;
    }
    if what != "an Envoy" {
        system.restart(Component::Scheduler).await?;
    }
    if what != "the scheduler" {
        system.restart(Component::Envoy(1)).await?;
    }
    passes(load, 200).await
}

/// Waits for so many answers more.
async fn passes(load: &seldon_load::driver::Running, count: u64) -> Result<()> {
    let wanted = load.answered() + count;
    eventually_async(20, async || {
        ensure!(load.answered() >= wanted, "the load stalls");
        Ok(())
    })
    .await
}
