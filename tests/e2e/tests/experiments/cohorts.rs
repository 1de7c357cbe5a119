//! Requests with the same value of a header get the same candidate.
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use seldon_e2e::faults::{Fleet, experiment};
use seldon_e2e::{framed, message_frame};
use seldon_load::driver::Report;
use seldon_proto::inference::ModelInferRequest;
use seldon_proto::scheduler as pb;
use tokio::task::JoinSet;

use crate::scene::{Case, grpc, models, rest, route_of, send, shares, with};

pub(crate) const CASES: &[Case] = &[("cohorts::a_value_stays_and_few_move", |stages| {
    stages.fleet(cohorts)
})];

const VALUES: usize = 300;
/// Asked side by side.
const LANES: usize = 12;
const HEADER: &str = "x-user";

fn cohort(split: &[(&str, u32)]) -> pb::Experiment {
    pb::Experiment {
        cohort: Some(pb::ExperimentCohort {
            header: HEADER.to_owned(),
        }),
        ..experiment("c", Some("ca"), split)
    }
}

async fn by_grpc(port: u16, name: &str, value: &str) -> Result<String> {
    let message = ModelInferRequest {
        model_name: name.to_owned(),
        ..Default::default()
    };
    let path = "/inference.GRPCInferenceService/ModelInfer";
    let headers = [("seldon-model", name), (HEADER, value)];
    let answer = framed(
        port,
        path,
        &headers,
        message_frame(&message.encode_to_vec()),
    )
    .await?;
    ensure!(answer.code() == Some(0), "{answer:?}");
    let route = answer.headers.get("x-seldon-route").context("no route")?;
    Ok(route.to_str()?.to_owned())
}

/// Who answers each value, by every way there is; they must agree.
async fn assignment(fleet: &Fleet) -> Result<BTreeMap<String, String>> {
    let [first, second] = fleet.system.ports().envoys.as_slice() else {
        bail!("two Envoys")
    };
    let (first, second) = (first.data, second.data);
    let mut asking = JoinSet::new();
    for lane in 0..LANES {
        asking.spawn(async move {
            let mut own = Vec::new();
            for number in (lane..VALUES).step_by(LANES) {
                let value = format!("user-{number}");
                let header = [(HEADER, value.as_str())];
                let ways = [
                    route_of(first, "ca", &header).await?,
                    route_of(second, "c.experiment", &header).await?,
                    by_grpc(first, "c.experiment", &value).await?,
                    by_grpc(second, "ca", &value).await?,
                ];
                ensure!(ways.iter().all(|way| *way == ways[0]), "{value}: {ways:?}");
                own.push((value, ways[0].clone()));
            }
            Ok(own)
        });
    }
    let mut all = BTreeMap::new();
    while let Some(own) = asking.join_next().await {
        all.extend(own??);
    }
    Ok(all)
}

/// What a map of values would be as a report.
fn as_report(fleet_map: &BTreeMap<String, String>, mut like: Report) -> Report {
    like.routes.clear();
    for route in fleet_map.values() {
        *like.routes.entry(route.clone()).or_default() += 1;
    }
    like
}

async fn cohorts(fleet: &Fleet) -> Result<()> {
    models(fleet, &["ca", "cb", "cc"], 2).await?;
    fleet
        .run_experiment(cohort(&[("ca", 50), ("cb", 30), ("cc", 20)]))
        .await?;
    let before = assignment(fleet).await?;
    let again = assignment(fleet).await?;
    ensure!(before == again, "the same question has two answers");
    // Requests without the header are split.
    let plain = send(fleet, vec![rest("ca"), grpc("ca")], 1_000).await?;
    let routes = [(":ca_1:", 50), (":cb_1:", 30), (":cc_1:", 20)];
    shares(&plain, &routes)?;
    shares(&as_report(&before, plain), &routes)?;
    // A route that the client names is stronger.
    let value = before.iter().find(|(_, route)| *route == ":ca_1:");
    let (value, _) = value.context("nobody has ca")?;
    let named = with(rest("ca"), HEADER, value)?;
    let report = send(fleet, vec![with(named, "x-seldon-route", ":cc_1:")?], 50).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":cc_1:"),
        "{:?}",
        report.routes
    );
    // What the scheduler explains is what happens.
    for (value, route) in before.iter().take(40) {
        let told = fleet.explain_route("ca", &[(HEADER, value)]).await?;
        ensure!(told.rule == "cohort" && told.experiment == "c", "{told:?}");
        let [chance] = told.chances.as_slice() else {
            bail!("one candidate for {value}: {told:?}")
        };
        ensure!(
            format!(":{}:", chance.version) == *route,
            "{value} has {route}: {told:?}"
        );
    }
    // More for cc: values move to it, and no other way.
    fleet
        .run_experiment(cohort(&[("ca", 50), ("cb", 30), ("cc", 80)]))
        .await?;
    let after = assignment(fleet).await?;
    let moved = moves(&before, &after);
    let count: usize = moved.values().sum();
    println!("cohorts: {count} of {VALUES} values moved for 20 of 100 -> 80 of 160: {moved:?}");
    ensure!(moved.keys().all(|(_, to)| *to == ":cc_1:"), "{moved:?}");
    // 30 % of all must move: 90 of 300, and five deviations of the binomial distribution.
    ensure!((50..=130).contains(&count), "{count} of {VALUES} moved");
    // cb is switched off: only its values move.
    fleet
        .run_experiment(cohort(&[("ca", 50), ("cb", 0), ("cc", 80)]))
        .await?;
    let without = assignment(fleet).await?;
    let moved = moves(&after, &without);
    ensure!(moved.keys().all(|(from, _)| *from == ":cb_1:"), "{moved:?}");
    // The split of before is the assignment of before.
    fleet
        .run_experiment(cohort(&[("ca", 50), ("cb", 30), ("cc", 20)]))
        .await?;
    ensure!(
        assignment(fleet).await? == before,
        "the assignment is another one"
    );
    fleet.stop_experiment("c").await
}

fn moves<'a>(
    before: &'a BTreeMap<String, String>,
    after: &'a BTreeMap<String, String>,
) -> BTreeMap<(&'a str, &'a str), usize> {
    let mut found = BTreeMap::new();
    for (value, from) in before {
        let to = after.get(value).map_or("", String::as_str);
        if from != to {
            *found.entry((from.as_str(), to)).or_default() += 1;
        }
    }
    found
}
