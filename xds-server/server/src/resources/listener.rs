//! The listener of inference requests.
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::{
        common::mutation_rules::v3::{HeaderMutation, header_mutation::Action},
        core::v3::{
            Address, ExtensionConfigSource, HttpProtocolOptions, SocketAddress,
            TypedExtensionConfig, address, socket_address::PortSpecifier,
        },
        listener::v3::{Filter, FilterChain, Listener, filter},
        rbac::v3::{Permission, Policy, Principal, Rbac, permission, principal},
    },
    extensions::{
        filters::{
            http::{rbac::v3::Rbac as RbacFilter, router::v3::Router, wasm::v3::Wasm},
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, ScopedRds, ScopedRoutes,
                http_connection_manager::{PathWithEscapedSlashesAction, RouteSpecifier},
                http_filter,
                scoped_routes::{
                    ConfigSpecifier, ScopeKeyBuilder,
                    scope_key_builder::{
                        FragmentBuilder,
                        fragment_builder::{self, HeaderValueExtractor, header_value_extractor},
                    },
                },
            },
        },
        http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyMutation,
    },
    r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern},
};
use prost::{Message, Name};

use super::{
    access_log::{self, AccessLog},
    deadline, local_reply,
    names::{FILTER, INTERNAL_MODEL_HEADER, LISTENER, MODEL_HEADER, SCOPE_HEADER},
    tls::Tls,
    wire::{any, from_ads, number, overwrite, seconds, truth},
};

/// Requests that ask about the server, not about a model.
pub(super) const SERVER_PATHS: [&str; 4] = ["/v2", "/v2/", "/v2/health/live", "/v2/health/ready"];
/// The same over gRPC: ServerLive, ServerReady, ServerMetadata.
pub(super) const SERVER_RPCS: &str = "/inference.GRPCInferenceService/Server";
/// All else that is served. Repository, shared memory, trace and log control are not among it.
const MODEL_PREFIXES: [&str; 3] = [
    "/v2/models/",
    "/v2/pipelines/",
    "/inference.GRPCInferenceService/Model",
];

/// What clients must not say: it would steer their request, or retry it against our rules.
const FORGEABLE: [&str; 11] = [
    INTERNAL_MODEL_HEADER,
    "x-seldon-mirror-cluster",
    "x-seldon-mirror-model",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-upstream-alt-stat-name",
    deadline::KEPT,
];

const HEADERS_KIB: u32 = 64;
const HEADERS_SECONDS: i64 = 60;
/// A stream without a byte either way for so long is given up, and so is an unused connection. Longer than any single
/// inference we know of.
const IDLE_SECONDS: i64 = 3600;
/// Bytes of a request that Envoy holds: for a retry, or until the model is found.
const HELD_BYTES: u32 = 1024 * 1024;

/// What the listener is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerOptions {
    pub port: u16,
    pub access_log: Option<AccessLog>,
    pub tls: Option<Arc<Tls>>,
}

/// Contains the filter; the tailor takes it out for an Envoy that has no module.
pub(super) fn encode(options: &ListenerOptions) -> Bytes {
    listener(options).encode_to_vec().into()
}

fn listener(options: &ListenerOptions) -> Listener {
    let chain = FilterChain {
        filters: vec![Filter {
            name: HCM.into(),
            config_type: Some(filter::ConfigType::TypedConfig(any(&connections(options)))),
        }],
        transport_socket: options.tls.as_deref().map(Tls::downstream),
        ..Default::default()
    };
    Listener {
        name: LISTENER.into(),
        address: Some(on_port(options.port)),
        filter_chains: vec![chain],
        per_connection_buffer_limit_bytes: number(HELD_BYTES),
        ..Default::default()
    }
}

pub(super) const HCM: &str = "envoy.filters.network.http_connection_manager";

/// Every IPv4 address, as documented.
pub(super) fn on_port(port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "0.0.0.0".into(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

fn connections(options: &ListenerOptions) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: LISTENER.into(),
        generate_request_id: truth(false),
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: seconds(IDLE_SECONDS),
            ..Default::default()
        }),
        stream_idle_timeout: seconds(IDLE_SECONDS),
        request_headers_timeout: seconds(HEADERS_SECONDS),
        max_request_headers_kb: number(HEADERS_KIB),
        normalize_path: truth(true),
        merge_slashes: true,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::RejectRequest.into(),
        early_header_mutation_extensions: vec![early_mutation()],
        local_reply_config: Some(local_reply::config()),
        access_log: options.access_log.iter().map(access_log::encode).collect(),
        http_filters: vec![
            served_paths(),
            model_filter(),
            typed(deadline::FILTER, &deadline::put_back()),
            router(),
        ],
        route_specifier: Some(RouteSpecifier::ScopedRoutes(scoped_routes())),
        ..Default::default()
    }
}

/// Runs before any scope is selected: whatever a client sends, its requests get a key that begins with `c:`.
fn early_mutation() -> TypedExtensionConfig {
    let remove = |name: &&str| Action::Remove((*name).into());
    let key = overwrite(SCOPE_HEADER, &format!("c:%REQ({MODEL_HEADER})%"));
    let forgeable = FORGEABLE.iter().map(remove);
    let actions = forgeable.chain([Action::Append(key), deadline::keep()]);
    let mutations = actions
        .map(|action| HeaderMutation {
            action: Some(action),
        })
        .collect();
    TypedExtensionConfig {
        name: "forgeable".into(),
        typed_config: Some(any(&EarlyMutation { mutations })),
    }
}

fn scoped_routes() -> ScopedRoutes {
    let whole_value = HeaderValueExtractor {
        name: SCOPE_HEADER.into(),
        element_separator: String::new(),
        extract_type: Some(header_value_extractor::ExtractType::Index(0)),
    };
    ScopedRoutes {
        name: "models".into(),
        scope_key_builder: Some(ScopeKeyBuilder {
            fragments: vec![FragmentBuilder {
                r#type: Some(fragment_builder::Type::HeaderValueExtractor(whole_value)),
            }],
        }),
        rds_config_source: from_ads(),
        config_specifier: Some(ConfigSpecifier::ScopedRds(ScopedRds {
            scoped_rds_config_source: from_ads(),
            ..Default::default()
        })),
    }
}

/// One list of what is served, for all scopes; what is not on it never meets a route.
fn served_paths() -> HttpFilter {
    let exact = SERVER_PATHS.map(|path| MatchPattern::Exact(path.into()));
    let prefixes = [SERVER_RPCS].into_iter().chain(MODEL_PREFIXES);
    let patterns = exact
        .into_iter()
        .chain(prefixes.map(|prefix| MatchPattern::Prefix(prefix.into())));
    let served = Policy {
        permissions: patterns.map(path_permission).collect(),
        principals: vec![Principal {
            identifier: Some(principal::Identifier::Any(true)),
        }],
        ..Default::default()
    };
    let rules = Rbac {
        policies: [("served".to_owned(), served)].into(),
        ..Default::default() // the default action is to allow what matches and nothing else
    };
    typed(
        "envoy.filters.http.rbac",
        &RbacFilter {
            rules: Some(rules),
            ..Default::default()
        },
    )
}

fn path_permission(pattern: MatchPattern) -> Permission {
    let path = StringMatcher {
        match_pattern: Some(pattern),
        ..Default::default()
    };
    Permission {
        rule: Some(permission::Rule::UrlPath(PathMatcher {
            rule: Some(path_matcher::Rule::Path(path)),
        })),
    }
}

fn model_filter() -> HttpFilter {
    HttpFilter {
        name: FILTER.into(),
        config_type: Some(http_filter::ConfigType::ConfigDiscovery(
            ExtensionConfigSource {
                config_source: from_ads(),
                type_urls: vec![Wasm::type_url()],
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

fn router() -> HttpFilter {
    typed("envoy.filters.http.router", &Router::default())
}

fn typed<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}
