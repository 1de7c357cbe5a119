//! Against a listener with TLS that answers as Kubernetes' API does.
use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header::AUTHORIZATION},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rcgen::generate_simple_self_signed;
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

type Objects = Arc<BTreeMap<&'static str, Result<Value, u16>>>;

async fn answer(
    State(objects): State<Objects>,
    headers: HeaderMap,
    uri: Uri,
) -> (StatusCode, String) {
    if headers.get(AUTHORIZATION).map(|value| value.as_bytes()) != Some(b"Bearer the-token") {
        return (StatusCode::UNAUTHORIZED, String::new());
    }
    match objects.get(uri.to_string().as_str()) {
        Some(Ok(object)) => (StatusCode::OK, object.to_string()),
        Some(Err(status)) => (StatusCode::from_u16(*status).unwrap(), String::new()),
        None => (StatusCode::NOT_FOUND, String::new()),
    }
}

/// Serves objects by path, and returns the folder of an account that may read them, with the port.
async fn serve(objects: &[(&'static str, Result<Value, u16>)]) -> (TempDir, u16) {
    let made = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let account = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(account.path().join(name), text).unwrap();
    write("ca.crt", &made.cert.pem());
    write("token", "the-token\n");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let objects: Objects = Arc::new(objects.iter().cloned().collect());
    let service = TowerToHyperService::new(Router::new().fallback(answer).with_state(objects));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), service.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (account, port)
}

fn inside(account: &Path, port: u16) -> Place {
    let api = Api::new("127.0.0.1", &port.to_string(), account.into(), "mesh");
    Place::Inside(Some(api.unwrap()))
}

fn workload(replicas: u64, limits: Value) -> Value {
    let container = json!({"name": "server", "resources": {"limits": limits}});
    json!({"spec": {"replicas": replicas, "template": {"spec": {"containers": [container]}}}})
}

fn operator(flag: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"args": [flag]}]}}}})
}

const OPERATORS: &str = "/apis/apps/v1/namespaces/mesh/deployments/seldon-v2-controller-manager";

#[tokio::test]
async fn version_nodes_and_limits_are_read() {
    let (account, port) = serve(&[
        ("/version", Ok(json!({"gitVersion": "v1.36.3"}))),
        (
            "/api/v1/nodes?limit=1",
            Ok(json!({"metadata": {"remainingItemCount": 2}, "items": [{}]})),
        ),
        (OPERATORS, Ok(operator("--clusterwide=false"))),
        (
            "/apis/apps/v1/namespaces/mesh/statefulsets/mlserver",
            Ok(workload(3, json!({"cpu": "500m"}))),
        ),
        (
            "/apis/apps/v1/namespaces/other/deployments/triton",
            Ok(workload(1, json!({"cpu": 2, "nvidia.com/gpu": 1}))),
        ),
    ])
    .await;
    let place = inside(account.path(), port);
    let wanted = Facts {
        inside: true,
        global: Some(false),
        version: Some("v1.36.3".to_owned()),
        nodes: Some(3),
    };
    assert_eq!(place.facts().await, wanted);
    let servers = [
        (None, "mlserver".to_owned()),
        (Some("other".to_owned()), "triton".to_owned()),
        (None, "on-another-machine".to_owned()),
    ];
    let wanted = Limits {
        cpu_cores: Some(3.5),
        gpu_servers: Some(1),
    };
    assert_eq!(place.limits(&servers).await, wanted);
}

#[tokio::test]
async fn what_may_not_be_read_is_not_known() {
    let (account, port) = serve(&[
        ("/version", Ok(json!({"gitVersion": "v1.36.3"}))),
        ("/api/v1/nodes?limit=1", Err(403)),
        (OPERATORS, Err(403)),
        (
            "/apis/apps/v1/namespaces/mesh/statefulsets/mlserver",
            Err(403),
        ),
    ])
    .await;
    let place = inside(account.path(), port);
    let wanted = Facts {
        inside: true,
        version: Some("v1.36.3".to_owned()),
        ..Facts::default()
    };
    assert_eq!(place.facts().await, wanted);
    let limits = place.limits(&[(None, "mlserver".to_owned())]).await;
    assert_eq!(limits, Limits::default());
    // A token that is replaced is read anew.
    fs::write(account.path().join("token"), "expired").unwrap();
    assert_eq!(place.facts().await.version, None);
}

#[tokio::test]
async fn an_operator_elsewhere_or_clusterwide_makes_it_global() {
    let (account, port) = serve(&[]).await;
    assert_eq!(
        inside(account.path(), port).facts().await.global,
        Some(true)
    );
    let (account, port) = serve(&[(OPERATORS, Ok(operator("--clusterwide")))]).await;
    assert_eq!(
        inside(account.path(), port).facts().await.global,
        Some(true)
    );
}

#[tokio::test]
async fn outside_nothing_is_limited_and_nothing_is_asked() {
    let facts = Place::Outside.facts().await;
    let wanted = Facts {
        global: Some(false),
        ..Facts::default()
    };
    assert_eq!(facts, wanted);
    assert_eq!(Place::Outside.limits(&[]).await, Limits::NONE);
}
