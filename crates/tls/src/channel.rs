//! Connections to a scheduler.
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Error};

use crate::{ClientTls, connector};

/// A channel that connects when it is used and notices a dead peer by keep-alive.
pub fn channel(
    host: &str,
    port: u16,
    tls: Option<ClientTls>,
    keep_alive: Duration,
) -> Result<Channel, Error> {
    Ok(Endpoint::from_shared(format!("http://{host}:{port}"))?
        .connect_timeout(Duration::from_millis(900))
        .http2_keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector(tls)))
}
