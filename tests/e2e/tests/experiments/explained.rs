//! What a person is told: the status page, where a request goes, and the counters.
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use seldon_e2e::faults::{Fleet, experiment};
use seldon_e2e::{Ask, eventually_async};
use seldon_proto::scheduler as pb;
use serde_json::Value;
use tokio::time::timeout;

use crate::mirrors::mirrored;
use crate::scene::{Case, ask, grpc, models, rest, send};

pub(crate) const CASES: &[Case] = &[
    ("explained::status_page_routes_and_counters", |stages| {
        stages.fleet(explained)
    }),
    ("explained::subscribers_hear_of_each_change", |stages| {
        stages.fleet(subscribed)
    }),
    ("explained::a_manifest_is_refused_by_its_place", |stages| {
        stages.fleet(manifests)
    }),
];

/// Runs the CLI; returns its exit code and what it printed, to both.
fn cli(fleet: &Fleet, words: &[&str]) -> Result<(i32, String)> {
    let config = fleet.system.config();
    let done = Command::new(&config.parts.cli)
        .args(words)
        .env(
            "SELDON_SCHEDULE_HOST",
            format!("127.0.0.1:{}", config.ports.scheduler.api),
        )
        .env("HOME", &config.run_dir)
        .output()?;
    let text = [done.stdout, done.stderr].concat();
    Ok((
        done.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

fn printed(fleet: &Fleet, words: &[&str]) -> Result<String> {
    let (code, text) = cli(fleet, words)?;
    ensure!(code == 0, "seldon {}: {code}\n{text}", words.join(" "));
    Ok(text)
}

/// The line that has every one of the words.
fn line<'a>(text: &'a str, words: &[&str]) -> Result<&'a str> {
    let found = text
        .lines()
        .find(|line| words.iter().all(|word| line.contains(word)));
    found.with_context(|| format!("no line with {words:?} in\n{text}"))
}

/// Values by candidate, of one metric and experiment, added up over the Envoys.
fn counters(fleet: &Fleet, metric: &str, experiment: &str) -> Result<BTreeMap<String, f64>> {
    let mut found = BTreeMap::new();
    for envoy in &fleet.system.ports().envoys {
        let text = Ask::get("/stats/prometheus").send(envoy.status)?.text();
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Some(labels) = series
                .strip_prefix(metric)
                .and_then(|rest| rest.strip_prefix('{'))
            else {
                continue;
            };
            if !labels.contains(&format!(r#"experiment="{experiment}""#)) {
                continue;
            }
            let candidate = labels
                .split(r#"candidate=""#)
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            let candidate = candidate.with_context(|| line.to_owned())?;
            *found.entry(candidate.to_owned()).or_default() += value.parse::<f64>()?;
        }
    }
    Ok(found)
}

async fn explained(fleet: &Fleet) -> Result<()> {
    models(fleet, &["ea", "eb", "fail-e", "em"], 2).await?;
    let mut manifest = mirrored("e", "ea", "em", 50);
    manifest.candidates =
        experiment("e", None, &[("ea", 70), ("eb", 20), ("fail-e", 0)]).candidates;
    fleet.run_experiment(manifest).await?;
    let report = send(fleet, vec![rest("ea"), grpc("e.experiment")], 2_000).await?;
    let of = |route: &str| report.routes.get(route).copied().unwrap_or(0) as f64;
    // Failures of a candidate are counted for it: it is asked by its route.
    let port = fleet.system.ports().envoys[0].data;
    for _ in 0..5 {
        let answer = ask("ea")
            .header("x-seldon-route", ":fail-e_1:")
            .send(port)?;
        ensure!(answer.status == 500, "{answer:?}");
    }
    let requests = BTreeMap::from([
        ("ea".to_owned(), of(":ea_1:")),
        ("eb".to_owned(), of(":eb_1:")),
        ("fail-e".to_owned(), 5.0),
    ]);
    eventually_async(10, async || {
        let counted = counters(fleet, "seldon_experiment_requests_total", "e")?;
        ensure!(
            counted == requests,
            "{counted:?}, but {requests:?} were answered"
        );
        let begun = counters(fleet, "seldon_experiment_begun_total", "e")?;
        ensure!(begun == requests, "{begun:?} begun of {requests:?}");
        let errors = counters(fleet, "seldon_experiment_errors_total", "e")?;
        let sum: f64 = errors.values().sum();
        ensure!(
            errors.get("fail-e") == Some(&5.0) && sum == 5.0,
            "{errors:?}"
        );
        let time = counters(fleet, "seldon_experiment_microseconds_total", "e")?;
        ensure!(
            time.get("ea")
                .is_some_and(|sum| *sum > 100.0 * of(":ea_1:")),
            "{time:?}"
        );
        let counts = counters(fleet, "seldon_experiment_duration_ms_count", "e")?;
        ensure!(counts == requests, "{counts:?}");
        let mirrored = counters(fleet, "seldon_experiment_mirrored_total", "e")?;
        let half = report.sent as f64 / 2.0;
        let sent = mirrored.get("em").copied().unwrap_or(0.0);
        ensure!(
            (sent - half).abs() < 150.0,
            "{mirrored:?} of {}",
            report.sent
        );
        Ok(())
    })
    .await?;
    page(fleet, &requests).await?;
    routes(fleet).await?;
    fleet.stop_experiment("e").await
}

async fn page(fleet: &Fleet, requests: &BTreeMap<String, f64>) -> Result<()> {
    let told = fleet.explain_experiment("e").await?;
    ensure!(
        told.active && told.description == "experiment active",
        "{told:?}"
    );
    let endpoints: Vec<&str> = told.endpoints.iter().map(String::as_str).collect();
    ensure!(
        endpoints.contains(&"e.experiment") && endpoints.contains(&"ea"),
        "{endpoints:?}"
    );
    ensure!(
        told.envoys_connected == 2 && told.envoys_acknowledged == 2 && told.generation > 0,
        "{told:?}"
    );
    ensure!(told.unmeasured.is_empty(), "{:?}", told.unmeasured);
    for candidate in &told.candidates {
        let measured = candidate
            .measured
            .as_ref()
            .with_context(|| format!("{candidate:?}"))?;
        ensure!(
            requests.get(&candidate.name) == Some(&(measured.requests as f64)),
            "{candidate:?}"
        );
        ensure!(
            candidate.is_default == (candidate.name == "ea"),
            "{candidate:?}"
        );
        ensure!(
            measured.errors == if candidate.name == "fail-e" { 5 } else { 0 },
            "{candidate:?}"
        );
        ensure!(
            measured.mean_ms > 0.0 && measured.mean_ms < 1_000.0,
            "{candidate:?}"
        );
    }
    let mirror = told.mirror.as_ref().context("no mirror")?;
    ensure!(
        mirror.in_force && mirror.percent == 50 && mirror.sent > 800,
        "{mirror:?}"
    );
    // The page for people, and the line for programs.
    let text = printed(fleet, &["experiment", "status", "e", "--output", "table"])?;
    println!("{text}");
    for words in [["ea", "77.8"], ["eb", "22.2"], ["em", "50"]] {
        line(&text, &words)?;
    }
    line(&text, &["fail-e", "5"])?;
    ensure!(
        text.contains('█') || text.contains('#') || text.contains('━'),
        "no bars:\n{text}"
    );
    let json: Value = serde_json::from_str(&printed(fleet, &["experiment", "status", "e"])?)?;
    ensure!(
        json["experimentName"] == "e" && json["active"] == true,
        "{json}"
    );
    let same: Value = serde_json::from_str(&printed(
        fleet,
        &["experiment", "status", "e", "--output", "json"],
    )?)?;
    ensure!(same == json, "{same}");
    let list = printed(fleet, &["experiment", "list"])?;
    line(&list, &["experiment", "active"])?;
    let own = list
        .lines()
        .find(|line| line.starts_with('e') && !line.starts_with("experiment"));
    ensure!(own.is_some_and(|line| line.contains("true")), "{list}");
    let (code, text) = cli(fleet, &["experiment", "status", "never"])?;
    ensure!(code == 255 && text.contains("never"), "{code}: {text}");
    Ok(())
}

async fn routes(fleet: &Fleet) -> Result<()> {
    let told = fleet.explain_route("ea", &[]).await?;
    ensure!(told.rule == "split" && told.experiment == "e", "{told:?}");
    let chances: BTreeMap<&str, f64> = told
        .chances
        .iter()
        .map(|chance| (chance.version.as_str(), chance.percent))
        .collect();
    let near = |version: &str, percent: f64| {
        chances
            .get(version)
            .is_some_and(|found| (found - percent).abs() < 0.1)
    };
    ensure!(near("ea_1", 77.77) && near("eb_1", 22.22), "{told:?}");
    let [copy] = told.copies.as_slice() else {
        bail!("one mirror: {told:?}")
    };
    ensure!(copy.version == "em_1" && copy.percent == 50.0, "{told:?}");
    let acknowledged = told
        .envoys
        .iter()
        .filter(|envoy| envoy.connected && envoy.acknowledged)
        .count();
    ensure!(
        acknowledged == 2 && told.envoys.iter().all(|envoy| !envoy.address.is_empty()),
        "{told:?}"
    );
    let told = fleet
        .explain_route("e.experiment", &[("x-seldon-route", ":eb_1:")])
        .await?;
    ensure!(
        told.rule == "x-seldon-route"
            && told.chances.len() == 1
            && told.chances[0].version == "eb_1",
        "{told:?}"
    );
    let told = fleet
        .explain_route("ea", &[("x-seldon-route", ":eb_7:")])
        .await?;
    ensure!(told.rule == "split", "{told:?}");
    let told = fleet.explain_route("eb", &[]).await?;
    ensure!(
        told.rule == "model" && told.experiment.is_empty() && told.chances.len() == 1,
        "{told:?}"
    );
    let told = fleet.explain_route("never", &[]).await?;
    ensure!(
        told.rule == "unknown" && told.chances.is_empty() && !told.reason.is_empty(),
        "{told:?}"
    );
    let text = printed(
        fleet,
        &["explain", "route", "ea", "-H", "x-seldon-route=:eb_1:"],
    )?;
    println!("{text}");
    line(&text, &["eb"])?;
    ensure!(text.contains("x-seldon-route"), "{text}");
    let text = printed(fleet, &["explain", "route", "ea"])?;
    println!("{text}");
    line(&text, &["ea", "77.8"])?;
    Ok(())
}

/// The stream of statuses: those that are there, then each change, and the end.
async fn subscribed(fleet: &Fleet) -> Result<()> {
    models(fleet, &["da", "db"], 2).await?;
    let manifest = experiment("d", Some("da"), &[("da", 50), ("db", 50)]);
    fleet.run_experiment(manifest).await?;
    let mut statuses = fleet.experiment_statuses().await?;
    let mut next = async |fits: fn(&pb::ExperimentStatusResponse) -> bool| loop {
        let status = statuses.message().await?.context("the stream has ended")?;
        if status.experiment_name == "d" && fits(&status) {
            return anyhow::Ok(status);
        }
    };
    let limit = Duration::from_secs(20);
    let first = timeout(limit, next(|_| true))
        .await
        .context("the first")??;
    ensure!(
        first.active && first.candidates_ready && first.mirror_ready,
        "{first:?}"
    );
    fleet.unload("db").await?;
    let lost = timeout(limit, next(|status| !status.active)).await;
    let lost = lost.context("a candidate was unloaded")??;
    ensure!(
        lost.status_description.contains("db") && !lost.candidates_ready,
        "{lost:?}"
    );
    models(fleet, &["db"], 2).await?;
    let back = timeout(limit, next(|status| status.active)).await;
    let back = back.context("the candidate is back")??;
    ensure!(back.status_description == "experiment active", "{back:?}");
    fleet.stop_experiment("d").await?;
    let stopped = timeout(limit, next(|status| !status.active)).await;
    let stopped = stopped.context("it was stopped")??;
    ensure!(
        stopped.status_description == "experiment stopped",
        "{stopped:?}"
    );
    Ok(())
}

/// What no message can carry is refused where it is read, with its place.
async fn manifests(fleet: &Fleet) -> Result<()> {
    let folder = &fleet.system.config().run_dir;
    for (name, spec, word) in [
        (
            "negative",
            "candidates: [{name: a, weight: -1}, {name: b, weight: 1}]",
            "weight",
        ),
        (
            "large",
            "candidates: [{name: a, weight: 4294967296}, {name: b, weight: 1}]",
            "weight",
        ),
        (
            "percent",
            "candidates: [{name: a, weight: 1}], mirror: {name: b, percent: -5}",
            "percent",
        ),
        (
            "field",
            "candidates: [{name: a, weight: 1}], wieght: 3",
            "wieght",
        ),
        ("text", "candidates: [{name: a, weight: many}]", "weight"),
        ("unnamed", "candidates: [{weight: 1}]", "name"),
    ] {
        let file = folder.join(format!("{name}.yaml"));
        let text = format!(
            "apiVersion: mlops.seldon.io/v1alpha1\nkind: Experiment\nmetadata: {{name: bad-{name}}}\nspec: {{{spec}}}\n"
        );
        std::fs::write(&file, text)?;
        let (code, text) = cli(
            fleet,
            &["experiment", "start", "-f", &file.display().to_string()],
        )?;
        println!("{name}: {}", text.trim());
        ensure!(code == 255 && text.contains(word), "{name}: {code} {text}");
        ensure!(
            fleet
                .experiment_status(&format!("bad-{name}"))
                .await
                .is_err(),
            "{name} was started"
        );
    }
    Ok(())
}
