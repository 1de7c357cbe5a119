//! What a process uses and holds.
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::{Buf as _, Bytes};
use seldon_load::cpu;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// CPU time of some processes since it was made.
pub(super) struct Meter {
    pids: Vec<u32>,
    before: Vec<Duration>,
}

impl Meter {
    pub(super) fn start(pids: &[u32]) -> Self {
        Self {
            before: times(pids),
            pids: pids.to_vec(),
        }
    }

    /// Microseconds of each for one of `count`.
    pub(super) fn each(&self, count: u64) -> Vec<f64> {
        let after = times(&self.pids);
        let pairs = self.before.iter().zip(after);
        pairs
            .map(|(before, after)| after.saturating_sub(*before).as_secs_f64() * 1e6 / count as f64)
            .collect()
    }
}

fn times(pids: &[u32]) -> Vec<Duration> {
    let time = |pid: &u32| cpu::time(*pid).unwrap_or_default();
    pids.iter().map(time).collect()
}

/// Resident memory, MB.
pub(super) fn memory(pid: u32) -> f64 {
    cpu::resident(pid).unwrap_or_default() as f64 / 1e6
}

/// Threads of a process.
pub(super) fn threads(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// TCP connections that a process has to a port.
pub(super) fn connections(pid: u32, port: u16) -> Result<usize> {
    let mut sockets = std::collections::HashSet::new();
    for file in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = fs::read_link(file?.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        if let Some(inode) = target.strip_prefix("socket:[") {
            sockets.insert(inode.trim_end_matches(']').to_owned());
        }
    }
    let mut count = 0;
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        count += text
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|fields| fields.get(3) == Some(&"01"))
            .filter(|fields| fields[2].ends_with(&format!(":{port:04X}")))
            .filter(|fields| fields.get(9).is_some_and(|inode| sockets.contains(*inode)))
            .count();
    }
    Ok(count)
}

/// Consumer groups that a broker has.
pub(super) async fn groups(port: u16) -> Result<Vec<String>> {
    let mut stream = TcpStream::connect(("localhost", port)).await?;
    // ListGroups, version 0: its key, version and number, no client's name, nothing asked.
    stream
        .write_all(b"\0\0\0\x0a\0\x10\0\0\0\0\0\x01\xff\xff")
        .await?;
    let size = stream.read_u32().await? as usize;
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer).await?;
    let mut answer = Bytes::from(answer);
    let _correlation = answer.try_get_u32()?;
    let error = answer.try_get_i16()?;
    ensure!(error == 0, "the broker does not list its groups: {error}");
    let mut groups = Vec::new();
    for _ in 0..answer.try_get_u32()? {
        groups.push(text(&mut answer)?);
        let _kind = text(&mut answer)?;
    }
    groups.sort_unstable();
    Ok(groups)
}

fn text(from: &mut Bytes) -> Result<String> {
    let size = usize::from(from.try_get_u16()?);
    ensure!(size <= from.len(), "the answer ends early");
    Ok(String::from_utf8(from.split_to(size).to_vec())?)
}
