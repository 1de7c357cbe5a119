//! Two gateways of each kind and two engines: one falls, the other takes over; one comes and goes.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::chain;
use seldon_kafka::{Admin, Settings};
use seldon_local::Component::{self, DataflowEngine, ModelGateway, PipelineGateway};
use seldon_local::{Builder, Signal};
use seldon_proto::scheduler as pb;
use serde_json::json;
use tokio::time::sleep;

use crate::callers::{Callers, FIRST_KEY};
use crate::scene::{PIPELINE, Scene, small};

/// So many that each engine and gateway owns some.
const PIPELINES: i64 = 6;
const RATE: f64 = 10.0;

fn pairs() -> Builder {
    small().gateways(2).engines(2)
}

const SECOND: [Component; 3] = [DataflowEngine(1), ModelGateway(1), PipelineGateway(1)];

async fn scene(builder: Builder) -> Result<Scene> {
    let scene = Scene::new(builder).await?;
    scene.models(&["echo-3", "echo-4"]).await?;
    for number in 0..PIPELINES {
        let steps = [["echo-1", "echo-2"], ["echo-3", "echo-4"]][number as usize % 2];
        scene.pipeline(chain(&name(number), &steps), 1).await?;
    }
    Ok(scene)
}

fn name(number: i64) -> String {
    format!("pair-{number}")
}

fn callers(scene: &Scene) -> Vec<Callers> {
    let of = |number| {
        scene
            .calling(&name(number), FIRST_KEY + number, RATE)
            .start()
    };
    (0..PIPELINES).map(of).collect()
}

/// Waits until callers of every pipeline have two more right answers.
async fn all_answered(callers: &[Callers], seconds: u64) -> Result<Duration> {
    let begin = Instant::now();
    let before: Vec<u64> = callers.iter().map(Callers::right).collect();
    let look = async || {
        for (number, (callers, before)) in callers.iter().zip(&before).enumerate() {
            ensure!(
                callers.right() > before + 2,
                "pair-{number} is not answered"
            );
        }
        Ok(())
    };
    eventually_async(seconds, look).await?;
    Ok(begin.elapsed())
}

#[tokio::main]
pub(crate) async fn killed() -> Result<()> {
    let scene = scene(pairs()).await?;
    let system = &scene.fleet.system;
    let callers = callers(&scene);
    all_answered(&callers, 20).await?;
    for component in [DataflowEngine(0), ModelGateway(0), PipelineGateway(0)] {
        system.kill(component, Signal::SIGKILL)?;
        let took = all_answered(&callers, 10)
            .await
            .with_context(|| format!("without {component}"))?;
        println!(
            "{component} killed: every pipeline is answered after {:.1} s",
            took.as_secs_f32()
        );
        system.restart(component).await?;
        all_answered(&callers, 10).await?;
    }
    finished("one of two killed", callers, Allowed::Errors).await
}

#[tokio::main]
pub(crate) async fn stopped() -> Result<()> {
    let scene = scene(pairs()).await?;
    let system = &scene.fleet.system;
    let callers = callers(&scene);
    all_answered(&callers, 20).await?;
    for component in SECOND {
        system.kill(component, Signal::SIGSTOP)?;
    }
    let begin = Instant::now();
    // Ten seconds until pings are missed, five until who is lost is replaced, and then it begins.
    let taken_over = all_answered(&callers, 25).await;
    println!(
        "one of each stopped: every pipeline is answered after {:.1} s",
        begin.elapsed().as_secs_f32()
    );
    sleep(Duration::from_secs(26).saturating_sub(begin.elapsed())).await;
    for component in SECOND {
        system.kill(component, Signal::SIGCONT)?;
    }
    taken_over?;
    let took = all_answered(&callers, 40)
        .await
        .context("after it goes on")?;
    println!(
        "they go on: every pipeline is answered after {:.1} s",
        took.as_secs_f32()
    );
    finished("one of two stopped for 26 s", callers, Allowed::Errors).await
}

#[tokio::main]
pub(crate) async fn scaled() -> Result<()> {
    let builder = SECOND.into_iter().fold(pairs(), Builder::without);
    let scene = scene(builder).await?;
    let system = &scene.fleet.system;
    let callers = callers(&scene);
    all_answered(&callers, 20).await?;
    for component in SECOND {
        system.start_one(component)?;
        system.wait_one(component, Duration::from_secs(20)).await?;
        sleep(Duration::from_secs(1)).await;
    }
    all_answered(&callers, 10).await?;
    for component in SECOND {
        system.stop_one(component).await;
        sleep(Duration::from_secs(1)).await;
    }
    all_answered(&callers, 10).await?;
    finished(
        "from one of each to two and back",
        callers,
        Allowed::Nothing,
    )
    .await
}

/// What may happen to callers beside right answers.
#[derive(Clone, Copy)]
enum Allowed {
    Nothing,
    Errors,
}

async fn finished(what: &str, callers: Vec<Callers>, allowed: Allowed) -> Result<()> {
    let mut all = Vec::new();
    for (number, callers) in callers.into_iter().enumerate() {
        let answers = callers.stop().await?;
        answers.tell(&format!("{what}, pair-{number}"));
        all.push(answers);
    }
    for answers in &all {
        ensure!(answers.connection.is_empty(), "{:?}", answers.connection);
        match allowed {
            Allowed::Nothing => answers.all_right()?,
            Allowed::Errors => answers.honest()?,
        }
    }
    Ok(())
}

/// Two models whose topics have different numbers of partitions; and calls that call themselves alike.
#[tokio::main]
pub(crate) async fn uneven_and_alike() -> Result<()> {
    let scene = Scene::new(pairs()).await?;
    let bootstrap = scene
        .fleet
        .system
        .config()
        .kafka_bootstrap()
        .context("a broker")?;
    for (model, partitions) in [("echo-a", 3), ("echo-b", 1), ("echo-c", 5)] {
        let settings =
            json!({"bootstrap.servers": bootstrap, "topics": {"numPartitions": partitions}});
        let admin = Admin::new(&Settings::from_json(&settings.to_string())?)?;
        let topics = [
            scene.names.model_inputs(model),
            scene.names.model_outputs(model),
        ];
        admin.create(&topics, false).await?;
    }
    scene.models(&["echo-a", "echo-b", "echo-c"]).await?;
    scene.pipeline(joined(), 1).await?;
    let uneven = scene.calling("uneven", FIRST_KEY, 50.0).start();
    let mut alike = Vec::new();
    for key in 1..=2 {
        let mut calling = scene.calling(PIPELINE, FIRST_KEY + key, 50.0);
        calling.request_id = Some("always-the-same");
        alike.push(calling.start());
    }
    sleep(Duration::from_secs(4)).await;
    let answers = uneven.stop().await?;
    answers.tell("inputs with 3 and 1 partitions joined");
    answers.all_right()?;
    for callers in alike {
        let answers = callers.stop().await?;
        answers.tell("calls with one request id");
        answers.all_right()?;
    }
    Ok(())
}

fn joined() -> pb::Pipeline {
    let step = |name: &str, inputs: &[&str]| pb::PipelineStep {
        name: name.to_owned(),
        inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
        ..Default::default()
    };
    let renamed = ["a", "b"].map(|of| (format!("echo-{of}.outputs.x"), format!("x{of}")));
    let last = pb::PipelineStep {
        tensor_map: BTreeMap::from(renamed),
        ..step("echo-c", &["echo-a", "echo-b"])
    };
    pb::Pipeline {
        steps: vec![step("echo-a", &[]), step("echo-b", &[]), last],
        output: Some(pb::PipelineOutput {
            steps: vec!["echo-c".to_owned()],
            ..Default::default()
        }),
        ..chain("uneven", &[])
    }
}
