//! A child process that does not outlive its parent.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::sync::watch;

/// Names the run folder in the environment of every process of a system, and so of what those start.
pub(crate) const RUN_VARIABLE: &str = "SELDON_LOCAL_RUN";

/// How to start a process.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// Its own folder, where it runs.
    pub(crate) folder: PathBuf,
    pub(crate) log: PathBuf,
    /// What its files in shared memory begin with; those that it leaves are removed.
    pub(crate) shared_memory: Option<String>,
}

/// A running child, the leader of its own process group. Dropped, it and its group are killed.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    pub(crate) fn start(launch: &Launch) -> Result<Self> {
        let name = launch.program.display();
        std::fs::create_dir_all(&launch.folder)
            .with_context(|| format!("cannot create {}", launch.folder.display()))?;
        let child = spawn(command(launch)?).with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id is positive")?);
        let (exited, exit) = watch::channel(None);
        let shared = launch.shared_memory.clone();
        std::thread::spawn(move || reap(child, pid, shared.as_deref(), &exited));
        Ok(Self { pid, exit })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Returns how it ended, or nothing while it runs.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends a signal to the process itself, not to its group.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        if self.exit_status().is_none() {
            kill(self.pid, signal)
                .with_context(|| format!("cannot send {signal} to process {}", self.pid))?;
        }
        Ok(())
    }

    /// Waits for its end; false if it still runs after that time.
    pub(crate) async fn wait(&self, time: Duration) -> bool {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some);
        tokio::time::timeout(time, ended).await.is_ok()
    }

    /// Asks it to end, and kills it with its group if it does not.
    pub(crate) async fn stop(&self, grace: Duration) {
        // A stopped process would not see the request.
        let asked = self
            .signal(Signal::SIGTERM)
            .and_then(|()| self.signal(Signal::SIGCONT));
        if asked.is_err() || !self.wait(grace).await {
            self.kill_group();
            self.wait(Duration::from_secs(5)).await;
        }
    }

    fn kill_group(&self) {
        if self.exit_status().is_none() {
            // Fails only if it ended meanwhile.
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
    }
}

fn reap(
    mut child: Child,
    pid: Pid,
    shared: Option<&str>,
    exited: &watch::Sender<Option<ExitStatus>>,
) {
    let status = child.wait();
    // What the process has started (an agent's rclone) goes with it, or it would keep its ports.
    let _ = killpg(pid, Signal::SIGKILL);
    if let Some(prefix) = shared {
        remove_shared_memory(prefix);
    }
    exited.send_replace(Some(status.unwrap_or_default()));
}

/// Removes files of shared memory, which outlive the processes that made them.
pub(crate) fn remove_shared_memory(prefix: &str) {
    let entries = std::fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten();
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            // Another user's of the same name is not ours to remove, and no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn command(launch: &Launch) -> Result<Command> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&launch.log)
        .with_context(|| format!("cannot write {}", launch.log.display()))?;
    let mut command = match setpriv() {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command
                .args(["--pdeathsig", "KILL", "--"])
                .arg(&launch.program);
            command
        }
        None => Command::new(&launch.program),
    };
    command
        .args(&launch.args)
        .envs(&launch.env)
        .current_dir(&launch.folder)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// util-linux's `setpriv` makes the kernel kill a child whose parent was killed.
fn setpriv() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let knows = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--", "true"])
                .output();
            knows
                .is_ok_and(|done| done.status.success())
                .then(|| PathBuf::from("setpriv"))
        })
        .as_deref()
}

type Spawn = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts every child from one thread that never ends: the kernel's signal comes when the starting *thread* dies, and
/// the caller's may be a test's.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Spawn>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Spawn>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, answer) = mpsc::channel();
    spawner.send((command, reply)).map_err(io::Error::other)?;
    answer.recv().map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(folder: &Path, script: &str) -> Launch {
        Launch {
            program: "sh".into(),
            args: vec!["-c".into(), script.into()],
            env: BTreeMap::new(),
            folder: folder.to_owned(),
            log: folder.join("log"),
            shared_memory: None,
        }
    }

    fn alive(pid: &str) -> bool {
        // A killed child of init may be a zombie for a moment.
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    #[tokio::test]
    async fn dropping_a_process_kills_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let process =
            Process::start(&shell(folder.path(), "sleep 1000 & echo $! > pid; wait")).unwrap();
        let file = folder.path().join("pid");
        let read = || {
            std::fs::read_to_string(&file)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        until("the grandchild started", || {
            !read().is_empty() && alive(&read())
        })
        .await;
        drop(process);
        until("the grandchild is gone", || !alive(&read())).await;
    }

    #[tokio::test]
    async fn a_process_that_ignores_the_request_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let launch = shell(
            folder.path(),
            "trap '' TERM; echo up; while :; do sleep 0.1; done",
        );
        let process = Process::start(&launch).unwrap();
        until("it is up", || {
            std::fs::read_to_string(&launch.log).is_ok_and(|log| log.contains("up"))
        })
        .await;
        process.stop(Duration::from_millis(100)).await;
        assert!(process.exit_status().is_some());
    }
}
