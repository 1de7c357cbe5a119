//! Describes the system that is wanted, then starts it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use seldon_components::{Cache, EnvoyVersion};

use crate::component::Component;
use crate::config::Config;
use crate::counts::Counts;
use crate::parts::{Parts, make_artefacts};
use crate::ports::Ports;
use crate::system::System;

type Change = Box<dyn FnOnce(&mut Config) + Send>;

/// A system that is not started yet. Without [`Builder::ports`] it takes free ports, so any number run at once.
pub struct Builder {
    counts: Counts,
    kafka: Option<String>,
    envoy_version: EnvoyVersion,
    ports: Option<Ports>,
    run_dir: Option<PathBuf>,
    artefacts: Option<PathBuf>,
    runtimes: bool,
    without: Vec<Component>,
    deadline: Duration,
    change: Vec<Change>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            counts: Counts::new(1, 1),
            kafka: None,
            envoy_version: EnvoyVersion::default(),
            ports: None,
            run_dir: None,
            artefacts: None,
            runtimes: false,
            without: Vec::new(),
            deadline: Duration::from_secs(120),
            change: Vec::new(),
        }
    }
}

impl Builder {
    /// Sets how many replicas of the server there are, each an MLServer with its agent.
    pub fn servers(mut self, count: usize) -> Self {
        self.counts.replicas = count;
        self
    }

    /// Sets how many Envoys there are.
    pub fn envoys(mut self, count: usize) -> Self {
        self.counts.envoys = count;
        self
    }

    /// Sets how many replicas of the server `triton` there are, each with its agent (none).
    pub fn triton(mut self, count: usize) -> Self {
        self.counts.tritons = count;
        self
    }

    /// Adds what pipelines need: a model gateway, a pipeline gateway, an engine and the embedded broker.
    pub fn pipelines(mut self) -> Self {
        self.counts = self.counts.pipelines();
        self.counts.brokers = usize::from(self.kafka.is_none());
        self
    }

    /// Uses a Kafka of the caller's instead of the embedded broker.
    pub fn kafka(mut self, bootstrap: impl Into<String>) -> Self {
        self.kafka = Some(bootstrap.into());
        self.counts.brokers = 0;
        self
    }

    /// Sets how many model gateways and as many pipeline gateways there are.
    pub fn gateways(mut self, count: usize) -> Self {
        self.counts.model_gateways = count;
        self.counts.pipeline_gateways = count;
        self
    }

    /// Sets how many dataflow engines there are.
    pub fn engines(mut self, count: usize) -> Self {
        self.counts.engines = count;
        self
    }

    /// Sets the release of Envoy.
    pub fn envoy_version(mut self, version: EnvoyVersion) -> Self {
        self.envoy_version = version;
        self
    }

    /// Sets the ports, and with them how many processes of each kind there are.
    pub fn ports(mut self, ports: Ports) -> Self {
        self.ports = Some(ports);
        self
    }

    /// Sets the folder for logs and data; without it a temporary one is used, and kept if the caller panics.
    pub fn run_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.run_dir = Some(folder.into());
        self
    }

    /// Sets the folder that `gs://` reads; without it the sample artefacts are made there.
    pub fn artefacts(mut self, folder: impl Into<PathBuf>) -> Self {
        self.artefacts = Some(folder.into());
        self
    }

    /// Adds MLServer's runtimes of XGBoost, LightGBM and MLflow, and their sample artefacts.
    pub fn runtimes(mut self) -> Self {
        self.runtimes = true;
        self
    }

    /// Tells whether [`Builder::runtimes`] was asked for.
    pub fn has_runtimes(&self) -> bool {
        self.runtimes
    }

    /// Leaves a process out at first; [`System::restart`] starts it.
    pub fn without(mut self, component: Component) -> Self {
        self.without.push(component);
        self
    }

    /// Sets how long the whole system may take to get ready (2 minutes).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Adds an argument to a process, or to all of a kind (`agent`, `envoy-1`).
    pub fn arg(self, component: impl ToString, argument: impl Into<String>) -> Self {
        let (component, argument) = (component.to_string(), argument.into());
        self.config(move |config| config.args.entry(component).or_default().push(argument))
    }

    /// Sets a variable for a process, or for all of a kind.
    pub fn env(
        self,
        component: impl ToString,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        let (component, name, value) = (component.to_string(), name.into(), value.into());
        self.config(move |config| {
            config.env.entry(component).or_default().insert(name, value);
        })
    }

    /// Changes anything else of the configuration.
    pub fn config(mut self, change: impl FnOnce(&mut Config) + Send + 'static) -> Self {
        self.change.push(Box::new(change));
        self
    }

    /// Fetches what is missing, starts every process and waits until the system is ready.
    pub async fn start(self) -> Result<System> {
        let deadline = self.deadline;
        let system = tokio::task::spawn_blocking(|| self.prepare())
            .await
            .context("set-up panicked")??;
        let (mut system, without) = system;
        system.start_all(&without).await?;
        system.wait_ready(deadline).await?;
        Ok(system)
    }

    fn prepare(self) -> Result<(System, Vec<Component>)> {
        let cache = Cache::open()?;
        let counts = self.ports.as_ref().map_or(self.counts, Ports::counts);
        let parts = Parts::find(&cache, self.envoy_version, &counts)?;
        let artefacts = match self.artefacts {
            Some(folder) => folder
                .canonicalize()
                .with_context(|| format!("no folder {}", folder.display()))?,
            None => {
                let folder = cache.root().join("artefacts");
                make_artefacts(&cache, &folder, self.runtimes)?;
                folder
            }
        };
        let (ports, reservation) = match self.ports {
            Some(ports) => {
                ports.check_free()?;
                (ports, None)
            }
            None => {
                let held = Ports::free(&counts)?;
                (held.ports.clone(), Some(held))
            }
        };
        let (run_dir, temporary) = match self.run_dir {
            Some(folder) => {
                std::fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot create {}", folder.display()))?;
                (folder.canonicalize()?, None)
            }
            None => {
                let folder = tempfile::Builder::new().prefix("seldon-").tempdir()?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        let mut config = Config::new(run_dir, ports, parts, artefacts);
        config.kafka = self.kafka;
        if self.runtimes {
            config.add_runtimes(cache.mlserver_runtimes()?);
        }
        for change in self.change {
            change(&mut config);
        }
        Ok((System::new(config, temporary, reservation), self.without))
    }
}
