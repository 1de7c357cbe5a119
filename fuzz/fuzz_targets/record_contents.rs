//! Values of records. Corpus: `dataflow/records/corpus/contents`.
#![no_main]
use libfuzzer_sys::fuzz_target;

#[path = "../checks/records.rs"]
#[allow(dead_code)]
mod records;

fuzz_target!(|bytes: &[u8]| records::contents(bytes));
