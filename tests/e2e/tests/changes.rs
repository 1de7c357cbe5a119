//! A thousand changes under load, through two real Envoys: no request fails.
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use seldon_e2e::faults::{Fault, Fleet, Statuses, ask_once, long, model, run_faults};
use seldon_load::driver::{Load, Report, Shot};
use seldon_local::{Component, System};
use seldon_proto::inference::ModelInferRequest;
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;
use tokio::sync::watch;

const CASES: &[Fault] = &[("changes_fail_no_request", changes)];
/// Models that are asked all the time and never changed.
const STEADY: usize = 20;
/// On every replica, so that clusters of fewer replicas come and go with the models that change.
const EVERYWHERE: u32 = 4;
/// Changes that run side by side, each on a model of its own.
const LANES: usize = 6;
/// Requests a second: steady models, and those that change.
const STEADY_RATE: f64 = 300.0;
const LANE_RATE: f64 = 15.0;
const BETWEEN_DRAINS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    run_faults(CASES)
}

#[tokio::main]
async fn changes() -> Result<()> {
    let wanted = if long() { 5000 } else { 1000 };
    let builder = System::builder().servers(EVERYWHERE as usize).envoys(2);
    let fleet = Arc::new(Fleet::start_from(builder, &[]).await?);
    let steady: Vec<String> = (0..STEADY).map(|i| format!("steady-{i}")).collect();
    for name in &steady {
        fleet.load(model(name, 1000, EVERYWHERE)).await?;
    }
    let statuses = Arc::new(fleet.statuses().await?);
    for name in &steady {
        statuses.wait(name, 1, ModelAvailable, EVERYWHERE).await?;
    }
    let load = Load {
        targets: fleet.targets(),
        shots: steady.iter().flat_map(|name| shots(name)).collect(),
        connections: 32,
        rate: Some(STEADY_RATE),
        deadline: Duration::from_secs(10),
    }
    .start()?;
    let begin = Instant::now();
    let (done, drained) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let lanes: Vec<_> = (0..LANES)
        .map(|number| {
            let lane = Lane {
                fleet: fleet.clone(),
                statuses: statuses.clone(),
                done: done.clone(),
                drained: drained.clone(),
                wanted,
                number,
            };
            tokio::spawn(lane.run())
        })
        .collect();
    let (end, ended) = watch::channel(false);
    let drains = tokio::spawn(drain(fleet.clone(), drained.clone(), ended));
    let (mut took, mut asked) = (Vec::new(), Vec::new());
    for lane in lanes {
        let outcome = lane.await??;
        took.extend(outcome.took);
        asked.extend(outcome.asked);
    }
    end.send_replace(true);
    drains.await??;
    let drained = drained.load(Ordering::Relaxed);
    let elapsed = begin.elapsed();
    asked.push(load.stop().await?);
    let sent: u64 = asked.iter().map(|report| report.sent).sum();
    let failures: Vec<_> = asked.iter().flat_map(|report| &report.failures).collect();
    took.sort();
    let at = |share: f64| took[(took.len() as f64 * share) as usize];
    println!(
        "{} changes and {drained} drained replicas in {:.1} s, {sent} requests ({:.0} a second), {} failed; a change took {:.1?} (p50), {:.1?} (p99)",
        took.len(),
        elapsed.as_secs_f64(),
        sent as f64 / elapsed.as_secs_f64(),
        failures.len(),
        at(0.5),
        at(0.99)
    );
    ensure!(failures.is_empty(), "requests failed: {failures:?}");
    ensure!(
        took.len() >= wanted && sent as f64 > elapsed.as_secs_f64() * 270.0,
        "too little was tried"
    );
    fleet.whole(&steady, EVERYWHERE, 30).await?;
    Ok(())
}

/// One replica after the other is asked to end: it drains, ends and comes back, all the time.
async fn drain(
    fleet: Arc<Fleet>,
    drained: Arc<AtomicUsize>,
    mut ended: watch::Receiver<bool>,
) -> Result<()> {
    loop {
        let round = drained.load(Ordering::Relaxed);
        let agent = Component::Agent(round % EVERYWHERE as usize);
        fleet.system.restart(agent).await?;
        drained.fetch_add(1, Ordering::Relaxed);
        let pause = tokio::time::sleep(BETWEEN_DRAINS);
        tokio::select! {
            () = pause => {}
            _ = ended.wait_for(|ended| *ended) => return Ok(()),
        }
    }
}

fn shots(name: &str) -> [Shot; 2] {
    let message = ModelInferRequest {
        model_name: name.to_owned(),
        ..Default::default()
    };
    [
        Shot::rest(name, r#"{"inputs":[]}"#),
        Shot::grpc(name, &message),
    ]
}

/// One model after the other: add, new version, two replicas, one replica, remove.
struct Lane {
    fleet: Arc<Fleet>,
    statuses: Arc<Statuses>,
    done: Arc<AtomicUsize>,
    /// Replicas that were drained so far; each has its turn before the changes end.
    drained: Arc<AtomicUsize>,
    wanted: usize,
    number: usize,
}

struct Outcome {
    took: Vec<Duration>,
    asked: Vec<Report>,
}

impl Lane {
    async fn run(self) -> Result<Outcome> {
        let mut outcome = Outcome {
            took: Vec::new(),
            asked: Vec::new(),
        };
        for round in 0.. {
            let enough = self.drained.load(Ordering::Relaxed) >= EVERYWHERE as usize;
            if self.done.fetch_add(5, Ordering::Relaxed) >= self.wanted && enough {
                break;
            }
            self.life(&format!("changing-{}-{round}", self.number), &mut outcome)
                .await?;
        }
        Ok(outcome)
    }

    async fn life(&self, name: &str, outcome: &mut Outcome) -> Result<()> {
        let took = &mut outcome.took;
        took.push(self.change(name, (1000, 1), 1).await?);
        // From here to its removal the model must answer.
        let load = Load {
            targets: self.fleet.targets(),
            shots: shots(name).to_vec(),
            connections: 4,
            rate: Some(LANE_RATE),
            deadline: Duration::from_secs(10),
        }
        .start()?;
        took.push(self.change(name, (2000, 1), 2).await?);
        took.push(self.change(name, (2000, 2), 2).await?);
        took.push(self.change(name, (2000, 1), 2).await?);
        outcome.asked.push(load.stop().await?);
        let begin = Instant::now();
        self.fleet.unload(name).await?;
        self.gone(name).await?;
        took.push(begin.elapsed());
        Ok(())
    }

    /// Waits until no Envoy knows the model. The replica keeps it for as long as an Envoy of unknown state may ask for it.
    async fn gone(&self, name: &str) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        for target in self.fleet.targets() {
            loop {
                let status = ask_once(&target, name).await?;
                if status == 404 {
                    break;
                }
                ensure!(
                    status == 200 && Instant::now() < end,
                    "{target} answers {status} for {name}, which is removed"
                );
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        Ok(())
    }

    /// From the call until every Envoy has it.
    async fn change(
        &self,
        name: &str,
        (memory, replicas): (u64, u32),
        version: u32,
    ) -> Result<Duration> {
        let begin = Instant::now();
        self.fleet.load(model(name, memory, replicas)).await?;
        self.statuses
            .wait(name, version, ModelAvailable, replicas)
            .await?;
        Ok(begin.elapsed())
    }
}
