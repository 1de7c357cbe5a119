//! Real handshakes over loopback, with certificates made here.
#![allow(clippy::unwrap_used)] // a test may
use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use seldon_tls::{ClientIo, ClientTls, Files, Incoming, ServerTls, connector};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_stream::StreamExt as _;
use tower::Service as _;

/// Writes `ca.crt`, `tls.crt` and `tls.key` for localhost, all new.
fn identity(folder: &Path) -> Files {
    fs::create_dir_all(folder).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let write = |name: &str, text: String| {
        fs::write(folder.join(name), text).unwrap();
        Some(folder.join(name))
    };
    Files {
        prefix: "TEST".into(),
        ca: write("ca.crt", ca_pem),
        crt: write("tls.crt", leaf.pem()),
        key: write("tls.key", key.serialize_pem()),
    }
}

async fn ask(client: Files, trusted: Files, port: u16) -> std::io::Result<[u8; 2]> {
    let tls = ClientTls::follow(client, trusted, &[]).unwrap();
    let uri = format!("https://localhost:{port}").parse().unwrap();
    let mut io: ClientIo = connector(Some(tls)).call(uri).await?.into_inner();
    io.write_all(b"hi").await?;
    let mut answer = [0; 2];
    io.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn echo(own: Files, peer: Files) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut incoming = Incoming::new(listener, Some(ServerTls::follow(own, peer, &[]).unwrap()));
    tokio::spawn(async move {
        while let Some(Ok(mut io)) = incoming.next().await {
            let mut buffer = [0; 2];
            if io.read_exact(&mut buffer).await.is_ok() {
                let _ = io.write_all(&buffer).await;
            }
        }
    });
    port
}

#[tokio::test]
async fn both_sides_show_certificates_and_strangers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = identity(&folder.path().join("server"));
    let client = identity(&folder.path().join("client"));
    let stranger = identity(&folder.path().join("stranger"));
    let port = echo(server.clone(), client.clone()).await;

    assert_eq!(
        &ask(client.clone(), server.clone(), port).await.unwrap(),
        b"hi"
    );
    assert!(
        ask(stranger.clone(), server.clone(), port).await.is_err(),
        "unknown client"
    );
    assert!(
        ask(client, stranger.clone(), port).await.is_err(),
        "unknown server"
    );
    let nameless = Files {
        prefix: "NONE".into(),
        ..Files::default()
    };
    assert!(
        ask(nameless, server, port).await.is_err(),
        "client without a certificate"
    );
}

#[tokio::test(start_paused = true)]
async fn replaced_files_are_used_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let files = identity(folder.path());
    let tls = ServerTls::follow(files.clone(), files.clone(), &[]).unwrap();
    let first = tls.current();

    fs::write(files.crt.as_ref().unwrap(), "broken").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert!(
        std::sync::Arc::ptr_eq(&first, &tls.current()),
        "the former stays"
    );

    identity(folder.path());
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert!(
        !std::sync::Arc::ptr_eq(&first, &tls.current()),
        "the new one is used"
    );
}

#[test]
fn what_is_missing_is_named() {
    let own = Files {
        prefix: "CONTROL_PLANE_SERVER".into(),
        ..Files::default()
    };
    let error = ServerTls::follow(own.clone(), own, &[])
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("CONTROL_PLANE_SERVER_TLS_CRT_LOCATION"),
        "{error}"
    );
}
