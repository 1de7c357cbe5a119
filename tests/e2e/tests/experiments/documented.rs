//! The documented walk-throughs, line by line, on MLServer.
use anyhow::{Context, Result};
use seldon_e2e::{Running, Transcript, eventually};

use crate::scene::Case;

pub(crate) const CASES: &[Case] = &[
    ("documented::l3_split_with_sticky_sessions", |stages| {
        stages.documented(|running| play(running, include_str!("../../expected/L3.txt")))
    }),
    ("documented::l4_another_candidate", |stages| {
        stages.documented(|running| play(running, include_str!("../../expected/L4.txt")))
    }),
    ("documented::l5_another_default", |stages| {
        stages.documented(|running| play(running, include_str!("../../expected/L5.txt")))
    }),
    ("documented::l6_model_experiment", |stages| {
        stages.documented(|running| play(running, include_str!("../../expected/L6.txt")))
    }),
    ("documented::l8_model_mirror", |stages| {
        stages.documented(|running| play(running, include_str!("../../expected/L8.txt")))
    }),
    ("documented::k34_experiment_pages", |stages| {
        stages.documented(|running| play(running, include_str!("../../expected/K34.txt")))
    }),
];

const EXPERIMENTS: [&str; 3] = ["experiment-sample", "sklearn-mirror", "experiment-iris"];
const MODELS: [&str; 3] = ["iris", "iris2", "iris3"];

fn play(running: &Running, text: &str) -> Result<()> {
    let transcript = Transcript::parse(text)?;
    gone(running)?;
    let result = transcript.play(running);
    if result.is_err() {
        // So that the next one starts afresh; most of it will not be there.
        for experiment in EXPERIMENTS {
            let _ = running.cli(&["experiment", "stop", experiment]);
        }
        for model in MODELS {
            let _ = running.cli(&["model", "unload", model]);
        }
    }
    result
}

/// Models number their versions from 1 again only once those of before are gone.
fn gone(running: &Running) -> Result<()> {
    eventually(30, || {
        let list = running.cli(&["model", "list"])?.ok()?;
        let there = MODELS.iter().find(|name| {
            list.lines()
                .any(|line| line.starts_with(&format!("{name}\t")))
        });
        there
            .is_none()
            .then_some(())
            .with_context(|| format!("still there: {there:?}"))
    })
}
