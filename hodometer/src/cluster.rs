//! Asking Kubernetes' API, with the pod's own account. What it does not let be read is left out.
use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use seldon_tls::{ClientTls, Files};
use serde_json::Value;
use tokio::time::timeout;

use crate::{exchange::exchange, usage::Limits, workload};

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const PATIENCE: Duration = Duration::from_secs(10);
/// The operator's Deployment.
const OPERATOR: &str = "seldon-v2-controller-manager";

/// Where this process runs.
pub(crate) enum Place {
    /// On a machine.
    Outside,
    /// In a pod; without access where its account is not there.
    Inside(Option<Api>),
}

/// Facts of level `cluster`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Facts {
    pub(crate) inside: bool,
    pub(crate) global: Option<bool>,
    pub(crate) version: Option<String>,
    pub(crate) nodes: Option<u64>,
}

impl Place {
    /// Kubernetes tells every pod where its API is. Needs a tokio runtime.
    pub(crate) fn here(namespace: &str) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(host) = variable("KUBERNETES_SERVICE_HOST") else {
            return Self::Outside;
        };
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        let api = Api::new(&host, &port, ACCOUNT.into(), namespace);
        if let Err(error) = &api {
            tracing::warn!(error, "Kubernetes is not asked");
        }
        Self::Inside(api.ok())
    }

    pub(crate) async fn facts(&self) -> Facts {
        match self {
            Self::Outside => Facts {
                global: Some(false),
                ..Facts::default()
            },
            Self::Inside(None) => Facts {
                inside: true,
                ..Facts::default()
            },
            Self::Inside(Some(api)) => Facts {
                inside: true,
                global: known("is_global_installation", api.global().await),
                version: known("kubernetes_version", api.version().await),
                nodes: known("node_count", api.nodes().await),
            },
        }
    }

    /// The limits of Servers, given by namespace and name.
    pub(crate) async fn limits(&self, servers: &[(Option<String>, String)]) -> Limits {
        match self {
            Self::Outside => Limits::NONE,
            Self::Inside(None) => Limits::default(),
            Self::Inside(Some(api)) => {
                let fields = "gpu_enabled_count, server_cpu_cores_sum";
                known(fields, api.limits(servers).await).unwrap_or_default()
            }
        }
    }
}

fn known<T>(fields: &str, answer: Result<T, String>) -> Option<T> {
    answer
        .inspect_err(|error| tracing::warn!(error, "{fields} left out"))
        .ok()
}

/// The API as the account of a pod may use it.
pub(crate) struct Api {
    address: Uri,
    /// Holds `token`, which changes while this runs, and `ca.crt`.
    account: PathBuf,
    namespace: String,
    tls: ClientTls,
}

impl Api {
    fn new(host: &str, port: &str, account: PathBuf, namespace: &str) -> Result<Self, String> {
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        let address = format!("https://{host}:{port}").parse();
        let authority = Files {
            prefix: "KUBERNETES".to_owned(),
            ca: Some(account.join("ca.crt")),
            ..Files::default()
        };
        let tls = ClientTls::follow(Files::default(), authority, &[]);
        Ok(Self {
            address: address.map_err(|_| format!("{host}:{port} is no address"))?,
            account,
            namespace: namespace.to_owned(),
            tls: tls.map_err(|error| error.to_string())?,
        })
    }

    async fn version(&self) -> Result<String, String> {
        let path = "/version";
        let answer = self.must(path).await?;
        let version = answer["gitVersion"].as_str();
        version
            .map(str::to_owned)
            .ok_or_else(|| unexpected(path, &answer))
    }

    async fn nodes(&self) -> Result<u64, String> {
        // The answer says how many were left out, so that no list of nodes needs to be read.
        let path = "/api/v1/nodes?limit=1";
        let answer = self.must(path).await?;
        workload::nodes(&answer).ok_or_else(|| unexpected(path, &answer))
    }

    /// An operator that cares for this namespace from another one cares for many.
    async fn global(&self) -> Result<bool, String> {
        if self.namespace.is_empty() {
            return Err("POD_NAMESPACE is not set".to_owned());
        }
        let path = workload_path(&self.namespace, "deployments", OPERATOR);
        let operator = self.get(&path).await?;
        Ok(operator.as_ref().is_none_or(workload::clusterwide))
    }

    async fn limits(&self, servers: &[(Option<String>, String)]) -> Result<Limits, String> {
        let (mut cores, mut with_gpus) = (0.0, 0);
        for (namespace, server) in servers {
            let namespace = namespace.as_deref().unwrap_or(&self.namespace);
            let path = workload_path(namespace, "statefulsets", server);
            let workload = match self.get(&path).await? {
                Some(workload) => Some(workload),
                None => {
                    let path = workload_path(namespace, "deployments", server);
                    self.get(&path).await?
                }
            };
            // One that runs elsewhere has no limits that Kubernetes sets.
            let limits = workload.as_ref().map(workload::limits);
            let (more, gpu) = limits.unwrap_or_default();
            cores += more;
            with_gpus += u64::from(gpu);
        }
        Ok(Limits {
            cpu_cores: Some(cores),
            gpu_servers: Some(with_gpus),
        })
    }

    async fn must(&self, path: &str) -> Result<Value, String> {
        let answer = self.get(path).await?;
        answer.ok_or_else(|| format!("{path}: not found"))
    }

    /// Nothing where there is nothing at that path.
    async fn get(&self, path: &str) -> Result<Option<Value>, String> {
        let token = self.account.join("token");
        let token = tokio::fs::read_to_string(&token)
            .await
            .map_err(|error| format!("{}: {error}", token.display()))?;
        let authority = self.address.authority().map_or("", |a| a.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .body(Full::<Bytes>::default())
            .map_err(|error| error.to_string())?;
        let answer = exchange(&self.address, Some(self.tls.clone()), request);
        let (status, body) = timeout(PATIENCE, answer)
            .await
            .map_err(|_| format!("{path}: no answer within {} s", PATIENCE.as_secs()))?
            .map_err(|error| format!("{path}: {error}"))?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|error| format!("{path}: {error}")),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                let right = "give the pod's service account the right to get it";
                Err(format!("{path}: {status}: {right}"))
            }
            _ => Err(format!("{path}: {status}")),
        }
    }
}

fn unexpected(path: &str, answer: &Value) -> String {
    let start: String = answer.to_string().chars().take(100).collect();
    format!("{path}: not understood: {start}")
}

fn workload_path(namespace: &str, kind: &str, name: &str) -> String {
    format!("/apis/apps/v1/namespaces/{namespace}/{kind}/{name}")
}

#[cfg(test)]
mod tests;
