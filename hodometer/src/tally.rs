//! Counting the scheduler's statuses, one by one, so that none needs to be kept.
use std::collections::BTreeSet;

use seldon_proto::scheduler::{
    ExperimentStatusResponse, ModelStatusResponse, PipelineStatusResponse, ServerStatusResponse,
    pipeline_version_state::PipelineStatus,
};

use crate::usage::{Features, Limits, Resources};

const GIB: f64 = (1_u64 << 30) as f64;

/// Inference servers by what Servers that run them are called.
const PRODUCTS: [(&str, &str); 2] = [("mlserver", "MLServer"), ("triton", "Triton")];
/// A Server's own name might identify somebody, so it never leaves.
const OTHER: &str = "other";

/// What was counted so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    resources: Resources,
    over_committed: u64,
    memory_bytes: u64,
    products: BTreeSet<&'static str>,
    servers: Vec<(Option<String>, String)>,
}

impl Tally {
    /// Counts a model; one that is deleted no longer is a resource, though replicas may still hold it.
    pub fn model(&mut self, status: &ModelStatusResponse) {
        self.resources.model_count += u64::from(!status.deleted);
    }

    /// Counts a pipeline, unless it is on its way out.
    pub fn pipeline(&mut self, status: &PipelineStatusResponse) {
        use PipelineStatus::{
            PipelineFailedTerminating, PipelineTerminate, PipelineTerminated, PipelineTerminating,
        };
        let latest = status.versions.last();
        let state = latest.and_then(|latest| latest.state.as_ref());
        let leaving = matches!(
            state.map(|state| state.status()),
            Some(
                PipelineTerminate
                    | PipelineTerminating
                    | PipelineTerminated
                    | PipelineFailedTerminating
            )
        );
        self.resources.pipeline_count += u64::from(!leaving);
    }

    /// Counts an experiment, whether its candidates are ready or not.
    pub fn experiment(&mut self, _: &ExperimentStatusResponse) {
        self.resources.experiment_count += 1;
    }

    /// Counts a Server and its replicas.
    pub fn server(&mut self, status: &ServerStatusResponse) {
        self.resources.server_count += 1;
        // Below zero where no operator says how many there are to be: then those that are there count.
        let replicas = u64::try_from(status.expected_replicas);
        self.resources.server_replica_count += replicas.unwrap_or(status.resources.len() as u64);
        let mut replicas = status.resources.iter();
        let over_committed = replicas.any(|replica| replica.over_commit_percentage > 0);
        self.over_committed += u64::from(over_committed);
        let memory = status.resources.iter();
        let memory = memory.map(|replica| replica.total_memory_bytes);
        self.memory_bytes = memory.fold(self.memory_bytes, u64::saturating_add);
        self.products.insert(product(&status.server_name));
        let meta = status.kubernetes_meta.as_ref();
        let namespace = meta.map(|meta| meta.namespace.clone());
        self.servers.push((
            namespace.filter(|namespace| !namespace.is_empty()),
            status.server_name.clone(),
        ));
    }

    /// The namespace, where it has one, and the name of each Server: to look up its limits, not to be told.
    pub(crate) fn servers(&self) -> &[(Option<String>, String)] {
        &self.servers
    }

    /// Returns what level `resource` tells.
    pub fn resources(&self) -> Resources {
        self.resources
    }

    /// Returns what level `feature` adds.
    pub fn features(&self, limits: Limits) -> Features {
        let products: Vec<&str> = self.products.iter().copied().collect();
        Features {
            // Both inference servers hold several models by design; nothing switches it off.
            multimodel_enabled_count: self.resources.server_count,
            overcommit_enabled_count: self.over_committed,
            gpu_enabled_count: limits.gpu_servers,
            inference_server_name: (!products.is_empty()).then(|| products.join(",")),
            server_cpu_cores_sum: limits.cpu_cores,
            server_memory_gb_sum: self.memory_bytes as f64 / GIB,
        }
    }
}

fn product(server: &str) -> &'static str {
    let found = PRODUCTS.iter().find(|(part, _)| server.contains(part));
    found.map_or(OTHER, |(_, product)| product)
}

#[cfg(test)]
mod tests;
