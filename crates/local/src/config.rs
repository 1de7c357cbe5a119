//! What is started and how: from a configuration to command lines and files, without starting anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bootstrap;
use crate::component::Component;
use crate::parts::Parts;
use crate::ports::{Ports, ReplicaPorts, SchedulerPorts};
use crate::process::{Launch, RUN_VARIABLE};

/// Everything that defines a local system; kept as a file by `seldon local up`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Holds a folder and a log file for each process.
    pub run_dir: PathBuf,
    pub ports: Ports,
    pub parts: Parts,
    /// What the remote `gs` reads.
    pub artefacts: PathBuf,
    /// Worker threads of each Envoy.
    pub envoy_concurrency: usize,
    /// Memory that each replica offers to models, in bytes.
    pub memory_bytes: u64,
    /// How much more than that may be promised, in percent.
    pub over_commit_percentage: u32,
    /// Requirements of models that the replicas of `mlserver` meet.
    pub capabilities: Vec<String>,
    /// Packages with further runtimes of MLServer, which add to those.
    #[serde(default)]
    pub runtimes: Option<PathBuf>,
    pub log_level: String,
    /// How long a scheduler that starts again waits for replicas it knew: 10 s here, not the 30 of the documented local
    /// installation (or the program's 300). On one machine the agents are back within a second or two, and one that was
    /// stopped for good is waited for in vain.
    pub scheduler_ready_timeout_seconds: u64,
    /// Envoys, by number, that do without the filter; for benchmarks.
    #[serde(default)]
    pub without_filter: Vec<usize>,
    /// Where agents and Envoys reach the scheduler, if not on its own ports: what lies between may be cut.
    #[serde(default)]
    pub scheduler_via: Option<SchedulerPorts>,
    /// Mutual TLS from the Envoys to the scheduler, which takes its side from variables.
    #[serde(default)]
    pub xds_tls: Option<TlsFiles>,
    /// A Kafka of others, as `host:port`; without it the embedded broker is used, where there is one.
    #[serde(default)]
    pub kafka: Option<String>,
    /// Further arguments and variables for one process or, under `agent`, `envoy` and the like, for all of a kind.
    #[serde(default)]
    pub args: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub env: BTreeMap<String, BTreeMap<String, String>>,
}

/// PEM files of one side of a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs the other side's certificate.
    pub authority: PathBuf,
}

impl Config {
    /// Returns the defaults, those of the documented local installation but for the wait of a scheduler that starts again.
    pub fn new(run_dir: PathBuf, ports: Ports, parts: Parts, artefacts: PathBuf) -> Self {
        Self {
            run_dir,
            ports,
            parts,
            artefacts,
            envoy_concurrency: 1,
            memory_bytes: 10_000_000,
            over_commit_percentage: 20,
            // Sample artefacts for Alibi's and Huggingface's runtimes are Python models that stand in; others fail to load.
            capabilities: [
                "mlserver",
                "python",
                "sklearn",
                "alibi-detect",
                "alibi-explain",
                "huggingface",
            ]
            .map(str::to_owned)
            .into(),
            runtimes: None,
            log_level: "info".to_owned(),
            scheduler_ready_timeout_seconds: 10,
            without_filter: Vec::new(),
            scheduler_via: None,
            xds_tls: None,
            kafka: None,
            args: BTreeMap::new(),
            env: BTreeMap::new(),
        }
    }

    /// Adds the runtimes of XGBoost, LightGBM and MLflow, which are in a folder of packages.
    pub(crate) fn add_runtimes(&mut self, packages: PathBuf) {
        let further = ["lightgbm", "mlflow", "xgboost"].map(str::to_owned);
        self.capabilities.extend(further);
        self.runtimes = Some(packages);
    }

    /// Returns the ports on which agents and Envoys look for the scheduler.
    pub(crate) fn scheduler_seen(&self) -> &SchedulerPorts {
        self.scheduler_via.as_ref().unwrap_or(&self.ports.scheduler)
    }

    /// Lists the processes.
    pub fn components(&self) -> Vec<Component> {
        Component::all(&self.ports.counts())
    }

    /// Returns a process's own folder. An inference server has its agent's models in the agent's folder.
    pub fn folder(&self, component: Component) -> PathBuf {
        self.run_dir.join(component.to_string())
    }

    /// Returns the file that a process prints to.
    pub fn log(&self, component: Component) -> PathBuf {
        self.run_dir.join(format!("{component}.log"))
    }

    /// Returns port and path where a process says that it is ready.
    pub(crate) fn readiness(&self, component: Component) -> Result<(u16, &'static str)> {
        Ok(match component {
            Component::Scheduler => (self.ports.scheduler.health, "/ready"),
            Component::MlServer(index) => (self.replica(index)?.server_rest, "/v2/health/ready"),
            Component::Triton(index) => {
                let ports = self.ports.tritons.get(index);
                let ports = ports.with_context(|| format!("no {component} in this system"))?;
                (ports.server_rest, "/v2/health/ready")
            }
            Component::Agent(index) => (self.replica_of_agent(index)?.ready, "/ready"),
            Component::Broker
            | Component::ModelGateway(_)
            | Component::PipelineGateway(_)
            | Component::DataflowEngine(_) => (self.dataflow_health(component)?, "/ready"),
            Component::Envoy(index) => (
                self.ports
                    .envoys
                    .get(index)
                    .with_context(|| format!("no {component} in this system"))?
                    .status,
                "/ready",
            ),
        })
    }

    fn dataflow_health(&self, component: Component) -> Result<u16> {
        let ports = &self.ports;
        let health = match component {
            Component::Broker => ports.brokers.first().map(|ports| ports.health),
            Component::ModelGateway(index) => {
                ports.model_gateways.get(index).map(|ports| ports.health)
            }
            Component::PipelineGateway(index) => {
                ports.pipeline_gateways.get(index).map(|ports| ports.health)
            }
            Component::DataflowEngine(index) => ports.engines.get(index).map(|ports| ports.health),
            _ => None,
        };
        health.with_context(|| format!("no {component} in this system"))
    }

    fn replica(&self, index: usize) -> Result<&ReplicaPorts> {
        self.ports
            .replicas
            .get(index)
            .with_context(|| format!("no replica {index} in this system"))
    }

    /// Writes the files that a process reads, and returns its command line.
    pub(crate) fn prepare(&self, component: Component) -> Result<Launch> {
        let folder = self.folder(component);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut launch = Launch {
            program: PathBuf::new(),
            args: Vec::new(),
            env: BTreeMap::from([(RUN_VARIABLE.to_owned(), self.run_dir.display().to_string())]),
            folder,
            log: self.log(component),
            shared_memory: None,
        };
        match component {
            Component::Scheduler => self.scheduler(&mut launch)?,
            Component::Broker => self.broker(&mut launch)?,
            Component::Agent(index) => self.agent(index, &mut launch)?,
            Component::MlServer(index) => self.mlserver(index, &mut launch)?,
            Component::Triton(index) => self.triton(index, &mut launch)?,
            Component::ModelGateway(index) => self.model_gateway(index, &mut launch)?,
            Component::PipelineGateway(index) => self.pipeline_gateway(index, &mut launch)?,
            Component::DataflowEngine(index) => self.engine(index, &mut launch)?,
            Component::Envoy(index) => self.envoy(index, &mut launch)?,
        }
        let name = component.to_string();
        let kind = component.kind();
        let keys = if kind == name {
            vec![kind]
        } else {
            vec![kind, name.as_str()]
        };
        for key in keys {
            launch
                .args
                .extend(self.args.get(key).into_iter().flatten().cloned());
            launch.env.extend(
                self.env
                    .get(key)
                    .into_iter()
                    .flatten()
                    .map(|(name, value)| (name.clone(), value.clone())),
            );
        }
        Ok(launch)
    }

    fn scheduler(&self, launch: &mut Launch) -> Result<()> {
        let ports = &self.ports.scheduler;
        launch.program.clone_from(&self.parts.scheduler);
        launch.args = flags(&[
            ("envoy-port", &ports.xds),
            ("scheduler-port", &ports.api),
            ("agent-port", &ports.agents),
            ("dataflow-port", &ports.dataflow),
            ("health-probe-port", &ports.health),
            ("envoy-data-port", &self.envoy_port()),
            ("filter-module", &self.parts.filter_module.display()),
            ("db-path", &launch.folder.join("db").display()),
            (
                "scheduler-ready-timeout-seconds",
                &self.scheduler_ready_timeout_seconds,
            ),
            (
                "envoy-accesslog-path",
                &self.run_dir.join("envoy-access.log").display(),
            ),
            ("log-level", &self.log_level),
        ]);
        if let Some(file) = self.kafka_file()? {
            launch
                .args
                .push(format!("--kafka-config-path={}", file.display()));
        }
        Ok(())
    }

    /// Where clients ask: the first Envoy's port.
    pub(crate) fn envoy_port(&self) -> u16 {
        self.ports.envoys.first().map_or(9000, |envoy| envoy.data)
    }

    fn agent(&self, index: usize, launch: &mut Launch) -> Result<()> {
        let ports = self.replica_of_agent(index)?;
        let triton = index.checked_sub(self.ports.replicas.len());
        let (server, ordinal) = triton.map_or(("mlserver", index), |index| ("triton", index));
        let config = launch.folder.join("config");
        fs::create_dir_all(&config)?;
        fs::create_dir_all(launch.folder.join("models"))?;
        // JSON is YAML.
        let alias =
            json!({"name": "gs", "type": "alias", "parameters": {"remote": self.artefacts}});
        let content = json!({"rclone": {"config": [alias]}});
        fs::write(
            config.join("agent.yaml"),
            serde_json::to_string_pretty(&content)? + "\n",
        )?;
        launch.program.clone_from(&self.parts.agent);
        launch.args = flags(&[
            ("agent-host", &"127.0.0.1"),
            ("server-name", &server),
            ("server-idx", &ordinal),
            ("server-type", &server),
            ("memory-bytes", &self.memory_bytes),
            ("over-commit-percentage", &self.over_commit_percentage),
            ("scheduler-host", &"127.0.0.1"),
            ("scheduler-port", &self.scheduler_seen().agents),
            ("inference-host", &"127.0.0.1"),
            ("inference-http-port", &ports.server_rest),
            ("inference-grpc-port", &ports.server_grpc),
            ("reverse-proxy-http-port", &ports.rest),
            ("reverse-proxy-grpc-port", &ports.grpc),
            ("debug-grpc-port", &ports.debug),
            ("metrics-port", &ports.metrics),
            ("drainer-port", &ports.drain),
            ("readiness-port", &ports.ready),
            ("rclone-binary", &self.parts.rclone.display()),
            (
                "allowed-local-roots",
                &format!(
                    "/var/models,/mnt/models,/models,{}",
                    self.artefacts.display()
                ),
            ),
            ("agent-folder", &launch.folder.display()),
            ("config-path", &config.display()),
            ("envoy-host", &"127.0.0.1"),
            ("envoy-port", &self.envoy_port()),
            ("log-level", &self.log_level),
        ]);
        // Triton's are the agent's own default.
        if triton.is_none() {
            let capabilities = self.capabilities.join(",");
            launch.args.push(format!("--capabilities={capabilities}"));
        }
        Ok(())
    }

    fn mlserver(&self, index: usize, launch: &mut Launch) -> Result<()> {
        let ports = self.replica(index)?;
        let models = self.folder(Component::Agent(index)).join("models");
        fs::create_dir_all(&models)?;
        launch.program.clone_from(&self.parts.mlserver);
        launch.args = vec!["start".to_owned(), models.display().to_string()];
        let variables = [
            ("MLSERVER_HOST", "127.0.0.1".to_owned()),
            ("MLSERVER_HTTP_PORT", ports.server_rest.to_string()),
            ("MLSERVER_GRPC_PORT", ports.server_grpc.to_string()),
            ("MLSERVER_METRICS_PORT", ports.server_metrics.to_string()),
            (
                "MLSERVER_MODEL_REPOSITORY_ROOT",
                models.display().to_string(),
            ),
            ("MLSERVER_LOAD_MODELS_AT_STARTUP", "false".to_owned()),
            ("MLSERVER_PARALLEL_WORKERS", "0".to_owned()),
            ("MLSERVER_GRPC_MAX_MESSAGE_LENGTH", "1048576000".to_owned()),
            ("MLSERVER_DEBUG", "false".to_owned()),
            ("PYTHONUNBUFFERED", "1".to_owned()),
        ];
        launch
            .env
            .extend(variables.map(|(name, value)| (name.to_owned(), value)));
        if let Some(packages) = &self.runtimes {
            let packages = packages.display().to_string();
            launch.env.insert("PYTHONPATH".to_owned(), packages);
        }
        Ok(())
    }

    fn envoy(&self, index: usize, launch: &mut Launch) -> Result<()> {
        let file = launch.folder.join("bootstrap.yaml");
        fs::write(&file, bootstrap::render(self, index)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        launch.program.clone_from(&self.parts.envoy);
        // Without hot restart several Envoys run side by side.
        let words: [&dyn std::fmt::Display; 7] = [
            &"--disable-hot-restart",
            &"--concurrency",
            &self.envoy_concurrency,
            &"--log-level",
            &self.log_level,
            &"--config-path",
            &file.display(),
        ];
        launch.args = words.map(ToString::to_string).into();
        Ok(())
    }
}

pub(crate) fn flags(pairs: &[(&str, &dyn std::fmt::Display)]) -> Vec<String> {
    pairs
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}
