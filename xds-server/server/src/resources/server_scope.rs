//! The scope of requests that name no model: is the server alive, ready, and what is it.
use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, ScopedRouteConfiguration, VirtualHost,
    route,
    route_action::ClusterSpecifier,
    route_match::PathSpecifier,
    scoped_route_configuration::{Key, key},
};
use prost::Message;

use super::{
    listener::{SERVER_PATHS, SERVER_RPCS},
    names::client_scope,
    scope::retry_policy,
    wire::{seconds, truth},
};

/// Routes server-level requests, and no others, to a server that serves some model. The filter stays on: it is what
/// finds the model of every other request without the header.
pub(super) fn encode(http_cluster: &str, grpc_cluster: &str) -> Bytes {
    let rest = SERVER_PATHS
        .iter()
        .map(|path| route_to(PathSpecifier::Path((*path).into()), http_cluster));
    let rpcs = PathSpecifier::Prefix(SERVER_RPCS.into());
    let routes = rest.chain([route_to(rpcs, grpc_cluster)]).collect();
    let host = VirtualHost {
        name: "v".into(),
        domains: vec!["*".into()],
        routes,
        retry_policy: Some(retry_policy()),
        ..Default::default()
    };
    let scope = client_scope("");
    ScopedRouteConfiguration {
        name: scope.clone(),
        key: Some(Key {
            fragments: vec![key::Fragment {
                r#type: Some(key::fragment::Type::StringKey(scope)),
            }],
        }),
        route_configuration: Some(RouteConfiguration {
            virtual_hosts: vec![host],
            validate_clusters: truth(false),
            ..Default::default()
        }),
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

fn route_to(path: PathSpecifier, cluster: &str) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(path),
            ..Default::default()
        }),
        action: Some(route::Action::Route(RouteAction {
            timeout: seconds(0),
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
            ..Default::default()
        })),
        ..Default::default()
    }
}
