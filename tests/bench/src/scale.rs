//! One, a thousand and ten thousand models: what a request costs, and what one more model costs.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seldon_load::{cpu, driver::Shot, fake};
use seldon_local::Component;
use tokio::net::TcpListener;

use crate::{
    admin::{self, Probe},
    report::Report,
    scripted,
    shots::{BODY, grpc, median},
    world::{Kind, World, costs},
};

const SECTION: &str = "scale";
const ENVOY: usize = 0;
const BARE: usize = 1;
const CONNECTIONS: usize = 8;

/// What the one server's models require.
const SERVER: &str = "bench";

struct Bench {
    world: World,
    loaded: scripted::Loaded,
    seconds: u64,
}

/// Runs the section.
pub async fn run(models: usize, seconds: u64, report: &mut Report) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(fake::serve(listener, fake::Behaviour::default()));
    // The second Envoy has no filter module, so its listener has no filter.
    let world = World::start(2, |c| c.without_filter.push(1)).await?;
    let loaded = world.server(SERVER, port).await?;
    let mut bench = Bench {
        world,
        loaded,
        seconds,
    };

    bench.fill(0, 1).await?;
    let (rest_one, grpc_one) = bench.request_cost(0, 0).await?;
    report.shown(
        SECTION,
        "Envoy CPU per REST request, 1 model",
        rest_one,
        "µs",
    );
    report.shown(
        SECTION,
        "Envoy CPU per gRPC request, 1 model",
        grpc_one,
        "µs",
    );
    let before = Usage::of(&bench).await?;
    let sizes: Vec<usize> = [1_000, models]
        .into_iter()
        .filter(|n| *n <= models)
        .collect();
    let mut from = 1;
    for size in sizes {
        if size <= from {
            continue;
        }
        bench.fill(from, size).await?;
        from = size;
        for (place, model) in [("first", 0), ("last", size - 1)] {
            // The one-model figure again, beside it: machines are noisy.
            let (rest, grpc) = bench.request_cost(model, model).await?;
            report.at_most(
                SECTION,
                format!("Envoy CPU, REST, {place} of {size} models / 1 model"),
                rest / rest_one,
                "×",
                1.1,
            );
            report.at_most(
                SECTION,
                format!("Envoy CPU, gRPC, {place} of {size} models / 1 model"),
                grpc / grpc_one,
                "×",
                1.1,
            );
        }
    }
    let after = Usage::of(&bench).await?;
    bench.whole(&before, &after, models - 1, report).await?;
    bench.one_more(models, report).await?;
    bench.filter_cost(report).await?;
    bench.world.system.stop().await;
    Ok(())
}

impl Bench {
    fn name(number: usize) -> String {
        format!("model-{number:05}")
    }

    /// Loads models and waits until they are available.
    async fn fill(&mut self, from: usize, to: usize) -> Result<()> {
        let names: Vec<String> = (from..to).map(Self::name).collect();
        self.world.fill(&names, SERVER, to).await
    }

    /// Envoy's CPU per request, REST and gRPC, medians of three rounds.
    async fn request_cost(&self, rest: usize, over_grpc: usize) -> Result<(f64, f64)> {
        Ok((
            self.cost(ENVOY, Shot::rest(&Self::name(rest), BODY))
                .await?,
            self.cost(ENVOY, grpc(&Self::name(over_grpc))).await?,
        ))
    }

    async fn cost(&self, envoy: usize, shot: Shot) -> Result<f64> {
        let target = self.world.target(envoy)?;
        let duration = Duration::from_secs(self.seconds) / 3;
        let cost = costs(&[Kind { target, shot }], 3, CONNECTIONS, duration).await?;
        Ok(cost.median(0))
    }

    /// What the whole world took.
    async fn whole(
        &self,
        before: &Usage,
        after: &Usage,
        added: usize,
        report: &mut Report,
    ) -> Result<()> {
        let scheduler = (after.scheduler_cpu - before.scheduler_cpu).as_secs_f64();
        report.at_most(
            SECTION,
            format!("scheduler CPU, {added} models from LoadModel to Available"),
            scheduler,
            "s",
            1.0,
        );
        let memory = after
            .scheduler_memory
            .saturating_sub(before.scheduler_memory) as f64;
        report.at_most(
            SECTION,
            "scheduler memory a model",
            memory / added as f64 / 1024.0,
            "KB",
            4.0,
        );
        let heap = after.envoy_heap.saturating_sub(before.envoy_heap) as f64;
        report.at_most(
            SECTION,
            "Envoy heap a model",
            heap / added as f64 / 1024.0,
            "KB",
            9.0,
        );
        report.at_most(
            SECTION,
            "Envoy resident",
            after.envoy_memory as f64 / 1e6,
            "MB",
            220.0,
        );
        report.shown(
            SECTION,
            "Envoy's upstream connections",
            after.connections,
            "",
        );
        Ok(())
    }

    /// One model more, again and again: from the agent's report to the first 200.
    async fn one_more(&mut self, models: usize, report: &mut Report) -> Result<()> {
        const TIMES: usize = 200;
        let (scheduler, envoy) = (
            self.world.pid(Component::Scheduler)?,
            self.world.pid(Component::Envoy(ENVOY))?,
        );
        let cpu_before = (cpu::time(scheduler), cpu::time(envoy));
        let bytes_before = self.world.discovered(ENVOY).await?;
        let mut waits = vec![];
        let mut probe = Probe::new(self.world.data(ENVOY));
        for number in models..models + TIMES {
            let name = Self::name(number);
            self.world.load(&name, SERVER).await?;
            let loaded = self
                .loaded
                .wait_for(|l| l.as_ref().is_some_and(|l| *l.0 == *name))
                .await?;
            let since = loaded.as_ref().map(|l| l.1).context("nothing was loaded")?;
            drop(loaded);
            while probe.ask(&name).await?.is_none() {
                ensure!(
                    since.elapsed() < Duration::from_secs(10),
                    "{name} is never served"
                );
            }
            waits.push(since.elapsed().as_secs_f64() * 1e3);
        }
        let each = |a: Option<Duration>, b: Option<Duration>| {
            (a.unwrap_or_default() - b.unwrap_or_default()).as_secs_f64() * 1e3 / TIMES as f64
        };
        waits.sort_by(f64::total_cmp);
        report.shown(
            SECTION,
            "one more model: loaded → first 200, p50",
            median(waits.clone()),
            "ms",
        );
        report.at_most(
            SECTION,
            "one more model: loaded → first 200, p99",
            waits[TIMES * 99 / 100],
            "ms",
            20.0,
        );
        report.at_most(
            SECTION,
            "one more model: scheduler CPU",
            each(cpu::time(scheduler), cpu_before.0),
            "ms",
            1.0,
        );
        report.at_most(
            SECTION,
            "one more model: Envoy CPU, probes included",
            each(cpu::time(envoy), cpu_before.1),
            "ms",
            3.0,
        );
        let bytes = self.world.discovered(ENVOY).await? - bytes_before;
        let allowed = 512.0 + 6.0 * Self::name(0).len() as f64;
        report.at_most(
            SECTION,
            "one more model: bytes to each Envoy",
            bytes / TIMES as f64,
            "B",
            allowed,
        );
        Ok(())
    }

    /// The same requests through an Envoy with the filter and one without, in turns.
    async fn filter_cost(&self, report: &mut Report) -> Result<()> {
        let (mut with, mut without) = (vec![], vec![]);
        for _ in 0..3 {
            with.push(self.cost(ENVOY, Shot::rest(&Self::name(0), BODY)).await?);
            without.push(self.cost(BARE, Shot::rest(&Self::name(0), BODY)).await?);
        }
        report.at_most(
            SECTION,
            "Envoy CPU with the filter / without, model by header",
            median(with) / median(without),
            "×",
            1.05,
        );
        let mut by_path = Shot::rest(&Self::name(0), BODY);
        by_path.headers.remove("seldon-model");
        let derived = self.cost(ENVOY, by_path).await?;
        let plain = self.cost(ENVOY, Shot::rest(&Self::name(0), BODY)).await?;
        report.shown(
            SECTION,
            "Envoy CPU, model by path / by header",
            derived / plain,
            "×",
        );
        Ok(())
    }
}

struct Usage {
    scheduler_cpu: Duration,
    scheduler_memory: u64,
    envoy_memory: u64,
    envoy_heap: u64,
    connections: f64,
}

impl Usage {
    async fn of(bench: &Bench) -> Result<Self> {
        let (scheduler, envoy) = (
            bench.world.pid(Component::Scheduler)?,
            bench.world.pid(Component::Envoy(ENVOY))?,
        );
        let memory = admin::get(bench.world.admin(ENVOY), "/memory").await?;
        let memory: serde_json::Value = serde_json::from_str(&memory)?;
        let heap = memory["allocated"]
            .as_str()
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let connections = admin::get(bench.world.admin(ENVOY), "/clusters").await?;
        let connections = connections
            .lines()
            .filter_map(|l| l.split_once("::cx_active::")?.1.parse::<f64>().ok())
            .sum();
        Ok(Self {
            scheduler_cpu: cpu::time(scheduler).unwrap_or_default(),
            scheduler_memory: cpu::resident(scheduler).unwrap_or_default(),
            envoy_memory: cpu::resident(envoy).unwrap_or_default(),
            envoy_heap: heap,
            connections,
        })
    }
}
