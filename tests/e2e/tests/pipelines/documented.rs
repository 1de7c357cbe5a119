//! The documented walk-throughs, line by line. They share models, so they take turns.
use std::sync::PoisonError;

use anyhow::{Context, Result};
use seldon_e2e::{Case, Running, Transcript, eventually};

macro_rules! transcripts {
    ($($name:literal: $file:literal,)+) => {
        pub const CASES: &[Case] = &[$((concat!("documented::", $name), |running| {
            play(running, include_str!(concat!("../../expected/", $file, ".txt")))
        })),+];
    };
}

transcripts! {
    "l7_pipeline_experiment": "L7",
    "l9_pipeline_mirror": "L9",
    "l10_triton_model_four_ways": "L10-triton",
    "l11_pipeline_four_ways": "L11",
    "l12_pipeline_readiness": "L12",
    "l14_tritonclient": "L14",
    "l16_batch_of_requests": "L16-pipelines",
    "l17_pandas_query": "L17",
    "l18_cycle": "L18",
    "l20_income_drift_outlier_explainer": "L20",
    "l21_cifar10_drift_outlier": "L21",
    "l26_inference_page": "L26-pipelines",
    "l28_kafka_by_hand": "L28",
    "k14_topics_that_go_with_their_owner": "K14",
    "p1_chain": "P1",
    "p2_tensors_of_steps": "P2",
    "p3_join": "P3",
    "p4_conditional": "P4",
    "p5_tensors_of_the_request": "P5",
    "p6_trigger_joins": "P6",
    "p7_trigger_with_others_data": "P7",
    "p8_error_of_a_step": "P8",
    "p9_concept_manifests": "P9",
    "pp1_fed_by_a_pipeline": "PP1",
    "pp2_two_pipelines_joined": "PP2",
    "pp3_external_trigger": "PP3",
    "pp4_fed_by_a_step": "PP4",
    "pp5_fed_by_steps_of_two": "PP5",
}

fn play(running: &Running, text: &str) -> Result<()> {
    let transcript = Transcript::parse(text)?;
    let _turn = running.iris.lock().unwrap_or_else(PoisonError::into_inner);
    empty(running)?;
    let result = transcript.play(running);
    if result.is_err() {
        // So that the next one starts afresh; most of it will not be there.
        for (kind, name) in there(running)? {
            let end = if kind == "experiment" {
                "stop"
            } else {
                "unload"
            };
            let _ = running.cli(&[&kind, end, &name]);
        }
    }
    result
}

/// Names number their versions from 1 again only once those of before are gone.
fn empty(running: &Running) -> Result<()> {
    eventually(150, || {
        let left = there(running)?;
        left.is_empty()
            .then_some(())
            .with_context(|| format!("still there: {left:?}"))
    })
}

/// What is loaded, by kind and name.
fn there(running: &Running) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for kind in ["experiment", "pipeline", "model"] {
        let list = running.cli(&[kind, "list"])?.ok()?;
        let names = list
            .lines()
            .skip(2)
            .filter_map(|line| line.split('\t').next());
        all.extend(names.map(|name| (kind.to_owned(), name.trim().to_owned())));
    }
    Ok(all)
}
