//! The name in a path. Corpus: `wasm-filters/routing/corpus/path`.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|path: &[u8]| {
    if let Some(name) = seldon_routing::model_name_in_path(path) {
        assert!(!name.is_empty() && !name.contains('/') && name.len() <= seldon_routing::MAX_NAME);
    }
});
