//! `kind: Server`.
use schemars::JsonSchema;
use seldon_proto::scheduler as proto;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ObjectMeta,
    model::{null_is_default, wanted_replicas},
};

/// A server: replicas of an inference server that models are loaded on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Server {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: ServerSpec,
    /// Written by an API server; read by nobody here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// What a server runs and what it can do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerSpec {
    /// The ServerConfig that it starts from.
    pub server_config: String,
    /// Replaces the capabilities of the ServerConfig.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub capabilities: Vec<String>,
    /// Added to the capabilities of the ServerConfig.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub extra_capabilities: Vec<String>,
    /// Containers put in place of those of the ServerConfig.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_overrides: Option<ImageOverrides>,
    /// Merged over the pod of the ServerConfig; checked by an API server only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_spec: Option<Value>,
    /// Replicas wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// The fewest replicas that scaling may leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<u32>,
    /// The most replicas that scaling may make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<u32>,
    /// Leaves the server alone when its ServerConfig changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_auto_update: Option<bool>,
    /// A Deployment's strategy, where servers are Deployments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_strategy: Option<Value>,
    /// What becomes of the volumes of replicas that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stateful_set_persistent_volume_claim_retention_policy: Option<ClaimRetention>,
}

/// Containers put in place of those of the ServerConfig.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ImageOverrides {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rclone: Option<Value>,
}

/// What becomes of the volumes of replicas that go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ClaimRetention {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_deleted: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_scaled: Option<String>,
}

impl Server {
    /// The message that tells the scheduler of this server.
    pub fn to_proto(&self) -> proto::ServerNotify {
        let spec = &self.spec;
        proto::ServerNotify {
            name: self.metadata.name.clone(),
            expected_replicas: wanted_replicas(spec.replicas, spec.min_replicas),
            min_replicas: spec.min_replicas.unwrap_or_default(),
            max_replicas: spec.max_replicas.unwrap_or(u32::MAX),
            shared: false,
            kubernetes_meta: Some(self.metadata.kubernetes_meta()),
        }
    }
}
