//! How long a caller waits, where it says so: Envoy ends the request then, retries included, and tells whoever answers.
//!
//! Envoy takes such a header from nobody outside: it is kept under another name before Envoy removes it, and put back in
//! front of the router. Routes have no limit of their own, so that it can only make the time shorter.
use envoy_types::pb::envoy::{
    config::common::mutation_rules::v3::{HeaderMutation, header_mutation::Action},
    extensions::filters::http::header_mutation::v3::{HeaderMutation as Mutating, Mutations},
};

use super::wire::overwrite;

/// What a client may send, in milliseconds.
const TIMEOUT: &str = "x-envoy-upstream-rq-timeout-ms";
/// The same, as Envoy tells it to who answers.
const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";
/// Between listener and router; what a client sends under this name is dropped.
pub(super) const KEPT: &str = "x-seldon-timeout-ms";

/// Part of the early mutations, after [`KEPT`] was removed.
pub(super) fn keep() -> Action {
    Action::Append(overwrite(KEPT, &format!("%REQ({TIMEOUT}?{EXPECTED})%")))
}

/// The filter's name.
pub(super) const FILTER: &str = "envoy.filters.http.header_mutation";

/// In front of the router.
pub(super) fn put_back() -> Mutating {
    let put = Action::Append(overwrite(TIMEOUT, &format!("%REQ({KEPT})%")));
    let mutations = [put, Action::Remove(KEPT.into())].map(|action| HeaderMutation {
        action: Some(action),
    });
    Mutating {
        mutations: Some(Mutations {
            request_mutations: mutations.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}
