//! Two thousand topics: how long processes and the broker take to be back.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use seldon_load::fake;
use seldon_local::{Component, System};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::admin::Probe;
use crate::report::Report;
use crate::scripted;

use super::process::memory;
use super::scene::{ENGINE, Kind, MODELS, PIPELINES, Scene, chain};

/// So many models and as many pipelines, with two topics each.
const EACH: usize = 500;
const CAPABILITY: &str = "bench";
const PROCESSES: [(&str, Component); 5] = [
    ("engine", ENGINE),
    ("model gateway", MODELS),
    ("pipeline gateway", PIPELINES),
    ("scheduler", Component::Scheduler),
    ("broker", Component::Broker),
];
/// Probes at a time.
const AT_ONCE: usize = 16;

/// Runs the part.
pub(super) async fn run(kind: Kind, report: &mut Report) -> Result<()> {
    let section = kind.section();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let behaviour = fake::Behaviour {
        echo_prefix: Some("echo".to_owned()),
        ..Default::default()
    };
    tokio::spawn(fake::serve(listener, behaviour));
    let mut scene = Scene::of(kind, System::builder().servers(0)).await?;
    let agents = format!("http://127.0.0.1:{}", scene.system.ports().scheduler.agents);
    let _loaded = scripted::start(agents, CAPABILITY, port).await?;

    let models: Vec<String> = (0..EACH).map(|number| format!("echo-{number}")).collect();
    let names: Vec<String> = (0..EACH).map(|number| format!("topic-{number}")).collect();
    let start = Instant::now();
    scene.models(&models, CAPABILITY).await?;
    let available = start.elapsed().as_secs_f64();
    let pairs = names.iter().zip(&models);
    let pipelines: Vec<_> = pairs
        .map(|(name, model)| chain(name, std::slice::from_ref(model)))
        .collect();
    scene.load(&pipelines).await?;
    scene.pipelines_ready(EACH).await?;
    let ready = start.elapsed().as_secs_f64();
    answers(&scene.envoy(), &names).await?;
    let answered = start.elapsed().as_secs_f64();
    let what = format!("{} topics ({EACH} models, {EACH} pipelines)", 4 * EACH);
    report.shown(section, format!("{what}: models available"), available, "s");
    report.shown(section, format!("{what}: pipelines ready"), ready, "s");
    report.shown(
        section,
        format!("{what}: each pipeline has answered"),
        answered,
        "s",
    );

    for (name, component) in PROCESSES {
        let start = scene.begin_again(component).await?;
        scene.ready(component).await?;
        let ready = start.elapsed().as_secs_f64();
        answers(&scene.envoy(), &names).await?;
        let answered = start.elapsed().as_secs_f64();
        report.shown(section, format!("{what}: {name} again, ready"), ready, "s");
        report.shown(
            section,
            format!("{what}: {name} again, each pipeline has answered"),
            answered,
            "s",
        );
    }
    for (name, component) in PROCESSES {
        let memory = memory(scene.pid(component)?);
        report.shown(section, format!("{what}: memory of {name}"), memory, "MB");
    }
    scene.stop().await;
    Ok(())
}

/// Asks each pipeline until it answers.
pub(super) async fn answers(envoy: &str, names: &[String]) -> Result<()> {
    let mut lanes = JoinSet::new();
    for lane in 0..AT_ONCE.min(names.len()) {
        let of: Vec<String> = names.iter().skip(lane).step_by(AT_ONCE).cloned().collect();
        let envoy = envoy.to_owned();
        lanes.spawn(async move {
            let mut probe = Probe::new(envoy);
            for name in of {
                answered(&mut probe, &format!("{name}.pipeline")).await?;
            }
            anyhow::Ok(())
        });
    }
    lanes.join_all().await.into_iter().collect()
}

async fn answered(probe: &mut Probe, pipeline: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let asked = tokio::time::timeout(Duration::from_secs(60), probe.ask(pipeline)).await;
        let asked = asked.with_context(|| format!("{pipeline} does not answer in a minute"))?;
        if matches!(asked, Ok(Some(_))) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{pipeline} does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
