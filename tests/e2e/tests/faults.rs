//! One process dies, stops or is started again under load, or the control network is cut: no request is lost that a
//! healthy replica could answer, and the system is whole again by itself.
#[path = "faults/neighbours.rs"]
mod neighbours;
#[path = "faults/scene.rs"]
mod scene;
#[path = "faults/scheduler.rs"]
mod scheduler;

use std::process::ExitCode;

use anyhow::Result;
use scene::{Fall, Scene};
use seldon_e2e::faults::{Fault, Fleet, run_faults};
use seldon_local::Component::{self, Agent, Envoy, MlServer};

const CASES: &[Fault] = &[
    ("scheduler_killed", || scheduler::falls(Fall::Killed)),
    ("scheduler_stopped", || scheduler::falls(Fall::Stopped)),
    ("scheduler_restarted", || scheduler::falls(Fall::Restarted)),
    ("control_network_cut", scheduler::network_cut),
    ("acknowledged_loads_survive_kills", scheduler::acknowledged),
    ("agent_killed", || falls(Agent(1), Fall::Killed)),
    ("agent_stopped", || falls(Agent(1), Fall::Stopped)),
    ("agent_restarted", || falls(Agent(1), Fall::Restarted)),
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
