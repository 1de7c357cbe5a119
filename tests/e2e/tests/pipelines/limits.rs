//! What callers through Envoy are told when there is no answer: in time, and with the way out.
use std::fs;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::{Answer, Ask, Case, Running};
use seldon_proto::inference as pb;
use tonic::Code;

pub const CASES: &[Case] = &[
    ("limits::deadlines_of_rest_callers", deadlines),
    ("limits::streams_are_refused", streams),
    ("limits::head_without_a_body", heads),
];

const REQUEST: &str = r#"{"inputs":[{"name":"INPUT","data":[1],"datatype":"FP32","shape":[1]}]}"#;

/// Nothing that has no tensor of this name goes any further, so nobody is answered.
fn manifest(name: &str) -> String {
    format!(
        "apiVersion: mlops.seldon.io/v1alpha1
kind: Pipeline
metadata: {{name: {name}}}
spec:
  steps:
  - name: add10
    inputs: [{name}.inputs.OTHER]
  output: {{steps: [add10]}}
"
    )
}

/// With such a pipeline, and nobody else's.
fn with_pipeline(running: &Running, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let _turn = running.iris.lock().unwrap_or_else(PoisonError::into_inner);
    let file = running.folder().join(format!("{name}.yaml"));
    fs::write(&file, manifest(name))?;
    let file = file.to_str().context("a path of letters")?;
    running.cli(&["pipeline", "load", "-f", file])?.ok()?;
    let ready = ["pipeline", "status", name, "-w", "PipelineReady"];
    let done = running.cli(&ready)?.ok().and_then(|_| work());
    running.cli(&["pipeline", "unload", name])?.ok()?;
    done
}

/// The text of an error.
fn said(answer: &Answer) -> Result<String> {
    let json = answer.json()?;
    let text = json["error"].as_str().context("no error")?;
    Ok(text.to_owned())
}

fn deadlines(running: &Running) -> Result<()> {
    with_pipeline(running, "never", || {
        for name in [
            "x-envoy-upstream-rq-timeout-ms",
            "x-envoy-expected-rq-timeout-ms",
        ] {
            let begin = Instant::now();
            let ask = Ask::post("/v2/pipelines/never/infer", REQUEST).header(name, "700");
            let late = ask.send(running.data())?;
            let took = begin.elapsed();
            ensure!(late.status == 504, "{name}: {late:?}");
            // The gateway's own, which comes before Envoy's.
            let wanted = "pipeline never: no answer within 700 ms";
            ensure!(said(&late)? == wanted, "{name}: {}", late.text());
            let soon = Duration::from_millis(500)..Duration::from_secs(3);
            ensure!(soon.contains(&took), "{name}: after {took:?}");
        }
        // Other words of this kind are Envoy's and ours only.
        let ask = Ask::post("/v2/pipelines/never/infer", REQUEST)
            .header("x-envoy-upstream-rq-timeout-ms", "700")
            .header("x-envoy-upstream-rq-per-try-timeout-ms", "1")
            .header("x-envoy-max-retries", "1000")
            .header("x-seldon-timeout-ms", "1");
        let late = ask.send(running.data())?;
        ensure!(said(&late)?.ends_with("within 700 ms"), "{}", late.text());
        Ok(())
    })
}

fn streams(running: &Running) -> Result<()> {
    with_pipeline(running, "no-stream", || {
        let refused =
            Ask::post("/v2/pipelines/no-stream/infer_stream", REQUEST).send(running.data())?;
        ensure!(refused.status == 501, "{refused:?}");
        let said = said(&refused)?;
        ensure!(said.contains("pipelines do not stream"), "{said}");
        let message = pb::ModelInferRequest {
            model_name: "no-stream.pipeline".into(),
            ..Default::default()
        };
        running.block_on(async {
            let messages = futures_util::stream::iter([message]);
            let refused = running.inference().model_stream_infer(messages).await;
            let refused = refused.err().context("streams")?;
            ensure!(
                refused.code() == Code::Unimplemented
                    && refused.message().contains("pipelines do not stream"),
                "{refused:?}"
            );
            Ok(())
        })
    })
}

fn heads(running: &Running) -> Result<()> {
    with_pipeline(running, "headed", || {
        for (path, status) in [
            ("/v2/pipelines/headed", 200),
            ("/v2/pipelines/headed/ready", 424),
            ("/v2/pipelines/nobody/ready", 404),
        ] {
            let get = Ask::get(path).send(running.data())?;
            let head = Ask::new("HEAD", path).send(running.data())?;
            ensure!(
                (get.status, head.status) == (status, status),
                "{path}: {get:?} {head:?}"
            );
            ensure!(
                head.body.is_empty() && !get.body.is_empty(),
                "{path}: {head:?}"
            );
        }
        Ok(())
    })
}
