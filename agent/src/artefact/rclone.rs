//! Client of rclone's remote control API (JSON over HTTP).
//!
//! rclone echoes the whole input in its errors, and some backends put addresses with credentials into theirs. So no
//! text of rclone leaves this module: an answer is classified and the error is written here.
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use base64::Engine;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::storage::Storage;

/// Answers of the calls made here are small.
const MAX_ANSWER: usize = 4 << 20;

/// What rclone says no to, without its words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RcloneError {
    #[error("rclone at {address} cannot be reached: is it running")]
    Unreachable { address: String },
    #[error("rclone refused the credentials of the agent")]
    Credentials,
    #[error("rclone did not finish {call} within {limit:?}")]
    TimedOut { call: &'static str, limit: Duration },
    #[error("nothing is there")]
    NotFound,
    #[error("it is a file, not a folder")]
    NotAFolder,
    #[error("access was denied: check the credentials of the remote")]
    AccessDenied,
    #[error("the storage cannot be reached: check the endpoint of the remote")]
    StorageUnreachable,
    #[error("the remote is not configured in rclone, or not completely")]
    Configuration,
    #[error("rclone failed at {call} (status {status}); its log has the details")]
    Failed { call: &'static str, status: u16 },
}

impl RcloneError {
    /// Says whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::TimedOut { .. }
                | Self::StorageUnreachable
                | Self::Failed { .. }
        )
    }
}

/// Where rclone listens.
#[derive(Clone)]
pub struct Endpoint {
    pub host: String,
    /// Shared: an rclone of the agent's own may have to move when it starts again.
    pub port: Arc<AtomicU16>,
    /// User and password, when the agent started this rclone itself.
    pub credentials: Option<(String, String)>,
}

impl Endpoint {
    /// `host:port` as it is now.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port.load(Ordering::Relaxed))
    }
}

/// The client; cheap to clone.
#[derive(Clone)]
pub struct Rclone {
    http: Client<HttpConnector, Full<Bytes>>,
    endpoint: Endpoint,
}

impl Rclone {
    /// Makes a client; nothing is called yet.
    pub fn new(endpoint: Endpoint) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(8)
            .build(connector);
        Self { http, endpoint }
    }

    /// Says whether rclone answers.
    pub async fn noop(&self) -> Result<(), RcloneError> {
        self.call("rc/noop", json!({"foo": "bar"}), Duration::from_secs(5))
            .await
            .map(drop)
    }

    /// Names of the configured remotes.
    pub async fn remotes(&self) -> Result<Vec<String>, RcloneError> {
        let answer = self
            .call("config/listremotes", json!({}), Duration::from_secs(10))
            .await?;
        let names = answer["remotes"].as_array().cloned().unwrap_or_default();
        Ok(names
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect())
    }

    /// Copies a folder; `from` is a remote in object form, `to` a local folder.
    pub async fn copy(
        &self,
        from: Value,
        to: &std::path::Path,
        limit: Duration,
    ) -> Result<(), RcloneError> {
        let to = json!({"type": "local", "_root": to.to_string_lossy()});
        let body = json!({
            "srcFs": from,
            "dstFs": to,
            "createEmptySrcDirs": true,
            // The agent retries itself; three rounds of ten tries in rclone hide a failure for minutes.
            "_config": {"LowLevelRetries": 3},
        });
        self.call("sync/copy", body, limit).await.map(drop)
    }

    /// Creates or replaces a remote in rclone's configuration.
    pub async fn configure(&self, remote: &Storage, exists: bool) -> Result<(), RcloneError> {
        let mut body =
            json!({"name": remote.name, "parameters": remote.parameters, "opt": remote.opt});
        let call = if exists {
            "config/update"
        } else {
            "config/create"
        };
        if !exists {
            body["type"] = Value::String(remote.kind.clone());
        }
        body["opt"]["nonInteractive"] = Value::Bool(true);
        self.call(call, body, Duration::from_secs(30))
            .await
            .map(drop)
    }

    /// The type of a configured remote.
    pub async fn kind(&self, name: &str) -> Result<String, RcloneError> {
        let answer = self
            .call("config/get", json!({"name": name}), Duration::from_secs(10))
            .await?;
        Ok(answer["type"].as_str().unwrap_or_default().to_owned())
    }

    /// Removes a remote from rclone's configuration.
    pub async fn forget(&self, name: &str) -> Result<(), RcloneError> {
        self.call(
            "config/delete",
            json!({"name": name}),
            Duration::from_secs(10),
        )
        .await
        .map(drop)
    }

    async fn call(
        &self,
        call: &'static str,
        body: Value,
        limit: Duration,
    ) -> Result<Value, RcloneError> {
        tokio::time::timeout(limit, self.request(call, body))
            .await
            .unwrap_or(Err(RcloneError::TimedOut { call, limit }))
    }

    async fn request(&self, call: &'static str, body: Value) -> Result<Value, RcloneError> {
        let address = self.endpoint.address();
        let unreachable = || RcloneError::Unreachable {
            address: address.clone(),
        };
        let mut request = http::Request::post(format!("http://{address}/{call}"))
            .header(http::header::CONTENT_TYPE, "application/json");
        if let Some((user, password)) = &self.endpoint.credentials {
            let pair =
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            request = request.header(http::header::AUTHORIZATION, format!("Basic {pair}"));
        }
        let body = Full::new(Bytes::from(body.to_string()));
        let request = request.body(body).map_err(|_| unreachable())?;
        let response = self
            .http
            .request(request)
            .await
            .map_err(|_| unreachable())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|_| unreachable())?;
        let answer: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(answer);
        }
        Err(classify(
            call,
            status.as_u16(),
            answer["error"].as_str().unwrap_or_default(),
        ))
    }
}

/// Turns rclone's answer into one of the known failures by its well-known words.
fn classify(call: &'static str, status: u16, text: &str) -> RcloneError {
    let text = text.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if matches!(status, 401) {
        return RcloneError::Credentials;
    }
    if says(&["is a file not a directory"]) {
        return RcloneError::NotAFolder;
    }
    if says(&[
        "directory not found",
        "object not found",
        "nosuchbucket",
        "bucket doesn't exist",
        "not exist",
        "no such file",
    ]) {
        return RcloneError::NotFound;
    }
    if says(&[
        "didn't find section",
        "didn't find backend",
        "failed to configure",
        "config name",
        "not found in config",
    ]) {
        return RcloneError::Configuration;
    }
    if says(&[
        "accessdenied",
        "access denied",
        "forbidden",
        "unauthorized",
        "invalidaccesskey",
        "signaturedoesnotmatch",
        "permission denied",
        "401",
        "403",
    ]) {
        return RcloneError::AccessDenied;
    }
    if says(&[
        "connection refused",
        "no such host",
        "i/o timeout",
        "connection reset",
        "network is unreachable",
        "deadline exceeded",
    ]) {
        return RcloneError::StorageUnreachable;
    }
    RcloneError::Failed { call, status }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_classified_and_never_repeated() {
        for (text, expected) in [
            ("directory not found", RcloneError::NotFound),
            ("is a file not a directory", RcloneError::NotAFolder),
            (
                "AccessDenied: Access Denied status code: 403 PLANTED",
                RcloneError::AccessDenied,
            ),
            (
                "dial tcp 127.0.0.1:1: connect: connection refused PLANTED",
                RcloneError::StorageUnreachable,
            ),
            (
                "didn't find section in config file",
                RcloneError::Configuration,
            ),
            (
                "something with PLANTED",
                RcloneError::Failed {
                    call: "sync/copy",
                    status: 500,
                },
            ),
        ] {
            let error = classify("sync/copy", 500, text);
            assert_eq!(error, expected);
            assert!(!error.to_string().contains("PLANTED"));
        }
        assert_eq!(classify("rc/noop", 401, ""), RcloneError::Credentials);
    }
}
