//! A thousand random worlds, derived by the scheduler's own code and pushed by the discovery engine into one running
//! Envoy: none is refused, and Envoy holds what was pushed.
#[path = "worlds/envoy.rs"]
mod envoy;
#[path = "worlds/random.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use envoy::Running;
use random::{Made, Random};
use seldon_ads::{Engine, Settings};
use seldon_components::EnvoyVersion;
use seldon_e2e::faults::{Fault, long, run_faults};
use seldon_scheduler::resources::names::types;
use seldon_scheduler::resources::{ByMetadata, ListenerOptions, World, collect, fixed};

/// Resources that the world should come to, by type and name.
type Resources = BTreeMap<(&'static str, Arc<str>), Bytes>;

const WORLDS: u64 = 1000;
/// After so many worlds Envoy is asked what it holds.
const COMPARED: u64 = 50;

fn main() -> ExitCode {
    let mut cases: Vec<Fault> = vec![
        ("random_worlds", || worlds(EnvoyVersion::V1_40_0, false)),
        ("random_worlds_with_the_filter", || {
            worlds(EnvoyVersion::V1_40_0, true)
        }),
    ];
    if long() {
        cases.push(("random_worlds_on_the_oldest_envoy", || {
            worlds(EnvoyVersion::V1_36_4, true)
        }));
    }
    run_faults(&cases)
}

#[tokio::main]
async fn worlds(version: EnvoyVersion, filter: bool) -> Result<()> {
    let seed = match std::env::var("SELDON_SEED") {
        Ok(text) => text.parse().context("SELDON_SEED is a number")?,
        Err(_) => 1 + u64::from(filter),
    };
    push(version, filter, seed)
        .await
        .with_context(|| format!("again by SELDON_SEED={seed}"))
}

async fn push(version: EnvoyVersion, filter: bool, seed: u64) -> Result<()> {
    let engine = Engine::new(Settings {
        order: types::ORDER.to_vec(),
        tailor: Some(Arc::new(ByMetadata {
            default_module: false,
        })),
        lag: Duration::from_secs(60),
        lease: Duration::ZERO,
    });
    let options = ListenerOptions {
        port: 9000,
        access_log: None,
        tls: None,
    };
    engine.apply(1, fixed(&options, None, &seldon_routing::Config::default()));
    engine.first_world();
    engine.open();
    let envoy = Running::start(&engine, version, filter).await?;
    let (mut random, mut made) = (Random(seed), Made::default());
    let mut world = World::new(None, None);
    let mut expected = Resources::new();
    // The oldest Envoy takes six times as long for each.
    let more = long() && version == EnvoyVersion::default();
    let (begin, rounds) = (Instant::now(), if more { 3 * WORLDS } else { WORLDS });
    for number in 1..=rounds {
        let changed = made.change(&mut random);
        let changes = world.update(
            &made,
            &changed.models,
            &changed.servers,
            &changed.experiments,
        );
        collect(&mut expected, changes.clone());
        let generation = number + 1;
        engine.apply(generation, changes);
        reached(&engine, generation)
            .await
            .with_context(|| format!("world {number}: {made:?}"))?;
        if number % COMPARED == 0 {
            compare(&envoy, &expected)
                .await
                .with_context(|| format!("world {number}: {made:?}"))?;
        }
    }
    println!(
        "{rounds} worlds in {:.1} s, none refused; the last has {} resources",
        begin.elapsed().as_secs_f64(),
        expected.len()
    );
    Ok(())
}

/// Waits until Envoy has acknowledged a world, refusing nothing.
async fn reached(engine: &Engine, generation: u64) -> Result<()> {
    let mut progress = engine.progress();
    let all = progress.wait_for(|now| now.serving >= generation && now.released >= generation);
    let reached = tokio::time::timeout(Duration::from_secs(20), all).await;
    let envoys = engine.envoys();
    ensure!(reached.is_ok(), "not acknowledged: {envoys:?}");
    ensure!(
        envoys.iter().any(|envoy| envoy.connected),
        "Envoy has left: {envoys:?}"
    );
    for envoy in envoys {
        ensure!(
            envoy.rejections.is_empty(),
            "refused: {:?}",
            envoy.rejections
        );
    }
    Ok(())
}

async fn compare(envoy: &Running, expected: &Resources) -> Result<()> {
    let names = |kind: &str| -> BTreeSet<String> {
        let of_kind = expected.keys().filter(|(url, _)| *url == kind);
        of_kind.map(|(_, name)| name.to_string()).collect()
    };
    let scopes = envoy.admin.scopes().await?;
    let clusters = envoy.admin.clusters().await?;
    let held: BTreeSet<String> = scopes.keys().cloned().collect();
    ensure!(
        held == names(types::SCOPE),
        "scopes: {held:?}, expected {:?}",
        names(types::SCOPE)
    );
    let held: BTreeSet<String> = clusters.keys().cloned().collect();
    ensure!(
        held == names(types::CLUSTER),
        "clusters: {held:?}, expected {:?}",
        names(types::CLUSTER)
    );
    for (scope, used) in &scopes {
        let body = &expected[&(types::SCOPE, Arc::from(scope.as_str()))];
        for cluster in used {
            let named = body
                .windows(cluster.len())
                .any(|part| part == cluster.as_bytes());
            ensure!(
                named && clusters.contains_key(cluster),
                "{scope} uses {cluster}"
            );
        }
    }
    for ((_, name), body) in expected
        .iter()
        .filter(|((url, _), _)| *url == types::ENDPOINTS)
    {
        let wanted = envoy::addresses(body)?;
        ensure!(
            clusters[&**name] == wanted,
            "{name}: {:?}, expected {wanted:?}",
            clusters[&**name]
        );
    }
    Ok(())
}
