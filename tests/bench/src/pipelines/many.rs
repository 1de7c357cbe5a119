//! Two hundred pipelines in one engine against one, one more, and all processes while nothing happens.
use std::time::Duration;

use anyhow::Result;
use seldon_local::Component;
use tokio::time::Instant;

use crate::admin::Probe;
use crate::report::Report;
use crate::shots::median;

use super::process::{connections, groups, memory, threads};
use super::scene::{ENGINE, Kind, MODELS, PIPELINES, Scene, chain, echoes, until};
use super::topics::answers;

const MANY: usize = 200;
const STEPS: usize = 3;
const MORE: usize = 10;

/// What one process holds.
#[derive(Clone, Copy)]
struct Held {
    threads: usize,
    connections: usize,
    memory: f64,
}

/// Runs the part.
pub(super) async fn run(kind: Kind, report: &mut Report) -> Result<()> {
    let section = kind.section();
    let scene = Scene::start(kind).await?;
    let models = echoes(STEPS);
    scene.models(&models, "sklearn").await?;
    let pipelines: Vec<_> = (0..MANY + MORE)
        .map(|number| chain(&name(number), &models))
        .collect();
    scene.load(&pipelines[..1]).await?;
    scene.pipelines_ready(1).await?;
    idle(section, &scene, report)?;
    answers(&scene.envoy(), &[name(0)]).await?;
    let before = of_all(&scene)?;
    let port = scene.broker_port()?;
    let groups_before = groups(port).await?;

    let start = Instant::now();
    scene.load(&pipelines[1..MANY]).await?;
    scene.pipelines_ready(MANY).await?;
    let took = start.elapsed().as_secs_f64();
    let names: Vec<String> = (0..MANY).map(name).collect();
    answers(&scene.envoy(), &names).await?;
    let after = settled(&scene, before).await?;
    let groups_after = groups(port).await?;

    report.shown(
        section,
        format!("{} pipelines of {STEPS} steps more, to ready", MANY - 1),
        took,
        "s",
    );
    let parts = ["engine", "model gateway", "pipeline gateway"];
    for ((part, before), after) in parts.iter().zip(before).zip(after) {
        for (what, before, after) in [
            ("threads", before.threads, after.threads),
            (
                "connections to the broker",
                before.connections,
                after.connections,
            ),
        ] {
            report.at_most(
                section,
                format!("{part}, {MANY} pipelines: {what}"),
                after as f64,
                "",
                before as f64,
            );
        }
        let each = (after.memory - before.memory) * 1e6 / 1024.0 / (MANY - 1) as f64;
        let what = format!("{part}: memory a pipeline of {STEPS} steps");
        match *part {
            "engine" => report.at_most(section, what, each, "KB", 200.0),
            _ => report.shown(section, what, each, "KB"),
        }
    }
    report.at_most(
        section,
        format!("consumer groups, {MANY} pipelines"),
        groups_after.len() as f64,
        "",
        groups_before.len() as f64,
    );
    one_more(section, &scene, &pipelines[MANY..], report).await?;
    scene.stop().await;
    Ok(())
}

fn name(number: usize) -> String {
    format!("many-{number}")
}

fn of_all(scene: &Scene) -> Result<[Held; 3]> {
    let port = scene.broker_port()?;
    let of = |component| {
        let pid = scene.pid(component)?;
        anyhow::Ok(Held {
            threads: threads(pid)?,
            connections: connections(pid, port)?,
            memory: memory(pid),
        })
    };
    Ok([of(ENGINE)?, of(MODELS)?, of(PIPELINES)?])
}

/// After a burst of changes: threads that waited for the broker meanwhile end when they have had nothing to do for 10 s.
async fn settled(scene: &Scene, before: [Held; 3]) -> Result<[Held; 3]> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = of_all(scene)?;
        let all = before.iter().zip(&now);
        let settled = all
            .into_iter()
            .all(|(before, now)| now.threads <= before.threads);
        if settled || Instant::now() > deadline {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn idle(section: &'static str, scene: &Scene, report: &mut Report) -> Result<()> {
    let mut all = 0.0;
    for (name, component) in [
        ("scheduler", Component::Scheduler),
        ("agent", Component::Agent(0)),
        ("model gateway", MODELS),
        ("pipeline gateway", PIPELINES),
        ("engine", ENGINE),
    ] {
        let memory = memory(scene.pid(component)?);
        all += memory;
        report.shown(section, format!("idle memory: {name}"), memory, "MB");
    }
    report.at_most(section, "idle memory of these together", all, "MB", 100.0);
    let broker = memory(scene.pid(Component::Broker)?);
    report.shown(section, "idle memory: broker", broker, "MB");
    Ok(())
}

/// From LoadPipeline to the first answer.
async fn one_more(
    section: &'static str,
    scene: &Scene,
    more: &[seldon_proto::scheduler::Pipeline],
    report: &mut Report,
) -> Result<()> {
    let mut probe = Probe::new(scene.envoy());
    let mut waits = vec![];
    for pipeline in more {
        let start = Instant::now();
        scene.load(std::slice::from_ref(pipeline)).await?;
        let model = format!("{}.pipeline", pipeline.name);
        until(
            "one more is answered",
            Duration::from_secs(30),
            async || Ok(matches!(probe.ask(&model).await, Ok(Some(_)))),
        )
        .await?;
        waits.push(start.elapsed().as_secs_f64());
    }
    let most = waits.iter().copied().fold(0.0, f64::max);
    report.shown(
        section,
        format!("one more among {MANY}: LoadPipeline → first 200, p50"),
        median(waits),
        "s",
    );
    report.at_most(
        section,
        format!("one more among {MANY}: the slowest of {MORE}"),
        most,
        "s",
        1.0,
    );
    Ok(())
}
