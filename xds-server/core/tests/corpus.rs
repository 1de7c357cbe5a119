//! Manifests of pipelines that fuzzing starts from, and that it has found.
#[path = "../../../fuzz/checks/pipelines.rs"]
mod pipelines;
#[path = "../../../fuzz/checks/seeds.rs"]
mod seeds;

use proptest::prelude::*;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn manifests() {
    for seed in seeds::read(CRATE, "corpus/pipelines", 6) {
        pipelines::manifest(&String::from_utf8_lossy(&seed));
    }
}

proptest! {
    #[test]
    fn damaged_manifests(bytes in seeds::damaged(seeds::read(CRATE, "corpus/pipelines", 6))) {
        pipelines::manifest(&String::from_utf8_lossy(&bytes));
    }
}
