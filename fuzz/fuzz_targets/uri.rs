//! `storageUri`. Corpus: `agent/corpus/uri`.
#![no_main]
use libfuzzer_sys::fuzz_target;

use seldon_agent::artefact::uri::{Policy, parse};

fuzz_target!(|uri: &str| {
    let policy = Policy::default();
    if parse(uri, &policy).is_ok() {
        assert!(!uri.split('/').any(|part| part == ".."), "{uri:?}");
    }
});
