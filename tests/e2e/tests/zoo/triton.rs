//! What Triton makes of artefacts, and its binary tensors through Envoy.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::{Ask, Case, Loaded, Running, Spec};
use seldon_proto::inference as pb;
use seldon_proto::scheduler::model_status::ModelState;
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    ("triton::binary_tensors", binary),
    ("triton::another_version_takes_over_unseen", versions),
    ("triton::no_version_folder_and_no_config", flat),
    ("triton::says_why_it_cannot_load", failures),
];

fn spec(name: &str, uri: &str) -> Spec {
    Spec::new(name, uri, "triton")
}

/// 1 to 16, as little-endian bytes.
fn numbers(times: i32) -> Vec<u8> {
    (1..=16)
        .flat_map(|number: i32| (number * times).to_le_bytes())
        .collect()
}

fn binary(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &spec("binary", "gs://seldon-models/triton/simple"))?;
    let one = numbers(1);
    let tensor = |name| {
        let size = json!({"binary_data_size": one.len()});
        json!({"name": name, "shape": [1, 16], "datatype": "INT32", "parameters": size})
    };
    let head = json!({
        "inputs": [tensor("INPUT0"), tensor("INPUT1")],
        "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": true}}],
    });
    let head = head.to_string().into_bytes();
    let length = head.len().to_string();
    let body = [head, one.clone(), one.clone()].concat();
    let answer = Ask::post("/v2/models/binary/infer", body)
        .header("inference-header-content-length", &length)
        .send(running.data())?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let length = answer.field("inference-header-content-length");
    let length = length.parse().context("no length of the JSON part")?;
    let (head, rest) = answer.body.split_at_checked(length).context("too short")?;
    let head: Value = serde_json::from_slice(head)?;
    ensure!(head["model_name"] == "binary_1", "{head}");
    ensure!(
        head["outputs"].as_array().map(Vec::len) == Some(1),
        "{head}"
    );
    ensure!(rest == numbers(2), "{rest:?}");

    let tensor = |name: &str| pb::model_infer_request::InferInputTensor {
        name: name.to_owned(),
        datatype: "INT32".to_owned(),
        shape: vec![1, 16],
        ..Default::default()
    };
    let request = pb::ModelInferRequest {
        model_name: "binary".to_owned(),
        inputs: vec![tensor("INPUT0"), tensor("INPUT1")],
        raw_input_contents: vec![one.clone().into(), one.into()],
        ..Default::default()
    };
    let answer = running
        .block_on(async { running.inference().model_infer(request).await })?
        .into_inner();
    ensure!(answer.model_name == "binary_1", "{}", answer.model_name);
    let raw = &answer.raw_output_contents;
    ensure!(*raw == [numbers(2), numbers(0)], "{raw:?}");
    Ok(())
}

/// Asks all the time while folder 2 (times 10) replaces folder 1 (plus 10).
fn versions(running: &Running) -> Result<()> {
    const NAME: &str = "take-over";
    const AFTER: usize = 50;
    let load = |version| {
        let uri = "gs://seldon-models/scv2/samples/triton_23-03/multi-version";
        let mut message = spec(NAME, uri).message();
        let wanted = message.model_spec.as_mut().context("it has a spec")?;
        wanted.artifact_version = Some(version);
        Loaded::message(running, message)
    };
    let ask = || -> Result<bool> {
        let tensor =
            json!({"name": "INPUT", "shape": [4], "datatype": "FP32", "data": [1, 2, 3, 4]});
        let body = json!({"inputs": [tensor]}).to_string();
        let answer = Ask::post(&format!("/v2/models/{NAME}/infer"), body)
            .send(running.data())?
            .ok()?;
        let data = &answer["outputs"][0]["data"];
        let second = answer["model_name"] == "take-over_2";
        let expected = if second {
            json!([10.0, 20.0, 30.0, 40.0])
        } else {
            json!([11.0, 12.0, 13.0, 14.0])
        };
        ensure!(*data == expected, "{answer}");
        Ok(second)
    };
    let model = load(1)?;
    model.wait(ModelState::ModelAvailable)?;
    ensure!(!ask()?, "version 2 is not loaded yet");
    let _model = load(2)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut before, mut after) = (0, 0);
    while after < AFTER {
        ensure!(
            Instant::now() < deadline,
            "still version 1 after {before} answers"
        );
        if ask()? {
            after += 1;
        } else {
            before += 1;
        }
    }
    Ok(())
}

fn flat(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &spec("flat", "gs://e2e/triton-flat"))?;
    let tensor = json!({"name": "INPUT", "shape": [2], "datatype": "INT32", "data": [3, 4]});
    let answer = Ask::post(
        "/v2/models/flat/infer",
        json!({"inputs": [tensor]}).to_string(),
    )
    .send(running.data())?
    .ok()?;
    ensure!(answer["outputs"][0]["data"] == json!([6, 8]), "{answer}");
    Ok(())
}

/// What Triton says is the model's status; a file by one of its own names is taken for what it is.
fn failures(running: &Running) -> Result<()> {
    for (name, why) in [
        ("triton-broken", "the weights are of another model"),
        ("triton-onnx", "backend 'onnxruntime'"),
        ("triton-tensorflow", "backend 'tensorflow'"),
    ] {
        let model = Loaded::load(running, &spec(name, &format!("gs://e2e/{name}")))?;
        let reason = model.wait(ModelState::ModelFailed)?;
        ensure!(reason.contains(why), "{name}: {reason}");
    }
    Ok(())
}
