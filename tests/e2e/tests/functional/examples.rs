//! The documented examples, line by line. Those that use the documented name `iris` take turns.
use std::sync::PoisonError;

use anyhow::{Context, Result};
use seldon_e2e::{Case, Running, Transcript};

pub const CASES: &[Case] = &[
    ("examples::l1_sklearn_iris", |running| {
        play(running, include_str!("../../expected/L1.txt"))
    }),
    ("examples::l10_infer_four_ways", |running| {
        play(running, include_str!("../../expected/L10.txt"))
    }),
    ("examples::l13_tritonclient", |running| {
        play(running, include_str!("../../expected/L13.txt"))
    }),
    ("examples::l16_batch", |running| {
        play(running, include_str!("../../expected/L16.txt"))
    }),
    ("examples::l25_load_by_grpc", |running| {
        play(running, include_str!("../../expected/L25.txt"))
    }),
    ("examples::l26_inference_page", |running| {
        play(running, include_str!("../../expected/L26.txt"))
    }),
    ("examples::k33_model_pages", |running| {
        play(running, include_str!("../../expected/K33.txt"))
    }),
    ("examples::lists", |running| {
        play(running, include_str!("../../expected/lists.txt"))
    }),
];

fn play(running: &Running, text: &str) -> Result<()> {
    let transcript = Transcript::parse(text)?;
    let _turn = running.iris.lock().unwrap_or_else(PoisonError::into_inner);
    gone(running, "iris")?;
    let result = transcript.play(running);
    if result.is_err() {
        // So that the next one starts afresh.
        running.cli(&["model", "unload", "iris"])?;
    }
    result
}

/// A model of that name numbers its versions from 1 again only once the former is gone.
fn gone(running: &Running, name: &str) -> Result<()> {
    seldon_e2e::eventually(30, || {
        let list = running.cli(&["model", "list"])?.ok()?;
        let there = list
            .lines()
            .any(|line| line.starts_with(&format!("{name}\t")));
        (!there)
            .then_some(())
            .with_context(|| format!("{name} is still there"))
    })
}
