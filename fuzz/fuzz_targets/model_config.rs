//! A Triton model's `config.pbtxt`. Corpus: `agent/corpus/pbtxt`.
#![no_main]
use libfuzzer_sys::fuzz_target;

#[path = "../checks/model_config.rs"]
mod model_config;

fuzz_target!(|text: &str| model_config::config(text));
