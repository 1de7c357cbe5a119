//! `seldon xds …`: what each Envoy has been told.
use anyhow::Result;
use seldon_grpc::introspect::introspect_client::IntrospectClient;
use seldon_inference::to_protojson_value;
use seldon_proto::introspect::{Envoy, XdsStatusRequest, XdsStatusResponse};

use super::session::failed;
use crate::{
    args::XdsCommand,
    connect,
    output::{self, Format, row},
};

/// Runs an `xds` command.
pub(crate) async fn run(command: XdsCommand) -> Result<()> {
    let XdsCommand::Status(args) = command;
    let (channel, address) = connect::scheduler(&args.host).await?;
    let mut client = IntrospectClient::new(channel);
    let mut status = client
        .xds_status(XdsStatusRequest {})
        .await
        .map_err(|status| failed(&address, status))?
        .into_inner();
    status.envoys.sort_by_key(|envoy| envoy.stream);
    output::answer(
        &to_protojson_value(&status)?,
        || table(&status),
        args.display.output,
        Format::Table,
    )
}

fn table(status: &XdsStatusResponse) -> String {
    if status.envoys.is_empty() {
        return format!(
            "no Envoy has connected; the newest generation is {}\nan Envoy finds the scheduler by the cluster of its bootstrap, port 9002",
            status.generation
        );
    }
    let header = [
        "stream",
        "node",
        "address",
        "version",
        "protocol",
        "connected",
        "acknowledged",
        "pending",
        "refused",
    ];
    let mut rows = vec![
        header.map(str::to_owned).to_vec(),
        header.map(|name| "-".repeat(name.len())).to_vec(),
    ];
    for envoy in &status.envoys {
        rows.push(row([
            &envoy.stream,
            &envoy.node_id,
            &envoy.address,
            &envoy.version,
            &envoy.protocol,
            &connection(envoy),
            &format_args!("{}/{}", envoy.acknowledged_generation, status.generation),
            &envoy.types.iter().map(|kind| kind.pending).sum::<u64>(),
            &envoy.rejections.len(),
        ]));
    }
    let mut text = output::table(&rows);
    for envoy in &status.envoys {
        for rejection in &envoy.rejections {
            text.push_str(&format!(
                "\nstream {} refused {} {}: {}",
                envoy.stream,
                short_type(&rejection.type_url),
                rejection.resource,
                rejection.reason
            ));
        }
    }
    text
}

fn connection(envoy: &Envoy) -> String {
    let seconds = envoy.since_ms / 1000;
    if envoy.connected {
        format!("for {seconds} s")
    } else {
        format!("lost {seconds} s ago")
    }
}

fn short_type(url: &str) -> &str {
    url.rsplit(['.', '/']).next().unwrap_or(url)
}
