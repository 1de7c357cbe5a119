//! The wasm filter: a module from a local file, configured with experiments only.
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            AsyncDataSource, BackoffStrategy, DataSource, TypedExtensionConfig, async_data_source,
            data_source,
        },
        extensions::{
            filters::http::wasm::v3::Wasm,
            wasm::v3::{FailurePolicy, PluginConfig, ReloadConfig, VmConfig, plugin_config::Vm},
        },
    },
    google::protobuf::{Duration, StringValue},
};
use prost::Message;

use super::{
    names::FILTER,
    wire::{any, seconds, truth},
};

/// `module` is a path on Envoy's machine.
pub(super) fn encode(module: &str, config: &seldon_routing::Config) -> Bytes {
    let file = DataSource {
        specifier: Some(data_source::Specifier::Filename(module.into())),
        ..Default::default()
    };
    let vm = VmConfig {
        runtime: "envoy.wasm.runtime.v8".into(),
        code: Some(AsyncDataSource {
            specifier: Some(async_data_source::Specifier::Local(file)),
        }),
        ..Default::default()
    };
    let plugin = PluginConfig {
        name: FILTER.into(),
        configuration: Some(any(&StringValue {
            value: config.to_json(),
        })),
        // A panic of the module costs one request; with the default, every later one got 503.
        failure_policy: FailurePolicy::FailReload.into(),
        // A VM that failed earlier than this after its last start is down until then: 0.6 s with Envoy's default of 1 s.
        // One that fails later is back for the next request.
        reload_config: Some(ReloadConfig {
            backoff: Some(BackoffStrategy {
                base_interval: Some(Duration {
                    seconds: 0,
                    nanos: 100_000_000,
                }),
                max_interval: seconds(1),
            }),
        }),
        allow_on_headers_stop_iteration: truth(true),
        vm: Some(Vm::VmConfig(vm)),
        ..Default::default()
    };
    extension(&Wasm {
        config: Some(plugin),
    })
}

pub(super) fn extension(wasm: &Wasm) -> Bytes {
    TypedExtensionConfig {
        name: FILTER.into(),
        typed_config: Some(any(wasm)),
    }
    .encode_to_vec()
    .into()
}
