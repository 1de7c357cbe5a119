//! Tokens for Kafka by the client-credentials grant.
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use rdkafka::client::OAuthToken;
use seldon_tls::{ClientTls, Files, connector};
use serde_json::Value;
use tower::Service as _;

use crate::{Result, fields::Properties};

const PATIENCE: Duration = Duration::from_secs(10);
const LARGEST: usize = 1 << 20;
/// Where distributions keep the authorities everybody trusts.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Properties that are for us.
const TAKEN: [&str; 7] = [
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.extensions",
    "https.ca.location",
];

/// Where tokens come from.
pub(crate) struct Grant {
    endpoint: Uri,
    client: String,
    secret: String,
    scope: Option<String>,
    authority: Option<String>,
    last: Mutex<Option<Token>>,
}

#[derive(Clone)]
struct Token {
    text: String,
    principal: String,
    expires_ms: i64,
    lifetime_ms: i64,
}

impl Grant {
    /// Whether a property is for us to act on: librdkafka would need curl for it.
    pub(crate) fn takes(property: &str) -> bool {
        TAKEN.contains(&property)
    }

    /// Takes these properties out.
    pub(crate) fn taken_from(all: &mut Properties) -> Result<Option<Self>> {
        let method = all.get("sasl.oauthbearer.method");
        if method.is_none_or(|method| !method.eq_ignore_ascii_case("oidc")) {
            return Ok(None);
        }
        all.remove("sasl.oauthbearer.method");
        let mut take = |name: &str| {
            let value = all.remove(&format!("sasl.oauthbearer.{name}"));
            value.filter(|value| !value.is_empty())
        };
        let mut need =
            |name: &str| take(name).with_context(|| format!("sasl.oauthbearer.{name} is not set"));
        let endpoint = need("token.endpoint.url")?;
        let client = need("client.id")?;
        let secret = need("client.secret")?;
        let scope = take("scope");
        if take("extensions").is_some() {
            tracing::warn!(
                "sasl.oauthbearer.extensions are not sent: the Kafka library that is used here cannot"
            );
        }
        let authority = all.remove("https.ca.location");
        let endpoint: Uri = endpoint
            .parse()
            .with_context(|| format!("{endpoint} is no address of a token endpoint"))?;
        Ok(Some(Self {
            endpoint,
            client,
            secret,
            scope,
            authority,
            last: Mutex::default(),
        }))
    }

    /// A token that is good for a while: the last, or a new one. Blocks.
    pub(crate) fn token(&self) -> Result<OAuthToken> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |token: &Token| token.expires_ms - now_ms() > token.lifetime_ms * 3 / 10;
        let token = match last.clone().filter(fresh) {
            Some(token) => token,
            None => last.insert(self.fetch()?).clone(),
        };
        Ok(OAuthToken {
            token: token.text,
            principal_name: token.principal,
            lifetime_ms: token.expires_ms,
        })
    }

    /// On a thread and runtime of its own: librdkafka calls back from wherever it is polled.
    fn fetch(&self) -> Result<Token> {
        let work = || -> Result<Token> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async { tokio::time::timeout(PATIENCE, self.ask()).await })?
        };
        let fetched = std::thread::scope(|scope| scope.spawn(work).join());
        let fetched = fetched.unwrap_or_else(|_| bail!("asking for it failed"));
        fetched.with_context(|| format!("no token from {}", self.endpoint))
    }

    async fn ask(&self) -> Result<Token> {
        let io = connector(self.tls()?).call(self.endpoint.clone()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        let response = sender.send_request(self.request()?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body
            .map_err(|error| anyhow::anyhow!("its answer cannot be read: {error}"))?
            .to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            bail!("it answers {status}: {text}");
        }
        token(&body, &self.client)
    }

    fn tls(&self) -> Result<Option<ClientTls>> {
        match self.endpoint.scheme_str() {
            Some("http") => return Ok(None),
            Some("https") => {}
            _ => bail!("use an address that begins with https:// or http://"),
        }
        let authority = self.authority.as_deref().or_else(|| known_authorities());
        let peer = Files {
            prefix: "KAFKA_CLIENT_SASL_OAUTHBEARER".to_owned(),
            ca: authority.map(Into::into),
            ..Files::default()
        };
        Ok(Some(ClientTls::follow(Files::default(), peer, &[])?))
    }

    fn request(&self) -> Result<Request<Full<Bytes>>> {
        let mut form = "grant_type=client_credentials".to_owned();
        if let Some(scope) = &self.scope {
            form.push_str("&scope=");
            form.push_str(&form_encoded(scope));
        }
        let pair = format!(
            "{}:{}",
            form_encoded(&self.client),
            form_encoded(&self.secret)
        );
        let path = self
            .endpoint
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let host = self.endpoint.authority().context("it has no host")?;
        Ok(Request::post(path)
            .header(header::HOST, host.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(
                header::AUTHORIZATION,
                format!("Basic {}", general_purpose::STANDARD.encode(pair)),
            )
            .body(Full::new(form.into()))?)
    }
}

/// The file of the authorities that this machine trusts.
pub(crate) fn known_authorities() -> Option<&'static str> {
    let mut known = AUTHORITIES.into_iter();
    known.find(|path| std::path::Path::new(path).exists())
}

/// Principal and expiry are in the token where it is a JWT, else beside it.
fn token(body: &[u8], client: &str) -> Result<Token> {
    let answer: Value = serde_json::from_slice(body).context("its answer is no JSON")?;
    let text = answer["access_token"].as_str();
    let text = text.context("its answer has no access_token")?;
    // librdkafka would refuse it, and show it in its error.
    ensure!(
        text.bytes().all(|byte| byte.is_ascii_graphic()),
        "its access_token has characters that no token has"
    );
    let claims = text.split('.').nth(1).and_then(|claims| {
        let claims = general_purpose::URL_SAFE_NO_PAD.decode(claims.trim_end_matches('='));
        serde_json::from_slice::<Value>(&claims.ok()?).ok()
    });
    let claims = claims.unwrap_or_default();
    let now = now_ms();
    let expires = claims["exp"].as_f64().map(|seconds| seconds * 1000.0);
    let expires = expires.or_else(|| {
        let seconds = answer["expires_in"].as_f64();
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of this century")]
        seconds.map(|seconds| now as f64 + seconds * 1000.0)
    });
    #[expect(
        clippy::cast_possible_truncation,
        reason = "milliseconds of this century"
    )]
    let expires_ms = expires.map_or(now + 300_000, |expires| expires as i64);
    Ok(Token {
        text: text.to_owned(),
        principal: claims["sub"].as_str().unwrap_or(client).to_owned(),
        expires_ms,
        lifetime_ms: expires_ms - now,
    })
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

fn form_encoded(text: &str) -> String {
    let encoded = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => {
            char::from(byte).to_string()
        }
        b' ' => "+".to_owned(),
        other => format!("%{other:02X}"),
    });
    encoded.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_token_endpoints() {
        let claims = general_purpose::URL_SAFE_NO_PAD.encode(r#"{"sub":"me","exp":4000000000}"#);
        let body = format!(r#"{{"access_token":"h.{claims}.s","expires_in":60}}"#);
        let found = token(body.as_bytes(), "client").unwrap();
        assert_eq!(
            (found.principal.as_str(), found.expires_ms),
            ("me", 4_000_000_000_000)
        );
        let found = token(br#"{"access_token":"opaque","expires_in":60}"#, "client").unwrap();
        assert_eq!(found.principal, "client");
        assert!((50_000..=60_000).contains(&found.lifetime_ms));
        assert!(token(b"{}", "client").is_err());
        let odd = token(br#"{"access_token":"a b"}"#, "client");
        assert!(!odd.err().unwrap().to_string().contains("a b"));
        assert_eq!(form_encoded("a b/c"), "a+b%2Fc");
    }
}
