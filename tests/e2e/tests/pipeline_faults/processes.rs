//! What processes cost, and what is left at the broker.
use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use seldon_local::{Component, System};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Threads and memory of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) threads: u64,
    pub(crate) resident_kb: u64,
}

/// What each process of pipelines costs.
#[derive(Clone, Debug)]
pub(crate) struct Costs(pub(crate) BTreeMap<Component, Cost>);

impl Costs {
    pub(crate) fn of(system: &System) -> Result<Self> {
        let mut costs = BTreeMap::new();
        for component in system.config().components() {
            let pipelines = matches!(
                component,
                Component::Broker
                    | Component::Scheduler
                    | Component::DataflowEngine(_)
                    | Component::ModelGateway(_)
                    | Component::PipelineGateway(_)
            );
            if let Some(pid) = system.pid(component).filter(|_| pipelines) {
                costs.insert(component, cost(pid)?);
            }
        }
        Ok(Self(costs))
    }

    /// No process has grown by more than so many KB since.
    pub(crate) fn bounded(&self, before: &Self, by_kb: u64) -> Result<()> {
        for (component, cost) in &self.0 {
            let was = before.0.get(component).map_or(0, |cost| cost.resident_kb);
            ensure!(
                cost.resident_kb < was + by_kb,
                "{component} has grown from {was} KB to {} KB",
                cost.resident_kb
            );
        }
        Ok(())
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (component, cost) in &self.0 {
            let (threads, mb) = (cost.threads, cost.resident_kb / 1024);
            write!(to, "{component} {mb} MB {threads} threads; ")?;
        }
        Ok(())
    }
}

fn cost(pid: u32) -> Result<Cost> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line
            .and_then(|line| line.split_whitespace().nth(1))
            .context("no such field")?;
        Ok(number.parse()?)
    };
    Ok(Cost {
        threads: field("Threads:")?,
        resident_kb: field("VmRSS:")?,
    })
}

/// The consumer groups that the broker knows: ListGroups, version 0.
pub(crate) async fn groups(bootstrap: &str) -> Result<Vec<String>> {
    let mut stream = TcpStream::connect(bootstrap).await?;
    stream
        .write_all(b"\0\0\0\x0a\0\x10\0\0\0\0\0\x01\xff\xff")
        .await?;
    let length = stream.read_u32().await?;
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    let mut rest = bytes.get(4..).context("a correlation id")?;
    ensure!(take(&mut rest, 2)? == [0, 0], "groups cannot be listed");
    let count = i32::from_be_bytes(take(&mut rest, 4)?.try_into()?);
    let mut groups = Vec::new();
    for _ in 0..count {
        groups.push(text(&mut rest)?);
        text(&mut rest)?;
    }
    groups.sort();
    Ok(groups)
}

fn text(rest: &mut &[u8]) -> Result<String> {
    let length = u16::from_be_bytes(take(rest, 2)?.try_into()?);
    Ok(String::from_utf8(
        take(rest, usize::from(length))?.to_vec(),
    )?)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (taken, left) = rest
        .split_at_checked(count)
        .context("the answer ends early")?;
    *rest = left;
    Ok(taken)
}
