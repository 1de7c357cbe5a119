//! `cargo xtask demo`: the documented iris model, from its manifest to an answer through Envoy, and an experiment over
//! two of them, and a pipeline.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use seldon_local::{Counts, Ports, System};
use tokio::process::Command;

use crate::workspace;

#[derive(clap::Args)]
pub struct Demo {
    /// Replicas of MLServer
    #[arg(long, default_value_t = 1)]
    servers: usize,
    /// Number of Envoys
    #[arg(long, default_value_t = 1)]
    envoys: usize,
    /// Use what is built
    #[arg(long)]
    no_build: bool,
    /// Keep it running until Ctrl-C
    #[arg(long)]
    keep: bool,
}

const MANIFEST: &str = "samples/models/sklearn-iris-gs.yaml";
const SECOND: &str = "samples/models/sklearn2.yaml";
const EXPERIMENT: &str = "samples/experiments/ab-default-model.yaml";
const PIPELINE: &str = "samples/pipelines/tfsimples.yaml";
const SIMPLE: &str = r#"{"inputs":[{"name":"INPUT0","data":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],"datatype":"INT32","shape":[1,16]},{"name":"INPUT1","data":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],"datatype":"INT32","shape":[1,16]}]}"#;
const REST: &str = r#"{"inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4]]}]}"#;
const GRPC: &str = r#"{"model_name":"iris","inputs":[{"name":"input","contents":{"fp32_contents":[1,2,3,4]},"datatype":"FP32","shape":[1,4]}]}"#;

impl Demo {
    pub fn run(&self) -> Result<()> {
        let start = Instant::now();
        if !self.no_build {
            workspace::build()?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            tokio::select! {
                result = self.show(start) => result,
                // Every process ends with the system that is dropped here.
                _ = tokio::signal::ctrl_c() => {
                    println!("stopped");
                    Ok(())
                }
            }
        })
    }

    async fn show(&self, start: Instant) -> Result<()> {
        let system = self.start().await?;
        println!("ready after {:.1} s\n", start.elapsed().as_secs_f32());
        let ports = system.ports().clone();
        let envoy = format!(
            "127.0.0.1:{}",
            ports.envoys.first().context("one Envoy at least")?.data
        );
        let scheduler = format!("127.0.0.1:{}", ports.scheduler.api);
        let kafka = system.config().kafka_bootstrap().unwrap_or_default();
        let seldon = Seldon {
            program: &system.config().parts.cli,
            scheduler: &scheduler,
            envoy: &envoy,
            kafka: &kafka,
        };

        cat(MANIFEST)?;
        load(&seldon, MANIFEST, "iris").await?;
        let url = format!("http://{envoy}/v2/models/iris/infer");
        curl(&[
            "-s",
            "-i",
            &url,
            "-H",
            "Content-Type: application/json",
            "-d",
            REST,
        ])
        .await?;
        seldon.run(&["model", "infer", "iris", REST]).await?;
        seldon
            .run(&["model", "infer", "iris", "--inference-mode", "grpc", GRPC])
            .await?;
        seldon.run(&["xds", "status"]).await?;
        load(&seldon, SECOND, "iris2").await?;
        experiment(&seldon).await?;
        pipeline(&seldon).await?;
        if self.keep {
            println!(
                "running until Ctrl-C; SELDON_SCHEDULE_HOST={scheduler} SELDON_INFER_HOST={envoy} SELDON_KAFKA_BROKER={kafka}"
            );
            tokio::signal::ctrl_c().await?;
        }
        seldon
            .run(&["experiment", "stop", "experiment-sample"])
            .await?;
        ask(&seldon, &["-i", "50"]).await?;
        seldon.run(&["model", "unload", "iris"]).await?;
        seldon.run(&["model", "unload", "iris2"]).await?;
        system.stop().await;
        println!("stopped after {:.1} s", start.elapsed().as_secs_f32());
        Ok(())
    }

    /// On the documented ports where they are free, else on others.
    async fn start(&self) -> Result<System> {
        let folder = workspace::root()?.join("target/demo");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        let mut builder = System::builder()
            .servers(self.servers)
            .envoys(self.envoys)
            .triton(1)
            .pipelines()
            .run_dir(folder);
        let counts = Counts {
            tritons: 1,
            ..Counts::new(self.servers, self.envoys).pipelines()
        };
        let documented = Ports::documented(&counts)?;
        match documented.check_free() {
            Ok(()) => builder = builder.ports(documented),
            Err(taken) => println!("{taken:#}: taking other ports"),
        }
        builder.start().await
    }
}

fn cat(file: &str) -> Result<()> {
    let text = std::fs::read_to_string(workspace::root()?.join(file))?;
    println!("$ cat {file}\n{text}");
    Ok(())
}

async fn load(seldon: &Seldon<'_>, manifest: &str, model: &str) -> Result<()> {
    seldon.run(&["model", "load", "-f", manifest]).await?;
    let wait = ["model", "status", model, "-w", "ModelAvailable", "-t", "60"];
    seldon.run(&wait).await
}

/// The documented A/B test, up to the moment before it is stopped.
async fn experiment(seldon: &Seldon<'_>) -> Result<()> {
    cat(EXPERIMENT)?;
    seldon
        .run(&["experiment", "start", "-f", EXPERIMENT])
        .await?;
    let status = ["experiment", "status", "experiment-sample"];
    seldon
        .run(&[&status[..], &["-w", "-t", "30"]].concat())
        .await?;
    ask(seldon, &["-i", "50"]).await?;
    // The session of one request keeps the next fifty with the same candidate.
    ask(seldon, &["-s", "-i", "50"]).await?;
    seldon
        .run(&[&status[..], &["--output", "table"]].concat())
        .await?;
    seldon.run(&["explain", "route", "iris"]).await?;
    let header = ["-H", "x-seldon-route=:iris2_1:"];
    seldon
        .run(&[&["explain", "route", "iris"], &header[..]].concat())
        .await
}

/// The documented chain of two models.
async fn pipeline(seldon: &Seldon<'_>) -> Result<()> {
    for model in ["tfsimple1", "tfsimple2"] {
        load(seldon, &format!("samples/models/{model}.yaml"), model).await?;
    }
    cat(PIPELINE)?;
    seldon.run(&["pipeline", "load", "-f", PIPELINE]).await?;
    seldon
        .run(&["pipeline", "status", "tfsimples", "-w", "PipelineReady"])
        .await?;
    seldon
        .run(&["pipeline", "infer", "tfsimples", SIMPLE])
        .await?;
    seldon.run(&["pipeline", "inspect", "tfsimples"]).await?;
    seldon.run(&["pipeline", "unload", "tfsimples"]).await
}

async fn ask(seldon: &Seldon<'_>, flags: &[&str]) -> Result<()> {
    seldon
        .run(&[&["model", "infer", "iris"], flags, &[REST]].concat())
        .await
}

struct Seldon<'a> {
    program: &'a Path,
    scheduler: &'a str,
    envoy: &'a str,
    kafka: &'a str,
}

impl Seldon<'_> {
    async fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(self.program);
        command
            .args(arguments)
            .env("SELDON_SCHEDULE_HOST", self.scheduler)
            .env("SELDON_INFER_HOST", self.envoy)
            .env("SELDON_KAFKA_BROKER", self.kafka);
        show("seldon", arguments, &mut command).await
    }
}

async fn curl(arguments: &[&str]) -> Result<()> {
    show("curl", arguments, Command::new("curl").args(arguments)).await
}

/// Prints a command as one would type it, runs it and prints its answer.
async fn show(name: &str, arguments: &[&str], command: &mut Command) -> Result<()> {
    let quoted: Vec<String> = arguments.iter().map(|word| quote(word)).collect();
    println!("$ {name} {}", quoted.join(" "));
    let done = command
        .current_dir(workspace::root()?)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot start {name}"))?;
    println!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    if !done.status.success() {
        bail!("{name} ended with {}", done.status);
    }
    Ok(())
}

fn quote(word: &str) -> String {
    let plain = word
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || "-_./:=".contains(letter));
    if plain {
        word.to_owned()
    } else {
        format!("'{word}'")
    }
}
