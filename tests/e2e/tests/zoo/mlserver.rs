//! What MLServer is told of an artefact: nothing of its own settings is lost, and what the manifest adds arrives.
use anyhow::{Context, Result, ensure};
use seldon_e2e::{Ask, Case, Loaded, Running, Spec};
use seldon_proto::scheduler as pb;
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    ("mlserver::adaptive_batching_as_in_its_settings", batching),
    ("mlserver::numbered_versions", versions),
    ("mlserver::parameters_and_references_arrive", extra),
];

/// Four callers are answered together, as the artefact's settings say; alone, one would wait until the test fails.
fn batching(running: &Running) -> Result<()> {
    let spec = Spec::new("batching", "gs://e2e/batching", "python");
    let _model = Loaded::available(running, &spec)?;
    let port = running.data();
    let ask = || -> Result<Value> {
        let tensor = json!({"name": "a", "shape": [1, 1], "datatype": "INT64", "data": [5]});
        let body = json!({"inputs": [tensor]}).to_string();
        let answer = Ask::post("/v2/models/batching/infer", body)
            .send(port)?
            .ok()?;
        Ok(answer["outputs"][0]["data"].clone())
    };
    let answers: Vec<Result<Value>> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        let join = |caller: std::thread::ScopedJoinHandle<'_, Result<Value>>| {
            caller.join().ok().context("a caller panicked")?
        };
        callers.into_iter().map(join).collect()
    });
    for answer in answers {
        let rows = answer?;
        ensure!(rows == json!([4]), "{rows} came together, not 4");
    }
    Ok(())
}

/// The folder that is asked for, else the highest, with its own settings.
fn versions(running: &Running) -> Result<()> {
    for (name, version, expected) in [("versions-1", Some(1), 1), ("versions-any", None, 2)] {
        let mut message = Spec::new(name, "gs://e2e/versions", "python").message();
        let wanted = message.model_spec.as_mut().context("it has a spec")?;
        wanted.artifact_version = version;
        let given = given(running, message)?;
        ensure!(
            given == json!({"which": expected}),
            "{name} was given {given}"
        );
    }
    Ok(())
}

/// Loads a model that answers with what it was given as `parameters.extra`, and asks it.
fn given(running: &Running, message: pb::Model) -> Result<Value> {
    let loaded = Loaded::message(running, message)?;
    loaded.wait(pb::model_status::ModelState::ModelAvailable)?;
    let path = format!("/v2/models/{}/infer", loaded.name());
    let tensor = json!({"name": "a", "shape": [1], "datatype": "INT64", "data": [1]});
    let answer = Ask::post(&path, json!({"inputs": [tensor]}).to_string())
        .send(running.data())?
        .ok()?;
    let text = answer["outputs"][0]["data"][0].as_str();
    Ok(serde_json::from_str(text.context("no text")?)?)
}

fn extra(running: &Running) -> Result<()> {
    let data = running.data();
    let pipeline = format!("http://127.0.0.1:{data}/v2/pipelines/chat/infer");
    let model = format!("http://127.0.0.1:{data}/v2/models/chat/infer");
    let language = pb::model_spec::ModelSpec::Llm(pb::LlmSpec {
        model_ref: Some("chat".to_owned()),
        pipeline_ref: None,
    });
    let explainer = pb::model_spec::ModelSpec::Explainer(pb::ExplainerSpec {
        r#type: "anchor_text".to_owned(),
        model_ref: None,
        pipeline_ref: Some("chat".to_owned()),
    });
    for (name, reference, expected) in [
        ("extra-none", None, json!({"temperature": "0.5"})),
        (
            "extra-llm",
            Some(language),
            json!({"infer_uri": model, "temperature": "0.5"}),
        ),
        (
            "extra-explainer",
            Some(explainer),
            json!({"explainer_type": "anchor_text", "infer_uri": pipeline, "temperature": "0.5"}),
        ),
    ] {
        let spec = Spec::new(name, "gs://e2e/extra", "python");
        let mut message = spec.message();
        let wanted = message.model_spec.as_mut().context("it has a spec")?;
        wanted.model_spec = reference;
        wanted.parameters = vec![pb::ParameterSpec {
            name: "temperature".to_owned(),
            value: "0.5".to_owned(),
        }];
        let given = given(running, message)?;
        ensure!(given == expected, "{name} was given {given}");
    }
    Ok(())
}
