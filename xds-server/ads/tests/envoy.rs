//! A real Envoy follows the engine, in both variants: warming, updates, refusals, removal.
//!
//! `SELDON_ENVOY=/path/to/envoy cargo test -p seldon-ads --test envoy -- --ignored --nocapture`
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
#[allow(dead_code, reason = "the fake Envoy is not needed here")]
mod fake;

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Address, ConfigSource, SocketAddress, address,
                config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                lb_endpoint::HostIdentifier,
            },
            listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, ScopedRouteConfiguration,
                VirtualHost, route, route_action,
                route_match::PathSpecifier,
                scoped_route_configuration::{
                    Key,
                    key::{Fragment, fragment},
                },
            },
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, ScopedRds, ScopedRoutes,
                http_connection_manager::RouteSpecifier,
                http_filter,
                scoped_routes::{
                    ConfigSpecifier, ScopeKeyBuilder,
                    scope_key_builder::{
                        FragmentBuilder,
                        fragment_builder::{
                            HeaderValueExtractor, Type, header_value_extractor::ExtractType,
                        },
                    },
                },
            },
        },
    },
    google::protobuf::{Any, BoolValue, UInt32Value},
};
use fake::{CDS, EDS, LDS, SRDS, Server, remove, server, settings};
use prost::{Message, Name};
use seldon_ads::{Change, Engine, Generation, Progress};

fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

fn put_message(type_url: &'static str, name: &str, message: &impl Message) -> Change {
    Change::Put {
        type_url,
        name: Arc::from(name),
        body: message.encode_to_vec().into(),
    }
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: 2,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(Default::default())),
        // A listener must wait for its scopes.
        initial_fetch_timeout: Some(Default::default()),
        ..Default::default()
    })
}

fn address(port: u16) -> Option<Address> {
    let socket = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    Some(Address {
        address: Some(address::Address::SocketAddress(socket)),
    })
}

/// `limit` makes two versions of one cluster.
fn cluster(name: &str, limit: u32) -> Change {
    let eds = EdsClusterConfig {
        eds_config: ads(),
        service_name: format!("{name}-endpoints"),
    };
    let message = Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(eds),
        per_connection_buffer_limit_bytes: Some(UInt32Value { value: limit }),
        ..Default::default()
    };
    put_message(CDS, name, &message)
}

fn endpoints(cluster: &str) -> Change {
    let endpoint = Endpoint {
        address: address(1),
        ..Default::default()
    };
    let lb = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    };
    let name = format!("{cluster}-endpoints");
    let message = ClusterLoadAssignment {
        cluster_name: name.clone(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![lb],
            ..Default::default()
        }],
        ..Default::default()
    };
    put_message(EDS, &name, &message)
}

/// A scope; `domains` of none is what Envoy refuses.
fn scope(name: &str, cluster: &str, domains: &[&str]) -> Change {
    let specifier = route_action::ClusterSpecifier::Cluster(cluster.into());
    let action = RouteAction {
        cluster_specifier: Some(specifier),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost {
        name: "v".into(),
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        routes: vec![route],
        ..Default::default()
    };
    let config = RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![host],
        validate_clusters: Some(BoolValue { value: false }),
        ..Default::default()
    };
    let fragment = Fragment {
        r#type: Some(fragment::Type::StringKey(name.into())),
    };
    let message = ScopedRouteConfiguration {
        name: name.into(),
        key: Some(Key {
            fragments: vec![fragment],
        }),
        route_configuration: Some(config),
        ..Default::default()
    };
    put_message(SRDS, name, &message)
}

fn listener(port: u16) -> Change {
    let extractor = HeaderValueExtractor {
        name: "x-seldon-scope".into(),
        extract_type: Some(ExtractType::Index(0)),
        ..Default::default()
    };
    let scopes = ScopedRoutes {
        name: "scopes".into(),
        scope_key_builder: Some(ScopeKeyBuilder {
            fragments: vec![FragmentBuilder {
                r#type: Some(Type::HeaderValueExtractor(extractor)),
            }],
        }),
        rds_config_source: ads(),
        config_specifier: Some(ConfigSpecifier::ScopedRds(ScopedRds {
            scoped_rds_config_source: ads(),
            ..Default::default()
        })),
    };
    let router = HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(
            any(&Router::default()),
        )),
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "p".into(),
        http_filters: vec![router],
        route_specifier: Some(RouteSpecifier::ScopedRoutes(scopes)),
        ..Default::default()
    };
    let filter = Filter {
        name: "hcm".into(),
        config_type: Some(ConfigType::TypedConfig(any(&manager))),
    };
    let message = Listener {
        name: "seldon_http".into(),
        address: address(port),
        filter_chains: vec![FilterChain {
            filters: vec![filter],
            ..Default::default()
        }],
        ..Default::default()
    };
    put_message(LDS, "seldon_http", &message)
}

fn bootstrap(xds: u16, delta: bool) -> String {
    let api = if delta { "DELTA_GRPC" } else { "GRPC" };
    format!(
        r#"
node: {{id: test-id, cluster: test-cluster, metadata: {{seldon: {{data_port: 9000}}}}}}
dynamic_resources:
  ads_config:
    api_type: {api}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
  lds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
layered_runtime:
  layers:
  - {{name: runtime-0, rtds_layer: {{name: runtime-0, rtds_config: {{ads: {{}}, resource_api_version: V3}}}}}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {xds}}}}}}}}}]}}]
"#
    )
}

struct Envoy(
    Child,
    #[expect(dead_code, reason = "holds the bootstrap")] tempfile::TempDir,
);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(server: &Server, delta: bool) -> Envoy {
    let binary = std::env::var("SELDON_ENVOY").expect("SELDON_ENVOY names the binary of Envoy");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootstrap.yaml");
    std::fs::write(&path, bootstrap(server.address.port(), delta)).unwrap();
    let mut command = Command::new(binary);
    command.args([
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "-l",
        "warn",
        "-c",
    ]);
    command.arg(&path).stdout(Stdio::null());
    Envoy(command.spawn().unwrap(), folder)
}

/// How long until every Envoy has reached the generation.
async fn reached(engine: &Engine, wanted: impl Fn(&Progress) -> bool, what: &str) -> Duration {
    let from = Instant::now();
    let mut watch = engine.progress();
    let reached = tokio::time::timeout(Duration::from_secs(20), watch.wait_for(wanted)).await;
    assert!(reached.is_ok(), "{what}: {:?}", engine.envoys());
    println!("{what}: {:.1} ms", from.elapsed().as_secs_f64() * 1e3);
    from.elapsed()
}

async fn apply(engine: &Engine, generation: Generation, changes: Vec<Change>, what: &str) {
    engine.apply(generation, changes);
    let whole = |p: &Progress| p.serving >= generation && p.released >= generation;
    let took = reached(engine, whole, what).await;
    // A missed warming would wait for Envoy's own timer of 15 seconds.
    assert!(took < Duration::from_secs(5), "{what} took {took:?}");
}

async fn connected(engine: &Engine) {
    let until = Instant::now() + Duration::from_secs(20);
    let subscribed = |url: &str| {
        let envoys = engine.envoys();
        envoys
            .iter()
            .flat_map(|e| &e.types)
            .any(|t| t.type_url == url && t.acknowledged > 0)
    };
    while !subscribed(SRDS) {
        assert!(
            Instant::now() < until,
            "no scopes asked for: {:?}",
            engine.envoys()
        );
        tokio::task::yield_now().await;
    }
}

fn refused(engine: &Engine) -> Vec<String> {
    let envoys = engine.envoys().into_iter();
    let rejections = envoys.flat_map(|e| e.rejections);
    rejections.map(|r| r.resource).collect()
}

async fn follows(delta: bool) {
    let server = server(settings()).await;
    let engine = &server.engine;
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let first = vec![
        listener(port),
        cluster("a", 1),
        endpoints("a"),
        scope("c:m", "a", &["*"]),
    ];
    engine.apply(1, first);
    let _envoy = start(&server, delta);
    let from = Instant::now();
    connected(engine).await;
    // Well below the 15 seconds after which Envoy gives up on what nobody serves.
    assert!(from.elapsed() < Duration::from_secs(8));
    apply(
        engine,
        2,
        vec![cluster("b", 1), endpoints("b"), scope("c:n", "b", &["*"])],
        "added",
    )
    .await;
    apply(engine, 3, vec![cluster("b", 2)], "cluster updated").await;
    apply(
        engine,
        4,
        vec![cluster("no-endpoints", 1)],
        "without endpoints",
    )
    .await;
    let many = (0..1000).map(|i| scope(&format!("c:m{i}"), "b", &["*"]));
    apply(engine, 5, many.collect(), "1000 scopes").await;
    apply(engine, 6, vec![scope("c:one", "b", &["*"])], "one scope").await;
    let bad = (0..50).map(|i| scope(&format!("c:x{i}"), "b", if i == 17 { &[] } else { &["*"] }));
    let bad = bad.chain([cluster("c", 3), cluster("b", 3), endpoints("c")]);
    apply(engine, 7, bad.collect(), "one bad of fifty").await;
    assert_eq!(refused(engine), ["c:x17"]);
    apply(engine, 8, vec![scope("c:x17", "b", &["*"])], "put right").await;
    assert!(refused(engine).is_empty());
    let gone = (0..1000).map(|i| remove(SRDS, &format!("c:m{i}")));
    let gone = gone.chain([
        remove(SRDS, "c:m"),
        remove(CDS, "a"),
        remove(EDS, "a-endpoints"),
    ]);
    apply(engine, 9, gone.collect(), "removed").await;
    for i in 0..100 {
        let name = format!("t{i}");
        let add = vec![
            cluster(&name, 1),
            endpoints(&name),
            scope(&format!("c:{name}"), &name, &["*"]),
        ];
        engine.apply(10 + i, add);
        tokio::task::yield_now().await;
    }
    apply(engine, 200, Vec::new(), "100 in a row").await;
    let many = (0..10_000).map(|i| scope(&format!("c:m{i}"), "b", &["*"]));
    let many: Vec<Change> = many.collect();
    let from = Instant::now();
    engine.apply(201, many);
    println!("applying 10,000 scopes: {:?}", from.elapsed());
    apply(engine, 202, Vec::new(), "10,000 scopes").await;
    apply(engine, 203, vec![scope("c:more", "b", &["*"])], "one more").await;
    assert!(refused(engine).is_empty());
}

#[tokio::test]
#[ignore = "needs a real Envoy"]
async fn delta() {
    follows(true).await;
}

#[tokio::test]
#[ignore = "needs a real Envoy"]
async fn state_of_the_world() {
    follows(false).await;
}
