//! OpenAI's API, asked by OpenAI's own client.
use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use seldon_e2e::{Ask, Case, Loaded, Running, Spec, eventually};
use serde_json::json;

pub const CASES: &[Case] = &[
    ("openai::its_own_client", client),
    ("openai::the_header_names_the_model", header),
    ("openai::experiments", experiments),
    ("openai::errors_that_envoy_makes", envoy),
];

/// What the client prints of a model in `artefacts/chat`.
const PRINTED: &str = include_str!("../../expected/openai.txt");

fn chat(name: &str) -> Spec {
    Spec::new(name, "gs://e2e/chat", "python")
}

fn client(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &chat("openai-chat"))?;
    let line = "${TRITONCLIENT} tests/e2e/clients/openai_client.py ${MESH_IP} openai-chat";
    let printed = running.shell(".", line)?.ok()?;
    for (line, wanted) in printed.lines().zip(PRINTED.lines()) {
        ensure!(line == wanted, "it printed\n{line}\ninstead of\n{wanted}");
    }
    ensure!(
        printed.lines().count() == PRINTED.lines().count(),
        "{printed}"
    );
    Ok(())
}

fn ask(path: &str, model: &str) -> Ask {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
    Ask::post(
        &format!("/v2/models/{path}/infer/chat/completions"),
        body.to_string(),
    )
}

fn header(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &chat("openai-named"))?;
    for (path, model) in [
        ("openai-named", "openai-named"),
        ("any", "openai-named"),
        ("any", "any"),
    ] {
        let answer = ask(path, model)
            .header("seldon-model", "openai-named")
            .send(running.data())?;
        let json = answer.ok()?;
        ensure!(
            json["choices"][0]["message"]["content"] == "user: hi",
            "{json}"
        );
        ensure!(
            answer.all("x-seldon-route") == [":openai-named_1:"],
            "{answer:?}"
        );
    }
    Ok(())
}

fn experiments(running: &Running) -> Result<()> {
    let _a = Loaded::available(running, &chat("openai-a"))?;
    let _b = Loaded::available(running, &chat("openai-b"))?;
    let file = running.folder().join("openai-experiment.yaml");
    let manifest = "apiVersion: mlops.seldon.io/v1alpha1\nkind: Experiment\nmetadata:\n  name: openai-split\nspec:\n  default: openai-a\n  candidates:\n  - name: openai-a\n    weight: 50\n  - name: openai-b\n    weight: 50\n";
    std::fs::write(&file, manifest)?;
    let file = file.to_str().context("a path")?;
    running.cli(&["experiment", "start", "-f", file])?.ok()?;
    // By its own name, and by that of the model it splits.
    let split = ["openai-split.experiment", "openai-a"].map(|name| {
        let mut seen = BTreeSet::new();
        eventually(30, || {
            let answer = ask(name, name).send(running.data())?;
            let json = answer.ok()?;
            ensure!(json["model"] == name, "{json}");
            seen.insert(answer.field("x-seldon-route").to_owned());
            ensure!(seen.len() == 2, "only {seen:?} answered");
            Ok(())
        })
    });
    running.cli(&["experiment", "stop", "openai-split"])?.ok()?;
    split.into_iter().collect()
}

fn envoy(running: &Running) -> Result<()> {
    for path in [
        "/v2/models/ghost/infer/chat/completions",
        "/v2/models/ghost/infer/models",
        "//v2/models/ghost//infer_stream/embeddings/?a=b",
        "/v2/models/ghost.experiment/infer/images/generations",
    ] {
        let answer = Ask::post(path, "{}").send(running.data())?;
        ensure!(answer.status == 404, "{path}: {answer:?}");
        let error = &answer.json()?["error"];
        ensure!(
            error["code"] == "model_not_found" && error["type"] == "invalid_request_error",
            "{path}: {error}"
        );
        let said = error["message"].as_str().context("no message")?;
        ensure!(said.contains("ghost"), "{path}: {said}");
    }
    // Elsewhere it is the protocol's own.
    let answer = Ask::post("/v2/models/ghost/infer", "{}").send(running.data())?;
    ensure!(answer.error()?.contains("ghost"), "{answer:?}");
    Ok(())
}
