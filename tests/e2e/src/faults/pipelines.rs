//! Pipelines on the fleet.
use anyhow::{Context, Result, ensure};
use seldon_proto::scheduler as pb;
use seldon_proto::scheduler::pipeline_version_state::PipelineStatus;

use crate::faults::fleet::Fleet;
use crate::wait::eventually_async;

/// A pipeline whose steps follow one another.
pub fn chain(name: &str, steps: &[&str]) -> pb::Pipeline {
    let mut all: Vec<pb::PipelineStep> = Vec::new();
    for step in steps {
        let before = all.last().map(|step| step.name.clone());
        all.push(pb::PipelineStep {
            name: (*step).to_owned(),
            inputs: before.into_iter().collect(),
            ..Default::default()
        });
    }
    let last = steps.last().map(|step| (*step).to_owned());
    pb::Pipeline {
        name: name.to_owned(),
        steps: all,
        output: Some(pb::PipelineOutput {
            steps: last.into_iter().collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Fleet {
    pub async fn load_pipeline(&self, pipeline: pb::Pipeline) -> Result<()> {
        let request = pb::LoadPipelineRequest {
            pipeline: Some(pipeline),
        };
        self.scheduler.clone().load_pipeline(request).await?;
        Ok(())
    }

    pub async fn unload_pipeline(&self, name: &str) -> Result<()> {
        let request = pb::UnloadPipelineRequest {
            name: name.to_owned(),
        };
        self.scheduler.clone().unload_pipeline(request).await?;
        Ok(())
    }

    /// Returns what the scheduler says of a pipeline's newest version.
    pub async fn pipeline_status(&self, name: &str) -> Result<pb::PipelineWithState> {
        let request = pb::PipelineStatusRequest {
            subscriber_name: "faults".to_owned(),
            name: Some(name.to_owned()),
            all_versions: false,
        };
        let answers = self.scheduler.clone().pipeline_status(request).await?;
        let answer = answers.into_inner().message().await?.context("no answer")?;
        let newest = answer.versions.into_iter().next_back();
        newest.with_context(|| format!("nothing about {name}"))
    }

    /// Waits until a version of a pipeline is ready: its engine has it, its gateways have it, and Envoys lead to them.
    pub async fn pipeline_ready(&self, name: &str, version: u32, seconds: u64) -> Result<()> {
        let look = async || {
            let state = self.pipeline_status(name).await?.state.unwrap_or_default();
            let ready = PipelineStatus::PipelineReady;
            ensure!(
                state.status() == ready
                    && state.pipeline_gw_status() == ready
                    && state.pipeline_version >= version,
                "version {} of {name} is {}: {}; at its gateways {}: {}",
                state.pipeline_version,
                state.status().as_str_name(),
                state.reason,
                state.pipeline_gw_status().as_str_name(),
                state.pipeline_gw_reason
            );
            Ok(())
        };
        eventually_async(seconds, look).await
    }
}
