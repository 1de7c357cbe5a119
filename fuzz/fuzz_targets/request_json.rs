//! REST requests in JSON. Corpus: `crates/inference/corpus/json`.
#![no_main]
use libfuzzer_sys::fuzz_target;

#[path = "../checks/requests.rs"]
#[allow(dead_code)]
mod requests;

fuzz_target!(|bytes: &[u8]| requests::json(bytes));
