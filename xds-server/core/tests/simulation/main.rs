//! The control plane on virtual time, with messages that travel: orders, reports, acknowledgements and requests are late,
//! lost, doubled and overtake each other; agents, Envoys and the scheduler crash, stop and come back. The invariants hold
//! after every event, nothing is unloaded that an Envoy may still use, what was acknowledged survives, and when all is
//! well again the world comes to rest as it was asked to be.
//!
//! `SELDON_SIM_SEED=n` replays one seed and prints a line per event, `SELDON_SIM_SEEDS=n` runs as many.
#![allow(clippy::unwrap_used)] // a test may
mod agents;
mod checks;
mod clients;
mod envoys;
mod faults;
mod orders;
mod queue;
mod rest;
mod scheduler;
#[path = "../sim/mod.rs"]
mod sim;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs one seed; what went wrong, in words.
fn run(seed: u64, told: bool) -> Result<(), String> {
    let play = || World::new(seed, told).play();
    catch_unwind(AssertUnwindSafe(play)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "it panicked".into())
    })
}

#[test]
fn any_order_delay_loss_and_crash_of_messages_ends_well() {
    if let Some(seed) = variable("SELDON_SIM_SEED") {
        if let Err(text) = run(seed, true) {
            panic!("seed {seed}: {text}");
        }
        return;
    }
    let long = std::env::var("SELDON_TEST_LONG").is_ok_and(|set| !set.is_empty() && set != "0");
    let seeds = variable("SELDON_SIM_SEEDS").unwrap_or(if long { 10_000 } else { 200 });
    let mut failed = Vec::new();
    for seed in 0..seeds {
        if let Err(text) = run(seed, false) {
            failed.push((seed, text));
            // Enough to see what they have in common.
            if failed.len() == 20 {
                break;
            }
        }
    }
    for (seed, text) in &failed {
        let command = "cargo test -p seldon-core --test simulation -- --nocapture";
        println!("seed {seed}: {text}\n  replay: SELDON_SIM_SEED={seed} {command}");
    }
    assert!(
        failed.is_empty(),
        "{} seeds failed, see above",
        failed.len()
    );
}
