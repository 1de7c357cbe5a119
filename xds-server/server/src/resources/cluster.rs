//! Clusters, one per replica set and protocol port, and their endpoints.
use std::{collections::HashMap, net::IpAddr};

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster, OutlierDetection,
            circuit_breakers::{Thresholds, thresholds::RetryBudget},
            cluster::{
                ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily,
                EdsClusterConfig, LbPolicy, common_lb_config::ConsistentHashingLbConfig,
            },
        },
        core::v3::{
            Address, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, KeepaliveSettings,
            RoutingPriority, SocketAddress, address, socket_address::PortSpecifier,
        },
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
        },
    },
    r#type::v3::Percent,
};
use prost::{Message, Name};
use seldon_core::Endpoint;

use super::{
    tls::Tls,
    wire::{any, from_ads, number, seconds},
};

/// What a cluster speaks upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/2 for REST and gRPC alike, on one port: our own agents. Over HTTP/1.1 a stopped agent would hold its requests
    /// for as long as it is stopped: there are no pings.
    Both,
    Http1,
    Grpc,
}

/// How a cluster chooses among its replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Balance {
    LeastRequest,
    /// Each model keeps to the replicas that have it in memory, unless they are busy.
    ByModel,
}

impl Balance {
    pub(super) fn of(endpoints: &[Endpoint]) -> Self {
        match endpoints.len() > 1 && endpoints.iter().any(|endpoint| endpoint.over_committed) {
            true => Self::ByModel,
            false => Self::LeastRequest,
        }
    }
}

/// A replica with more than this share of the mean number of requests in flight, in percent, passes new ones on to the
/// next on the ring: a busy model is loaded on a second replica, an idle one on one only.
const BUSY_PERCENT: u32 = 150;
/// No limit that a model could meet: fairness between models is the agent's matter.
const UNLIMITED: u32 = 1_000_000;
/// More than one replica has under way, and yet a bound.
const RETRIES_AT_ONCE: u32 = 10_000;
const CONNECT_SECONDS: i64 = 2;
const IDLE_SECONDS: i64 = 60;
/// Our agents answer pings; this finds one that is stopped, or behind a cut network, while a request waits for it.
const PING_SECONDS: i64 = 5;

/// What an Envoy needs to know of a cluster: the cluster, and its endpoints where they come by themselves.
pub(super) struct Encoded {
    pub(super) cluster: Bytes,
    pub(super) endpoints: Option<Bytes>,
}

/// Addresses come by EDS. Host names cannot, so one of them makes the cluster resolve all of them itself.
pub(super) fn encode(
    name: &str,
    protocol: Protocol,
    endpoints: &[Endpoint],
    tls: Option<&Tls>,
) -> Encoded {
    let by_name = endpoints.iter().any(|e| address_of(&e.host).is_none());
    let assignment = assignment(name, protocol, endpoints);
    let balance = Balance::of(endpoints);
    let mut cluster = Cluster {
        name: name.into(),
        connect_timeout: seconds(CONNECT_SECONDS),
        lb_policy: match balance {
            Balance::LeastRequest => LbPolicy::LeastRequest.into(),
            Balance::ByModel => LbPolicy::RingHash.into(),
        },
        common_lb_config: (balance == Balance::ByModel).then(|| CommonLbConfig {
            consistent_hashing_lb_config: Some(ConsistentHashingLbConfig {
                hash_balance_factor: number(BUSY_PERCENT),
                ..Default::default()
            }),
            ..Default::default()
        }),
        circuit_breakers: Some(limits()),
        outlier_detection: Some(ejection()),
        typed_extension_protocol_options: HashMap::from([(
            HttpProtocolOptions::full_name(),
            any(&protocol.options()),
        )]),
        transport_socket: tls.map(|tls| tls.upstream(protocol.alpn())),
        ..Default::default()
    };
    if by_name {
        resolve_names(&mut cluster, assignment);
        return Encoded {
            cluster: cluster.encode_to_vec().into(),
            endpoints: None,
        };
    }
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
    cluster.eds_cluster_config = Some(EdsClusterConfig {
        eds_config: from_ads(),
        ..Default::default()
    });
    Encoded {
        cluster: cluster.encode_to_vec().into(),
        endpoints: Some(assignment.encode_to_vec().into()),
    }
}

fn resolve_names(cluster: &mut Cluster, assignment: ClusterLoadAssignment) {
    cluster.cluster_discovery_type =
        Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into()));
    cluster.dns_lookup_family = DnsLookupFamily::All.into();
    cluster.load_assignment = Some(assignment);
}

impl Protocol {
    /// None for our own agents, which know HTTP/2 by its first bytes; other servers may insist on it.
    fn alpn(self) -> &'static [&'static str] {
        match self {
            Self::Both => &[],
            Self::Http1 => &["http/1.1"],
            Self::Grpc => &["h2"],
        }
    }

    fn options(self) -> HttpProtocolOptions {
        let upstream = match self {
            Self::Both => explicit(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions {
                connection_keepalive: Some(KeepaliveSettings {
                    interval: seconds(PING_SECONDS),
                    timeout: seconds(PING_SECONDS),
                    ..Default::default()
                }),
                ..Default::default()
            })),
            Self::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(Default::default())),
            // No pings: other agents' servers take them for abuse.
            Self::Grpc => explicit(ProtocolConfig::Http2ProtocolOptions(Default::default())),
        };
        HttpProtocolOptions {
            common_http_protocol_options: Some(CommonOptions {
                idle_timeout: seconds(IDLE_SECONDS),
                ..Default::default()
            }),
            upstream_protocol_options: Some(upstream),
            ..Default::default()
        }
    }
}

fn explicit(protocol: ProtocolConfig) -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(protocol),
    })
}

fn limits() -> CircuitBreakers {
    let thresholds = |priority: RoutingPriority| Thresholds {
        priority: priority.into(),
        max_connections: number(UNLIMITED),
        max_pending_requests: number(UNLIMITED),
        max_requests: number(UNLIMITED),
        // One of two replicas that dies takes half of the requests with it, and all of those are to be asked again. While
        // they wait for that they are not counted as under way, so a share of what is under way would be too few.
        retry_budget: Some(RetryBudget {
            budget_percent: Some(Percent { value: 100.0 }),
            min_retry_concurrency: number(RETRIES_AT_ONCE),
            ..Default::default()
        }),
        ..Default::default()
    };
    CircuitBreakers {
        thresholds: vec![thresholds(RoutingPriority::Default)],
        ..Default::default()
    }
}

/// Only what Envoy itself sees counts (no connection, reset, time-out): a model's own errors would eject its neighbours.
fn ejection() -> OutlierDetection {
    OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: number(5),
        enforcing_consecutive_local_origin_failure: number(100),
        enforcing_local_origin_success_rate: number(0),
        enforcing_consecutive_5xx: number(0),
        enforcing_consecutive_gateway_failure: number(0),
        enforcing_success_rate: number(0),
        enforcing_failure_percentage: number(0),
        enforcing_failure_percentage_local_origin: number(0),
        interval: seconds(1),
        base_ejection_time: seconds(2),
        max_ejection_time: seconds(10),
        max_ejection_percent: number(50),
        ..Default::default()
    }
}

fn assignment(cluster: &str, protocol: Protocol, endpoints: &[Endpoint]) -> ClusterLoadAssignment {
    let lb_endpoints = endpoints
        .iter()
        .map(|endpoint| {
            let port = match protocol {
                Protocol::Both | Protocol::Http1 => endpoint.http_port,
                Protocol::Grpc => endpoint.grpc_port,
            };
            lb_endpoint(&endpoint.host, port)
        })
        .collect();
    ClusterLoadAssignment {
        cluster_name: cluster.into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn lb_endpoint(host: &str, port: u16) -> LbEndpoint {
    let host = address_of(host).map_or_else(|| host.to_owned(), |ip| ip.to_string());
    let socket = SocketAddress {
        address: host,
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(EnvoyEndpoint {
            address: Some(Address {
                address: Some(address::Address::SocketAddress(socket)),
            }),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// `[::1]` is accepted for `::1`.
fn address_of(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}
