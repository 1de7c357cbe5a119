//! `seldon local`: a system kept running in the background.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use comfy_table::Table;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seldon_components::{Cache, EnvoyVersion};

use crate::component::Component;
use crate::config::Config;
use crate::counts::Counts;
use crate::parts::{Parts, make_artefacts};
use crate::ports::{FirstPorts, Ports, ReplicaPorts};
use crate::ready::ready;
use crate::supervise::{Home, ProcessStatus, kill_leftovers, supervise, write};

/// Runs the whole system on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start the system in the background and wait until it is ready
    Up(Box<Up>),
    /// Stop the system
    Down,
    /// Show every process, its ports and whether it is ready
    Status,
    /// Print what a process has printed; without a name, that of all
    Logs(Logs),
    #[command(hide = true)]
    Supervise,
}

#[derive(Debug, clap::Args)]
struct Up {
    /// Replicas of a server: mlserver=2
    #[arg(long, value_name = "SERVER=REPLICAS", default_value = "mlserver=1", value_parser = servers)]
    servers: usize,
    /// Give MLServer the runtimes of XGBoost, LightGBM and MLflow as well
    #[arg(long)]
    runtimes: bool,
    /// Leave Triton out
    #[arg(long)]
    no_triton: bool,
    /// Leave pipelines out: no Kafka, no gateways, no dataflow engine
    #[arg(long)]
    no_pipelines: bool,
    /// A Kafka to use instead of the embedded broker
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "no_pipelines")]
    kafka_bootstrap: Option<String>,
    /// Number of Envoys
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    envoys: u8,
    /// Worker threads of each Envoy
    #[arg(long, value_name = "N", default_value_t = 2)]
    envoy_concurrency: usize,
    /// Folder that gs:// reads [default: sample artefacts that are made here]
    #[arg(long, value_name = "FOLDER")]
    artefacts: Option<PathBuf>,
    /// Memory that each replica offers to models, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 10_000_000)]
    memory_bytes: u64,
    /// How much more models may need together, in percent of that: those used least recently go to disk
    #[arg(
        long,
        env = "SELDON_OVERCOMMIT_PERCENTAGE",
        value_name = "PERCENT",
        default_value_t = 20
    )]
    over_commit_percentage: u32,
    /// Level of the processes' logs
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// Time that the system may take to get ready
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout_secs: u64,
    /// Added to every port: for a second system beside another (which needs its own SELDON_HOME)
    #[arg(long, value_name = "N", default_value_t = 0)]
    port_offset: u16,
    #[command(flatten, next_help_heading = "Ports")]
    ports: FirstPorts,
}

#[derive(Debug, clap::Args)]
struct Logs {
    /// scheduler, envoy-0, agent-0, mlserver-0, triton-0, kafka, dataflow-engine-0, …, or supervisor
    component: Option<String>,
    /// Number of lines from the end
    #[arg(long, short = 'n', default_value_t = 100)]
    lines: usize,
    /// Go on printing what is added
    #[arg(long, short)]
    follow: bool,
}

fn servers(text: &str) -> Result<usize, String> {
    match text.split_once('=') {
        Some(("mlserver", count)) => match count.parse() {
            Ok(count @ 1..=20) => Ok(count),
            _ => Err(format!("{count} is not a number of replicas from 1 to 20")),
        },
        Some((other, _)) => Err(format!(
            "no server {other} can be run locally: mlserver can"
        )),
        None => Err("write it as mlserver=2".to_owned()),
    }
}

/// Runs a command of `seldon local`.
pub async fn run(args: Args) -> Result<()> {
    let home = Home::find()?;
    match args.command {
        Action::Up(up) => up.run(&home).await,
        Action::Down => down(&home),
        Action::Status => status(&home).await,
        Action::Logs(logs) => logs.run(&home),
        Action::Supervise => supervise(&home).await,
    }
}

impl Up {
    async fn run(self, home: &Home) -> Result<()> {
        let Some(lock) = home.lock()? else {
            bail!(
                "a local system runs already: see `seldon local status`, stop it by `seldon local down`"
            );
        };
        let deadline = Instant::now() + Duration::from_secs(self.timeout_secs);
        let config = {
            let home = home.clone();
            tokio::task::spawn_blocking(move || self.config(&home))
                .await
                .context("set-up panicked")??
        };
        write(&home.config(), &config)?;
        let _ = fs::remove_file(home.status());
        drop(lock);
        let mut supervisor = start_supervisor(home)?;
        eprintln!("starting {}", list(&config.components()));
        for component in config.components() {
            let (port, path) = config.readiness(component)?;
            let mut quiet_until = Instant::now() + Duration::from_secs(5);
            while let Err(why) = ready(port, path).await {
                if let Some(status) = supervisor.try_wait()? {
                    bail!("the supervisor ended ({status}): {}", tail(&home.log(), 15));
                }
                if Instant::now() > deadline {
                    let log = tail(&config.log(component), 15);
                    let _ = down(home);
                    bail!("{component} did not get ready in time ({why:#}); it printed:\n{log}");
                }
                if Instant::now() > quiet_until {
                    eprintln!("waiting for {component}: {why:#}");
                    quiet_until += Duration::from_secs(10);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        say(ports_table(&config))?;
        say(format_args!("logs and data: {}", config.run_dir.display()))
    }

    fn counts(&self) -> Counts {
        let models = Counts {
            tritons: usize::from(!self.no_triton),
            ..Counts::new(self.servers, usize::from(self.envoys))
        };
        if self.no_pipelines {
            return models;
        }
        Counts {
            brokers: usize::from(self.kafka_bootstrap.is_none()),
            ..models.pipelines()
        }
    }

    fn config(self, home: &Home) -> Result<Config> {
        let counts = self.counts();
        let ports = Ports::from_first(&self.ports, &counts)?;
        let ports = ports.shifted(self.port_offset);
        let run_dir = home.folder.join("run");
        kill_leftovers(&run_dir);
        ports.check_free()?;
        let cache = Cache::open()?;
        let parts = Parts::find(&cache, EnvoyVersion::default(), &counts)?;
        let artefacts = match self.artefacts {
            Some(folder) => folder
                .canonicalize()
                .with_context(|| format!("no folder {}", folder.display()))?,
            None => {
                let folder = home.folder.join("artefacts");
                make_artefacts(&cache, &folder, self.runtimes)?;
                folder
            }
        };
        fs::create_dir_all(&run_dir)
            .with_context(|| format!("cannot create {}", run_dir.display()))?;
        let mut config = Config::new(run_dir, ports, parts, artefacts);
        if self.runtimes {
            config.add_runtimes(cache.mlserver_runtimes()?);
        }
        // Where the user says so, agents inherit it.
        if std::env::var_os("SELDON_SECRETS_PATH").is_none() {
            let secrets = home.folder.join("secrets").display().to_string();
            let agents = config.env.entry("agent".to_owned()).or_default();
            agents.insert("SELDON_SECRETS_PATH".to_owned(), secrets);
        }
        Ok(Config {
            envoy_concurrency: self.envoy_concurrency,
            memory_bytes: self.memory_bytes,
            over_commit_percentage: self.over_commit_percentage,
            log_level: self.log_level,
            kafka: self.kafka_bootstrap,
            ..config
        })
    }
}

/// Starts this program again as the supervisor, in the background.
fn start_supervisor(home: &Home) -> Result<std::process::Child> {
    let log = fs::File::create(home.log())
        .with_context(|| format!("cannot write {}", home.log().display()))?;
    Command::new(std::env::current_exe().context("cannot tell where this program is")?)
        .args(["local", "supervise"])
        .env("SELDON_HOME", &home.folder)
        .current_dir(&home.folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")
}

fn down(home: &Home) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    if home.lock()?.is_some() {
        return say("no local system runs");
    }
    let supervisor = home.read_status()?.supervisor;
    let pid = Pid::from_raw(i32::try_from(supervisor).context("the status file names no process")?);
    kill(pid, Signal::SIGTERM).with_context(|| format!("cannot stop the supervisor {pid}"))?;
    let start = Instant::now();
    while home.lock()?.is_none() {
        if start.elapsed() > PATIENCE {
            // Its children die with it.
            kill(pid, Signal::SIGKILL)
                .with_context(|| format!("cannot kill the supervisor {pid}"))?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    say("stopped")
}

const READY: &str = "ready";

async fn status(home: &Home) -> Result<()> {
    if home.lock()?.is_some() {
        bail!("no local system runs: start one by `seldon local up`");
    }
    let (config, status) = (home.read_config()?, home.read_status()?);
    let mut table = table(&["process", "state", "pid", "restarts"]);
    let mut missing = Vec::new();
    for component in config.components() {
        let name = component.to_string();
        let none = ProcessStatus::default();
        let process = status.processes.get(&name).unwrap_or(&none);
        let (port, path) = config.readiness(component)?;
        let state = match process.pid {
            None => "ended, starts again".to_owned(),
            Some(_) => ready(port, path)
                .await
                .map_or_else(|why| format!("not ready: {why}"), |()| READY.to_owned()),
        };
        if state != READY {
            missing.push(component);
        }
        let pid = process.pid.map(|pid| pid.to_string()).unwrap_or_default();
        table.add_row([name, state, pid, process.restarts.to_string()]);
    }
    say(format_args!(
        "{table}\n\n{}\nlogs and data: {}",
        ports_table(&config),
        config.run_dir.display()
    ))?;
    // Scripts ask by the exit status.
    if let Some(first) = missing.first() {
        bail!(
            "not ready: {}; `seldon local logs {first}` tells why",
            list(&missing)
        );
    }
    Ok(())
}

fn ports_table(config: &Config) -> Table {
    let ports = &config.ports;
    let mut table = table(&["what", "where"]);
    for (index, envoy) in ports.envoys.iter().enumerate() {
        table.add_row([
            format!("inference, envoy-{index}"),
            format!("0.0.0.0:{}", envoy.data),
        ]);
        let status = format!("http://0.0.0.0:{}/ready, /stats/prometheus", envoy.status);
        table.add_row([format!("status, envoy-{index}"), status]);
    }
    let scheduler = &ports.scheduler;
    table.add_row([
        "scheduler (SELDON_SCHEDULE_HOST)".to_owned(),
        format!("0.0.0.0:{}", scheduler.api),
    ]);
    table.add_row([
        "discovery, agents".to_owned(),
        format!("{}, {}", scheduler.xds, scheduler.agents),
    ]);
    let mut replica = |server: &str, index: usize, ports: &ReplicaPorts| {
        let of = format!("{server} {index}: agent, its metrics, server");
        let numbers = [ports.rest, ports.metrics, ports.server_rest];
        table.add_row([of, numbers.map(|port| port.to_string()).join(", ")]);
    };
    for (index, ports) in ports.replicas.iter().enumerate() {
        replica("mlserver", index, ports);
    }
    for (index, ports) in ports.tritons.iter().enumerate() {
        replica("triton", index, &ports.replica());
    }
    if let Some(bootstrap) = config.kafka_bootstrap() {
        table.add_row(["kafka (SELDON_KAFKA_BROKER)".to_owned(), bootstrap]);
    }
    for (index, gateway) in ports.pipeline_gateways.iter().enumerate() {
        let of = format!("pipelinegateway-{index}: REST, gRPC, metrics");
        let numbers = [gateway.http, gateway.grpc, gateway.metrics];
        table.add_row([of, numbers.map(|port| port.to_string()).join(", ")]);
    }
    table
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_header(header.iter().copied());
    table
}

fn list(components: &[Component]) -> String {
    components
        .iter()
        .map(Component::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

impl Logs {
    fn run(&self, home: &Home) -> Result<()> {
        let config = home
            .read_config()
            .context("no local system was started here")?;
        let known = config.components();
        let files: Vec<(String, PathBuf)> = match self.component.as_deref() {
            None => known
                .iter()
                .map(|component| (component.to_string(), config.log(*component)))
                .collect(),
            Some("supervisor") => vec![("supervisor".to_owned(), home.log())],
            Some(name) => {
                let component: Component = name.parse().map_err(anyhow::Error::msg)?;
                if !known.contains(&component) {
                    bail!("no {component} in this system: it has {}", list(&known));
                }
                vec![(component.to_string(), config.log(component))]
            }
        };
        if self.follow && files.len() > 1 {
            bail!("name the process to follow: {}", list(&known));
        }
        let several = files.len() > 1;
        for (name, path) in &files {
            if several {
                say(format_args!("--- {name}"))?;
            }
            say(tail(path, self.lines))?;
        }
        match files.first() {
            Some((_, path)) if self.follow => follow(path),
            _ => Ok(()),
        }
    }
}

/// Prints a line. That nobody reads on (`| head`) is an error here and a quiet end of the program.
fn say(text: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn follow(path: &Path) -> Result<()> {
    let mut file =
        fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    file.seek(SeekFrom::End(0))?;
    let mut added = Vec::new();
    loop {
        file.read_to_end(&mut added)?;
        std::io::stdout().write_all(&added)?;
        std::io::stdout().flush()?;
        added.clear();
        std::thread::sleep(Duration::from_millis(200));
    }
}
