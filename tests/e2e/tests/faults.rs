//! One process dies, stops or is started again under load, or the control network is cut: no request is lost that a
//! healthy replica could answer, and the system is whole again by itself.
#[path = "faults/neighbours.rs"]
mod neighbours;
#[path = "faults/scene.rs"]
mod scene;
#[path = "faults/scheduler.rs"]
mod scheduler;

use std::process::ExitCode;

use anyhow::{Context, Result};
use scene::{DOWN, Fall, Scene, passes};
use seldon_e2e::faults::{Fault, Fleet, run_faults};
use seldon_local::Component::{self, Agent, Envoy, MlServer};
use seldon_local::Signal;

const CASES: &[Fault] = &[
    ("scheduler_killed", || scheduler::falls(Fall::Killed)),
    ("scheduler_stopped", || scheduler::falls(Fall::Stopped)),
    ("scheduler_restarted", || scheduler::falls(Fall::Restarted)),
    ("control_network_cut", scheduler::network_cut),
    ("acknowledged_loads_survive_kills", scheduler::acknowledged),
    ("agent_killed", || falls(Agent(1), Fall::Killed)),
    ("agent_stopped", || falls(Agent(1), Fall::Stopped)),
    ("agent_restarted", || falls(Agent(1), Fall::Restarted)),
    ("agent_emptied", emptied),
    ("inference_server_killed", || {
        falls(MlServer(1), Fall::Killed)
    }),
    ("inference_server_stopped", || {
        falls(MlServer(1), Fall::Stopped)
    }),
    ("inference_server_restarted", || {
        falls(MlServer(1), Fall::Restarted)
    }),
    ("envoy_killed", || falls(Envoy(1), Fall::Killed)),
    ("envoy_stopped", || falls(Envoy(1), Fall::Stopped)),
    ("envoy_restarted", || falls(Envoy(1), Fall::Restarted)),
    (
        "a_failing_model_has_untouched_neighbours",
        neighbours::failing,
    ),
    (
        "a_hanging_model_has_untouched_neighbours",
        neighbours::hanging,
    ),
];

fn main() -> ExitCode {
    run_faults(CASES)
}

#[tokio::main]
async fn falls(component: Component, fall: Fall) -> Result<()> {
    let scene = Scene::new(Fleet::start(&[]).await?).await?;
    for round in 0..scene::rounds() {
        // Requests through an Envoy that falls are its clients' to repeat.
        let spared = if component == Envoy(1) {
            &scene.targets[..1]
        } else {
            &scene.targets[..]
        };
        let load = scene.load(spared)?;
        scene
            .falls(component, fall, &load, async || {
                scene.still_takes_changes(round).await
            })
            .await?;
        scene
            .survived(&format!("{component} {fall:?}"), load)
            .await?;
    }
    Ok(())
}

/// A replica comes back without its disk while nobody can tell the Envoys: what they ask it for, the other one answers.
#[tokio::main]
async fn emptied() -> Result<()> {
    let (fleet, [_envoys, agents]) = Fleet::start_wired().await?;
    let scene = Scene::new(fleet).await?;
    let system = &scene.fleet.system;
    let load = scene.load(&scene.targets)?;
    passes(&load, 1).await?;
    agents.cut();
    system.kill(Agent(1), Signal::SIGKILL)?;
    system.stop_one(Agent(1)).await;
    let models = system.config().folder(Agent(1)).join("models");
    std::fs::remove_dir_all(&models).context("the models of the agent")?;
    system.start_one(Agent(1))?;
    let alone = passes(&load, DOWN).await;
    agents.mend();
    alone?;
    system
        .wait_one(Agent(1), std::time::Duration::from_secs(30))
        .await?;
    scene.survived("an agent without its disk", load).await
}
