//! Follows the inference server's life.
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::lifeline::Lifeline;
use super::{InferenceServer, ServerError};
use crate::models::Registry;

/// How often a live server is asked.
const PERIOD: Duration = Duration::from_secs(1);
/// How long an idle server may be silent. A load keeps all of a server busy, and so does an inference in a server
/// without workers, which predicts in the loop that answers here.
const QUIET_PATIENCE: Duration = Duration::from_secs(8);
/// How often one that is away is asked.
const IMPATIENT: Duration = Duration::from_millis(200);

/// Watches until `stop`. A server that ended, or does not answer for `patience`, loses its models in the registry;
/// when it lives again they are restored. `lost` is called at each loss.
pub async fn watch(
    server: InferenceServer,
    registry: Registry,
    patience: Duration,
    lost: impl Fn(),
    stop: CancellationToken,
) {
    let follow = async {
        loop {
            until_live(&server).await;
            // Opened first: a server that ends while its models are looked at is noticed, too.
            let Ok(mut lifeline) = Lifeline::open(&server).await else {
                tokio::time::sleep(IMPATIENT).await;
                continue;
            };
            match registry.restore().await {
                Ok(()) => tracing::info!("the inference server is ready"),
                Err(error) => {
                    tracing::warn!(%error, "the inference server went away while its models were restored");
                    registry.server_lost();
                    lost();
                    tokio::time::sleep(IMPATIENT).await;
                    continue;
                }
            }
            let error = loop {
                tokio::select! {
                    error = until_lost(&server, &registry, patience) => break error,
                    () = lifeline.ended() => {}
                }
                // A server may close what is idle: it is only lost if it does not hold its models any more.
                match still_there(&server, &registry).await {
                    Ok(opened) => lifeline = opened,
                    Err(error) => break error,
                }
                tokio::time::sleep(IMPATIENT).await;
            };
            tracing::error!(%error, "the inference server is lost");
            registry.server_lost();
            lost();
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow => {}
    }
}

async fn until_live(server: &InferenceServer) {
    let mut told = Instant::now();
    while let Err(error) = server.live(Duration::from_secs(5)).await {
        if told.elapsed() > Duration::from_secs(30) {
            tracing::warn!(%error, "waiting for the inference server");
            told = Instant::now();
        }
        tokio::time::sleep(IMPATIENT).await;
    }
}

async fn still_there(
    server: &InferenceServer,
    registry: &Registry,
) -> Result<Lifeline, ServerError> {
    let lifeline = Lifeline::open(server).await?;
    registry.confirm().await?;
    Ok(lifeline)
}

/// A server that is busy may be silent for as long as `patience`; one that refuses connections is gone.
async fn until_lost(
    server: &InferenceServer,
    registry: &Registry,
    patience: Duration,
) -> ServerError {
    let is_busy = || server.is_loading() || registry.is_answering();
    loop {
        tokio::time::sleep(PERIOD).await;
        let was_busy = is_busy();
        let mut answer = server.live(QUIET_PATIENCE.min(patience)).await;
        if answer == Err(ServerError::TimedOut) && (was_busy || is_busy()) {
            answer = server.live(patience.saturating_sub(QUIET_PATIENCE)).await;
        }
        if let Err(error) = answer {
            return error;
        }
    }
}
