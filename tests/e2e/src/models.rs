//! Loading models for a case, over the scheduler's API.
use anyhow::{Context, Result, ensure};
use seldon_proto::scheduler as pb;
use seldon_proto::scheduler::model_status::ModelState;

use crate::running::Running;
use crate::wait::eventually_async;

/// A model to load.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub uri: String,
    pub requirement: String,
    pub memory: u64,
    pub replicas: u32,
}

impl Spec {
    /// The documented scikit-learn model under another name.
    pub fn iris(name: &str) -> Self {
        Self::new(name, "gs://seldon-models/mlserver/iris", "sklearn")
    }

    /// A model that answers with its inputs.
    pub fn echo(name: &str) -> Self {
        Self::new(name, "gs://e2e/echo", "python")
    }

    pub fn new(name: &str, uri: &str, requirement: &str) -> Self {
        Self {
            name: name.to_owned(),
            uri: uri.to_owned(),
            requirement: requirement.to_owned(),
            memory: 1000,
            replicas: 1,
        }
    }

    pub fn memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    pub fn replicas(self, replicas: u32) -> Self {
        Self { replicas, ..self }
    }

    /// Returns the message that loads it.
    pub fn message(&self) -> pb::Model {
        pb::Model {
            meta: Some(pb::MetaData {
                name: self.name.clone(),
                ..Default::default()
            }),
            model_spec: Some(pb::ModelSpec {
                uri: self.uri.clone(),
                requirements: vec![self.requirement.clone()],
                memory_bytes: Some(self.memory),
                ..Default::default()
            }),
            deployment_spec: Some(pb::DeploymentSpec {
                replicas: self.replicas,
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// A model that a case has loaded; unloaded when dropped.
pub struct Loaded<'a> {
    running: &'a Running,
    name: String,
}

impl<'a> Loaded<'a> {
    /// Loads a model without waiting for it.
    pub fn load(running: &'a Running, spec: &Spec) -> Result<Self> {
        Self::message(running, spec.message())
    }

    /// Loads a model by its message, without waiting for it.
    pub fn message(running: &'a Running, model: pb::Model) -> Result<Self> {
        let name = model.meta.clone().unwrap_or_default().name;
        let request = pb::LoadModelRequest { model: Some(model) };
        let call = async { running.scheduler().load_model(request).await };
        running
            .block_on(call)
            .with_context(|| format!("loading {name}"))?;
        Ok(Self { running, name })
    }

    /// Loads a model and waits until requests for it are answered.
    pub fn available(running: &'a Running, spec: &Spec) -> Result<Self> {
        let loaded = Self::load(running, spec)?;
        loaded.wait(ModelState::ModelAvailable)?;
        Ok(loaded)
    }

    /// Waits until its newest version is in a state, and returns the reason given with it.
    pub fn wait(&self, state: ModelState) -> Result<String> {
        let running = self.running;
        let look = async || {
            let status = running.model_status(&self.name).await?;
            let version = status
                .versions
                .last()
                .and_then(|version| version.state.clone());
            let version = version.context("no version yet")?;
            ensure!(
                version.state() == state,
                "{} is {}: {}",
                self.name,
                version.state().as_str_name(),
                version.reason
            );
            Ok(version.reason)
        };
        running
            .block_on(eventually_async(30, look))
            .with_context(|| format!("waiting for {} to be {}", self.name, state.as_str_name()))
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        let reference = pb::ModelReference {
            name: self.name.clone(),
            version: None,
        };
        let request = pb::UnloadModelRequest {
            model: Some(reference),
            ..Default::default()
        };
        // It may be gone already: that is what was wanted.
        let _ = self
            .running
            .block_on(async { self.running.scheduler().unload_model(request).await });
    }
}
