//! The conversation with the scheduler: subscribe, take orders, acknowledge.
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use seldon_grpc::chainer::chainer_client::ChainerClient;
use seldon_proto::chainer::{
    PipelineSubscriptionRequest, PipelineUpdateMessage, PipelineUpdateStatusMessage,
    pipeline_update_message::PipelineOperation,
};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::transport::Channel;

/// The first pause before the scheduler is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often an acknowledgement is tried again; what is lost for good the scheduler asks for when it is back.
const TRIES: usize = 5;

/// How long the scheduler may take to hear that the engine leaves.
const LEAVING: Duration = Duration::from_secs(1);

/// Subscribes for ever; gives orders to `take` and says whether it is connected.
pub async fn follow(
    channel: Channel,
    name: String,
    mut take: impl FnMut(PipelineUpdateMessage),
    connected: watch::Sender<bool>,
) {
    let mut pause = FIRST_PAUSE;
    let mut told = String::new();
    loop {
        let begun = Instant::now();
        let request = PipelineSubscriptionRequest { name: name.clone() };
        let reason = match ChainerClient::new(channel.clone())
            .max_decoding_message_size(usize::MAX)
            .subscribe_pipeline_updates(request)
            .await
        {
            Ok(stream) => {
                tracing::info!("registered with the scheduler");
                told.clear();
                connected.send_replace(true);
                let mut orders = stream.into_inner();
                loop {
                    match orders.message().await {
                        Ok(Some(order)) => take(order),
                        Ok(None) => break "the scheduler closed the stream".to_owned(),
                        Err(status) => break describe(&status),
                    }
                }
            }
            Err(status) => describe(&status),
        };
        connected.send_replace(false);
        if begun.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        if told != reason {
            tracing::warn!(reason, "the scheduler is away: pipelines go on as they are");
            told = reason;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sends acknowledgements in their order.
pub async fn acknowledge(
    channel: Channel,
    mut acks: mpsc::UnboundedReceiver<PipelineUpdateStatusMessage>,
) {
    let retries = ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_times(TRIES);
    while let Some(ack) = acks.recv().await {
        let send = || {
            let (mut client, ack) = (ChainerClient::new(channel.clone()), ack.clone());
            async move { client.pipeline_update_event(ack).await }
        };
        if let Err(status) = send.retry(retries).await {
            let reason = describe(&status);
            tracing::warn!(reason, "an acknowledgement did not reach the scheduler");
        }
    }
}

/// Tells the scheduler that everything was given up, so that it need not wait for this engine to come back.
pub async fn leave(channel: Channel, name: String) {
    let update = PipelineUpdateMessage {
        op: PipelineOperation::Rebalance.into(),
        stream: name,
        ..Default::default()
    };
    let left = PipelineUpdateStatusMessage {
        update: Some(update),
        success: true,
        reason: "the engine leaves".to_owned(),
    };
    let mut client = ChainerClient::new(channel);
    let told = tokio::time::timeout(LEAVING, client.pipeline_update_event(left)).await;
    if !matches!(told, Ok(Ok(_))) {
        tracing::warn!("the scheduler does not know that this engine leaves: it will wait for it");
    }
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
