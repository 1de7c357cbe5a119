//! `seldon explain …`: why something is as it is.
use std::fmt::Write as _;

use anyhow::Result;
use seldon_grpc::introspect::introspect_client::IntrospectClient;
use seldon_inference::to_protojson_value;
use seldon_proto::introspect::{
    ExplainModelRequest, ExplainModelResponse, ExplainPipelineRequest, ExplainRouteRequest,
};

use super::{explain_pipeline, explain_route, session::failed};
use crate::{
    args::{ExplainCommand, Introspection},
    connect,
    output::{self, Format, row},
};

/// Runs an `explain` command.
pub(crate) async fn run(command: ExplainCommand) -> Result<()> {
    match command {
        ExplainCommand::Model { name, common } => model(name, &common).await,
        ExplainCommand::Pipeline { name, common } => pipeline(name, &common).await,
        ExplainCommand::Route {
            name,
            header,
            common,
        } => route_of(explain_route::request(name, &header)?, &common).await,
    }
}

async fn route_of(request: ExplainRouteRequest, common: &Introspection) -> Result<()> {
    let (channel, address) = connect::scheduler(&common.host).await?;
    let mut client = IntrospectClient::new(channel);
    let answer = client
        .explain_route(request)
        .await
        .map_err(|status| failed(&address, status))?
        .into_inner();
    output::answer(
        &to_protojson_value(&answer)?,
        || explain_route::text(&answer),
        common.display.output,
        Format::Table,
    )
}

async fn pipeline(name: String, common: &Introspection) -> Result<()> {
    let (channel, address) = connect::scheduler(&common.host).await?;
    let mut client = IntrospectClient::new(channel);
    let request = ExplainPipelineRequest { pipeline: name };
    let answer = client
        .explain_pipeline(request)
        .await
        .map_err(|status| failed(&address, status))?
        .into_inner();
    output::answer(
        &to_protojson_value(&answer)?,
        || explain_pipeline::text(&answer),
        common.display.output,
        Format::Table,
    )
}

async fn model(name: String, common: &Introspection) -> Result<()> {
    let (channel, address) = connect::scheduler(&common.host).await?;
    let mut client = IntrospectClient::new(channel);
    let request = ExplainModelRequest { model: name };
    let answer = client
        .explain_model(request)
        .await
        .map_err(|status| failed(&address, status))?
        .into_inner();
    output::answer(
        &to_protojson_value(&answer)?,
        || text(&answer),
        common.display.output,
        Format::Table,
    )
}

fn text(answer: &ExplainModelResponse) -> String {
    let mut state = format!("{} is {}", answer.model, answer.state);
    let reason = answer.reason.trim();
    if !reason.is_empty() {
        let _ = write!(state, ": {reason}");
    }
    if !answer.scaling.is_empty() && answer.scaling != reason {
        let _ = write!(state, "\nautoscaling: {}", answer.scaling);
    }
    if answer.servers.is_empty() && answer.route.is_empty() {
        // No table, no lines between.
        let mut lines = vec![state, NOWHERE.to_owned()];
        lines.extend(list("it waits for", &answer.waits_for));
        lines.extend(list("what would help", &answer.help));
        return lines.join("\n");
    }
    let mut parts = vec![state];
    parts.extend(list("it waits for", &answer.waits_for));
    parts.extend(list("what would help", &answer.help));
    if !answer.servers.is_empty() {
        parts.push(servers(answer));
    }
    if answer.route.is_empty() {
        parts.push("no route leads to it".to_owned());
    } else {
        parts.push(route(answer));
        parts.push(format!(
            "route of generation {}, acknowledged by {} of {} Envoys",
            answer.route_generation, answer.envoys_acknowledged, answer.envoys_connected
        ));
    }
    let parts: Vec<_> = parts.iter().map(|part| part.trim_end()).collect();
    parts.join("\n\n")
}

const NOWHERE: &str = "no server was considered, and no route leads to it";

/// Some lines under a heading; nothing where there are none.
fn list(heading: &str, lines: &[String]) -> Option<String> {
    let lines = lines.iter().map(|line| format!("\n- {line}"));
    let lines: String = lines.collect();
    (!lines.is_empty()).then(|| format!("{heading}:{lines}"))
}

fn servers(answer: &ExplainModelResponse) -> String {
    let mut rows = vec![
        row([&"server", &"replica", &"chosen", &"why"]),
        row([&"------", &"-------", &"------", &"---"]),
    ];
    for server in &answer.servers {
        rows.push(row([
            &server.server,
            &"all",
            &yes(server.chosen),
            &server.reason,
        ]));
        for replica in &server.replicas {
            rows.push(row([
                &server.server,
                &replica.replica,
                &yes(replica.chosen),
                &replica.reason,
            ]));
        }
    }
    output::table(&rows)
}

fn route(answer: &ExplainModelResponse) -> String {
    let mut rows = vec![
        row([&"version", &"server", &"replicas", &"weight"]),
        row([&"-------", &"------", &"--------", &"------"]),
    ];
    for split in &answer.route {
        let replicas: Vec<_> = split.replicas.iter().map(ToString::to_string).collect();
        rows.push(row([
            &split.version,
            &split.server,
            &replicas.join(","),
            &split.weight,
        ]));
    }
    output::table(&rows)
}

fn yes(chosen: bool) -> &'static str {
    if chosen { "yes" } else { "no" }
}
