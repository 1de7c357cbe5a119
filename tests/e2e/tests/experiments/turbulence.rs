//! Hundreds of changes of experiments under load, through two Envoys: no request fails, none goes to a ghost.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::{Fleet, ask_once, experiment, long, percent_of};
use seldon_load::driver::{Load, Report};
use seldon_proto::scheduler as pb;

use crate::mirrors::mirrored;
use crate::scene::{Case, grpc, models, rest, send, steady, with};

pub(crate) const CASES: &[Case] = &[("turbulence::changes_fail_no_request", |stages| {
    stages.fleet(changes)
})];

/// Lives of experiments side by side, each with models of its own.
const LANES: usize = 6;
/// Requests a second to what never changes, and to what each lane changes.
const STEADY_RATE: f64 = 180.0;
const LANE_RATE: f64 = 20.0;

async fn changes(fleet: &Fleet) -> Result<()> {
    let wanted = if long() { 3_000 } else { 500 };
    models(fleet, &["still-a", "still-b", "still-c"], 2).await?;
    let split = [("still-a", 50), ("still-b", 50)];
    fleet
        .run_experiment(experiment("still", Some("still-a"), &split))
        .await?;
    let shots = ["still-a", "still.experiment", "still-c"].map(|name| [rest(name), grpc(name)]);
    let load = steady(fleet, shots.concat(), STEADY_RATE)?;
    let begin = Instant::now();
    let done = AtomicUsize::new(0);
    let lanes = [0, 1, 2, 3, 4, 5].map(|number| lane(fleet, number, &done, wanted));
    let [a, b, c, d, e, f] = lanes;
    let outcomes = tokio::join!(a, b, c, d, e, f);
    let elapsed = begin.elapsed();
    let mut reports = vec![load.stop().await?];
    for outcome in [
        outcomes.0, outcomes.1, outcomes.2, outcomes.3, outcomes.4, outcomes.5,
    ] {
        reports.extend(outcome?);
    }
    let sent: u64 = reports.iter().map(|report| report.sent).sum();
    let failures: Vec<_> = reports.iter().flat_map(|report| &report.failures).collect();
    let done = done.load(Ordering::Relaxed);
    println!(
        "{done} changes of experiments in {:.1} s, {sent} requests ({:.0} a second), {} failed",
        elapsed.as_secs_f64(),
        sent as f64 / elapsed.as_secs_f64(),
        failures.len()
    );
    ensure!(failures.is_empty(), "requests failed: {failures:?}");
    ensure!(
        sent as f64 > elapsed.as_secs_f64() * STEADY_RATE,
        "too little was tried"
    );
    fleet.stop_experiment("still").await
}

async fn lane(
    fleet: &Fleet,
    number: usize,
    done: &AtomicUsize,
    wanted: usize,
) -> Result<Vec<Report>> {
    assert!(number < LANES);
    let mut reports = Vec::new();
    let names = Names::new(number);
    models(fleet, &[&names.a, &names.b, &names.m], 2).await?;
    let mut round = 0;
    while done.load(Ordering::Relaxed) < wanted {
        let life = Life {
            fleet,
            names: &names,
            experiment: format!("life-{number}-{round}"),
        };
        reports.extend(
            life.live(done)
                .await
                .with_context(|| life.experiment.clone())?,
        );
        round += 1;
    }
    Ok(reports)
}

struct Names {
    a: String,
    b: String,
    m: String,
}

impl Names {
    fn new(number: usize) -> Self {
        let name = |letter: &str| format!("turn-{letter}{number}");
        Self {
            a: name("a"),
            b: name("b"),
            m: name("m"),
        }
    }
}

struct Life<'a> {
    fleet: &'a Fleet,
    names: &'a Names,
    experiment: String,
}

impl Life<'_> {
    fn split(&self, default: &str, a: u32, b: u32) -> pb::Experiment {
        experiment(
            &self.experiment,
            Some(default),
            &[(&self.names.a, a), (&self.names.b, b)],
        )
    }

    async fn live(&self, done: &AtomicUsize) -> Result<Vec<Report>> {
        let (fleet, Names { a, b, m }) = (self.fleet, self.names);
        let did = || done.fetch_add(1, Ordering::Relaxed);
        let whole = self.load(vec![rest(a), grpc(a)])?;
        fleet.run_experiment(self.split(a, 50, 50)).await?;
        did();
        let endpoint = format!("{}.experiment", self.experiment);
        let own = self.load(vec![rest(&endpoint), grpc(&endpoint), rest(a)])?;
        fleet.run_experiment(self.split(a, 20, 80)).await?;
        did();
        let copied = pb::Experiment {
            mirror: mirrored("", a, m, 100).mirror,
            ..self.split(a, 20, 80)
        };
        fleet.run_experiment(copied).await?;
        did();
        fleet.unload(b).await?;
        fleet
            .in_force(&self.experiment, 15, |told| percent_of(told, b) == 0.0)
            .await?;
        did();
        models(fleet, &[b], 2).await?;
        fleet.active(&self.experiment, 15).await?;
        did();
        fleet.run_experiment(self.split(a, 0, 100)).await?;
        did();
        // b's name is split now, and a's is its own again.
        fleet.run_experiment(self.split(b, 50, 50)).await?;
        did();
        fleet.run_experiment(self.split(a, 50, 50)).await?;
        let mut reports = vec![own.stop().await?];
        fleet.stop_experiment(&self.experiment).await?;
        self.no_ghost(&endpoint).await?;
        did();
        reports.push(whole.stop().await?);
        Ok(reports)
    }

    fn load(&self, shots: Vec<crate::scene::Shot>) -> Result<seldon_load::driver::Running> {
        Load {
            targets: self.fleet.targets(),
            shots,
            connections: 8,
            rate: Some(LANE_RATE),
            deadline: Duration::from_secs(10),
        }
        .start()
    }

    /// Once no Envoy knows the experiment, nobody gets to its other candidate or its mirror any more.
    async fn no_ghost(&self, endpoint: &str) -> Result<()> {
        let fleet = self.fleet;
        for target in fleet.targets() {
            eventually_async(10, async || {
                let status = ask_once(&target, endpoint).await?;
                ensure!(
                    status == 404,
                    "{target} answers {status} for {endpoint}, which is stopped"
                );
                Ok(())
            })
            .await?;
        }
        let Names { a, b, m } = self.names;
        // What was on its way has arrived when the counts stand still between two looks with requests in between.
        let ghosts = || -> Result<u64> {
            let asked = fleet.asked()?;
            let own = |name: &str| {
                let of_it = |(model, _): &(&String, &u64)| {
                    model.rsplit_once('_').is_some_and(|(stem, _)| stem == name)
                };
                asked
                    .counts
                    .iter()
                    .filter(of_it)
                    .map(|(_, count)| count)
                    .sum::<u64>()
            };
            Ok(own(b) + own(m))
        };
        let settled = send(fleet, vec![rest(a)], 8).await?;
        ensure!(settled.routes.len() == 1, "{:?}", settled.routes);
        let before = ghosts()?;
        let stale = format!(":{b}_1::{b}_2::{b}_3:");
        let shots = vec![rest(a), grpc(a), with(rest(a), "x-seldon-route", &stale)?];
        let report = send(fleet, shots, 30).await?;
        let strangers = report
            .routes
            .keys()
            .filter(|route| !route.starts_with(&format!(":{a}_")));
        ensure!(strangers.count() == 0, "{:?}", report.routes);
        let after = ghosts()?;
        ensure!(
            after == before,
            "{} requests went to ghosts",
            after - before
        );
        Ok(())
    }
}
