//! One, a thousand and ten thousand models: what a request costs, and what one more model costs.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_load::{cpu, driver::Shot, fake};
use seldon_local::{Component, System};
use seldon_proto::scheduler::{
    DeploymentSpec, LoadModelRequest, MetaData, Model, ModelReference, ModelSpec,
    ModelStatusRequest, ModelStatusResponse, model_status::ModelState,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tonic::transport::Channel;

use crate::{
    report::Report,
    scripted,
    shots::{BODY, grpc, median, saturate},
};

const SECTION: &str = "scale";
const ENVOY: Component = Component::Envoy(0);
const BARE: Component = Component::Envoy(1);

struct Bench {
    system: System,
    client: SchedulerClient<Channel>,
    loaded: scripted::Loaded,
    seconds: u64,
}

/// Runs the section.
pub async fn run(models: usize, seconds: u64, report: &mut Report) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(fake::serve(listener, fake::Behaviour::default()));
    // The second Envoy has no filter module, so its listener has no filter.
    let system = System::builder()
        .servers(0)
        .envoys(2)
        .config(|c| {
            c.log_level = "warn".into();
            c.without_filter.push(1);
        })
        .start()
        .await?;
    let ports = system.ports().scheduler.clone();
    let client = SchedulerClient::connect(format!("http://127.0.0.1:{}", ports.api)).await?;
    let loaded = scripted::start(format!("http://127.0.0.1:{}", ports.agents), port).await?;
    let mut bench = Bench {
        system,
        client,
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
    bench.world(&before, &after, models - 1, report).await?;
    bench.one_more(models, report).await?;
    bench.filter_cost(report).await?;
    bench.system.stop().await;
    Ok(())
}

impl Bench {
    fn name(number: usize) -> String {
        format!("model-{number:05}")
    }

    fn data(&self, component: Component) -> String {
        let Component::Envoy(index) = component else {
            return String::new();
        };
        format!("127.0.0.1:{}", self.system.ports().envoys[index].data)
    }

    fn pid(&self, component: Component) -> Result<u32> {
        self.system
            .pid(component)
            .with_context(|| format!("{component} is gone"))
    }

    async fn load(&self, number: usize) -> Result<()> {
        let model = Model {
            meta: Some(MetaData {
                name: Self::name(number),
                ..Default::default()
            }),
            model_spec: Some(ModelSpec {
                uri: "gs://seldon-models/mlserver/iris".into(),
                requirements: vec!["bench".into()],
                memory_bytes: Some(1000),
                ..Default::default()
            }),
            deployment_spec: Some(DeploymentSpec {
                replicas: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.client
            .clone()
            .load_model(LoadModelRequest { model: Some(model) })
            .await?;
        Ok(())
    }

    /// Loads models and waits until the last of them is available.
    async fn fill(&mut self, from: usize, to: usize) -> Result<()> {
        let this = &*self;
        let mut loads = stream::iter(from..to)
            .map(|n| this.load(n))
            .buffer_unordered(64);
        while let Some(done) = loads.next().await {
            done?;
        }
        // Asking costs the scheduler as well, so only the last one is asked for often.
        let deadline = Instant::now() + Duration::from_secs(120);
        for number in [to - 1, from, (from + to) / 2] {
            while !self.available(number).await? {
                ensure!(
                    Instant::now() < deadline,
                    "{} is not available",
                    Self::name(number)
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.all_available(to).await
    }

    /// One call tells of all models.
    async fn all_available(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let request = ModelStatusRequest {
                subscriber_name: "bench".into(),
                ..Default::default()
            };
            let mut answers = self
                .client
                .clone()
                .model_status(request)
                .await?
                .into_inner();
            let mut available = 0;
            while let Some(status) = answers.message().await? {
                available += usize::from(is_available(&status));
            }
            if available == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{available} of {count} models are available"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn available(&self, number: usize) -> Result<bool> {
        let request = ModelStatusRequest {
            subscriber_name: "bench".into(),
            model: Some(ModelReference {
                name: Self::name(number),
                version: None,
            }),
            all_versions: false,
        };
        let status = self
            .client
            .clone()
            .model_status(request)
            .await?
            .into_inner()
            .message()
            .await?;
        Ok(status.as_ref().is_some_and(is_available))
    }

    /// Envoy's CPU per request, REST and gRPC, medians of three rounds.
    async fn request_cost(&self, rest: usize, over_grpc: usize) -> Result<(f64, f64)> {
        Ok((
            self.cost(ENVOY, Shot::rest(&Self::name(rest), BODY))
                .await?,
            self.cost(ENVOY, grpc(&Self::name(over_grpc))).await?,
        ))
    }

    async fn cost(&self, envoy: Component, shot: Shot) -> Result<f64> {
        let duration = Duration::from_secs(self.seconds);
        let pid = self.pid(envoy)?;
        let mut rounds = vec![];
        for _ in 0..3 {
            let cost = saturate(
                vec![self.data(envoy)],
                vec![shot.clone()],
                8,
                duration / 3,
                &[pid],
            )
            .await?;
            rounds.extend(cost.cpu_us);
        }
        Ok(median(rounds))
    }

    /// What the whole world took.
    async fn world(
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
        let (scheduler, envoy) = (self.pid(Component::Scheduler)?, self.pid(ENVOY)?);
        let cpu_before = (cpu::time(scheduler), cpu::time(envoy));
        let bytes_before = self
            .stat("cluster.xds_cluster.upstream_cx_rx_bytes_total")
            .await?;
        let mut waits = vec![];
        let mut probe = Probe::new(self.data(ENVOY));
        for number in models..models + TIMES {
            let name = Self::name(number);
            self.load(number).await?;
            let loaded = self
                .loaded
                .wait_for(|l| l.as_ref().is_some_and(|l| *l.0 == *name))
                .await?;
            let since = loaded.as_ref().map(|l| l.1).context("nothing was loaded")?;
            drop(loaded);
            while !probe.answers(&name).await? {
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
        let bytes = self
            .stat("cluster.xds_cluster.upstream_cx_rx_bytes_total")
            .await?
            - bytes_before;
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

    async fn stat(&self, name: &str) -> Result<f64> {
        admin(
            self.system.ports().envoys[0].admin,
            &format!("/stats?filter=^{name}$"),
        )
        .await
        .map(|text| {
            text.lines()
                .filter_map(|l| l.rsplit_once(": ")?.1.trim().parse::<f64>().ok())
                .sum()
        })
    }
}

fn is_available(status: &ModelStatusResponse) -> bool {
    let state = status.versions.first().and_then(|v| v.state.as_ref());
    state.is_some_and(|s| s.state() == ModelState::ModelAvailable)
}

/// Asks for one model after another over one connection, anew where Envoy closed it, as it does after a 404.
struct Probe {
    target: String,
    sender: Option<hyper::client::conn::http1::SendRequest<Full<Bytes>>>,
}

impl Probe {
    fn new(target: String) -> Self {
        Self {
            target,
            sender: None,
        }
    }

    async fn answers(&mut self, model: &str) -> Result<bool> {
        let mut sender = match self.sender.take().filter(|s| !s.is_closed()) {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(&self.target).await?;
                stream.set_nodelay(true)?;
                let (sender, driver) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                sender
            }
        };
        if sender.ready().await.is_err() {
            return Ok(false);
        }
        let request = http::Request::post("/v2/models/x/infer")
            .header("host", "bench")
            .header("seldon-model", model)
            .body(Full::new(Bytes::from_static(BODY.as_bytes())))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        self.sender = Some(sender);
        Ok(status.is_success())
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
        let (scheduler, envoy) = (bench.pid(Component::Scheduler)?, bench.pid(ENVOY)?);
        let memory = admin(bench.system.ports().envoys[0].admin, "/memory").await?;
        let memory: serde_json::Value = serde_json::from_str(&memory)?;
        let heap = memory["allocated"]
            .as_str()
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let connections = admin(bench.system.ports().envoys[0].admin, "/clusters").await?;
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

async fn admin(port: u16, path: &str) -> Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    let request = http::Request::get(path)
        .header("host", "admin")
        .body(Full::new(Bytes::new()))?;
    let body = sender
        .send_request(request)
        .await?
        .into_body()
        .collect()
        .await?
        .to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}
