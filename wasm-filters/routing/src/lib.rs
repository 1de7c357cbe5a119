//! Decides where a request goes: the rules of the Envoy filter, without host calls.
//!
//! The filter enters a request in three cases: it has no `seldon-model` header (the name is derived from the path or
//! the first gRPC message), its name is that of an experiment (a candidate is picked), or no scope knows its name
//! (nothing to do: the router answers 404). A plain model called with its header never gets here.
//!
//! # Headers
//! Before any route is selected the listener's early header mutation sets `x-seldon-scope` to `c:` and the client's
//! `seldon-model`, and removes every other header below that a client may have forged. The scope of a request is the one
//! whose key equals `x-seldon-scope`; only this crate writes keys with `i:`.
//!
//! Seen in Envoy 1.40 with `c:%REQ(seldon-model)%`: an absent or empty header gives `c:` (not `c:-`), of several
//! `seldon-model` headers the first value counts, nothing is truncated, and a `%` in the value is not expanded again.
//! The name is therefore read from `x-seldon-scope`, where there is one value only and which agrees with the
//! scope that Envoy selected. Of several headers of one name Envoy hands the filter the first value: so it is with the
//! cohort's header. Only `x-seldon-route` is worth reading all headers for, where its first value names nobody.
//!
//! # Experiments
//! `x-seldon-route` that names a version of a live candidate wins ([`Rule::Sticky`]), else the cohort's header
//! ([`Rule::Cohort`]), else a draw by weight ([`Rule::Split`]). The last two choose among candidates with a weight, then
//! among the candidate's versions. Without any weight the request goes where the scope of its name leads.
//!
//! # Names
//! A derived name is UTF-8 without control characters, slashes or spaces around it. Whatever a client names stands after
//! `c:` in its scope's key, so keys such as `i:iris_1` can be reached through an experiment's configuration only.
#![deny(missing_docs)]
// What panics here takes the whole worker's filter down, so nothing that can panic compiles outside tests.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod answer;
mod chance;
mod cohort;
mod config;
mod explain;
mod grpc;
mod json;
mod name;
mod random;
mod read;
mod router;

pub use answer::{Answer, is_failure};
pub use config::{
    Candidate, Config, ConfigError, Copy, EXPERIMENT_SUFFIX, Experiment, Mirror, Version,
};
pub use explain::{Chance, Explanation, explain};
pub use grpc::{Hold, MAX_HOLD, MAX_LOOKS, MAX_PEEK, Peek, model_name_in_message};
pub use name::{MAX_NAME, MAX_PATH, model_name_in_path};
pub use random::Random;
pub use router::{
    Choice, Decision, Headers, MAX_STICKY, NamedBy, Router, Rule, Steering, Write, is_grpc,
    is_stream,
};

/// Header names that the filter reads and writes.
pub mod header {
    /// The model, pipeline or experiment that the client asks for.
    pub const MODEL: &str = "seldon-model";
    /// The key by which Envoy selects the scope; never what a client sent.
    pub const SCOPE: &str = "x-seldon-scope";
    /// Routes that answered before, `:name_version:` each; a client sends them back to stay with a candidate.
    pub const ROUTE: &str = "x-seldon-route";
    /// The cluster that gets a copy of the request.
    pub const MIRROR_CLUSTER: &str = "x-seldon-mirror-cluster";
    /// What the copy carries as `seldon-internal-model`.
    pub const MIRROR_MODEL: &str = "x-seldon-mirror-model";
}

/// Start of a scope key that holds what the client named, by header, path or message.
pub const CLIENT_SCOPE: &str = "c:";
/// Start of a scope key that only the filter writes: a candidate's own.
pub const INTERNAL_SCOPE: &str = "i:";
