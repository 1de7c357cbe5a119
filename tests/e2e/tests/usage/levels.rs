//! What arrives, compared field by field.
use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually;
use seldon_e2e::faults::{Fault, Fleet, chain, experiment, model};
use seldon_local::{Component, System};
use serde_json::{Map, Value, json};

use crate::process::{ID, Receiver, hodometer, properties};

pub(crate) const CASES: &[Fault] = &[("usage_arrives_by_level_and_follows_changes", arrives)];

/// What each replica of the fleet declares.
const MEMORY: f64 = 1e9;

fn fields(level: &str) -> Map<String, Value> {
    let mut all = json!({
        "cluster_id": ID,
        "seldon_core_version": env!("CARGO_PKG_VERSION"),
        "is_global_installation": false,
        "is_kubernetes": false,
    });
    let resources = json!({
        "model_count": 3,
        "pipeline_count": 2,
        "experiment_count": 1,
        "server_count": 1,
        "server_replica_count": 2,
    });
    let features = json!({
        "multimodel_enabled_count": 1,
        "overcommit_enabled_count": 1,
        "gpu_enabled_count": 0,
        "inference_server_name": "MLServer",
        "server_cpu_cores_sum": 0.0,
        "server_memory_gb_sum": 2.0 * MEMORY / f64::from(1 << 30),
    });
    let parts = match level {
        "cluster" => vec![],
        "resource" => vec![resources],
        _ => vec![resources, features],
    };
    let all = all.as_object_mut().map(std::mem::take).unwrap_or_default();
    let parts = parts
        .into_iter()
        .filter_map(|part| part.as_object().cloned());
    all.into_iter().chain(parts.flatten()).collect()
}

#[tokio::main]
async fn arrives() -> Result<()> {
    let builder = System::builder().servers(2).without(Component::Envoy(0));
    let builder = builder.config(|config| config.over_commit_percentage = 10);
    let fleet = Fleet::start_from(builder, &[]).await?;
    for name in ["first", "second", "third"] {
        fleet.load(model(name, 1000, 1)).await?;
    }
    for name in ["forth", "back"] {
        fleet
            .load_pipeline(chain(name, &["first", "second"]))
            .await?;
    }
    let split = experiment("split", Some("first"), &[("first", 50), ("second", 50)]);
    fleet.start_experiment(split).await?;
    let result = tokio::task::block_in_place(|| {
        by_level(&fleet.system)?;
        follows(&fleet)
    });
    fleet.system.stop().await;
    result
}

fn by_level(system: &System) -> Result<()> {
    let receiver = Receiver::start(system)?;
    for (at, level) in ["cluster", "resource", "feature", "default"]
        .iter()
        .enumerate()
    {
        let mut variables = vec![("PUBLISH_URL", receiver.url())];
        if *level != "default" {
            variables.push(("METRICS_LEVEL", (*level).to_owned()));
        }
        let process = hodometer(system, &variables)?;
        let mut told = receiver.properties(at + 1)?;
        let time = told.remove("time").and_then(|time| time.as_u64());
        ensure!(time.is_some_and(|time| time > 1_700_000_000), "{time:?}");
        let id = told.remove("distinct_id");
        ensure!(id == Some(json!(ID)), "{id:?}");
        let insert_id = told.remove("$insert_id").context("no $insert_id")?;
        ensure!(
            insert_id.as_str().is_some_and(|id| id.len() == 36),
            "{insert_id}"
        );
        ensure!(told == fields(level), "{level}: {told:?}");
        process.says("published")?;
        let status = process.end()?;
        ensure!(status.success(), "{level}: {status}");
    }
    // Each sent one and waits eight hours for the next.
    let events = receiver.events()?;
    ensure!(events.len() == 4, "{events:?}");
    let all = json!(events).to_string();
    for name in ["first", "forth", "split", "127.0.0.1"] {
        ensure!(!all.contains(name), "{name} in {all}");
    }
    let status = receiver.end()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// The next snapshot shows what has changed since, at both addresses.
fn follows(fleet: &Fleet) -> Result<()> {
    let (one, other) = (
        Receiver::start(&fleet.system)?,
        Receiver::start(&fleet.system)?,
    );
    let process = hodometer(
        &fleet.system,
        &[
            ("PUBLISH_URL", one.url()),
            (
                "EXTRA_PUBLISH_URLS",
                format!(" {} ,{}", other.url(), one.url()),
            ),
            ("PUBLISH_INTERVAL_SECONDS", "1".to_owned()),
        ],
    )?;
    ensure!(one.properties(1)?["model_count"] == 3);
    let change = async {
        fleet.unload_pipeline("back").await?;
        fleet.stop_experiment("split").await?;
        fleet.unload("third").await
    };
    tokio::runtime::Handle::current().block_on(change)?;
    for receiver in [&one, &other] {
        eventually(20, || {
            let last = receiver.events()?.pop().context("no event")?;
            let told = properties(&last)?;
            let counts = ["model_count", "pipeline_count", "experiment_count"];
            let counts = counts.map(|name| told[name].clone());
            ensure!(counts == [2, 1, 0].map(Value::from), "{counts:?}");
            Ok(())
        })?;
    }
    // An address that is named twice gets each snapshot once.
    let mut ids: Vec<String> = Vec::new();
    for event in one.events()? {
        ids.push(properties(&event)?["$insert_id"].to_string());
    }
    let sent = ids.len();
    ids.sort();
    ids.dedup();
    ensure!(
        ids.len() == sent,
        "{sent} events with {} identities",
        ids.len()
    );
    ensure!(process.end()?.success());
    Ok(())
}
