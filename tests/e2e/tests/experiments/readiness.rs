//! Weight goes only to candidates that can answer now.
use anyhow::{Context, Result, ensure};
use prost::Message;
use seldon_e2e::faults::{Fleet, experiment, percent_of};
use seldon_e2e::{eventually_async, framed, message_frame};
use seldon_local::{Component, Signal};
use seldon_proto::inference::ModelInferRequest;

use crate::mirrors::apart;
use crate::scene::{Case, ask, grpc, lossless, models, rest, send, shares, steady, with};

pub(crate) const CASES: &[Case] = &[
    ("readiness::a_killed_candidate_loses_its_share", |stages| {
        stages.fleet(killed)
    }),
    (
        "readiness::an_unloaded_candidate_loses_its_share",
        |stages| stages.fleet(unloaded),
    ),
    ("readiness::nobody_can_answer", |stages| {
        stages.fleet(nobody)
    }),
];

const RATE: f64 = 100.0;

async fn killed(fleet: &Fleet) -> Result<()> {
    let (_, (other, agent)) = apart(fleet, "ka", "kb").await?;
    let split = [("ka", 50), (other.as_str(), 50)];
    let (ka, kb) = (":ka_1:", format!(":{other}_1:"));
    fleet
        .run_experiment(experiment("k", Some("ka"), &split))
        .await?;
    let shots = || {
        vec![
            rest("ka"),
            grpc("ka"),
            rest("k.experiment"),
            grpc("k.experiment"),
        ]
    };
    let load = steady(fleet, shots(), RATE)?;
    eventually_async(10, async || {
        ensure!(load.answered() >= 100, "{} answers", load.answered());
        Ok(())
    })
    .await?;
    let begin = std::time::Instant::now();
    fleet
        .system
        .kill(Component::Agent(agent), Signal::SIGKILL)?;
    let lost = fleet
        .in_force("k", 10, |told| percent_of(told, &other) == 0.0)
        .await;
    let took = begin.elapsed();
    let status = fleet.experiment_status("k").await;
    // From now on nothing may fail, and nobody who asks for the lost one is refused.
    let steady_on = async {
        let stale = with(rest("ka"), "x-seldon-route", &kb)?;
        send(fleet, vec![rest("ka"), grpc("k.experiment"), stale], 300).await
    }
    .await;
    let first = load.stop().await?;
    let back = steady(fleet, shots(), RATE)?;
    fleet.system.restart(Component::Agent(agent)).await?;
    println!(
        "a candidate's agent was killed: {} of {} requests failed ({:?}), the split moved after {took:.1?}",
        first.failed(),
        first.sent,
        first.failures
    );
    let lost = lost?;
    let gone = lost
        .candidates
        .iter()
        .find(|candidate| candidate.name == other);
    let gone = gone.context("it is still a candidate")?;
    ensure!(
        !gone.reason.is_empty() && gone.wanted_percent == 50.0,
        "{lost:?}"
    );
    ensure!(percent_of(&lost, "ka") == 100.0, "{lost:?}");
    let status = status?;
    ensure!(
        !status.active && status.status_description.contains(&other),
        "{status:?}"
    );
    let steady_on = steady_on?;
    ensure!(
        steady_on.routes.len() == 1 && steady_on.routes.contains_key(ka),
        "{:?}",
        steady_on.routes
    );
    // Only its own replica could have answered those that were on their way to it, in the time of one push.
    ensure!(
        first.failed() <= 10,
        "{} requests failed: {:?}",
        first.failed(),
        first.failures
    );
    fleet.active("k", 30).await.context("after its return")?;
    let report = eventually_async(10, async || {
        let report = send(fleet, shots(), 400).await?;
        shares(&report, &[(ka, 1), (kb.as_str(), 1)])?;
        Ok(report)
    })
    .await?;
    drop(report);
    lossless(back, "its return").await?;
    fleet.stop_experiment("k").await
}

async fn unloaded(fleet: &Fleet) -> Result<()> {
    models(fleet, &["la", "lb", "lc"], 2).await?;
    let split = [("la", 20), ("lb", 60), ("lc", 20)];
    fleet
        .run_experiment(experiment("l", Some("la"), &split))
        .await?;
    let load = steady(
        fleet,
        vec![rest("la"), grpc("la"), rest("l.experiment")],
        200.0,
    )?;
    send(fleet, vec![rest("la")], 200).await?;
    fleet.unload("lb").await?;
    let told = fleet
        .in_force("l", 10, |told| percent_of(told, "lb") == 0.0)
        .await?;
    ensure!(
        percent_of(&told, "la") == 50.0 && percent_of(&told, "lc") == 50.0,
        "{told:?}"
    );
    shares(
        &send(fleet, vec![rest("la")], 1_000).await?,
        &[(":la_1:", 1), (":lc_1:", 1)],
    )?;
    models(fleet, &["lb"], 2).await?;
    fleet.active("l", 10).await?;
    fleet
        .in_force("l", 10, |told| percent_of(told, "lb") == 60.0)
        .await?;
    lossless(load, "a candidate is unloaded and loaded").await?;
    // The default itself goes: its name is still split over the others.
    let load = steady(fleet, vec![rest("la"), grpc("l.experiment")], 200.0)?;
    send(fleet, vec![rest("la")], 100).await?;
    fleet.unload("la").await?;
    fleet
        .in_force("l", 10, |told| percent_of(told, "la") == 0.0)
        .await?;
    let report = send(
        fleet,
        vec![rest("la"), grpc("la"), rest("l.experiment")],
        1_000,
    )
    .await?;
    ensure!(
        !report.routes.contains_key(":la_1:") && report.routes.len() == 2,
        "{:?}",
        report.routes
    );
    lossless(load, "the default is unloaded").await?;
    fleet.stop_experiment("l").await
}

/// What is asked answers 503 with the experiment's name, by both protocols and through both Envoys.
async fn unavailable(fleet: &Fleet, name: &str, named: &str) -> Result<()> {
    for envoy in &fleet.system.ports().envoys {
        let answer = ask(name).send(envoy.data)?;
        ensure!(answer.status == 503, "{name}: {answer:?}");
        let json = answer.json()?;
        let text = json["error"].as_str().context("no error")?;
        ensure!(text.contains(named), "{text:?} does not name {named}");
        ensure!(answer.field("x-seldon-route").is_empty(), "{answer:?}");
        let message = ModelInferRequest {
            model_name: name.to_owned(),
            ..Default::default()
        };
        let path = "/inference.GRPCInferenceService/ModelInfer";
        let frame = message_frame(&message.encode_to_vec());
        let answer = framed(envoy.data, path, &[("seldon-model", name)], frame).await?;
        ensure!(answer.code() == Some(14), "{name}: {answer:?}");
        let text = answer
            .trailers
            .get("grpc-message")
            .or(answer.headers.get("grpc-message"));
        let text = text.context("no message")?.to_str()?;
        ensure!(text.contains(named), "{text:?} does not name {named}");
    }
    Ok(())
}

async fn nobody(fleet: &Fleet) -> Result<()> {
    // None of them exists yet.
    fleet
        .start_experiment(experiment("nil", None, &[("za", 50), ("zb", 50)]))
        .await?;
    eventually_async(10, async || {
        unavailable(fleet, "nil.experiment", "nil").await
    })
    .await?;
    models(fleet, &["za"], 2).await?;
    let report = eventually_async(10, async || {
        send(fleet, vec![rest("nil.experiment")], 100).await
    })
    .await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":za_1:"),
        "{:?}",
        report.routes
    );
    fleet.unload("za").await?;
    eventually_async(10, async || {
        unavailable(fleet, "nil.experiment", "nil").await
    })
    .await?;
    fleet.stop_experiment("nil").await?;
    eventually_async(10, async || {
        let answer = ask("nil.experiment").send(fleet.system.ports().envoys[0].data)?;
        ensure!(answer.status == 404, "{answer:?}");
        Ok(())
    })
    .await?;
    // With a default that has no weight, and the other gone: the default goes on serving its name.
    models(fleet, &["zc", "zd"], 2).await?;
    fleet
        .run_experiment(experiment("nought", Some("zc"), &[("zc", 0), ("zd", 100)]))
        .await?;
    let load = steady(fleet, vec![rest("zc"), grpc("zc")], 100.0)?;
    let report = send(fleet, vec![rest("zc")], 100).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":zd_1:"),
        "{:?}",
        report.routes
    );
    fleet.unload("zd").await?;
    fleet
        .in_force("nought", 10, |told| percent_of(told, "zd") == 0.0)
        .await?;
    let report = send(fleet, vec![rest("zc"), grpc("zc")], 200).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":zc_1:"),
        "{:?}",
        report.routes
    );
    lossless(load, "all weight is gone, the default serves").await?;
    // And when it is gone too, its name says what is wrong.
    fleet.unload("zc").await?;
    eventually_async(10, async || {
        unavailable(fleet, "nought.experiment", "nought").await?;
        unavailable(fleet, "zc", "nought").await
    })
    .await?;
    fleet.stop_experiment("nought").await?;
    eventually_async(10, async || {
        let answer = ask("zc").send(fleet.system.ports().envoys[1].data)?;
        ensure!(answer.status == 404, "{answer:?}");
        Ok(())
    })
    .await
}
