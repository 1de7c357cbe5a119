//! A corpus as ordinary tests use it: as it is, and damaged at random.
use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*, sample::Index};

/// All files of a crate's folder, of which there are some.
pub fn read(krate: &str, folder: &str, least: usize) -> Vec<Vec<u8>> {
    let folder = Path::new(krate).join(folder);
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("the corpus is part of the crate")
        .map(|entry| entry.expect("readable").path())
        .collect();
    assert!(paths.len() >= least, "{} files of the corpus", paths.len());
    paths.sort();
    let seeds = paths.iter().map(|path| fs::read(path).expect("readable"));
    seeds.collect()
}

/// A seed of which bytes are others, a piece of this or another seed is put in, and a piece is missing.
pub fn damaged(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let other = Just(seeds.clone());
    let changes = vec((any::<Index>(), any::<u8>()), 0..4);
    let places = vec(any::<Index>(), 6);
    (proptest::sample::select(seeds), other, changes, places).prop_map(
        |(mut bytes, others, changes, places)| {
            let piece = |bytes: &[u8], from: &Index, length: &Index| {
                let from = from.index(bytes.len() + 1);
                from..(from + length.index(24)).min(bytes.len())
            };
            let other = &others[places[0].index(others.len())];
            let taken = other[piece(other, &places[1], &places[2])].to_vec();
            let at = places[3].index(bytes.len() + 1);
            bytes.splice(at..at, taken);
            let gone = piece(&bytes, &places[4], &places[5]);
            if places[5].index(2) == 0 {
                bytes.drain(gone);
            }
            for (at, byte) in changes {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            bytes
        },
    )
}
