//! The documented metrics, and that Envoy's do not grow with models.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use seldon_e2e::{Ask, Case, Loaded, Running, Spec, eventually};

use crate::protocol::{IRIS, iris};

pub const CASES: &[Case] = &[
    ("metrics::agents_count_as_documented", agents),
    ("metrics::envoys_series_do_not_grow_with_models", envoys),
];

/// A line of the text format.
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

fn samples(text: &str) -> Vec<Sample> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}')?.split("\",").filter_map(|pair| {
        let (key, value) = pair.split_once("=\"")?;
        Some((key.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    Some(Sample {
        name: name.to_owned(),
        labels: labels.collect(),
        value: value.parse().ok()?,
    })
}

fn scrape(running: &Running) -> Result<Vec<Sample>> {
    let mut all = Vec::new();
    for replica in &running.system().ports().replicas {
        let answer = Ask::get("/metrics").send(replica.metrics)?;
        ensure!(answer.status == 200, "{answer:?}");
        all.extend(samples(&answer.text()));
    }
    Ok(all)
}

/// How often a model was asked on all replicas.
pub fn inferences(running: &Running, internal: &str) -> Result<f64> {
    let all = scrape(running)?;
    let of_it = all.iter().filter(|sample| {
        sample.name == "seldon_model_infer_total"
            && sample
                .labels
                .get("model_internal")
                .is_some_and(|name| name == internal)
    });
    Ok(of_it.map(|sample| sample.value).sum())
}

const SERVER: &[&str] = &["server", "server_replica"];
const PER_MODEL: &[&str] = &["server", "server_replica", "model_internal"];
const PER_CALL: &[&str] = &[
    "server",
    "server_replica",
    "model",
    "model_internal",
    "method_type",
    "code",
];

/// Documented at lines 2774-2795.
const DOCUMENTED: &[(&str, &[&str])] = &[
    (
        "seldon_model_infer_api_seconds_bucket",
        &["server", "server_replica", "method", "code", "le"],
    ),
    ("seldon_model_infer_total", PER_CALL),
    ("seldon_model_infer_seconds_total", PER_CALL),
    (
        "seldon_model_aggregate_infer_total",
        &["server", "server_replica", "method_type"],
    ),
    (
        "seldon_model_aggregate_infer_seconds_total",
        &["server", "server_replica", "method_type"],
    ),
    ("seldon_cache_evict_count", SERVER),
    ("seldon_cache_miss_count", SERVER),
    ("seldon_load_model_counter", SERVER),
    ("seldon_unload_model_counter", SERVER),
    ("seldon_loaded_model_gauge", PER_MODEL),
    ("seldon_loaded_model_memory_bytes_gauge", PER_MODEL),
    ("seldon_server_replica_memory_capacity_bytes_gauge", SERVER),
    (
        "seldon_server_replica_memory_capacity_overcommit_bytes_gauge",
        SERVER,
    ),
];

fn agents(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::iris("counted").memory(4321))?;
    for _ in 0..3 {
        Ask::post("/v2/models/counted/infer", IRIS)
            .send(running.data())?
            .ok()?;
    }
    Ask::post("/v2/models/counted/infer", "{")
        .send(running.data())?
        .refused()?;
    running.block_on(running.inference().model_infer(iris("counted")))?;
    eventually(10, || {
        let asked = inferences(running, "counted_1")?;
        ensure!(asked == 5.0, "counted {asked} times");
        Ok(())
    })?;
    let all = scrape(running)?;
    for (name, labels) in DOCUMENTED {
        let sample = all
            .iter()
            .find(|sample| sample.name == *name)
            .with_context(|| format!("no {name}"))?;
        let wanted: BTreeSet<&str> = labels.iter().copied().collect();
        let given: BTreeSet<&str> = sample.labels.keys().map(String::as_str).collect();
        ensure!(
            wanted == given,
            "{name} has labels {given:?}, documented are {wanted:?}"
        );
    }
    // Nothing is evicted here, so of this one only the type line is there.
    let first = Ask::get("/metrics")
        .send(running.system().ports().replicas[0].metrics)?
        .text();
    ensure!(
        first.contains("seldon_evicted_model_memory_bytes_gauge"),
        "no seldon_evicted_model_memory_bytes_gauge"
    );
    let value = |name: &str, labels: &[(&str, &str)]| -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|given| given == value))
        };
        all.iter().filter(fits).map(|sample| sample.value).sum()
    };
    let of = |method, code| {
        [
            ("model", "counted"),
            ("model_internal", "counted_1"),
            ("server", "mlserver"),
            ("method_type", method),
            ("code", code),
        ]
    };
    let counted = |method, code| value("seldon_model_infer_total", &of(method, code));
    ensure!(
        counted("rest", "200") == 3.0 && counted("grpc", "OK") == 1.0,
        "rest {}, grpc {}",
        counted("rest", "200"),
        counted("grpc", "OK")
    );
    ensure!(
        value(
            "seldon_loaded_model_memory_bytes_gauge",
            &[("model_internal", "counted_1")]
        ) == 4321.0,
        "memory"
    );
    ensure!(
        value("seldon_server_replica_memory_capacity_bytes_gauge", &[]) == 20_000_000.0,
        "capacity"
    );
    ensure!(
        value(
            "seldon_server_replica_memory_capacity_overcommit_bytes_gauge",
            &[]
        ) == 24_000_000.0,
        "over-commit"
    );
    Ok(())
}

/// The values of each label, and under `name` the metrics: what the number of series is made of.
fn distinct(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for sample in samples(text) {
        // The replicas of a cluster stand in the metric's name: what comes before the dot of its name is the label.
        let name = match sample.name.strip_prefix("envoy_cluster_") {
            Some(rest) => rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '_')
                .to_owned(),
            None => sample.name,
        };
        all.entry("name".to_owned()).or_default().insert(name);
        for (label, value) in sample.labels {
            all.entry(label).or_default().insert(value);
        }
    }
    all
}

fn envoys(running: &Running) -> Result<()> {
    const MODELS: usize = 25;
    let status = running.system().ports().envoys[0].status;
    let stats = || -> Result<String> {
        let answer = Ask::get("/stats/prometheus").send(status)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.text())
    };
    ensure!(Ask::get("/ready").send(status)?.status == 200, "not ready");
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/stats"),
        ("GET", "/config_dump"),
        ("GET", "/clusters"),
        ("GET", "/server_info"),
        ("POST", "/quitquitquit"),
        ("POST", "/healthcheck/fail"),
        ("POST", "/stats/prometheus"),
        ("GET", "/stats/prometheus/../../config_dump"),
        ("GET", "/ready/../config_dump"),
        ("POST", "/logging"),
        ("GET", "/certs"),
        ("GET", "/runtime"),
    ] {
        let answer = Ask::new(method, path).send(status)?;
        ensure!(answer.status >= 400, "{method} {path}: {}", answer.status);
    }
    let specs: Vec<Spec> = (0..MODELS)
        .map(|n| Spec::iris(&format!("series-{n}")))
        .collect();
    let first = Loaded::available(running, &specs[0])?;
    Ask::post("/v2/models/series-0/infer", IRIS)
        .send(running.data())?
        .ok()?;
    let before = distinct(&stats()?);
    let others: Vec<Loaded> = specs[1..]
        .iter()
        .map(|spec| Loaded::load(running, spec))
        .collect::<Result<_>>()?;
    for model in &others {
        model.wait(seldon_proto::scheduler::model_status::ModelState::ModelAvailable)?;
        Ask::post(&format!("/v2/models/{}/infer", model.name()), IRIS)
            .send(running.data())?
            .ok()?;
    }
    let text = stats()?;
    ensure!(
        !text.contains("series-"),
        "a model's name is in Envoy's metrics"
    );
    // Other cases run beside this one, and may bring a new status, flag or replica set, but not one for each model here.
    for (label, values) in distinct(&text) {
        let former = before.get(&label).map_or(0, BTreeSet::len);
        ensure!(
            values.len() < former + MODELS,
            "label {label} has {} values, before {MODELS} models {former}",
            values.len()
        );
    }
    drop((first, others));
    Ok(())
}
