//! The process: a snapshot at the start and then one in each interval, published everywhere.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use seldon_tls::Environment;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    Installation, Level, Limits, Options, Usage,
    cluster::Place,
    event,
    publish::Publisher,
    scheduler::{Told, ask},
};

const KEEP_ALIVE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Runs until `stop`. Without an address to publish to it asks nobody, sends nothing, and waits for `stop` all the same:
/// a Deployment would start again what ends by itself.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let targets = options.targets()?;
    if targets.is_empty() {
        tracing::info!(
            "usage metrics are off: nothing is read and nothing leaves; PUBLISH_URL or EXTRA_PUBLISH_URLS would name where to"
        );
        stop.cancelled().await;
        return Ok(());
    }
    for target in &targets {
        tracing::info!(address = %target, level = ?options.metrics_level, "usage metrics will be published");
    }
    let publisher = Publisher::new(targets, options.patience())?;
    let observer = Observer {
        scheduler: scheduler(&options)?,
        place: Place::here(&options.namespace),
        level: options.metrics_level,
        cluster_id: cluster_id(&options)?,
    };
    let rounds = rounds(&options, &observer, publisher);
    let ended = stop.run_until_cancelled(rounds).await;
    ended.unwrap_or(Ok(()))
}

async fn rounds(
    options: &Options,
    observer: &Observer,
    mut publisher: Publisher,
) -> anyhow::Result<()> {
    let mut ticks = interval(options.interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let usage = observer.usage().await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        let body = event::body(&usage, &random_uuid()?, now)?;
        tracing::debug!(body, "snapshot");
        publisher.publish(&body).await;
    }
}

struct Observer {
    scheduler: Channel,
    place: Place,
    level: Level,
    cluster_id: String,
}

impl Observer {
    async fn usage(&self) -> Usage {
        let Told { version, tally } = self.told().await;
        let facts = self.place.facts().await;
        let limits = match self.level {
            Level::Feature => self.place.limits(tally.servers()).await,
            _ => Limits::default(),
        };
        Usage {
            installation: Installation {
                cluster_id: self.cluster_id.clone(),
                seldon_core_version: version,
                is_global_installation: facts.global,
                is_kubernetes: facts.inside,
                kubernetes_version: facts.version,
                node_count: facts.nodes,
            },
            resources: (self.level >= Level::Resource).then(|| tally.resources()),
            features: (self.level >= Level::Feature).then(|| tally.features(limits)),
        }
    }

    /// Asks until the scheduler answers: it may start later than this process.
    async fn told(&self) -> Told {
        let (mut pause, mut failing) = (FIRST_PAUSE, false);
        loop {
            match ask(&self.scheduler, self.level).await {
                Ok(told) => return told,
                Err(status) => {
                    let error = status.message();
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            error,
                            "the scheduler does not answer: asked again until it does"
                        );
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// A channel that connects when it is used.
fn scheduler(options: &Options) -> anyhow::Result<Channel> {
    let tls = Environment::of_process("CONTROL_PLANE").client("CLIENT", "SERVER")?;
    let port = match tls {
        Some(_) => options.scheduler_tls_port,
        None => options.plaintxt_port(),
    };
    seldon_tls::channel(&options.scheduler_host, port, tls, KEEP_ALIVE).context("SCHEDULER_HOST")
}

fn cluster_id(options: &Options) -> anyhow::Result<String> {
    let given = options.cluster_id.as_deref().unwrap_or_default().trim();
    if !given.is_empty() {
        return Ok(given.to_owned());
    }
    let id = random_uuid()?;
    tracing::info!(
        cluster_id = id,
        "CLUSTER_ID is not set: a random one, until this process ends"
    );
    Ok(id)
}

/// The kernel makes one each time it is asked.
fn random_uuid() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    let uuid = std::fs::read_to_string(path).context(path)?;
    Ok(uuid.trim().to_owned())
}
