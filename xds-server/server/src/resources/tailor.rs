//! What differs from one Envoy to the next: the port it listens on and where its filter module lies.
use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::{
        core::v3::{TypedExtensionConfig, data_source::Specifier},
        listener::v3::{Listener, filter::ConfigType},
    },
    extensions::{
        filters::{
            http::wasm::v3::Wasm, network::http_connection_manager::v3::HttpConnectionManager,
        },
        wasm::v3::plugin_config::Vm,
    },
};
use prost::Message;
use seldon_ads::{Node, Tailor};

use super::{
    filter,
    listener::{HCM, on_port},
    names::{FILTER, LISTENER, types},
    wire::any,
};

/// Reads `{"seldon": {"data_port": …, "filter_module": …}}` of a node's metadata. An empty module means none.
#[derive(Clone, Debug)]
pub struct ByMetadata {
    /// Whether an Envoy that names no module of its own has one.
    pub default_module: bool,
}

impl Tailor for ByMetadata {
    fn tailor(&self, node: &Node, type_url: &str, name: &str, body: &Bytes) -> Option<Bytes> {
        let ours = &node.metadata["seldon"];
        let named = ours["filter_module"].as_str();
        let module = named.filter(|path| !path.is_empty());
        match (type_url, name) {
            (types::LISTENER, LISTENER) => {
                let port = ours["data_port"]
                    .as_f64() // protobuf's Struct knows no integers
                    .filter(|port| (1.0..=65535.0).contains(port))
                    .map(|port| port as u16);
                let without_filter = module.is_none() && (named.is_some() || !self.default_module);
                listener(body, port, without_filter)
            }
            (types::EXTENSION, FILTER) => extension(body, module?),
            _ => None,
        }
    }
}

fn listener(body: &Bytes, port: Option<u16>, without_filter: bool) -> Option<Bytes> {
    if port.is_none() && !without_filter {
        return None;
    }
    let mut listener = Listener::decode(body.clone()).ok()?;
    if let Some(port) = port {
        listener.address = Some(on_port(port));
    }
    if without_filter {
        drop_filter(&mut listener)?;
    }
    Some(listener.encode_to_vec().into())
}

fn drop_filter(listener: &mut Listener) -> Option<()> {
    let filters = listener
        .filter_chains
        .iter_mut()
        .flat_map(|c| &mut c.filters);
    for network_filter in filters.filter(|f| f.name == HCM) {
        let Some(ConfigType::TypedConfig(config)) = &mut network_filter.config_type else {
            continue;
        };
        let mut connections = HttpConnectionManager::decode(config.value.as_slice()).ok()?;
        connections.http_filters.retain(|f| f.name != FILTER);
        *config = any(&connections);
    }
    Some(())
}

fn extension(body: &Bytes, module: &str) -> Option<Bytes> {
    let extension = TypedExtensionConfig::decode(body.clone()).ok()?;
    let mut wasm = Wasm::decode(extension.typed_config?.value.as_slice()).ok()?;
    let Vm::VmConfig(vm) = wasm.config.as_mut()?.vm.as_mut()?;
    let code = vm.code.as_mut()?.specifier.as_mut()?;
    let envoy_types::pb::envoy::config::core::v3::async_data_source::Specifier::Local(file) = code
    else {
        return None;
    };
    file.specifier = Some(Specifier::Filename(module.into()));
    Some(filter::extension(&wasm))
}
