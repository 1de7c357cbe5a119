//! Requests through an experiment against the same split by Envoy's own means, and what a thousand experiments cost.
//!
//! Compared are Envoys by themselves with copies of what the scheduler's Envoy holds, one of them changed in one point.
mod mirror;
mod thousand;

use std::time::Duration;

use anyhow::Result;
use http::HeaderValue;
use seldon_load::{
    driver::Shot,
    fake::{Behaviour, serve},
};
use seldon_proto::scheduler::{
    Experiment, ExperimentCandidate, ExperimentCohort, ExperimentMirror,
};
use tokio::net::TcpListener;

use crate::{
    frozen::{Frozen, Held},
    report::Report,
    shots::{BODY, grpc},
    world::{Kind, Target, World, costs},
};

const SECTION: &str = "experiments";
const CONNECTIONS: usize = 8;
const ROUNDS: usize = 7;
/// The server of all models but the mirrors.
const SERVER: &str = "bench";
/// Models that stand beside the experiments.
const PLAIN: &str = "plain";
const COUNT: usize = 1_000;

/// Runs the section.
pub async fn run(seconds: u64, report: &mut Report) -> Result<()> {
    // The second Envoy serves nobody: its log tells how long the module reads each configuration.
    let world = World::start(2, |c| {
        let words = ["--component-log-level", "wasm:debug"].map(str::to_owned);
        c.args.insert("envoy-1".into(), words.into());
    })
    .await?;
    world
        .server(SERVER, served(Behaviour::default()).await?)
        .await?;
    let models = ["main", "other", PLAIN].map(str::to_owned);
    world.fill(&models, SERVER, models.len()).await?;
    let bare = Held::of(world.admin(0)).await?;
    against_native(&world, seconds, report).await?;
    mirror::run(&world, seconds, report).await?;
    thousand::run(&world, &bare, seconds, report).await?;
    world.system.stop().await;
    Ok(())
}

/// Starts a server in this process and returns its port.
async fn served(behaviour: Behaviour) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(serve(listener, behaviour));
    Ok(port)
}

/// An experiment that gives each candidate the same share.
fn halves(name: &str, candidates: [&str; 2]) -> Experiment {
    Experiment {
        name: name.into(),
        candidates: candidates
            .map(|candidate| ExperimentCandidate {
                name: candidate.into(),
                weight: 50,
            })
            .into(),
        ..Default::default()
    }
}

/// A request of a name with one more header.
fn with(name: &str, header: &'static str, value: &'static str) -> Shot {
    let mut shot = Shot::rest(name, BODY);
    shot.headers.insert(header, HeaderValue::from_static(value));
    shot
}

/// The same split, 50 to 50, by the filter and by weighted clusters.
async fn against_native(world: &World, seconds: u64, report: &mut Report) -> Result<()> {
    let mut by_default = halves("ab", ["main", "other"]);
    by_default.default = Some("main".into());
    let mut cohort = halves("cohort", ["main", "other"]);
    cohort.cohort = Some(ExperimentCohort {
        header: "x-user".into(),
    });
    world.experiments(vec![by_default, cohort]).await?;

    let envoy = &world.system.config().parts.envoy;
    let split = Held::of(world.admin(0)).await?;
    let mut weighted = split.clone();
    weighted.split_natively("main", &["main", "other"])?;
    let copy = Frozen::start(envoy, &split, 1).await?;
    let alternative = Frozen::start(envoy, &weighted, 1).await?;
    let (split, native) = (&copy.target, &alternative.target);
    let kind = |target: &Target, shot| Kind {
        target: target.clone(),
        shot,
    };
    let kinds = [
        kind(native, Shot::rest("main", BODY)),
        kind(split, Shot::rest("main", BODY)),
        kind(split, Shot::rest("ab.experiment", BODY)),
        kind(split, with("main", "x-seldon-route", ":other_1:")),
        kind(split, with("cohort.experiment", "x-user", "one-of-many")),
        // What differs between an Envoy and its copy: nothing, if this is 1.
        kind(split, Shot::rest(PLAIN, BODY)),
        kind(&world.target(0)?, Shot::rest(PLAIN, BODY)),
        kind(native, grpc("main")),
        kind(split, grpc("main")),
    ];
    let duration = Duration::from_secs(seconds) / 3;
    let costs = costs(&kinds, ROUNDS, CONNECTIONS, duration).await?;
    report.shown(
        SECTION,
        "Envoy CPU a request, native weighted clusters",
        costs.median(0),
        "µs",
    );
    for (what, kind) in [
        ("an experiment's default", 1),
        ("<name>.experiment", 2),
        ("sticky", 3),
        ("cohort", 4),
    ] {
        let what = format!("Envoy CPU, {what} / native weighted clusters");
        report.at_most(SECTION, what, costs.ratio(kind, 0), "×", 1.35);
    }
    let what = "Envoy CPU, gRPC, an experiment's default / native weighted clusters";
    report.at_most(SECTION, what, costs.ratio(8, 7), "×", 1.35);
    let what = "Envoy CPU, a plain model, the scheduler's Envoy / its copy";
    report.shown(SECTION, what, costs.ratio(6, 5), "×");
    Ok(())
}
