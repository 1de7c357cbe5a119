//! A token endpoint: unsigned tokens, as Kafka takes them where it is told to, for who knows the secret.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A secret for which there are only tokens that claim a time to come.
pub(crate) const EARLY: &str = "early";

pub(crate) struct Endpoint {
    pub(crate) address: String,
    given: Arc<AtomicUsize>,
}

impl Endpoint {
    pub(crate) async fn start(client: &'static str, secret: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/token", listener.local_addr().unwrap());
        let given: Arc<AtomicUsize> = Arc::default();
        let counted = Arc::clone(&given);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                tokio::spawn(async move { answer(stream, client, secret, &counted).await });
            }
        });
        Self { address, given }
    }

    pub(crate) fn given(&self) -> usize {
        self.given.load(Ordering::SeqCst)
    }
}

async fn answer(mut stream: TcpStream, client: &str, secret: &str, given: &AtomicUsize) {
    let mut request = Vec::new();
    while !request.ends_with(b"scope=kafka") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    assert!(
        request.contains("grant_type=client_credentials"),
        "{request}"
    );
    let knows = |secret: &str| request.contains(&STANDARD.encode(format!("{client}:{secret}")));
    let (status, body) = if knows(secret) {
        given.fetch_add(1, Ordering::SeqCst);
        ("200 OK", token(client, 0))
    } else if knows(EARLY) {
        ("200 OK", token(client, 3600))
    } else {
        (
            "401 Unauthorized",
            r#"{"error":"invalid_client"}"#.to_owned(),
        )
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
}

fn token(subject: &str, issued_in: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let issued = now + issued_in;
    let claims = format!(
        r#"{{"sub":"{subject}","iat":{issued},"exp":{},"scope":"kafka"}}"#,
        issued + 3600
    );
    let (head, claims) = (
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        URL_SAFE_NO_PAD.encode(claims),
    );
    format!(r#"{{"access_token":"{head}.{claims}.","expires_in":3600,"token_type":"Bearer"}}"#)
}
