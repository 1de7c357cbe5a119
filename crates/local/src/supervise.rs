//! The process behind `seldon local up`: starts the others, restarts what crashes, ends all of them when told to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::component::Component;
use crate::config::Config;
use crate::process::RUN_VARIABLE;
use crate::system::System;

/// The files of a kept system, in its home folder.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) folder: PathBuf,
}

impl Home {
    /// `$SELDON_HOME`, else `$XDG_STATE_HOME/seldon`, else `~/.local/state/seldon`.
    pub(crate) fn find() -> Result<Self> {
        let variable = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let folder = variable("SELDON_HOME")
            .or_else(|| variable("XDG_STATE_HOME").map(|folder| folder.join("seldon")))
            .or_else(|| variable("HOME").map(|folder| folder.join(".local/state/seldon")))
            .context("no place for the system's files: set SELDON_HOME to a folder")?;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self {
            folder: folder.canonicalize()?,
        })
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("config.json")
    }

    pub(crate) fn status(&self) -> PathBuf {
        self.folder.join("status.json")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("supervisor.log")
    }

    /// Takes the lock that a running supervisor holds; none if one runs.
    pub(crate) fn lock(&self) -> Result<Option<File>> {
        let path = self.folder.join("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(file.try_lock().is_ok().then_some(file))
    }

    pub(crate) fn read_config(&self) -> Result<Config> {
        read(&self.config())
    }

    pub(crate) fn read_status(&self) -> Result<Status> {
        read(&self.status())
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
}

/// What a supervisor tells about its system.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) supervisor: u32,
    pub(crate) processes: BTreeMap<String, ProcessStatus>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProcessStatus {
    /// None while it waits to be started again.
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
}

const POLL: Duration = Duration::from_millis(200);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that ran this long has recovered.
const STEADY: Duration = Duration::from_secs(30);

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn supervise(home: &Home) -> Result<()> {
    // Not the terminal's: neither its Ctrl-C nor its end reaches the system.
    let _ = nix::unistd::setsid();
    let Some(_lock) = home.lock()? else {
        anyhow::bail!("a local system runs in {} already", home.folder.display());
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let system = System::new(home.read_config()?, None, None);
    let mut children: BTreeMap<Component, Child> = BTreeMap::new();
    for component in system.config().components() {
        system.start_one(component)?;
        children.insert(component, Child::started());
    }
    let mut written = Status::default();
    loop {
        for (component, child) in &mut children {
            if system.pid(*component).is_none() {
                child.revive(&system, *component);
            }
        }
        let status = status(&system, &children);
        if status != written {
            write(&home.status(), &status)?;
            written = status;
        }
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = tokio::time::sleep(POLL) => {}
        }
    }
    system.stop().await;
    // It may be gone already; a stale one is told from a live one by the lock.
    let _ = fs::remove_file(home.status());
    Ok(())
}

struct Child {
    restarts: u32,
    pause: Duration,
    started: Instant,
    due: Option<Instant>,
}

impl Child {
    fn started() -> Self {
        Self {
            restarts: 0,
            pause: FIRST_PAUSE,
            started: Instant::now(),
            due: None,
        }
    }

    /// Starts a process again, after a pause that grows with each crash soon after a start.
    fn revive(&mut self, system: &System, component: Component) {
        let now = Instant::now();
        let due = *self.due.get_or_insert_with(|| {
            if now - self.started > STEADY {
                self.pause = FIRST_PAUSE;
            }
            eprintln!(
                "{component} ended; it starts again in {} ms",
                self.pause.as_millis()
            );
            now + self.pause
        });
        if now < due {
            return;
        }
        if let Err(error) = system.start_one(component) {
            eprintln!("{error:#}");
        }
        self.restarts += 1;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.started = now;
        self.due = None;
    }
}

/// Kills what a killed supervisor has left: processes that inherited the mark of our run folder.
///
/// Its children died with it, but not theirs, such as an agent's rclone. A path in a command line would be no mark: the
/// user's own `tail -f` of a log has one too.
pub(crate) fn kill_leftovers(run_dir: &Path) {
    let mark = format!("{RUN_VARIABLE}={}", run_dir.display());
    let Ok(processes) = fs::read_dir("/proc") else {
        return;
    };
    for entry in processes.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // What another user runs cannot be read, and is not ours.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let marked = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark.as_bytes());
        if marked && pid != Pid::this().as_raw() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn status(system: &System, children: &BTreeMap<Component, Child>) -> Status {
    let processes = children.iter().map(|(component, child)| {
        (
            component.to_string(),
            ProcessStatus {
                pid: system.pid(*component),
                restarts: child.restarts,
            },
        )
    });
    Status {
        supervisor: std::process::id(),
        processes: processes.collect(),
    }
}

/// Writes a file so that a reader sees it whole.
pub(crate) fn write(path: &Path, content: &impl Serialize) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_string_pretty(content)? + "\n")
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_marked_processes_are_leftovers() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("agent-0.log");
        fs::write(&log, "").unwrap();
        let mut ours = Command::new("sleep")
            .arg("1000")
            .env(RUN_VARIABLE, folder.path())
            .spawn()
            .unwrap();
        let mut other = Command::new("sleep")
            .arg("1000")
            .env(RUN_VARIABLE, folder.path().join("other"))
            .spawn()
            .unwrap();
        let mut reader = Command::new("tail").arg("-f").arg(&log).spawn().unwrap();
        kill_leftovers(folder.path());
        let killed = ours.wait().unwrap();
        let left = [other.try_wait().unwrap(), reader.try_wait().unwrap()];
        for child in [&mut other, &mut reader] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(killed.signal(), Some(9));
        assert_eq!(left, [None, None]);
    }
}
