//! Both protocols over TLS without ALPN, as Envoy speaks to agents.
#![allow(clippy::unwrap_used)] // a test may
mod support;

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use seldon_agent_proxy::Limits;
use seldon_tls::ServerTls;
use support::World;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn both_protocols_pass_over_tls() {
    let world = World::start(Limits::default()).await;
    let (made, server) = certified();
    let (configs, current) = tokio::sync::watch::channel(server);
    let tls = ServerTls::from(current);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (proxy, until) = (world.proxy.clone(), world.shutdown.clone());
    tokio::spawn(async move { proxy.serve(listener, Some(tls), until).await });

    let connect = async |made: &Made| {
        let stream = TcpStream::connect(address).await.unwrap();
        let made = trusting(made).connect("agent".try_into().unwrap(), stream);
        made.await.map(TokioIo::new)
    };
    let request = |uri: &str| {
        Request::get(uri.to_owned())
            .header("host", "agent")
            .body(Full::<Bytes>::default())
            .unwrap()
    };

    let (mut sender, connection) = http1::handshake(connect(&made).await.unwrap())
        .await
        .unwrap();
    tokio::spawn(connection);
    assert_eq!(
        sender
            .send_request(request("/v2/health/ready"))
            .await
            .unwrap()
            .status(),
        200
    );
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), connect(&made).await.unwrap())
            .await
            .unwrap();
    tokio::spawn(connection);
    assert_eq!(
        sender
            .send_request(request("https://agent/v2/health/ready"))
            .await
            .unwrap()
            .status(),
        200
    );

    // A new certificate is for connections from now on, and needs no restart.
    let (renewed, server) = certified();
    configs.send_replace(server);
    assert!(connect(&made).await.is_err(), "the former certificate");
    assert!(connect(&renewed).await.is_ok());
    assert_eq!(
        sender
            .send_request(request("https://agent/v2/health/ready"))
            .await
            .unwrap()
            .status(),
        200,
        "on the connection from before"
    );
}

type Made = rcgen::CertifiedKey<rcgen::KeyPair>;

fn certified() -> (Made, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(["agent".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made, Arc::new(server))
}

fn trusting(made: &Made) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(client))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
