//! No header, path or message of a client gets past a split, to a mirror, or to another version.
use anyhow::{Result, ensure};
use bytes::Bytes;
use prost::Message;
use seldon_e2e::faults::{Fleet, experiment, long};
use seldon_e2e::{Answer, Ask, framed, message_frame};
use seldon_local::Component;
use seldon_proto::inference::ModelInferRequest;
use seldon_proto::scheduler as pb;

use crate::scene::{Case, models, rest, send};

pub(crate) const CASES: &[Case] = &[("forged::nothing_gets_past_the_split", |stages| {
    stages.fleet(forged)
})];

/// Pseudo-random numbers from a seed (SplitMix64), so that a failure can be seen again.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn one<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// Names that lead to the split, or nowhere. `gb` (no weight) and `rec-gm` (the mirror, no copies) are never named in a
/// way that a client may use.
const NAMES: &[&str] = &[
    "ga",
    "ga",
    "ga",
    "g.experiment",
    "g.experiment",
    "ga_1",
    "ga_2",
    "gb_1",
    "i:gb_1",
    "i:ga_1",
    "c:gb",
    "c:ga",
    "i:gb_1,ga",
    "I:gb_1",
    "i%3Agb_1",
    "i%3agb_1",
    "i:rec-gm_1",
    "rec-gm_1",
    "gb.experiment",
    "gb.pipeline",
    "g.experiment.experiment",
    ".experiment",
    "g",
    "gb:1",
    ":gb_1:",
    "gb%5F1",
    "gb%2F1",
    "GB",
    "..",
    "../gb_1",
    "ga/../gb_1",
    "*",
    "",
    "gb_1.experiment",
    "x-seldon-scope",
    "%REQ(x-seldon-scope)%",
];

const FIELDS: &[&str] = &[
    "seldon-model",
    "Seldon-Model",
    "x-seldon-scope",
    "X-Seldon-Scope",
    "seldon-internal-model",
    "Seldon-Internal-Model",
    "x-seldon-route",
    "X-Seldon-Route",
    "x-seldon-mirror-cluster",
    "x-seldon-mirror-model",
    "X-Seldon-Mirror-Model",
    "x-seldon-anything",
    "x-envoy-original-path",
    "x-envoy-force-trace",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-retry-on",
    "x-host-override",
    "x-original-url",
    "connection",
    "host",
    "x-forwarded-host",
];

const VALUES: &[&str] = &[
    "i:gb_1",
    "i:gb",
    "gb_1",
    "c:gb",
    "c:g.experiment",
    "c:ga",
    "i:rec-gm_1",
    "rec-gm_1",
    "i:ga_1",
    "ga_1",
    "ga_2",
    "i:ga_2",
    ":gb_2:",
    ":gb_0:",
    ":gb:",
    ":gb_1",
    "gb_1:",
    ":ga_1:",
    ":ga_2:",
    ":rec-gm_1:",
    ":other_1::ga_1:",
    "mlserver",
    "xds_cluster",
    "admin",
    "close, x-seldon-scope",
    "close, seldon-model",
    "close, seldon-internal-model",
    "close, x-seldon-mirror-model",
    "i:gb_1, c:ga",
    "c:ga, i:gb_1",
    "i:gb_1;c:ga",
    "",
    "%00",
    "/v2/models/gb_1/infer",
    "http://127.0.0.1/v2/models/gb_1/infer",
    "5xx",
    "true",
];

/// What a client may ask, in whatever letters: with these first in the header or, without one, in the path.
struct Attempt {
    name: &'static str,
    header: Option<&'static str>,
    fields: Vec<(&'static str, String)>,
}

/// Half of them honest, so that it is the other headers that have to be refused.
fn name(dice: &mut Dice) -> &'static str {
    match dice.below(2) {
        0 => dice.one(&["ga", "g.experiment"]),
        _ => dice.one(NAMES),
    }
}

impl Attempt {
    fn roll(dice: &mut Dice, clusters: &[String]) -> Self {
        let header = (dice.below(3) > 0).then(|| name(dice));
        let count = dice.below(5);
        let fields = (0..count).map(|_| {
            let field = dice.one(FIELDS);
            let value = match dice.below(6) {
                0 => clusters[dice.below(clusters.len())].clone(),
                1 => format!("{},{}", dice.one(VALUES), dice.one(VALUES)),
                _ => dice.one(VALUES).to_owned(),
            };
            (field, value)
        });
        let fields = fields.collect();
        Self {
            name: name(dice),
            header,
            fields,
        }
    }
}

async fn forged(fleet: &Fleet) -> Result<()> {
    models(fleet, &["ga", "gb", "rec-gm"], 2).await?;
    let manifest = pb::Experiment {
        mirror: Some(pb::ExperimentMirror {
            name: "rec-gm".to_owned(),
            percent: 0,
        }),
        ..experiment("g", Some("ga"), &[("ga", 100), ("gb", 0)])
    };
    fleet.start_experiment(manifest).await?;
    fleet
        .in_force("g", 10, |told| told.candidates.len() == 2)
        .await?;
    send(fleet, vec![rest("ga"), rest("g.experiment")], 100).await?;
    let clusters: Vec<String> = fleet.envoys()[0].clusters().await?.into_keys().collect();
    ensure!(!clusters.is_empty(), "Envoy has no clusters");
    let before = fleet.asked()?;
    let seed = std::env::var("SELDON_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    let mut dice = Dice(seed);
    let count = if long() { 30_000 } else { 3_000 };
    let (mut answered, mut refused) = (0, 0);
    for number in 0..count {
        let attempt = Attempt::roll(&mut dice, &clusters);
        let port = fleet.system.ports().envoys[number % 2].data;
        let outcome = if dice.below(3) == 0 {
            by_grpc(port, &attempt).await
        } else {
            by_rest(port, &attempt)
        };
        let Attempt {
            name,
            header,
            fields,
        } = &attempt;
        let what = || {
            format!("SELDON_SEED={seed}, request {number}: {name:?}, header {header:?}, {fields:?}")
        };
        match outcome {
            Ok(Some(route)) => {
                answered += 1;
                ensure!(route == ":ga_1:", "{}: {route} answered", what());
            }
            Ok(None) => refused += 1,
            Err(error) => return Err(error.context(what())),
        }
    }
    println!(
        "{count} forged requests (SELDON_SEED={seed}): ga answered {answered}, {refused} were refused"
    );
    ensure!(
        answered > count / 10 && refused > count / 10,
        "the dice are loaded"
    );
    let after = fleet.asked()?;
    for (model, count) in &after.counts {
        let grown = count - before.counts.get(model).copied().unwrap_or(0);
        ensure!(
            model == "ga_1" || grown == 0,
            "SELDON_SEED={seed}: {model} was asked {grown} times"
        );
    }
    unreadable(fleet)?;
    fleet.stop_experiment("g").await
}

/// A header whose name is no text, in a request for which the filter reads all of them.
fn unreadable(fleet: &Fleet) -> Result<()> {
    let head = b"POST /v2/models/ga/infer HTTP/1.1\r\nhost: x\r\nseldon-model: ga\r\nx-seldon-route: :other_1:\r\n\
        \xff\x80name: \xff\x80\r\ncontent-length: 2\r\nconnection: close\r\n\r\n";
    let port = fleet.system.ports().envoys[0].data;
    let answer = Answer::to(port, head, b"{}")?;
    ensure!([200, 400].contains(&answer.status), "{answer:?}");
    let log = std::fs::read(fleet.system.log(Component::Envoy(0)))?;
    let log = String::from_utf8_lossy(&log);
    let panicked = log.lines().find(|line| line.contains("panicked"));
    ensure!(panicked.is_none(), "{panicked:?}");
    Ok(())
}

/// Who answered, or nobody.
fn by_rest(port: u16, attempt: &Attempt) -> Result<Option<String>> {
    let mut ask = Ask::post(
        &format!("/v2/models/{}/infer", attempt.name),
        r#"{"inputs":[]}"#,
    );
    if let Some(header) = attempt.header {
        ask = ask.header("seldon-model", header);
    }
    for (name, value) in &attempt.fields {
        ask = ask.header(name, value);
    }
    let answer = ask.send(port)?;
    if answer.status == 200 {
        return Ok(Some(answer.field("x-seldon-route").to_owned()));
    }
    // A host that is none is refused behind Envoy.
    let host = attempt.fields.iter().any(|(name, _)| *name == "host");
    let refused = (400..500).contains(&answer.status) || host && answer.status == 502;
    ensure!(refused, "{answer:?}");
    Ok(None)
}

async fn by_grpc(port: u16, attempt: &Attempt) -> Result<Option<String>> {
    let message = ModelInferRequest {
        model_name: attempt.name.to_owned(),
        model_version: attempt
            .fields
            .first()
            .map(|(_, value)| value.clone())
            .unwrap_or_default(),
        ..Default::default()
    };
    let mut headers: Vec<(&str, &str)> = Vec::new();
    headers.extend(attempt.header.map(|header| ("seldon-model", header)));
    // Over HTTP/2 these two are errors of the protocol itself.
    let fields = attempt
        .fields
        .iter()
        .filter(|(name, _)| !["connection", "host"].contains(name));
    let lower: Vec<(String, &str)> = fields
        .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
        .collect();
    headers.extend(lower.iter().map(|(name, value)| (name.as_str(), *value)));
    let frame: Bytes = message_frame(&message.encode_to_vec());
    let answer = framed(
        port,
        "/inference.GRPCInferenceService/ModelInfer",
        &headers,
        frame,
    )
    .await?;
    match answer.code() {
        Some(0) => {
            let route = answer
                .headers
                .get("x-seldon-route")
                .map(|route| route.to_str());
            Ok(Some(route.transpose()?.unwrap_or_default().to_owned()))
        }
        Some(3 | 5 | 12) => Ok(None),
        _ => anyhow::bail!("{answer:?}"),
    }
}
