//! What the system tells about itself.
use anyhow::{Context, Result, ensure};
use seldon_e2e::{Case, Loaded, Running, Spec, eventually};
use seldon_local::{Component, System};
use serde_json::Value;

pub const CASES: &[Case] = &[
    ("status::xds_status_shows_each_envoy", xds),
    ("status::explain_shows_placement_and_route", explain),
    ("status::an_envoy_waits_for_the_scheduler", waits),
];

fn xds(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::iris("seen"))?;
    let table = running.cli(&["xds", "status"])?.ok()?;
    for word in [
        "stream",
        "node",
        "version",
        "connected",
        "acknowledged",
        "refused",
        "test-id",
        "delta",
        "1.40.0",
    ] {
        ensure!(table.contains(word), "no {word} in\n{table}");
    }
    // Others change models at the same time, so that all is acknowledged now and then only.
    eventually(20, || {
        let status: Value =
            serde_json::from_str(&running.cli(&["xds", "status", "-o", "json"])?.ok()?)?;
        let envoys = status["envoys"].as_array().context("no envoys")?;
        ensure!(envoys.len() == 2, "{status}");
        for envoy in envoys {
            ensure!(
                envoy["connected"] == true && envoy["protocol"] == "delta",
                "{envoy}"
            );
            ensure!(
                envoy["acknowledgedGeneration"] == status["generation"],
                "{envoy} of {}",
                status["generation"]
            );
            ensure!(
                envoy["rejections"].as_array().is_none_or(Vec::is_empty),
                "{envoy}"
            );
            let types: Vec<&str> = envoy["types"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|kind| kind["typeUrl"].as_str())
                .collect();
            for wanted in [
                "Cluster",
                "ClusterLoadAssignment",
                "Listener",
                "ScopedRouteConfiguration",
            ] {
                ensure!(
                    types
                        .iter()
                        .any(|kind| kind.ends_with(&format!(".{wanted}"))),
                    "no {wanted} in {types:?}"
                );
            }
        }
        Ok(())
    })
}

fn explain(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::iris("explained").replicas(2))?;
    let text = running.cli(&["explain", "model", "explained"])?.ok()?;
    for words in [
        "explained is ModelAvailable",
        "mlserver",
        "replica",
        "yes",
        "0,1",
        "acknowledged by 2 of 2 Envoys",
    ] {
        ensure!(text.contains(words), "no {words:?} in\n{text}");
    }
    let json: Value = serde_json::from_str(
        &running
            .cli(&["explain", "model", "explained", "-o", "json"])?
            .ok()?,
    )?;
    ensure!(
        json["route"][0]["server"] == "mlserver" && json["route"][0]["version"] == 1,
        "{json}"
    );
    let said = running.cli(&["explain", "model", "nobody"])?.refused()?;
    ensure!(said.contains("nobody"), "{said}");
    Ok(())
}

fn waits(running: &Running) -> Result<()> {
    use Component::{Agent, Envoy, MlServer, Scheduler};
    let builder = System::builder();
    let builder = [Scheduler, Agent(0), MlServer(0), Envoy(0)]
        .into_iter()
        .fold(builder, |builder, part| builder.without(part));
    running.block_on(async {
        let system = builder.start().await?;
        system.start_one(Envoy(0))?;
        let ports = system.ports().envoys[0].clone();
        let result = async {
            // It runs, and says so to whoever may ask it directly.
            let state = seldon_e2e::eventually_async(20, async || {
                let answer = tokio::task::spawn_blocking(move || {
                    seldon_e2e::Ask::get("/server_info").send(ports.admin)
                })
                .await??;
                Ok(answer.json()?["state"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned())
            })
            .await?;
            ensure!(
                state == "PRE_INITIALIZING" || state == "INITIALIZING",
                "Envoy is {state} without a scheduler"
            );
            ensure!(
                system.is_ready(Envoy(0)).await.is_err(),
                "Envoy is ready without a scheduler"
            );
            ensure!(
                tokio::net::TcpStream::connect(("127.0.0.1", ports.data))
                    .await
                    .is_err(),
                "Envoy takes requests without a scheduler"
            );
            system.start_one(Scheduler)?;
            system
                .wait_one(Envoy(0), std::time::Duration::from_secs(60))
                .await
        };
        let result = result.await;
        system.stop().await;
        result
    })
}
