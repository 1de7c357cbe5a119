//! The two programs, run as a user runs them.
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seldon_e2e::eventually;
use seldon_local::{Component, System};
use serde_json::{Map, Value};

const SECONDS: u64 = 20;

/// A program and what it has printed; it does not outlive the case.
pub(crate) struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts one with these variables and no others: not those of whoever runs the tests.
    fn start(program: &Path, variables: &[(&str, String)]) -> Result<Self> {
        let mut child = Command::new(program)
            .env_clear()
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let lines = Arc::default();
        keep(child.stdout.take(), &lines);
        keep(child.stderr.take(), &lines);
        Ok(Self { child, lines })
    }

    /// The lines that hold some words.
    pub(crate) fn said(&self, words: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lines.iter().filter(|line| line.contains(words));
        found.cloned().collect()
    }

    fn everything(&self) -> String {
        self.said("").join("\n")
    }

    /// Waits until it says something, and returns that line.
    pub(crate) fn says(&self, words: &str) -> Result<String> {
        eventually(SECONDS, || {
            let found = self.said(words).into_iter().next();
            found.with_context(|| format!("no {words:?} in\n{}", self.everything()))
        })
    }

    /// Ends it as Kubernetes does, and returns how it ended.
    pub(crate) fn end(mut self) -> Result<ExitStatus> {
        kill(self.pid()?, Signal::SIGTERM)?;
        eventually(5, || {
            let ended = self.child.try_wait()?;
            ended.with_context(|| format!("goes on after SIGTERM:\n{}", self.everything()))
        })
    }

    /// Waits until it has ended by itself and said something.
    pub(crate) fn ended_saying(mut self, words: &str) -> Result<ExitStatus> {
        let status = eventually(SECONDS, || {
            let ended = self.child.try_wait()?;
            ended.with_context(|| format!("does not end:\n{}", self.everything()))
        })?;
        self.says(words)?;
        Ok(status)
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end, for as long as the process runs.
fn keep(output: Option<impl Read + Send + 'static>, lines: &Arc<Mutex<Vec<String>>>) {
    let Some(output) = output else { return };
    let lines = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push(line);
        }
    });
}

/// Starts the hodometer for a system, with more variables.
pub(crate) fn hodometer(system: &System, more: &[(&str, String)]) -> Result<Process> {
    let program = system.config().parts.scheduler.clone();
    let program = program.with_file_name("seldon-hodometer");
    let mut variables = vec![
        ("SCHEDULER_HOST", "127.0.0.1".to_owned()),
        (
            "SCHEDULER_PLAINTXT_PORT",
            system.ports().scheduler.api.to_string(),
        ),
        ("CLUSTER_ID", ID.to_owned()),
    ];
    variables.extend_from_slice(more);
    Process::start(&program, &variables)
}

/// The installation's identifier in all cases.
pub(crate) const ID: &str = "6f1c1d8e-7a50-4c0a-9a4e-3d1b5f0c2a11";

/// The receiver that users have.
pub(crate) struct Receiver {
    process: Process,
    port: u16,
}

impl Receiver {
    pub(crate) fn start(system: &System) -> Result<Self> {
        let program = system.config().parts.scheduler.clone();
        let program = program.with_file_name("seldon-hodometer-receiver");
        let variables = [
            ("LISTEN_PORT", "0".to_owned()),
            ("LISTEN_HOST", "127.0.0.1".to_owned()),
            ("RECORD_LEVEL", "ALL".to_owned()),
        ];
        let process = Process::start(&program, &variables)?;
        let line = process.says("listening")?;
        let (_, address) = line.split_once("127.0.0.1:").context("no address")?;
        let digits = address.chars().take_while(char::is_ascii_digit);
        let port = digits.collect::<String>().parse()?;
        Ok(Self { process, port })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The events so far.
    pub(crate) fn events(&self) -> Result<Vec<Value>> {
        let lines = self.process.said(r#""event":"#);
        lines
            .iter()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// Waits until there are so many events, and returns the properties of the last.
    pub(crate) fn properties(&self, events: usize) -> Result<Map<String, Value>> {
        eventually(SECONDS, || {
            let all = self.events()?;
            ensure!(all.len() >= events, "{} events: {all:?}", all.len());
            properties(all.last().context("no event")?)
        })
    }

    pub(crate) fn end(self) -> Result<ExitStatus> {
        self.process.end()
    }
}

pub(crate) fn properties(event: &Value) -> Result<Map<String, Value>> {
    let properties = event["properties"].as_object().cloned();
    properties.with_context(|| format!("no properties in {event}"))
}

/// A scheduler and nothing else.
pub(crate) async fn scheduler(
    change: impl FnOnce(&mut seldon_local::Config) + Send + 'static,
) -> Result<System> {
    use Component::{Agent, Envoy, MlServer};
    let parts = [Agent(0), MlServer(0), Envoy(0)];
    let builder = System::builder().config(change);
    let builder = parts
        .into_iter()
        .fold(builder, |builder, part| builder.without(part));
    builder.start().await
}
