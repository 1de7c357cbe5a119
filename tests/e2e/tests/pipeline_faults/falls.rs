//! A process is killed and comes back, again and again, under one load.
use std::time::Duration;

use anyhow::{Result, ensure};
use seldon_components::Cache;
use seldon_e2e::faults::long;
use seldon_local::kafka::{Options, RealKafka};
use seldon_local::{Component, Signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::outputs::Seen;
use crate::scene::{Scene, small};

const RECORDS: i64 = 20_000;
/// Seconds that one round takes, to spread the records over all of them.
const ROUND: f64 = 1.9;
/// The same where a real Kafka has to come back.
const KAFKA_ROUND: f64 = 5.0;

fn rounds() -> u32 {
    if long() { 200 } else { 10 }
}

/// Kills one process again and again.
#[tokio::main]
pub(crate) async fn killed(component: Component) -> Result<()> {
    let scene = Scene::new(small()).await?;
    let rate = RECORDS as f64 / (f64::from(rounds()) * ROUND);
    let load = scene.load(RECORDS, rate, false).await?;
    kill_rounds(&scene, component, rounds()).await?;
    let answers = load
        .survived(&format!("{component} killed {} times", rounds()), 40)
        .await?;
    let envoy = matches!(component, Component::Envoy(_));
    ensure!(
        envoy || answers.connection.is_empty(),
        "connections to Envoy failed: {:?}",
        answers.connection
    );
    Ok(())
}

/// Transactions: who reads what is committed sees each result once.
#[tokio::main]
pub(crate) async fn killed_exactly_once(component: Component) -> Result<()> {
    const EXACT: &str = "--processing-guarantee=exactly-once";
    let builder = small()
        .arg("dataflow-engine", EXACT)
        .arg("modelgateway", EXACT);
    let scene = Scene::new(builder).await?;
    let rounds = if long() { 50 } else { 4 };
    let rate = 500.0;
    let records = (f64::from(rounds) * 3.0 * rate) as i64;
    let load = scene.load(records, rate, true).await?;
    kill_rounds(&scene, component, rounds).await?;
    let what = format!("{component} killed {rounds} times, exactly once");
    let outputs = load.outputs.clone();
    let answers = load.survived(&what, 40).await?;
    let repeated = outputs.with(Seen::repeated);
    ensure!(repeated == 0, "{repeated} results are there twice");
    ensure!(answers.connection.is_empty(), "{:?}", answers.connection);
    Ok(())
}

/// A real Kafka is killed and comes back on the same data.
#[tokio::main]
pub(crate) async fn real_kafka_killed() -> Result<()> {
    let start = || RealKafka::start(&Cache::open()?, Options::default());
    let mut kafka = spawn_blocking(start).await??;
    let scene = Scene::new(small().kafka(kafka.bootstrap())).await?;
    let rounds = rounds();
    let rate = RECORDS as f64 / (f64::from(rounds) * KAFKA_ROUND);
    let load = scene.load(RECORDS, rate, false).await?;
    for _ in 0..rounds {
        sleep(Duration::from_secs(1)).await;
        kafka = spawn_blocking(move || {
            kafka.kill()?;
            kafka.restart()?;
            anyhow::Ok(kafka)
        })
        .await??;
    }
    let what = format!("real Kafka killed {rounds} times");
    let answers = load.survived(&what, 60).await?;
    ensure!(answers.connection.is_empty(), "{:?}", answers.connection);
    drop(scene);
    spawn_blocking(move || drop(kafka)).await?;
    Ok(())
}

pub(crate) async fn kill_rounds(scene: &Scene, component: Component, rounds: u32) -> Result<()> {
    let system = &scene.fleet.system;
    for round in 0..rounds {
        // Now and then it is killed while it still catches up.
        sleep(Duration::from_millis(300 + u64::from(round % 5) * 250)).await;
        system.kill(component, Signal::SIGKILL)?;
        sleep(Duration::from_millis(200)).await;
        system.stop_one(component).await;
        system.start_one(component)?;
        system.wait_one(component, Duration::from_secs(30)).await?;
    }
    Ok(())
}
