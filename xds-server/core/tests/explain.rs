//! What a model waits for and what would help, one scene for each rule.
#![allow(clippy::unwrap_used)] // a test may
mod sim;

use std::time::Duration;

use seldon_core::{Config, Synchronisation};
use seldon_proto::scheduler::model_status::ModelState::ModelProgressing;
use sim::{Sim, agent, model, spec};

fn world() -> Sim {
    Sim::new(Config::new(Synchronisation::AfterTimeout(
        Duration::from_secs(30),
    )))
}

fn waits(sim: &Sim, name: &str) -> Vec<String> {
    sim.state.explain(name).unwrap().waits_for
}

fn help(sim: &Sim, name: &str) -> Vec<String> {
    sim.state.explain(name).unwrap().help
}

#[test]
fn a_model_on_its_way_says_whom_it_waits_for() {
    let mut sim = world();
    sim.add_server("mlserver", 2, 1000, &["sklearn"]);
    sim.load(model("iris", 2));
    assert_eq!(
        waits(&sim, "iris"),
        ["version 1 to be loaded by mlserver 0, 1"]
    );
    sim.work(&agent("mlserver", 0), true);
    assert_eq!(
        waits(&sim, "iris"),
        [
            "version 1 to be loaded by mlserver 1",
            "Envoys to take the route to version 1 on mlserver 0"
        ]
    );
    sim.settle();
    assert!(waits(&sim, "iris").is_empty() && help(&sim, "iris").is_empty());
    let mut next = model("iris", 2);
    spec(&mut next).uri = "gs://models/two".into();
    sim.load(next);
    sim.work(&agent("mlserver", 0), true);
    sim.work(&agent("mlserver", 1), true);
    sim.acknowledge();
    let waits = waits(&sim, "iris");
    assert!(
        waits.contains(
            &"Envoys to let go of version 1 on mlserver 0, 1, which is then unloaded".to_owned()
        ) || waits.contains(&"version 1 to be unloaded by mlserver 0, 1".to_owned()),
        "{waits:?}"
    );
}

#[test]
fn a_failed_load_says_when_it_is_tried_again_and_at_last_what_to_do() {
    let mut sim = world();
    sim.add_server("mlserver", 1, 1000, &["sklearn"]);
    sim.load(model("iris", 1));
    sim.work(&agent("mlserver", 0), false);
    assert_eq!(
        waits(&sim, "iris"),
        ["another try to load version 1, in 5 s, after 1 that failed"]
    );
    sim.advance(Duration::from_secs(5));
    assert_eq!(
        sim.status("iris"),
        (
            ModelProgressing,
            "it is loaded again; before: the artefact is broken".into()
        )
    );
    for _ in 0..20 {
        sim.advance(Duration::from_secs(400));
        sim.work(&agent("mlserver", 0), false);
    }
    assert_eq!(
        help(&sim, "iris"),
        [
            "it failed to load 5 times in a row and is not tried any more: mend the artefact, then load the model again"
        ]
    );
}

#[test]
fn each_rule_that_refuses_names_the_way_out() {
    let mut sim = world();
    sim.load(model("none", 1));
    assert_eq!(
        help(&sim, "none"),
        ["create a Server, or look whether its agents reach this scheduler"]
    );
    sim.unload("none");
    sim.add_server("mlserver", 2, 13 << 20, &["sklearn"]);

    let mut big = model("big", 1);
    spec(&mut big).memory_bytes = Some(25 << 20);
    sim.load(big);
    assert_eq!(
        sim.status("big").1,
        "server mlserver: 1 replica wanted, 0 suitable: needs 25 MiB, replica 0 has 13 MiB free: 12 MiB short, needs 25 MiB, replica 1 has 13 MiB free: 12 MiB short"
    );
    assert_eq!(
        help(&sim, "big"),
        [
            "free 12 MiB on a replica of server mlserver, add a replica, let its agents over-commit more, or lower the model's `memory` of 25 MiB"
        ]
    );
    assert_eq!(
        waits(&sim, "big"),
        ["a server that can take it: it is tried again when a replica joins or memory comes free"]
    );

    let mut odd = model("odd", 1);
    spec(&mut odd).requirements = vec!["xgboost".into()];
    sim.load(odd);
    assert_eq!(
        help(&sim, "odd"),
        [
            "add `xgboost` to `extraCapabilities` of a server that has it, or take it out of the model's `requirements`"
        ]
    );

    let mut pinned = model("pinned", 1);
    spec(&mut pinned).server = Some("elsewhere".into());
    sim.load(pinned);
    assert_eq!(
        help(&sim, "pinned"),
        ["create server elsewhere, or take `server` out of the model"]
    );

    sim.load(model("wide", 3));
    assert_eq!(
        help(&sim, "wide"),
        [
            "give server mlserver 1 more replicas that fit, or let the model begin with fewer: `minReplicas: 2`"
        ]
    );
    sim.notify_bounds("mlserver", 2, 1, 2);
    assert!(help(&sim, "wide").contains(
        &"raise `maxReplicas` of server mlserver: it has all 2 that it may have".to_owned()
    ));
    sim.notify_bounds("mlserver", 2, 1, 3);
    assert!(
        waits(&sim, "wide").contains(
            &"server mlserver to get 3 replicas in place of 2: 3 are wanted of the model"
                .to_owned()
        ),
        "{:?}",
        waits(&sim, "wide")
    );
}
