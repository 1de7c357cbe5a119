//! From the world of the rules to Envoy's configuration. Pure: no clock, no I/O.
mod access_log;
mod cluster;
mod deadline;
pub mod experiment;
mod filter;
mod listener;
mod local_reply;
pub mod names;
mod scope;
mod server_scope;
mod tailor;
mod tls;
mod wire;
mod world;

use seldon_ads::Change;

pub use access_log::AccessLog;
pub use listener::ListenerOptions;
pub use tailor::ByMetadata;
pub use tls::{Identity, Tls};
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
        listening(listener),
        put(
            names::types::EXTENSION,
            names::FILTER,
            filter::encode(module.unwrap_or_default(), experiments),
        ),
    ]
}

/// The listener alone.
pub fn listening(listener: &ListenerOptions) -> Change {
    Change::Put {
        type_url: names::types::LISTENER,
        name: names::LISTENER.into(),
        body: listener::encode(listener),
    }
}

#[cfg(test)]
mod tests;
