//! The agent's rewriting of gRPC frames. Corpus: `agent/proxy/corpus`.
#![no_main]
use libfuzzer_sys::fuzz_target;

use std::collections::VecDeque;

use bytes::Bytes;
use seldon_agent_proxy::{Limits, Rewriter};

// The first byte says how long the pieces are and whether messages may be compressed.
fuzz_target!(|bytes: &[u8]| {
    let Some((how, rest)) = bytes.split_first() else { return };
    let limits = Limits { message_bytes: 1 << 16, ..Limits::default() };
    let mut rewriter = Rewriter::new("iris_1", how & 1 == 1, &limits);
    let mut out = VecDeque::new();
    for piece in rest.chunks(usize::from(how >> 1) + 1) {
        if rewriter.push(Bytes::copy_from_slice(piece), &mut out).is_err() {
            return;
        }
    }
});
