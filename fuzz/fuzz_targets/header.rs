//! The filter's configuration and a sticky header under it. Corpus: `wasm-filters/routing/corpus/header`.
#![no_main]
use libfuzzer_sys::fuzz_target;

use seldon_routing::{Config, Headers, Random, Router};

struct Sent<'a>(&'a [u8]);
impl Headers for Sent<'_> {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        match name {
            "x-seldon-scope" => Some(b"c:e.experiment".to_vec()),
            "x-seldon-route" => Some(self.0.to_vec()),
            _ => None,
        }
    }
}

const CONFIG: &str = r#"{"experiments":{"e.experiment":{"candidates":[
    {"scope":"a","routes":["a_1"],"weight":1},{"scope":"b","routes":["b_1"],"weight":1}]}}}"#;

fuzz_target!(|bytes: &[u8]| {
    let _ = Config::from_json(bytes);
    let Ok(config) = Config::from_json(CONFIG.as_bytes()) else { return };
    let random = Random::from_seed(1);
    let router = Router { config: &config, random: &random };
    let _ = router.on_headers(&Sent(bytes), true);
});
