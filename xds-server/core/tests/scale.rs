//! 10,000 models: how many distinct replica sets, how even, how fast.
#![allow(clippy::unwrap_used)] // a test may
mod sim;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use seldon_core::{AgentKey, Config, Event, Synchronisation};
use sim::{Sim, agent, model, spec};

const MODELS: u64 = 10_000;

/// A small generator of our own, so that the world is the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn load(sim: &mut Sim, dice: &mut Dice, name: &str, sizes: &[u32]) {
    let replicas = sizes[usize::try_from(dice.roll(sizes.len() as u64)).unwrap()];
    let mut wanted = model(name, replicas);
    spec(&mut wanted).memory_bytes = Some(100 + dice.roll(900));
    sim.load(wanted);
}

/// Distinct sets by size, and the skew of memory in percent of the mean, over the server's replicas.
fn measure(sim: &Sim) -> (BTreeMap<usize, usize>, f64) {
    let mut sets: BTreeMap<usize, BTreeSet<Vec<u32>>> = BTreeMap::new();
    for route in sim.state.routes() {
        for split in route.splits {
            let set: Vec<u32> = split.replicas.replicas.into_iter().collect();
            sets.entry(set.len()).or_default().insert(set);
        }
    }
    let status = sim.state.server_status("mlserver").unwrap();
    let used: Vec<f64> = status
        .resources
        .iter()
        .map(|r| (r.total_memory_bytes - r.available_memory_bytes) as f64)
        .collect();
    let mean = used.iter().sum::<f64>() / used.len() as f64;
    let most = used.iter().copied().fold(f64::MIN, f64::max);
    let least = used.iter().copied().fold(f64::MAX, f64::min);
    (
        sets.into_iter()
            .map(|(size, sets)| (size, sets.len()))
            .collect(),
        100.0 * (most - least) / mean,
    )
}

fn check(sim: &Sim, replicas: usize, when: &str) {
    let (sets, skew) = measure(sim);
    println!("{replicas} replicas, {when}: sets by size {sets:?}, skew {skew:.2} %");
    assert!(
        sets.values().all(|count| *count <= 2 * replicas),
        "{when}: too many sets: {sets:?}"
    );
    assert!(skew <= 5.0, "{when}: skew {skew:.2} %");
}

fn churn(replicas: u32, sizes: &[u32]) {
    let mut sim = Sim::new(Config::new(Synchronisation::AfterTimeout(Duration::ZERO)));
    sim.strict = false;
    sim.add_server("mlserver", replicas, 10_000_000, &["sklearn"]);
    let mut dice = Dice(7);
    let start = Instant::now();
    for number in 0..MODELS {
        load(&mut sim, &mut dice, &format!("model-{number}"), sizes);
    }
    println!("10,000 LoadModel: {:?}", start.elapsed());
    sim.settle();
    println!(
        "… to Available with simulated agents and Envoy: {:?}",
        start.elapsed()
    );
    assert_eq!(sim.state.routes().count() as u64, MODELS);
    check(&sim, replicas as usize, "loaded");
    // Half of the models go one by one, as many new ones come, some are scaled.
    for number in 0..MODELS / 2 {
        let gone = format!("model-{}", dice.roll(MODELS));
        let _ = sim.step(Event::UnloadModel {
            name: gone,
            kubernetes_meta: None,
        });
        load(&mut sim, &mut dice, &format!("late-{number}"), sizes);
        if number % 100 == 0 {
            sim.settle();
        }
    }
    sim.settle();
    check(&sim, replicas as usize, "after churn");
}

#[test]
fn sets_are_few_and_memory_is_even_on_20_replicas() {
    churn(20, &[3]);
    churn(20, &[1, 2, 3, 5]);
}

#[test]
fn sets_are_few_and_memory_is_even_on_50_replicas() {
    churn(50, &[3]);
    churn(50, &[1, 2, 3, 5]);
}

#[test]
fn losing_and_draining_replicas_keeps_sets_few() {
    let mut sim = Sim::new(Config::new(Synchronisation::AfterTimeout(Duration::ZERO)));
    sim.strict = false;
    sim.add_server("mlserver", 20, 10_000_000, &["sklearn"]);
    let mut dice = Dice(11);
    for number in 0..2_000 {
        load(&mut sim, &mut dice, &format!("model-{number}"), &[1, 2, 3]);
    }
    sim.settle();
    for lost in [3, 11] {
        let key: AgentKey = agent("mlserver", lost);
        sim.disconnect(&key);
        sim.advance(Duration::from_secs(10));
        sim.settle();
        sim.advance(Duration::from_secs(100));
        sim.settle();
        sim.agents.get_mut(&key).unwrap().models.clear();
        sim.connect(&key);
        sim.settle();
    }
    let drained = agent("mlserver", 7);
    sim.step(Event::DrainRequested {
        agent: drained,
        token: 1,
    })
    .unwrap();
    sim.settle();
    assert_eq!(sim.drained, [1]);
    let (sets, _) = measure(&sim);
    println!("after two losses and a drain: {sets:?}");
    assert!(sets.values().all(|count| *count <= 40), "{sets:?}");
    assert_eq!(sim.state.routes().count(), 2_000);
}
