//! The systems that cases share, and what they do with them.
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seldon_e2e::faults::{Fleet, model, none_failed};
use seldon_e2e::{Ask, Running, eventually_async};
pub(crate) use seldon_load::driver::Shot;
use seldon_load::driver::{Load, Report};
use seldon_local::System;
use seldon_proto::inference::ModelInferRequest;
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;
use tokio::runtime::Runtime;

pub(crate) type Case = (&'static str, fn(&Stages) -> Result<()>);

/// What models of the stand-in servers do by the first letters of their names.
const MANNERS: &[(&str, &str)] = &[
    ("FAKE_HANG_PREFIX", "hang"),
    ("FAKE_FAIL_PREFIX", "fail"),
    ("FAKE_SLOW_PREFIX", "slow"),
    ("FAKE_SLOW_MS", "40"),
    ("FAKE_RECORD_PREFIX", "rec"),
];

/// Models whose names start with `late` take their time to load, on the second replica only.
fn late(config: &mut seldon_local::Config) {
    let variables = config.env.entry("mlserver-1".to_owned()).or_default();
    for (name, value) in [("FAKE_LOAD_PREFIX", "late"), ("FAKE_LOAD_MS", "2000")] {
        variables.insert(name.to_owned(), value.to_owned());
    }
}

/// Both systems; each starts when it is first needed.
#[derive(Default)]
pub(crate) struct Stages {
    documented: Mutex<Option<Running>>,
    fleet: Mutex<Option<Fleet>>,
    runtime: OnceLock<Runtime>,
}

impl Stages {
    /// The documented installation: one MLServer, one Envoy. Cases take turns, since they use the same names.
    pub(crate) fn documented<T>(&self, act: impl FnOnce(&Running) -> Result<T>) -> Result<T> {
        let mut slot = self
            .documented
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(Running::start(System::builder())?);
        }
        act(slot.as_ref().context("it was started")?)
    }

    /// Two replicas of the stand-in server, two Envoys. Cases take turns, since they load the machine.
    pub(crate) fn fleet<T>(&self, act: impl AsyncFnOnce(&Fleet) -> Result<T>) -> Result<T> {
        let mut slot = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        self.runtime()?.block_on(async {
            if slot.is_none() {
                *slot = Some(Fleet::start_with(MANNERS, late).await?);
            }
            act(slot.as_ref().context("it was started")?).await
        })
    }

    /// The same with a fleet of its own, which no other case sees. It takes its turn all the same.
    pub(crate) fn own_fleet<T>(
        &self,
        change: impl FnOnce(&mut seldon_local::Config) + Send + 'static,
        act: impl AsyncFnOnce(&Fleet) -> Result<T>,
    ) -> Result<T> {
        let _turn = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        self.runtime()?.block_on(async {
            let fleet = Fleet::start_with(MANNERS, change).await?;
            let result = act(&fleet).await;
            fleet.system.stop().await;
            result
        })
    }

    fn runtime(&self) -> Result<&Runtime> {
        if self.runtime.get().is_none() {
            let _ = self.runtime.set(Runtime::new()?);
        }
        self.runtime.get().context("it was just made")
    }

    /// Ends what was started.
    pub(crate) fn stop(&self, failed: bool) {
        let take = |error: PoisonError<_>| PoisonError::into_inner(error);
        if let Some(running) = self.documented.lock().unwrap_or_else(take).take() {
            running.stop(failed);
        }
        let fleet = self
            .fleet
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let (Some(fleet), Some(runtime)) = (fleet, self.runtime.get()) {
            runtime.block_on(fleet.system.stop());
        }
    }
}

/// Loads models, each on so many replicas, and waits until Envoys have them. One that is still being unloaded is waited
/// for.
pub(crate) async fn models(fleet: &Fleet, names: &[&str], replicas: u32) -> Result<()> {
    for name in names {
        eventually_async(20, async || fleet.load(model(name, 1000, replicas)).await).await?;
    }
    for name in names {
        fleet.reaches(name, ModelAvailable, replicas, 20).await?;
    }
    Ok(())
}

/// A REST request for a name, given by header.
pub(crate) fn rest(name: &str) -> Shot {
    Shot::rest(name, r#"{"inputs":[]}"#)
}

/// The same by gRPC.
pub(crate) fn grpc(name: &str) -> Shot {
    let message = ModelInferRequest {
        model_name: name.to_owned(),
        ..Default::default()
    };
    Shot::grpc(name, &message)
}

/// A request with one more header; several values of one name are several headers.
pub(crate) fn with(mut shot: Shot, name: &'static str, value: &str) -> Result<Shot> {
    shot.headers.append(name, value.parse()?);
    Ok(shot)
}

/// Sends requests in turn through both Envoys, as fast as they are answered, until so many are.
pub(crate) async fn send(fleet: &Fleet, shots: Vec<Shot>, count: u64) -> Result<Report> {
    let load = Load {
        targets: fleet.targets(),
        shots,
        connections: 8,
        rate: None,
        deadline: Duration::from_secs(10),
    }
    .start()?;
    let look = async || {
        let answered = load.answered();
        ensure!(answered >= count, "{answered} of {count} answers");
        Ok(())
    };
    let enough = eventually_async(60, look).await;
    let report = load.stop().await?;
    enough?;
    none_failed(&report)?;
    Ok(report)
}

/// Checks that shares are those of the weights: Pearson's chi-squared test at one in a million.
pub(crate) fn shares(report: &Report, weights: &[(&str, u32)]) -> Result<()> {
    /// Quantiles at 1 - 1e-6 for 1, 2, 3 … degrees of freedom.
    const BOUND: [f64; 6] = [23.93, 27.63, 30.66, 33.38, 35.89, 38.26];
    let total: u64 = report.routes.values().sum();
    let sum: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut square = 0.0;
    for (route, weight) in weights {
        let count = report.routes.get(*route).copied().unwrap_or(0);
        ensure!(
            *weight > 0 || count == 0,
            "{route} has no weight: {:?}",
            report.routes
        );
        if *weight > 0 {
            let expected = total as f64 * f64::from(*weight) / sum;
            square += (count as f64 - expected).powi(2) / expected;
        }
    }
    let known: BTreeMap<_, _> = weights.iter().copied().collect();
    let stranger = report
        .routes
        .keys()
        .find(|route| !known.contains_key(route.as_str()));
    ensure!(
        stranger.is_none(),
        "who is {stranger:?}? {:?}",
        report.routes
    );
    let freedom = weights.iter().filter(|(_, weight)| *weight > 0).count() - 1;
    let bound = BOUND[freedom.max(1) - 1];
    ensure!(
        freedom > 0 && square <= bound,
        "{:?} of {total} for {weights:?}: chi-squared {square:.1} > {bound}",
        report.routes
    );
    Ok(())
}

/// Asks once by REST, through an Envoy.
pub(crate) fn ask(name: &str) -> Ask {
    Ask::post(&format!("/v2/models/{name}/infer"), r#"{"inputs":[]}"#).header("seldon-model", name)
}

/// Asks once by REST with further headers, and returns who answered.
pub(crate) async fn route_of(port: u16, name: &str, headers: &[(&str, &str)]) -> Result<String> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("/v2/models/{name}/infer"))
        .header("host", "seldon.test")
        .header("content-type", "application/json")
        .header("seldon-model", name);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Full::new(bytes::Bytes::from_static(br#"{"inputs":[]}"#));
    let answer = sender.send_request(request.body(body)?).await?;
    ensure!(answer.status() == 200, "{name}: {answer:?}");
    let route = answer.headers().get("x-seldon-route");
    Ok(route.context("no route")?.to_str()?.to_owned())
}

/// A load that goes on until it is stopped, and must lose nothing.
pub(crate) fn steady(
    fleet: &Fleet,
    shots: Vec<Shot>,
    rate: f64,
) -> Result<seldon_load::driver::Running> {
    Load {
        targets: fleet.targets(),
        shots,
        connections: 64,
        rate: Some(rate),
        deadline: Duration::from_secs(12),
    }
    .start()
}

/// Ends a load, which must have lost nothing.
pub(crate) async fn lossless(load: seldon_load::driver::Running, what: &str) -> Result<Report> {
    let report = load.stop().await?;
    println!(
        "{what}: {} requests, {} failed, p50 {:.1} ms, slowest {:.1} ms",
        report.sent,
        report.failed(),
        report.latency.value_at_quantile(0.5) as f64 / 1e3,
        report.latency.max() as f64 / 1e3
    );
    ensure!(
        report.failed() == 0,
        "{what}: requests failed: {:?}",
        report.failures
    );
    Ok(report)
}
