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
    #[error(
        "the storage's certificate is not trusted: check the endpoint of the remote, or add its authority"
    )]
    Certificate,
    #[error("the disk is full")]
    DiskFull,
    #[error("nothing lies there")]
    Empty,
    #[error("it took longer than {limit:?}")]
    TooSlow { limit: Duration },
    #[error("nobody waits for it any more")]
    Unwanted,
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

    /// Says whether what was fetched before is of no use any more.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NotFound | Self::NotAFolder | Self::AccessDenied | Self::Configuration
        )
    }
}

/// What a remote can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// It knows when a file was changed: without that, equal sizes are all there is to compare.
    pub has_times: bool,
    /// It has buckets instead of folders.
    pub has_buckets: bool,
}

/// rclone calls this precision, in nanoseconds, for a remote that knows no times; no real one is near it.
const NO_TIMES: f64 = 3.6e12;

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

    /// Makes a local folder equal to a remote one in object form. What is equal already is not transferred. `group`
    /// is what [`Rclone::stop`] takes.
    pub async fn sync(
        &self,
        from: Value,
        to: &std::path::Path,
        group: &str,
    ) -> Result<(), RcloneError> {
        let to = json!({"type": "local", "_root": to.to_string_lossy()});
        let body = json!({
            "srcFs": from,
            "dstFs": to,
            "createEmptySrcDirs": true,
            "_group": group,
            "_config": {
                // The agent retries itself; three rounds of ten tries in rclone hide a failure for minutes.
                "LowLevelRetries": 3,
                // When an object was written, not what its writer said: a file put back with an old time is seen, and
                // no object has to be asked for its time.
                "UseServerModTime": true,
            },
        });
        self.request("sync/sync", body).await.map(drop)
    }

    /// Makes calls of a group end soon.
    pub async fn stop(&self, group: &str) -> Result<(), RcloneError> {
        let body = json!({"group": group});
        let limit = Duration::from_secs(5);
        self.call("job/stopgroup", body, limit).await.map(drop)
    }

    /// What a remote can do; fails for a path that is a file.
    pub async fn info(&self, fs: Value) -> Result<Info, RcloneError> {
        let limit = Duration::from_secs(60);
        let answer = self
            .call("operations/fsinfo", json!({"fs": fs}), limit)
            .await?;
        let precision = answer["Precision"].as_f64();
        Ok(Info {
            has_times: precision.is_some_and(|precision| precision < NO_TIMES),
            has_buckets: answer["Features"]["BucketBased"].as_bool() == Some(true),
        })
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
    // What the machine says comes first: an address or a path in its text may hold any of the other words.
    let known: [(&[&str], RcloneError); 7] = [
        (&["is a file not a directory"], RcloneError::NotAFolder),
        (
            &[
                "no space left on device",
                "file too big for remaining disk space",
                "disk quota exceeded",
            ],
            RcloneError::DiskFull,
        ),
        (&["x509:", "tls: "], RcloneError::Certificate),
        (
            &[
                "connection refused",
                "no such host",
                "i/o timeout",
                "connection reset",
                "network is unreachable",
                "no route to host",
                "deadline exceeded",
            ],
            RcloneError::StorageUnreachable,
        ),
        (
            &[
                "accessdenied",
                "access denied",
                "forbidden",
                "unauthorized",
                "invalidaccesskey",
                "signaturedoesnotmatch",
                "permission denied",
                "statuscode: 401",
                "statuscode: 403",
                "error 401",
                "error 403",
            ],
            RcloneError::AccessDenied,
        ),
        (
            &[
                "directory not found",
                "object not found",
                "nosuchbucket",
                "bucket doesn't exist",
                "not exist",
                "no such file",
            ],
            RcloneError::NotFound,
        ),
        (
            &[
                "didn't find section",
                "didn't find backend",
                "failed to configure",
                "config name",
                "not found in config",
            ],
            RcloneError::Configuration,
        ),
    ];
    let found = known.into_iter().find(|(words, _)| says(words));
    if let Some((_, error)) = found {
        return error;
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
                "operation error S3: ListObjects, https response error StatusCode: 403, api error InvalidAccessKeyId: PLANTED",
                RcloneError::AccessDenied,
            ),
            (
                "Get \"http://127.0.0.1:1/forbidden?prefix=directory+not+found\": connect: connection refused",
                RcloneError::StorageUnreachable,
            ),
            (
                "preallocate: file too big for remaining disk space",
                RcloneError::DiskFull,
            ),
            (
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                RcloneError::Certificate,
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
