//! A running system: its processes, and what a test or a supervisor does to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::builder::Builder;
use crate::component::Component;
use crate::config::Config;
use crate::ports::{Ports, Reservation};
use crate::process::Process;
use crate::ready::ready;

/// Processes end when this is dropped, however that comes about.
#[derive(Debug)]
pub struct System {
    config: Config,
    processes: Mutex<BTreeMap<Component, Process>>,
    temporary: Option<TempDir>,
    _reservation: Option<Reservation>,
}

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

impl System {
    /// Describes a system to start: by default one replica of MLServer, one Envoy, free ports, a temporary folder.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(
        config: Config,
        temporary: Option<TempDir>,
        reservation: Option<Reservation>,
    ) -> Self {
        Self {
            config,
            processes: Mutex::default(),
            temporary,
            _reservation: reservation,
        }
    }

    /// Returns its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns its ports.
    pub fn ports(&self) -> &Ports {
        &self.config.ports
    }

    /// Returns the file that a process prints to.
    pub fn log(&self, component: Component) -> PathBuf {
        self.config.log(component)
    }

    /// Returns the process id, if it runs.
    pub fn pid(&self, component: Component) -> Option<u32> {
        let processes = self.processes();
        processes
            .get(&component)
            .filter(|process| process.exit_status().is_none())
            .map(Process::pid)
    }

    /// Sends a signal to a process: SIGKILL, SIGSTOP, SIGCONT, ….
    pub fn kill(&self, component: Component, signal: Signal) -> Result<()> {
        let processes = self.processes();
        let process = processes
            .get(&component)
            .with_context(|| format!("{component} was not started"))?;
        process.signal(signal)
    }

    /// Ends a process (SIGTERM, after 10 s SIGKILL) and leaves it ended.
    pub async fn stop_one(&self, component: Component) {
        let process = self.processes().remove(&component);
        if let Some(process) = process {
            process.stop(GRACE).await;
        }
    }

    /// Ends a process if it runs, starts it and waits until it is ready.
    pub async fn restart(&self, component: Component) -> Result<()> {
        self.stop_one(component).await;
        self.start_one(component)?;
        self.wait_one(component, Duration::from_secs(60)).await
    }

    /// Starts a process that does not run, without waiting for it.
    pub fn start_one(&self, component: Component) -> Result<()> {
        let launch = self.config.prepare(component)?;
        let process =
            Process::start(&launch).with_context(|| format!("cannot start {component}"))?;
        self.processes().insert(component, process);
        Ok(())
    }

    pub(crate) async fn start_all(&mut self, without: &[Component]) -> Result<()> {
        for component in self.config.components() {
            if !without.contains(&component) {
                self.start_one(component)?;
            }
        }
        Ok(())
    }

    /// Tells whether a process says that it is ready.
    pub async fn is_ready(&self, component: Component) -> Result<()> {
        let (port, path) = self.config.readiness(component)?;
        ready(port, path).await
    }

    /// Waits until every started process is ready; fails at once if one ends.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<()> {
        let started: Vec<Component> = self.processes().keys().copied().collect();
        let end = tokio::time::Instant::now() + deadline;
        for component in &started {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            self.wait_for(*component, left, &started).await?;
        }
        Ok(())
    }

    /// Waits until one process is ready; fails at once if it ends.
    pub async fn wait_one(&self, component: Component, deadline: Duration) -> Result<()> {
        self.wait_for(component, deadline, &[component]).await
    }

    async fn wait_for(
        &self,
        component: Component,
        deadline: Duration,
        needed: &[Component],
    ) -> Result<()> {
        let mut last = None;
        let wait = async {
            loop {
                if let Some(ended) = self
                    .ended()
                    .into_iter()
                    .find(|ended| needed.contains(ended))
                {
                    return Err(self.failure(ended));
                }
                match self.is_ready(component).await {
                    Ok(()) => return Ok(()),
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(POLL).await;
            }
        };
        if let Ok(result) = tokio::time::timeout(deadline, wait).await {
            return result;
        }
        let why = last.map(|error| format!("{error:#}")).unwrap_or_default();
        bail!(
            "{component} is not ready after {} s: {why}; it printed:\n{}",
            deadline.as_secs(),
            self.tail(component)
        )
    }

    /// Lists the processes that were started and have ended.
    pub fn ended(&self) -> Vec<Component> {
        let processes = self.processes();
        processes
            .iter()
            .filter(|(_, process)| process.exit_status().is_some())
            .map(|(name, _)| *name)
            .collect()
    }

    fn failure(&self, component: Component) -> anyhow::Error {
        let status = self
            .processes()
            .get(&component)
            .and_then(Process::exit_status);
        let status = status.map(|status| status.to_string()).unwrap_or_default();
        anyhow::anyhow!(
            "{component} ended ({status}); it printed:\n{}",
            self.tail(component)
        )
    }

    /// Returns the last lines that a process printed.
    pub fn tail(&self, component: Component) -> String {
        crate::cli::tail(&self.log(component), 15)
    }

    /// Ends every process, Envoys first, and waits for it.
    pub async fn stop(self) {
        let mut all = std::mem::take(&mut *self.processes());
        let mut ends = Vec::new();
        while let Some((_, process)) = all.pop_last() {
            ends.push(tokio::spawn(async move { process.stop(GRACE).await }));
        }
        for end in ends {
            // A task that panicked has dropped its process, which kills it.
            let _ = end.await;
        }
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<Component, Process>> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Some(folder) = self.temporary.take() else {
            return;
        };
        eprintln!(
            "the processes' logs are kept in {}",
            folder.keep().display()
        );
        for component in self.config.components() {
            eprintln!("--- {component}\n{}", self.tail(component));
        }
    }
}
