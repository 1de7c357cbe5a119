//! Why an experiment splits as it does: what status and `explain` show.
use std::sync::Arc;

use crate::{Generation, RolloutEvent};

/// An experiment with what is wanted, what is in force, and why they differ.
#[derive(Clone, Debug, PartialEq)]
pub struct ExperimentExplanation {
    pub name: Arc<str>,
    pub active: bool,
    /// The status in words.
    pub description: String,
    /// Names that requests use.
    pub endpoints: Vec<String>,
    pub candidates: Vec<CandidateVerdict>,
    pub mirror: Option<MirrorVerdict>,
    pub cohort_header: Option<String>,
    pub rollout: Option<RolloutVerdict>,
    /// The newest generation in which the split changed.
    pub generation: Generation,
}

/// One candidate's share.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateVerdict {
    pub name: Arc<str>,
    pub is_default: bool,
    /// Of the manifest or the roll-out's step; relative to the others.
    pub wanted: u32,
    /// Relative to the others; 0 where it gets only requests that name its route, or none.
    pub in_force: u32,
    /// Whether a request that names its route gets it.
    pub live: bool,
    /// Why `in_force` is not `wanted`; empty where it is.
    pub reason: String,
}

/// The mirror's share.
#[derive(Clone, Debug, PartialEq)]
pub struct MirrorVerdict {
    pub name: Arc<str>,
    pub percent: u32,
    pub in_force: bool,
    pub reason: String,
}

/// How far a guarded roll-out has come.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutVerdict {
    /// "waiting", "running", "complete" or "rolled back".
    pub state: &'static str,
    /// From 1.
    pub step: u32,
    pub steps: Vec<u32>,
    /// What the next decision waits for, in words.
    pub waits_for: String,
    pub history: Vec<RolloutEvent>,
}
