//! What fuzzing starts from, and what it has found.
#[path = "../../../fuzz/checks/openai.rs"]
mod openai;
#[path = "../../../fuzz/checks/seeds.rs"]
mod seeds;

use proptest::prelude::*;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn corpus() {
    for seed in seeds::read(CRATE, "corpus", 12) {
        openai::any(&seed);
    }
}

proptest! {
    #[test]
    fn damaged(bytes in seeds::damaged(seeds::read(CRATE, "corpus", 12))) {
        openai::any(&bytes);
    }
}
