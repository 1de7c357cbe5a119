//! Manifests. Corpus: `crates/resources/corpus`.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(documents) = seldon_resources::read("fuzz.yaml", text) {
        for document in documents {
            assert!(document.line > 0);
        }
    }
});
