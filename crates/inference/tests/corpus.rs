//! What fuzzing starts from, and what it has found.
#[path = "../../../fuzz/checks/requests.rs"]
mod requests;
#[path = "../../../fuzz/checks/seeds.rs"]
mod seeds;

use proptest::prelude::*;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn json() {
    for seed in seeds::read(CRATE, "corpus/json", 8) {
        requests::json(&seed);
    }
}

#[test]
fn binary() {
    for seed in seeds::read(CRATE, "corpus/binary", 8) {
        requests::binary(&seed);
    }
}

proptest! {
    #[test]
    fn damaged_json(bytes in seeds::damaged(seeds::read(CRATE, "corpus/json", 8))) {
        requests::json(&bytes);
    }

    #[test]
    fn damaged_binary(bytes in seeds::damaged(seeds::read(CRATE, "corpus/binary", 8))) {
        requests::binary(&bytes);
    }
}
