//! The documented walk-throughs one at a time on a system that has nothing loaded: they share names.
use std::sync::PoisonError;

use anyhow::{Context, Result};

use crate::running::Running;
use crate::transcript::Transcript;
use crate::wait::eventually;

/// Plays a transcript once nothing is loaded, and unloads all that is left after a failure.
pub fn play_alone(running: &Running, text: &str) -> Result<()> {
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

/// The cases of documented walk-throughs: a name, and the transcript in `expected`.
#[macro_export]
macro_rules! transcripts {
    ($($name:literal: $file:literal,)+) => {
        pub const CASES: &[$crate::Case] = &[$((concat!("documented::", $name), |running| {
            let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/expected/", $file, ".txt"));
            $crate::play_alone(running, text)
        })),+];
    };
}
