//! The corpus of `config.pbtxt`, as it is and damaged.
#[path = "../../fuzz/checks/model_config.rs"]
mod model_config;
#[path = "../../fuzz/checks/seeds.rs"]
mod seeds;

use proptest::prelude::*;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_corpus_keeps_its_fields() {
    for seed in seeds::read(CRATE, "corpus/pbtxt", 10) {
        model_config::config(&String::from_utf8_lossy(&seed));
    }
}

proptest! {
    #[test]
    fn damaged_ones_are_read_or_refused(bytes in seeds::damaged(seeds::read(CRATE, "corpus/pbtxt", 10))) {
        model_config::config(&String::from_utf8_lossy(&bytes));
    }
}
