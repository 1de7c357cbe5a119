//! What leaves: the documented fields, under their documented names, by level.
use clap::ValueEnum;
use serde::Serialize;

/// How much is told; each level holds the ones before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// Basic information about the installation
    Cluster,
    /// Which resources are used
    Resource,
    /// How resources are used, and which features of them
    #[default]
    Feature,
}

/// One snapshot. What is not known is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// Of every level.
    #[serde(flatten)]
    pub installation: Installation,
    /// From level `resource` on.
    #[serde(flatten)]
    pub resources: Option<Resources>,
    /// Of level `feature`.
    #[serde(flatten)]
    pub features: Option<Features>,
}

/// Level `cluster`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Installation {
    /// A random identifier, so that a receiver can tell installations apart.
    pub cluster_id: String,
    /// The scheduler's.
    pub seldon_core_version: String,
    /// Whether one operator cares for more than its own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_global_installation: Option<bool>,
    /// Whether this runs in Kubernetes.
    pub is_kubernetes: bool,
    /// Of the API server, if inside Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
    /// Nodes of the cluster, if inside Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_count: Option<u64>,
}

/// Level `resource`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Models.
    pub model_count: u64,
    /// Pipelines.
    pub pipeline_count: u64,
    /// Experiments.
    pub experiment_count: u64,
    /// Servers.
    pub server_count: u64,
    /// Replicas of all Servers.
    pub server_replica_count: u64,
}

/// Level `feature`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Features {
    /// Servers that may hold several models.
    pub multimodel_enabled_count: u64,
    /// Servers that take more models than their memory holds.
    pub overcommit_enabled_count: u64,
    /// Servers with GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_enabled_count: Option<u64>,
    /// Which inference servers there are: a product's name, never that of a Server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_server_name: Option<String>,
    /// CPU limits of all replicas, in cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_cores_sum: Option<f64>,
    /// Memory of all replicas, in GiB.
    pub server_memory_gb_sum: f64,
}

/// What is known of the limits that a cluster sets its Servers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Sum over all replicas of all Servers.
    pub cpu_cores: Option<f64>,
    /// Servers whose replicas are given GPUs.
    pub gpu_servers: Option<u64>,
}

impl Limits {
    /// Outside a cluster nothing sets a Server such limits, nor gives it GPUs.
    pub const NONE: Self = Self {
        cpu_cores: Some(0.0),
        gpu_servers: Some(0),
    };
}
