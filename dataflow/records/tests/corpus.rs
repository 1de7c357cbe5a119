//! What fuzzing starts from, and what it has found.
#[path = "../../../fuzz/checks/records.rs"]
mod records;
#[path = "../../../fuzz/checks/seeds.rs"]
mod seeds;

use proptest::prelude::*;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn headers() {
    for seed in seeds::read(CRATE, "corpus/headers", 5) {
        records::headers(&seed);
    }
}

#[test]
fn contents() {
    for seed in seeds::read(CRATE, "corpus/contents", 8) {
        records::contents(&seed);
    }
}

proptest! {
    #[test]
    fn damaged_headers(bytes in seeds::damaged(seeds::read(CRATE, "corpus/headers", 5))) {
        records::headers(&bytes);
    }

    #[test]
    fn damaged_contents(bytes in seeds::damaged(seeds::read(CRATE, "corpus/contents", 8))) {
        records::contents(&bytes);
    }
}
