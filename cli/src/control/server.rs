//! `seldon server …`.
use anyhow::Result;
use seldon_inference::{to_protojson, to_protojson_value};
use seldon_proto::scheduler::{ServerStatusRequest, ServerStatusResponse};

use super::session::{SUBSCRIBER, Session};
use crate::{
    args::{Control, ServerCommand},
    output::{self, Format, row},
};

/// Runs a `server` command.
pub(crate) async fn run(command: ServerCommand) -> Result<()> {
    match command {
        ServerCommand::Status(args) => {
            let control = Control {
                host: args.host,
                verbose: args.show_request,
            };
            let session = Session::open(&control).await?;
            let request = ServerStatusRequest {
                subscriber_name: SUBSCRIBER.to_owned(),
                name: Some(args.name.clone()),
            };
            session.show(&request)?;
            let server = session
                .first(
                    session.client.clone().server_status(request).await,
                    &args.name,
                )
                .await?;
            match args.output {
                _ if !args.show_response => output::line(format_args!(
                    "{} loaded models {} available replicas {}",
                    server.server_name, server.num_loaded_model_replicas, server.available_replicas
                )),
                None => output::line(to_protojson(&server)?),
                format => output::answer(
                    &to_protojson_value(&server)?,
                    || replicas(&server),
                    format,
                    Format::Json,
                ),
            }
        }
        ServerCommand::List(args) => {
            let session = Session::open(&args.control).await?;
            let request = ServerStatusRequest {
                subscriber_name: SUBSCRIBER.to_owned(),
                name: None,
            };
            session.show(&request)?;
            let mut servers = session
                .collect(session.client.clone().server_status(request).await)
                .await?;
            servers.sort_by(|left, right| left.server_name.cmp(&right.server_name));
            let values: Result<Vec<_>, _> = servers.iter().map(to_protojson_value).collect();
            output::answer(
                &values?.into(),
                || list(&servers),
                args.display.output,
                Format::Table,
            )
        }
    }
}

fn list(servers: &[ServerStatusResponse]) -> String {
    let mut rows = vec![
        row([&"server", &"replicas", &"models"]),
        row([&"------", &"--------", &"------"]),
    ];
    for server in servers {
        rows.push(row([
            &server.server_name,
            &server.available_replicas,
            &server.num_loaded_model_replicas,
        ]));
    }
    output::table(&rows)
}

fn replicas(server: &ServerStatusResponse) -> String {
    let mut rows = vec![row([
        &"replica",
        &"models",
        &"evicted",
        &"in flight",
        &"memory",
        &"free",
        &"over-commit",
    ])];
    for replica in &server.resources {
        rows.push(row([
            &replica.replica_idx,
            &replica.num_loaded_models,
            &replica.evicted_models,
            &replica.requests_in_flight,
            &replica.total_memory_bytes,
            &replica.available_memory_bytes,
            &format_args!("{}%", replica.over_commit_percentage),
        ]));
    }
    output::table(&rows)
}
