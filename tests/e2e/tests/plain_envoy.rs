//! The filter in an Envoy that no scheduler drives, on the very file that `docs/plain-envoy.md` shows.
#![allow(clippy::unwrap_used)]

#[path = "plain_envoy/backend.rs"]
mod backend;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use backend::Backend;
use seldon_components::{Cache, EnvoyVersion};
use seldon_e2e::{Answer, Ask, eventually, root};
use seldon_load::driver::{Load, Shot};
use seldon_local::{Ports, Reservation};
use seldon_proto::inference::ModelInferRequest;
use tempfile::TempDir;

const BODY: &str = r#"{"inputs":[]}"#;
const INTERNAL: &str = "seldon-internal-model";

/// Ends when dropped.
struct Plain {
    process: Child,
    port: u16,
    admin: u16,
    a: Backend,
    b: Backend,
    _ports: Reservation,
    _folder: TempDir,
}

impl Plain {
    fn start() -> Result<Self> {
        let module = root().join("target/wasm/seldon-filter.wasm");
        ensure!(
            module.is_file(),
            "no filter module: build it by `cargo xtask wasm`"
        );
        let (a, b) = (Backend::start()?, Backend::start()?);
        let ports = Ports::free(&seldon_local::Counts::new(1, 1))?;
        let (port, admin) = (ports.ports.envoys[0].data, ports.ports.envoys[0].admin);
        let mut text = fs::read_to_string(root().join("samples/envoy/plain-envoy.yaml"))?;
        for (from, to) in [
            ("port_value: 9000", format!("port_value: {port}")),
            ("port_value: 9901", format!("port_value: {admin}")),
            ("port_value: 8081", format!("port_value: {}", a.port)),
            ("port_value: 8082", format!("port_value: {}", b.port)),
            (
                "/etc/seldon/seldon-filter.wasm",
                module.display().to_string(),
            ),
        ] {
            ensure!(text.contains(from), "the sample has no {from}");
            text = text.replace(from, &to);
        }
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("plain-envoy.yaml");
        fs::write(&file, text)?;
        let log = folder.path().join("log");
        let process = Command::new(Cache::open()?.envoy(EnvoyVersion::default())?)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--config-path",
            ])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let plain = Self {
            process,
            port,
            admin,
            a,
            b,
            _ports: ports,
            _folder: folder,
        };
        eventually(20, || {
            let answer = Ask::get("/ready").send(plain.admin)?;
            ensure!(answer.status == 200, "{}", answer.text());
            Ok(())
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(plain)
    }

    fn ask(&self, model: &str, more: &[(&str, &str)]) -> Result<Answer> {
        let mut ask = Ask::post("/v2/models/x/infer", BODY).header("seldon-model", model);
        for (name, value) in more {
            ask = ask.header(name, value);
        }
        ask.send(self.port)
    }

    /// Who answered: `iris_1`.
    fn chosen(&self, model: &str, more: &[(&str, &str)]) -> Result<String> {
        let answer = self.ask(model, more)?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        let route = answer.field("x-seldon-route");
        Ok(route.trim_matches(':').to_owned())
    }

    /// The sum of the counters whose line begins so.
    fn counted(&self, line: &str) -> Result<u64> {
        let text = Ask::get("/stats/prometheus").send(self.admin)?.text();
        let lines = text.lines().filter(|l| l.starts_with(line));
        Ok(lines
            .filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum::<f64>() as u64)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn splits(plain: &Plain, name: &str) -> Result<()> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..400 {
        *seen.entry(plain.chosen(name, &[])?).or_default() += 1;
    }
    // 300 wanted; one run in some hundred thousand is farther off by chance.
    let share = seen["iris_1"];
    ensure!(seen.len() == 2 && (260..=340).contains(&share), "{seen:?}");
    Ok(())
}

#[test]
fn the_documented_file_splits_sticks_and_counts() -> Result<()> {
    let plain = Plain::start()?;
    splits(&plain, "iris")?;
    splits(&plain, "iris-ab.experiment")?;
    // By the path alone.
    let answer = Ask::post("/v2/models/iris/infer", BODY).send(plain.port)?;
    ensure!(
        answer.field("x-seldon-route").starts_with(":iris"),
        "{answer:?}"
    );
    for wanted in ["iris_1", "iris2_1"] {
        let route = format!(":other_3::{wanted}:");
        for _ in 0..50 {
            let got = plain.chosen("iris", &[("x-seldon-route", &route)])?;
            ensure!(got == wanted, "{got} for {route}");
        }
    }
    for user in 0..30 {
        let user = format!("user-{user}");
        let first = plain.chosen("iris", &[("x-user", &user)])?;
        for name in ["iris", "iris-ab.experiment", "iris"] {
            let again = plain.chosen(name, &[("x-user", &user)])?;
            ensure!(again == first, "{user}: {first}, then {again}");
        }
    }
    let (a, b) = (plain.a.taken(), plain.b.taken());
    let arrived = |requests: &[backend::Request], model: &str| {
        requests
            .iter()
            .filter(|r| r.field(INTERNAL) == model)
            .count()
    };
    let (iris, iris2) = (arrived(&a, "iris_1"), arrived(&b, "iris2_1"));
    ensure!(
        (iris, iris2) == (a.len(), b.len()),
        "a wrong name at a server"
    );
    // Counters follow within moments.
    for (candidate, count) in [("iris", iris), ("iris2", iris2)] {
        eventually(10, || {
            let line = format!(
                r#"seldon_experiment_requests_total{{experiment="iris-ab",candidate="{candidate}"}}"#
            );
            let counted = plain.counted(&line)?;
            ensure!(counted == count as u64, "{line}: {counted}, not {count}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_mirror_gets_each_request_and_a_plain_model_none_of_it() -> Result<()> {
    let plain = Plain::start()?;
    for number in 0..50 {
        let ask = Ask::post("/v2/models/wine/infer", format!(r#"{{"id":"{number}"}}"#))
            .header("seldon-model", "wine");
        ensure!(ask.send(plain.port)?.field("x-seldon-route") == ":wine_1:");
    }
    eventually(10, || {
        ensure!(plain.b.count() == 50, "{} copies", plain.b.count());
        Ok(())
    })?;
    let (mut originals, mut copies) = (plain.a.taken(), plain.b.taken());
    originals.sort_by(|one, other| one.body.cmp(&other.body));
    copies.sort_by(|one, other| one.body.cmp(&other.body));
    for (original, copy) in originals.iter().zip(&copies) {
        ensure!(original.body == copy.body, "another body");
        ensure!(original.field(INTERNAL) == "wine_1" && copy.field(INTERNAL) == "wine-next_1");
        ensure!(copy.field("x-seldon-mirror-cluster").is_empty(), "{copy:?}");
    }
    let before = plain.counted("seldon_filter_entered_total")?;
    for _ in 0..20 {
        let forged = [
            ("x-seldon-mirror-cluster", "server-b"),
            ("x-seldon-mirror-model", "wine-next_1"),
            (INTERNAL, "iris2_1"),
        ];
        ensure!(plain.chosen("rose", &forged)? == "rose_1");
    }
    let asked = plain.a.taken();
    ensure!(asked.len() == 20 && asked.iter().all(|r| r.field(INTERNAL) == "rose_1"));
    ensure!(plain.b.count() == 0, "a forged mirror was obeyed");
    ensure!(
        plain.counted("seldon_filter_entered_total")? == before,
        "the filter was entered"
    );
    Ok(())
}

#[test]
fn forged_headers_reach_nobody() -> Result<()> {
    let plain = Plain::start()?;
    for scope in ["i:iris2_1", "i:wine_1", "c:rose"] {
        for model in [None, Some("nobody"), Some("i:iris2_1"), Some("iris2_1")] {
            let mut ask = Ask::post("/v2/health/x", BODY)
                .header("x-seldon-scope", scope)
                .header("X-Seldon-Scope", scope);
            if let Some(model) = model {
                ask = ask.header("seldon-model", model);
            }
            let answer = ask.send(plain.port)?;
            ensure!(answer.status == 404, "{model:?}, {scope}: {answer:?}");
        }
    }
    // A version that is no candidate, or one of another experiment, is a matter of the split.
    for route in [":wine_1:", ":iris2_2:", "i:iris2_1", ":", "::::"] {
        let got = plain.chosen("iris", &[("x-seldon-route", route)])?;
        ensure!(got.starts_with("iris"), "{got} for {route}");
    }
    let reached = plain.a.taken().len() + plain.b.taken().len();
    ensure!(reached == 5, "{reached} requests reached a server");
    Ok(())
}

#[test]
fn grpc_finds_the_experiment_by_header_and_by_message() -> Result<()> {
    let plain = Plain::start()?;
    let message = ModelInferRequest {
        model_name: "iris".into(),
        ..Default::default()
    };
    let mut unnamed = Shot::grpc("iris", &message);
    unnamed.headers.remove("seldon-model");
    let load = Load {
        targets: vec![format!("127.0.0.1:{}", plain.port)],
        shots: vec![Shot::grpc("iris-ab.experiment", &message), unnamed],
        connections: 2,
        rate: Some(200.0),
        deadline: Duration::from_secs(10),
    };
    let report = tokio::runtime::Runtime::new()?.block_on(load.run(Duration::from_secs(1)))?;
    ensure!(report.failed() == 0 && report.succeeded > 100, "{report:?}");
    let (a, b) = (plain.a.taken().len(), plain.b.taken().len());
    ensure!(a > b && b > 10, "{a} and {b}");
    Ok(())
}
