//! OpenAI's requests, answers and streams. Corpus: `crates/openai/corpus`.
#![no_main]
use libfuzzer_sys::fuzz_target;

#[path = "../checks/openai.rs"]
mod openai;

fuzz_target!(|bytes: &[u8]| openai::any(bytes));
