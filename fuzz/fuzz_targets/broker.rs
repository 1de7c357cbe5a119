//! Requests of the embedded broker's clients, one after the other. Corpus: `dataflow/broker/corpus`.
#![no_main]
use libfuzzer_sys::fuzz_target;

#[path = "../checks/broker.rs"]
mod broker;

fuzz_target!(|bytes: &[u8]| broker::requests(bytes));
