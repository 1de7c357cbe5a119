//! `seldon explain …`: why something is as it is.
use std::fmt::Write as _;

use anyhow::Result;
use seldon_grpc::introspect::introspect_client::IntrospectClient;
use seldon_inference::to_protojson_value;
use seldon_proto::introspect::{ExplainModelRequest, ExplainModelResponse};

use crate::{
    args::ExplainCommand,
    connect,
    errors::RpcError,
    output::{self, Format, row},
};

/// Runs an `explain` command.
pub(crate) async fn run(command: ExplainCommand) -> Result<()> {
    let ExplainCommand::Model { name, common } = command;
    let mut client = IntrospectClient::new(connect::scheduler(&common.host).await?);
    let request = ExplainModelRequest { model: name };
    let answer = client
        .explain_model(request)
        .await
        .map_err(RpcError)?
        .into_inner();
    output::answer(
        &to_protojson_value(&answer)?,
        || text(&answer),
        common.display.output,
        Format::Table,
    )
}

fn text(answer: &ExplainModelResponse) -> String {
    let mut text = format!("{} is {}", answer.model, answer.state);
    if !answer.reason.is_empty() {
        let _ = write!(text, ": {}", answer.reason);
    }
    text.push('\n');
    if !answer.servers.is_empty() {
        let mut rows = vec![
            row([&"server", &"replica", &"chosen", &"why"]),
            row([&"------", &"-------", &"------", &"---"]),
        ];
        for server in &answer.servers {
            rows.push(row([
                &server.server,
                &"",
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
        let _ = write!(text, "\n{}", output::table(&rows));
    }
    if answer.route.is_empty() {
        text.push_str("\nno route leads to it\n");
    } else {
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
        let _ = write!(text, "\n{}", output::table(&rows));
        let _ = writeln!(
            text,
            "\nroute of generation {}, acknowledged by {} of {} Envoys",
            answer.route_generation, answer.envoys_acknowledged, answer.envoys_connected
        );
    }
    text
}

fn yes(chosen: bool) -> &'static str {
    if chosen { "yes" } else { "no" }
}
