//! How Triton is started.

use std::fs;

use anyhow::{Context, Result};

use crate::component::Component;
use crate::config::{Config, flags};
use crate::ports::ReplicaPorts;
use crate::process::{Launch, remove_shared_memory};

impl Config {
    /// The number of the agent beside a Triton.
    pub fn agent_of_triton(&self, index: usize) -> Component {
        Component::Agent(self.ports.replicas.len() + index)
    }

    /// The ports of a server's replica, by the number of its agent.
    pub(crate) fn replica_of_agent(&self, agent: usize) -> Result<ReplicaPorts> {
        let (own, tritons) = (&self.ports.replicas, &self.ports.tritons);
        let triton = || tritons.get(agent.checked_sub(own.len())?);
        own.get(agent)
            .cloned()
            .or_else(|| Some(triton()?.replica()))
            .with_context(|| format!("no agent-{agent} in this system"))
    }

    pub(crate) fn triton(&self, index: usize, launch: &mut Launch) -> Result<()> {
        let ports = self.ports.tritons.get(index);
        let ports = ports.with_context(|| format!("no triton-{index} in this system"))?;
        let models = self.folder(self.agent_of_triton(index)).join("models");
        fs::create_dir_all(&models)?;
        let shared = self.shared_memory(index);
        // One that was killed together with its parent has left it.
        remove_shared_memory(&shared);
        launch.shared_memory = Some(shared.clone());
        launch.program.clone_from(&self.parts.triton);
        launch.args = flags(&[
            ("model-repository", &models.display()),
            ("model-control-mode", &"explicit"),
            ("http-address", &"127.0.0.1"),
            ("grpc-address", &"127.0.0.1"),
            ("metrics-address", &"127.0.0.1"),
            ("http-port", &ports.server_rest),
            ("grpc-port", &ports.server_grpc),
            ("metrics-port", &ports.server_metrics),
            ("allow-gpu-metrics", &"false"),
            // The default waits half a minute for models that do not go.
            ("exit-timeout-secs", &"5"),
            (
                "backend-config",
                &format!("python,shm-region-prefix-name={shared}"),
            ),
        ]);
        Ok(())
    }

    /// Names the memory that a Triton shares with its Python models, apart from any other's on this machine.
    fn shared_memory(&self, index: usize) -> String {
        let ports = self.ports.tritons.get(index);
        format!(
            "seldon-triton-{}-",
            ports.map_or(0, |ports| ports.server_grpc)
        )
    }
}
