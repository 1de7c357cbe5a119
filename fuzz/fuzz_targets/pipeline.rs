//! Manifests of pipelines, up to the scheduler's rules. Corpus: `xds-server/core/corpus/pipelines`.
#![no_main]
use libfuzzer_sys::fuzz_target;

#[path = "../checks/pipelines.rs"]
mod pipelines;

fuzz_target!(|text: &str| pipelines::manifest(text));
