//! The name in the first gRPC message. Corpus: `wasm-filters/routing/corpus/grpc`.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = seldon_routing::model_name_in_message(bytes);
});
