//! The documented walk-throughs, line by line. They share models, so they take turns.
use std::sync::PoisonError;

use anyhow::{Context, Result};
use seldon_e2e::{Case, Running, Transcript, eventually};

pub const CASES: &[Case] = &[
    ("documented::l10_triton_model_four_ways", |running| {
        play(running, include_str!("../../expected/L10-triton.txt"))
    }),
    ("documented::l11_pipeline_four_ways", |running| {
        play(running, include_str!("../../expected/L11.txt"))
    }),
    ("documented::p1_chain", |running| {
        play(running, include_str!("../../expected/P1.txt"))
    }),
    ("documented::p2_tensors_of_steps", |running| {
        play(running, include_str!("../../expected/P2.txt"))
    }),
    ("documented::p3_join", |running| {
        play(running, include_str!("../../expected/P3.txt"))
    }),
    ("documented::p4_conditional", |running| {
        play(running, include_str!("../../expected/P4.txt"))
    }),
    ("documented::p5_tensors_of_the_request", |running| {
        play(running, include_str!("../../expected/P5.txt"))
    }),
    ("documented::p6_trigger_joins", |running| {
        play(running, include_str!("../../expected/P6.txt"))
    }),
    ("documented::l17_pandas_query", |running| {
        play(running, include_str!("../../expected/L17.txt"))
    }),
    ("documented::l18_cycle", |running| {
        play(running, include_str!("../../expected/L18.txt"))
    }),
];

fn play(running: &Running, text: &str) -> Result<()> {
    let transcript = Transcript::parse(text)?;
    let _turn = running.iris.lock().unwrap_or_else(PoisonError::into_inner);
    empty(running)?;
    let result = transcript.play(running);
    if result.is_err() {
        // So that the next one starts afresh; most of it will not be there.
        for (kind, name) in there(running)? {
            let _ = running.cli(&[&kind, "unload", &name]);
        }
    }
    result
}

/// Names number their versions from 1 again only once those of before are gone.
fn empty(running: &Running) -> Result<()> {
    eventually(30, || {
        let left = there(running)?;
        left.is_empty()
            .then_some(())
            .with_context(|| format!("still there: {left:?}"))
    })
}

/// What is loaded, by kind and name.
fn there(running: &Running) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for kind in ["pipeline", "model"] {
        let list = running.cli(&[kind, "list"])?.ok()?;
        let names = list
            .lines()
            .skip(2)
            .filter_map(|line| line.split('\t').next());
        all.extend(names.map(|name| (kind.to_owned(), name.trim().to_owned())));
    }
    Ok(all)
}
