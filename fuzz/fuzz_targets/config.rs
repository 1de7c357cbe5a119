//! The filter's configuration: accepts no more than serde does, and reads the same. Corpus: `wasm-filters/routing/corpus/config`.
#![no_main]
use libfuzzer_sys::fuzz_target;

use seldon_routing::Config;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = Config::from_json(bytes) else { return };
    if !bytes.is_empty() {
        assert_eq!(serde_json::from_slice::<Config>(bytes).as_ref().ok(), Some(&config));
    }
    assert_eq!(Config::from_json(config.to_json().as_bytes()), Ok(config));
});
