//! Copies: what they are, and that nobody who asks notices them.
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use seldon_e2e::faults::{Fleet, experiment, model};
use seldon_e2e::{Ask, eventually, eventually_async, framed, message_frame};
use seldon_load::driver::Report;
use seldon_load::ledger::{Inference, digest};
use seldon_local::{Component, Signal};
use seldon_proto::inference::ModelInferRequest;
use seldon_proto::scheduler as pb;
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;

use crate::scene::{Case, ask, grpc, lossless, models, rest, send, steady};

pub(crate) const CASES: &[Case] = &[
    ("mirrors::copies_are_equal_byte_for_byte", |stages| {
        stages.fleet(equal)
    }),
    ("mirrors::share_of_copies", |stages| stages.fleet(share)),
    ("mirrors::a_bad_mirror_is_not_noticed", |stages| {
        stages.fleet(unnoticed)
    }),
    ("mirrors::a_mirror_that_is_gone_is_not_noticed", |stages| {
        stages.fleet(gone)
    }),
];

pub(crate) fn mirrored(name: &str, candidate: &str, mirror: &str, percent: u32) -> pb::Experiment {
    pb::Experiment {
        mirror: Some(pb::ExperimentMirror {
            name: mirror.to_owned(),
            percent,
        }),
        ..experiment(name, Some(candidate), &[(candidate, 100)])
    }
}

const LARGE: usize = 20_000_000;

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    // Not periodic in any power of two, so that no lost or repeated chunk goes unseen.
    let byte = |index: usize| (index.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed;
    (0..length).map(byte).collect()
}

/// Waits for the next copy.
fn copy(fleet: &Fleet, model: &str, before: usize) -> Result<Inference> {
    eventually(20, || {
        let all = fleet.recorded_of(model)?;
        ensure!(all.len() > before, "{} copies", all.len());
        ensure!(
            all.len() == before + 1,
            "{} copies of one request",
            all.len() - before
        );
        all.last().cloned().context("there is one")
    })
}

async fn equal(fleet: &Fleet) -> Result<()> {
    models(fleet, &["rec-main"], 1).await?;
    models(fleet, &["rec-copy"], 1).await?;
    fleet
        .run_experiment(mirrored("m", "rec-main", "rec-copy", 100))
        .await?;
    for (number, envoy) in fleet.system.ports().envoys.iter().enumerate() {
        for name in ["rec-main", "m.experiment"] {
            for length in [1, LARGE] {
                by_rest(fleet, envoy.data, name, &bytes(length, number as u8))?;
                by_grpc(fleet, envoy.data, name, &bytes(length, number as u8)).await?;
            }
        }
    }
    // Counted at the agents under the name that was asked, and the copy's own.
    let mut counted = 0.0;
    for replica in &fleet.system.ports().replicas {
        let text = Ask::get("/metrics").send(replica.metrics)?.text();
        let of_it = |line: &&str| {
            line.starts_with("seldon_model_infer_total{")
                && line.contains(r#"model="rec-main""#)
                && line.contains(r#"model_internal="rec-copy_1""#)
        };
        let values = text
            .lines()
            .filter(of_it)
            .filter_map(|line| line.rsplit(' ').next());
        counted += values
            .filter_map(|value| value.parse::<f64>().ok())
            .sum::<f64>();
    }
    ensure!(
        counted == 8.0,
        "{counted} copies are counted for rec-main, 8 were sent"
    );
    fleet.stop_experiment("m").await
}

fn by_rest(fleet: &Fleet, port: u16, name: &str, body: &[u8]) -> Result<()> {
    let (mains, copies) = (
        fleet.recorded_of("rec-main_1")?.len(),
        fleet.recorded_of("rec-copy_1")?.len(),
    );
    let id = format!("id-{}-{copies}", body.len());
    let answer = Ask::post(&format!("/v2/models/{name}/infer"), body)
        .header("seldon-model", name)
        .header("x-request-id", &id)
        .header("x-of-a-client", "kept")
        .send(port)?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(
        answer.field("x-seldon-route") == ":rec-main_1:",
        "{answer:?}"
    );
    let main = copy(fleet, "rec-main_1", mains)?;
    let copy = copy(fleet, "rec-copy_1", copies)?;
    let wanted = (body.len(), digest(body));
    ensure!(
        (main.length, main.sha256.clone()) == wanted,
        "the main body is another: {main:?}"
    );
    ensure!(
        (copy.length, copy.sha256.clone()) == wanted,
        "the copy is another: {copy:?}"
    );
    ensure!(copy.protocol == "rest", "{copy:?}");
    same_headers(&main, &copy)?;
    ensure!(
        values(&copy, "x-of-a-client") == ["kept"]
            && values(&copy, "x-request-id") == [id.as_str()],
        "{copy:?}"
    );
    Ok(())
}

async fn by_grpc(fleet: &Fleet, port: u16, name: &str, body: &[u8]) -> Result<()> {
    let (mains, copies) = (
        fleet.recorded_of("rec-main_1")?.len(),
        fleet.recorded_of("rec-copy_1")?.len(),
    );
    let message = ModelInferRequest {
        model_name: name.to_owned(),
        raw_input_contents: vec![Bytes::copy_from_slice(body)],
        ..Default::default()
    }
    .encode_to_vec();
    let headers = [
        ("seldon-model", name),
        ("x-of-a-client", "kept"),
        ("x-request-id", "of-a-client"),
    ];
    let path = "/inference.GRPCInferenceService/ModelInfer";
    let answer = framed(port, path, &headers, message_frame(&message)).await?;
    ensure!(answer.code() == Some(0), "{answer:?}");
    let main = copy(fleet, "rec-main_1", mains)?;
    let copy = copy(fleet, "rec-copy_1", copies)?;
    for (inference, model) in [(&main, "rec-main_1"), (&copy, "rec-copy_1")] {
        // The agent adds who is meant, and an empty version.
        let fields = [&[0x0a, model.len() as u8], model.as_bytes(), &[0x12, 0]].concat();
        let wanted = [message.as_slice(), &fields].concat();
        ensure!(
            (inference.length, &inference.sha256) == (wanted.len(), &digest(&wanted)),
            "{model} got another message: {} bytes, not {}",
            inference.length,
            wanted.len()
        );
    }
    ensure!(copy.protocol == "grpc", "{copy:?}");
    same_headers(&main, &copy)
}

fn values<'a>(inference: &'a Inference, name: &str) -> Vec<&'a str> {
    let found = inference.headers.iter().filter(|(field, _)| field == name);
    found.map(|(_, value)| value.as_str()).collect()
}

/// A copy has the main request's headers, but for who is meant and the host; none is the system's own.
fn same_headers(main: &Inference, copy: &Inference) -> Result<()> {
    // The last two are Envoy's, which treats a copy as a request of its own.
    const OWN: [&str; 5] = [
        "host",
        ":authority",
        "seldon-internal-model",
        "x-envoy-internal",
        "x-forwarded-for",
    ];
    let clear = |inference: &Inference| {
        let mut kept: Vec<_> = inference.headers.clone();
        kept.retain(|(name, _)| !OWN.contains(&name.as_str()));
        kept.sort();
        kept
    };
    ensure!(
        clear(main) == clear(copy),
        "{:?}\nis copied as\n{:?}",
        main.headers,
        copy.headers
    );
    for inference in [main, copy] {
        let helper = inference
            .headers
            .iter()
            .find(|(name, _)| name.starts_with("x-seldon-mirror") || name == "x-seldon-scope");
        ensure!(helper.is_none(), "{helper:?} reached a server");
        let meant = values(inference, "seldon-internal-model");
        ensure!(
            meant.is_empty() || meant == [inference.model.as_str()],
            "{meant:?}"
        );
    }
    Ok(())
}

async fn share(fleet: &Fleet) -> Result<()> {
    models(fleet, &["na", "nm"], 2).await?;
    fleet.run_experiment(mirrored("n", "na", "nm", 30)).await?;
    let before = fleet.asked_of("nm_1")?;
    let report = send(fleet, vec![rest("na"), grpc("n.experiment")], 4_000).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":na_1:"),
        "{:?}",
        report.routes
    );
    // Copies are on their way for a moment longer.
    let expected = report.sent as f64 * 0.3;
    let five = 5.0 * (report.sent as f64 * 0.3 * 0.7).sqrt();
    eventually(5, || {
        let copies = (fleet.asked_of("nm_1")? - before) as f64;
        ensure!(
            (copies - expected).abs() <= five,
            "{copies} copies of {}",
            report.sent
        );
        Ok(())
    })?;
    // The name of the mirror goes on being a model's, and the main model's alone is copied.
    let before = fleet.asked_of("nm_1")?;
    send(fleet, vec![rest("nm")], 100).await?;
    ensure!(
        fleet.asked_of("nm_1")? >= before + 100,
        "the mirror's own name"
    );
    fleet.stop_experiment("n").await
}

/// Load on the main model, with the mirror as it is.
async fn under_load(fleet: &Fleet, what: &str) -> Result<Report> {
    let load = steady(fleet, vec![rest("oa"), grpc("o.experiment")], 300.0)?;
    eventually_async(20, async || {
        ensure!(load.answered() >= 900, "{} answers", load.answered());
        Ok(())
    })
    .await?;
    let report = lossless(load, what).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":oa_1:"),
        "{:?}",
        report.routes
    );
    Ok(report)
}

async fn unnoticed(fleet: &Fleet) -> Result<()> {
    models(fleet, &["oa", "fail-o", "hang-o", "slow-o"], 2).await?;
    fleet
        .run_experiment(experiment("o", Some("oa"), &[("oa", 100)]))
        .await?;
    let alone = under_load(fleet, "no mirror")
        .await?
        .latency
        .value_at_quantile(0.5);
    let expected = ask("oa").send(fleet.system.ports().envoys[0].data)?;
    for mirror in ["fail-o", "slow-o", "hang-o"] {
        fleet
            .run_experiment(mirrored("o", "oa", mirror, 100))
            .await?;
        let before = fleet.asked_of(&format!("{mirror}_1"))?;
        let p50 = under_load(fleet, mirror)
            .await?
            .latency
            .value_at_quantile(0.5);
        // The bench measures the cost; here, that nothing waits for the mirror, on a machine that does other things too.
        ensure!(
            p50 <= alone * 2 + 4_000,
            "with {mirror} half of the requests take {p50} us, without {alone} us"
        );
        ensure!(
            fleet.asked_of(&format!("{mirror}_1"))? > before + 500,
            "{mirror} got no copies"
        );
        let answer = ask("oa").send(fleet.system.ports().envoys[0].data)?;
        ensure!(
            (answer.status, &answer.body) == (expected.status, &expected.body),
            "with {mirror}: {answer:?}"
        );
    }
    // Far more copies that hang than connections or requests may be under way to a server.
    let report = send(fleet, vec![rest("oa"), grpc("oa")], 4_000).await?;
    ensure!(report.routes.contains_key(":oa_1:"), "{:?}", report.routes);
    // The server's other models are not noticed to have such a neighbour either.
    send(fleet, vec![rest("slow-o")], 20).await?;
    fleet.stop_experiment("o").await?;
    fleet.unload("hang-o").await
}

/// The main model on one replica, the mirror on the other, whose agent is killed.
async fn gone(fleet: &Fleet) -> Result<()> {
    let (main, other) = apart(fleet, "pa", "pm").await?;
    fleet
        .run_experiment(mirrored("p", "pa", &other.0, 100))
        .await?;
    let load = steady(fleet, vec![rest("pa"), grpc("p.experiment")], 200.0)?;
    fleet
        .system
        .kill(Component::Agent(other.1), Signal::SIGKILL)?;
    let answered = eventually_async(20, async || {
        ensure!(load.answered() >= 800, "{} answers", load.answered());
        Ok(())
    })
    .await;
    let status = fleet.experiment_status("p").await;
    fleet.system.restart(Component::Agent(other.1)).await?;
    answered?;
    let report = lossless(load, "the mirror's agent is gone").await?;
    ensure!(
        report.latency.value_at_quantile(0.99) < 100_000,
        "p99 {} us",
        report.latency.value_at_quantile(0.99)
    );
    let status = status?;
    ensure!(
        status.status_description.contains(&other.0) && !status.active,
        "{status:?}"
    );
    ensure!(main != other.1, "they are apart");
    fleet.active("p", 30).await?;
    let before = fleet.asked_of(&format!("{}_1", other.0))?;
    send(fleet, vec![rest("pa")], 100).await?;
    eventually(5, || {
        let copies = fleet.asked_of(&format!("{}_1", other.0))? - before;
        ensure!(copies >= 100, "{copies} copies after its return");
        Ok(())
    })?;
    fleet.stop_experiment("p").await
}

/// Loads two models on one replica each, not the same; returns the first one's replica, and the second's name and replica.
pub(crate) async fn apart(
    fleet: &Fleet,
    first: &str,
    second: &str,
) -> Result<(usize, (String, usize))> {
    models(fleet, &[first], 1).await?;
    let home = replica(fleet, first).await?;
    for number in 0..4 {
        let name = format!("{second}{number}");
        // So much that the next one goes to the other replica.
        fleet.load(model(&name, 20_000_000, 1)).await?;
        fleet.reaches(&name, ModelAvailable, 1, 20).await?;
        let there = replica(fleet, &name).await?;
        if there != home {
            return Ok((home, (name, there)));
        }
    }
    anyhow::bail!("every model comes to replica {home}")
}

async fn replica(fleet: &Fleet, model: &str) -> Result<usize> {
    let status = fleet.status(model).await?;
    let index = status.model_replica_state.keys().next();
    Ok(*index.context("no replica")? as usize)
}
