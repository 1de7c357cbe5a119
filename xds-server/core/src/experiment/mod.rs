//! Experiments: which candidates share the requests of a name, and with what weights.
mod verdict;

pub use verdict::{CandidateVerdict, ExperimentExplanation, MirrorVerdict, RolloutVerdict};
