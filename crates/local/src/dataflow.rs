//! How the processes of pipelines are started.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use crate::component::Component;
use crate::config::{Config, flags};
use crate::process::Launch;

impl Config {
    /// Where Kafka is: the given one, or the embedded broker.
    pub fn kafka_bootstrap(&self) -> Option<String> {
        let own = self.ports.brokers.first();
        self.kafka
            .clone()
            .or_else(|| own.map(|ports| format!("127.0.0.1:{}", ports.kafka)))
    }

    /// Writes the settings for Kafka that all read, and returns their file; none without pipelines.
    pub(crate) fn kafka_file(&self) -> Result<Option<PathBuf>> {
        let Some(bootstrap) = self.kafka_bootstrap() else {
            return Ok(None);
        };
        let file = self.run_dir.join("kafka.json");
        let content = json!({
            "topicPrefix": "seldon",
            "bootstrap.servers": bootstrap,
            "consumer": {},
            "producer": {},
            "streams": {},
        });
        // Renamed into place: others may read it at this moment.
        crate::supervise::write(&file, &content)?;
        Ok(Some(file))
    }

    fn kafka_needed(&self) -> Result<PathBuf> {
        self.kafka_file()?.context("pipelines need a Kafka")
    }

    pub(crate) fn broker(&self, launch: &mut Launch) -> Result<()> {
        let ports = self.ports.brokers.first().context("no broker here")?;
        let data = launch.folder.join("data");
        fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        launch.program.clone_from(&self.parts.broker);
        launch.args = flags(&[
            ("listen-host", &"127.0.0.1"),
            ("port", &ports.kafka),
            ("health-port", &ports.health),
            ("data-dir", &data.display()),
            ("log-level", &self.log_level),
        ]);
        Ok(())
    }

    pub(crate) fn model_gateway(&self, index: usize, launch: &mut Launch) -> Result<()> {
        let component = Component::ModelGateway(index);
        let ports = self.ports.model_gateways.get(index);
        let ports = ports.with_context(|| format!("no {component} in this system"))?;
        launch.program.clone_from(&self.parts.model_gateway);
        launch.args = flags(&[
            ("name", &component),
            ("listen-host", &"127.0.0.1"),
            ("scheduler-host", &"127.0.0.1"),
            ("scheduler-plaintxt-port", &self.scheduler_seen().api),
            ("envoy-host", &"127.0.0.1"),
            ("envoy-port", &self.envoy_port()),
            ("kafka-config-path", &self.kafka_needed()?.display()),
            ("health-probe-port", &ports.health),
            ("log-level", &self.log_level),
        ]);
        Ok(())
    }

    pub(crate) fn pipeline_gateway(&self, index: usize, launch: &mut Launch) -> Result<()> {
        let component = Component::PipelineGateway(index);
        let ports = self.ports.pipeline_gateways.get(index);
        let ports = ports.with_context(|| format!("no {component} in this system"))?;
        launch.program.clone_from(&self.parts.pipeline_gateway);
        launch.args = flags(&[
            ("pod-name", &component),
            ("host", &"127.0.0.1"),
            ("http-port", &ports.http),
            ("grpc-port", &ports.grpc),
            ("metrics-port", &ports.metrics),
            ("health-probe-port", &ports.health),
            ("scheduler-host", &"127.0.0.1"),
            ("scheduler-plaintxt-port", &self.scheduler_seen().api),
            ("envoy-host", &"127.0.0.1"),
            ("envoy-port", &self.envoy_port()),
            ("kafka-config-path", &self.kafka_needed()?.display()),
            ("log-level", &self.log_level),
        ]);
        Ok(())
    }

    pub(crate) fn engine(&self, index: usize, launch: &mut Launch) -> Result<()> {
        let component = Component::DataflowEngine(index);
        let ports = self.ports.engines.get(index);
        let ports = ports.with_context(|| format!("no {component} in this system"))?;
        launch.program.clone_from(&self.parts.engine);
        launch.args = flags(&[
            ("dataflow-replica-id", &component),
            ("upstream-host", &"127.0.0.1"),
            ("upstream-port", &self.scheduler_seen().dataflow),
            ("kafka-config-path", &self.kafka_needed()?.display()),
            ("health-server-host", &"127.0.0.1"),
            ("health-server-port", &ports.health),
            ("log-level-app", &self.log_level),
        ]);
        Ok(())
    }
}
