//! Scopes: what happens to the requests of one name.
//!
//! There is one of each model and there are tens of thousands of models, so every byte counts: one route, one retry
//! policy, and headers where they are said once.
use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::common::mutation_rules::v3::{HeaderMutation, header_mutation::Action},
    config::core::v3::{DataSource, data_source::Specifier},
    config::route::v3::{
        DirectResponseAction, FilterConfig, HeaderMatcher, RetryPolicy, Route as EnvoyRoute,
        RouteAction, RouteConfiguration, RouteMatch, ScopedRouteConfiguration, VirtualHost,
        WeightedCluster,
        retry_policy::{RetryHostPredicate, retry_host_predicate},
        route,
        route_action::{ClusterSpecifier, HashPolicy, RequestMirrorPolicy, hash_policy},
        route_match::{GrpcRouteMatchOptions, PathSpecifier},
        scoped_route_configuration::{Key, key},
        weighted_cluster::ClusterWeight,
    },
    extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
};
use prost::Message;

use seldon_routing::header::{MIRROR_CLUSTER, MIRROR_MODEL};

use super::{
    names::{ABSENT_HEADER, FILTER, INTERNAL_MODEL_HEADER, ROUTE_HEADER, SCOPE_HEADER},
    wire::{any, append, number, overwrite, seconds, truth},
};

/// Attempts beyond the first; the cluster's retry budget bounds them all together.
const RETRIES: u32 = 3;
/// How often another host is drawn when a retry would meet the one that just failed. A dead host is idle, so least
/// request draws it three times out of four where there are two: with 5 draws one of 1,456 requests was lost.
const HOST_DRAWS: i64 = 40;

const UNAVAILABLE: u32 = 503;

/// One version's part in a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// `<name>_<version>`.
    pub(super) internal_model: String,
    pub(super) http_cluster: String,
    /// Equal to `http_cluster` where one port serves both protocols.
    pub(super) grpc_cluster: String,
    /// Whether its cluster chooses replicas by what they have in memory.
    pub(super) by_model: bool,
    pub(super) weight: u32,
}

/// What a scope says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) key: String,
    pub(super) shares: Vec<Share>,
    /// Whether the filter stays out of it.
    pub(super) filter_off: bool,
    /// Whether a request may run twice after its replica was lost.
    pub(super) retry: bool,
    /// Whether a copy goes to where the filter says, if it does.
    pub(super) mirror: bool,
}

impl Scope {
    pub(super) fn encode(&self) -> Bytes {
        scoped(&self.key, self.configuration())
    }

    fn configuration(&self) -> RouteConfiguration {
        let mut configuration = RouteConfiguration {
            virtual_hosts: vec![self.host()],
            validate_clusters: truth(false),
            ..Default::default()
        };
        if let [share] = self.shares.as_slice() {
            configuration.request_headers_to_add = vec![share.request_header()];
            configuration.response_headers_to_add = vec![share.response_header()];
        }
        if self.filter_off {
            let off = FilterConfig {
                disabled: true,
                ..Default::default()
            };
            configuration.typed_per_filter_config = HashMap::from([(FILTER.into(), any(&off))]);
        }
        if self.mirror {
            configuration.request_mirror_policies = vec![mirror_policy()];
        }
        configuration
    }

    /// Which paths are served at all is the listener's matter, so a prefix of everything is enough here.
    fn host(&self) -> VirtualHost {
        let two_ports = self.shares.iter().any(|s| s.http_cluster != s.grpc_cluster);
        let mut routes = Vec::with_capacity(2);
        if two_ports {
            routes.push(self.route(Some(GrpcRouteMatchOptions {}), |s| &s.grpc_cluster));
        }
        routes.push(self.route(None, |s| &s.http_cluster));
        VirtualHost {
            name: "v".into(),
            domains: vec!["*".into()],
            routes,
            retry_policy: self.retry.then(retry_policy),
            ..Default::default()
        }
    }

    fn route(
        &self,
        grpc: Option<GrpcRouteMatchOptions>,
        cluster: impl Fn(&Share) -> &String,
    ) -> EnvoyRoute {
        let target = match self.shares.as_slice() {
            [share] => ClusterSpecifier::Cluster(cluster(share).clone()),
            shares => ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: shares.iter().map(|s| s.weighted(cluster(s))).collect(),
                ..Default::default()
            }),
        };
        EnvoyRoute {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".into())),
                grpc,
                ..Default::default()
            }),
            action: Some(route::Action::Route(RouteAction {
                timeout: seconds(0), // a model may take as long as it needs; the client's patience ends a request
                cluster_specifier: Some(target),
                hash_policy: match self.shares.iter().any(|share| share.by_model) {
                    true => vec![by_scope()],
                    false => Vec::new(),
                },
                ..Default::default()
            })),
            ..Default::default()
        }
    }
}

impl Share {
    fn request_header(&self) -> envoy_types::pb::envoy::config::core::v3::HeaderValueOption {
        overwrite(INTERNAL_MODEL_HEADER, &self.internal_model)
    }

    /// Appended: an answer that passed several models carries the routes of all of them.
    fn response_header(&self) -> envoy_types::pb::envoy::config::core::v3::HeaderValueOption {
        append(ROUTE_HEADER, &format!(":{}:", self.internal_model))
    }

    fn weighted(&self, cluster: &str) -> ClusterWeight {
        ClusterWeight {
            name: cluster.into(),
            weight: number(self.weight),
            request_headers_to_add: vec![self.request_header()],
            response_headers_to_add: vec![self.response_header()],
            ..Default::default()
        }
    }
}

/// The scope's key stands for the model: it is there before a replica is chosen, and clients cannot choose it.
fn by_scope() -> HashPolicy {
    HashPolicy {
        policy_specifier: Some(hash_policy::PolicySpecifier::Header(hash_policy::Header {
            header_name: SCOPE_HEADER.into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// The scope of a name whose requests the filter shares out, for those that get through it: no candidate can answer.
pub(super) fn unavailable(key: &str, experiment: &str) -> Bytes {
    let text = format!("experiment {experiment}: no candidate can answer now");
    let answer = DirectResponseAction {
        status: UNAVAILABLE,
        body: Some(DataSource {
            specifier: Some(Specifier::InlineString(text)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let route = EnvoyRoute {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::Action::DirectResponse(answer)),
        ..Default::default()
    };
    let configuration = RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            name: "v".into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    };
    scoped(key, configuration)
}

fn scoped(key: &str, configuration: RouteConfiguration) -> Bytes {
    ScopedRouteConfiguration {
        name: key.into(),
        key: Some(Key {
            fragments: vec![key::Fragment {
                r#type: Some(key::fragment::Type::StringKey(key.into())),
            }],
        }),
        route_configuration: Some(configuration),
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

/// The copy is changed after it was taken, so that it reaches the mirror's own model. The request itself keeps the
/// helper headers until its agent drops them: Envoy reads them only after a route may have removed them.
fn mirror_policy() -> RequestMirrorPolicy {
    let model = overwrite(INTERNAL_MODEL_HEADER, &format!("%REQ({MIRROR_MODEL})%"));
    let remove = |name: &str| Action::Remove(name.into());
    let actions = [
        Action::Append(model),
        remove(MIRROR_CLUSTER),
        remove(MIRROR_MODEL),
    ];
    let mutation = |action| HeaderMutation {
        action: Some(action),
    };
    RequestMirrorPolicy {
        cluster_header: MIRROR_CLUSTER.into(),
        disable_shadow_host_suffix_append: true,
        request_headers_mutations: actions.map(mutation).into(),
        ..Default::default()
    }
}

/// An inference may run again as long as no answer has begun, on another replica; never because of a status. One that an
/// agent had no model for has not run: its replica has lost the model, and the route is about to say so.
pub(super) fn retry_policy() -> RetryPolicy {
    RetryPolicy {
        retry_on: "connect-failure,refused-stream,reset,retriable-headers".into(),
        retriable_headers: vec![HeaderMatcher {
            name: ABSENT_HEADER.into(), // its presence is enough
            ..Default::default()
        }],
        num_retries: number(RETRIES),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "p".into(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
                &PreviousHostsPredicate {},
            ))),
        }],
        host_selection_retry_max_attempts: HOST_DRAWS,
        ..Default::default()
    }
}
