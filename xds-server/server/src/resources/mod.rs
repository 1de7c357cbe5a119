//! From the world of the rules to Envoy's configuration. Pure: no clock, no I/O.
mod access_log;
mod cluster;
mod filter;
mod listener;
mod local_reply;
pub mod names;
mod scope;
mod server_scope;
mod tailor;
pub mod tls;
mod wire;
mod world;

use seldon_ads::Change;

pub use access_log::AccessLog;
pub use listener::ListenerOptions;
pub use tailor::ByMetadata;
pub use tls::Tls;
pub use world::{View, World, collect, snapshot};

/// What does not depend on models: the listener and the filter.
pub fn fixed(
    listener: &ListenerOptions,
    module: Option<&str>,
    experiments: &seldon_routing::Config,
) -> Vec<Change> {
    let put = |type_url, name: &str, body| Change::Put {
        type_url,
        name: name.into(),
        body,
    };
    vec![
        put(
            names::types::LISTENER,
            names::LISTENER,
            listener::encode(listener),
        ),
        put(
            names::types::EXTENSION,
            names::FILTER,
            filter::encode(module.unwrap_or_default(), experiments),
        ),
    ]
}

#[cfg(test)]
mod tests;
