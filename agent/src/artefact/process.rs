//! An rclone of the agent's own: on loopback, with credentials nobody else knows, restarted when it ends.
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::rclone::{Endpoint, Rclone};

/// How to start it.
#[derive(Debug, Clone)]
pub struct Own {
    pub binary: PathBuf,
    /// rclone's configuration file; made when it is missing.
    pub config: PathBuf,
    /// A folder for the pid file.
    pub folder: PathBuf,
}

/// Starts rclone and keeps it running until `stop`.
pub async fn start(own: Own, stop: CancellationToken) -> anyhow::Result<Rclone> {
    tokio::fs::create_dir_all(&own.folder).await?;
    end_orphan(&own);
    let port = free_port(0)?;
    let credentials = ("agent".to_owned(), hex(&random::<24>()?));
    let endpoint = Endpoint {
        host: "127.0.0.1".to_owned(),
        port: Arc::new(AtomicU16::new(port)),
        credentials: Some(credentials),
    };
    let rclone = Rclone::new(endpoint.clone());
    let child = spawn(&own, &endpoint)?;
    tokio::spawn(supervise(own, endpoint, child, stop));
    Ok(rclone)
}

async fn supervise(own: Own, endpoint: Endpoint, first: Child, stop: CancellationToken) {
    let mut child = Some(first);
    loop {
        if let Some(running) = child.as_mut() {
            tokio::select! {
                () = stop.cancelled() => {
                    let _ = running.kill().await;
                    let _ = std::fs::remove_file(pid_file(&own));
                    return;
                }
                status = running.wait() => {
                    tracing::warn!(status = ?status.ok(), "rclone ended, starting it again");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
        // Another process may have taken the port meanwhile.
        let port = endpoint.port.load(Ordering::Relaxed);
        if let Ok(port) = free_port(port).or_else(|_| free_port(0)) {
            endpoint.port.store(port, Ordering::Relaxed);
        }
        child = spawn(&own, &endpoint)
            .inspect_err(|error| tracing::error!(%error, "rclone does not start"))
            .ok();
    }
}

fn spawn(own: &Own, endpoint: &Endpoint) -> anyhow::Result<Child> {
    let mut command = Command::new(&own.binary);
    command
        .arg("rcd")
        .arg("--config")
        .arg(&own.config)
        .arg("--rc-addr")
        .arg(endpoint.address())
        .args([
            "--log-level",
            "NOTICE",
            "--rc-server-write-timeout",
            "24h",
            "--rc-server-read-timeout",
            "24h",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file(own)?)
        .kill_on_drop(true);
    if let Some((user, password)) = &endpoint.credentials {
        // Not as arguments: those are visible to every process of the machine.
        command
            .env("RCLONE_RC_USER", user)
            .env("RCLONE_RC_PASS", password);
    }
    let child = command.spawn().map_err(|error| {
        anyhow::anyhow!(
            "cannot start rclone at {}: {error}: see --rclone-binary",
            own.binary.display()
        )
    })?;
    if let Some(pid) = child.id() {
        std::fs::write(pid_file(own), pid.to_string())?;
    }
    Ok(child)
}

fn log_file(own: &Own) -> io::Result<Stdio> {
    // rclone's log may hold credentials: only the owner reads it.
    Ok(private_file(&own.folder.join("rclone.log"))?.into())
}

fn pid_file(own: &Own) -> PathBuf {
    own.folder.join("rclone.pid")
}

/// Ends the rclone that a killed agent left behind: the process of our pid file, if it runs with our configuration.
fn end_orphan(own: &Own) {
    let Some(pid) = std::fs::read_to_string(pid_file(own))
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
    else {
        return;
    };
    let command_line =
        std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let config = own.config.as_os_str().as_encoded_bytes();
    if arguments.contains(&b"rcd".as_slice()) && arguments.contains(&config) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// The given port of loopback, if it is free; any for 0.
fn free_port(port: u16) -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", port))?
        .local_addr()?
        .port())
}

/// An empty file that only its owner reads.
pub(super) fn private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).write(true).truncate(true).mode(0o600);
    options.open(path)
}

/// Bytes that nobody can guess.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
