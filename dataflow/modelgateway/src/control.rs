//! The conversation with the scheduler: take orders, acknowledge them.
use std::{collections::HashMap, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable as _};
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_proto::scheduler::{
    ModelStatusResponse, ModelSubscriptionRequest, ModelUpdateMessage, ModelUpdateStatusMessage,
    model_status_response::ModelOperation as Ordered, model_update_message::ModelOperation as Done,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tonic::transport::Channel;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Time to say good-bye.
const LEAVING: Duration = Duration::from_secs(2);

/// What the scheduler wants of one model.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) model: String,
    pub(crate) version: u32,
    pub(crate) uid: String,
    pub(crate) delete: bool,
    pub(crate) keep_topics: bool,
    /// Topics go with the model.
    pub(crate) clean: bool,
    pub(crate) timestamp: u64,
}

/// An order that was carried out, or why not.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) order: Order,
    pub(crate) failure: Option<String>,
}

impl Order {
    fn of(message: &ModelStatusResponse) -> Option<Self> {
        let delete = match message.operation() {
            Ordered::ModelCreate => false,
            Ordered::ModelDelete => true,
            Ordered::Unknown => return None,
        };
        let latest = message.versions.last();
        let definition = latest.and_then(|latest| latest.model_defn.as_ref());
        let dataflow = definition.and_then(|definition| definition.dataflow_spec.as_ref());
        Some(Self {
            model: message.model_name.clone(),
            version: latest.map_or(0, |latest| latest.version),
            uid: String::new(),
            delete,
            keep_topics: message.keep_topics,
            clean: dataflow.is_some_and(|dataflow| dataflow.clean_topics_on_delete),
            timestamp: message.timestamp,
        })
    }
}

/// Asks for orders for ever; says whether the scheduler is connected.
pub(crate) async fn follow(
    channel: Channel,
    name: &str,
    orders: mpsc::UnboundedSender<Order>,
    connected: watch::Sender<bool>,
) {
    let (mut pause, mut told) = (FIRST_PAUSE, String::new());
    loop {
        let start = Instant::now();
        let request = ModelSubscriptionRequest {
            subscriber_name: name.to_owned(),
            is_model_gateway: true,
        };
        let mut client =
            SchedulerClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let end = match client.subscribe_model_status(request).await {
            Ok(stream) => {
                tracing::info!("subscribed at the scheduler");
                told.clear();
                connected.send_replace(true);
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(message)) => match Order::of(&message) {
                            Some(order) => drop(orders.send(order)),
                            None => tracing::debug!(model = message.model_name, "no order"),
                        },
                        Ok(None) => break "the scheduler closed it".to_owned(),
                        Err(status) => break status.message().to_owned(),
                    }
                }
            }
            Err(status) => status.message().to_owned(),
        };
        connected.send_replace(false);
        if told != end {
            tracing::warn!(reason = end, "no orders from the scheduler");
            told = end;
        }
        if start.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tells the scheduler that this gateway has given up all models and ends: others read them at once.
pub(crate) async fn leave(channel: Channel, name: &str) {
    let left = ModelUpdateStatusMessage {
        success: true,
        reason: "the model gateway leaves".to_owned(),
        update: Some(ModelUpdateMessage {
            op: Done::Delete.into(),
            stream: name.to_owned(),
            ..Default::default()
        }),
    };
    let mut client = SchedulerClient::new(channel);
    let told = tokio::time::timeout(LEAVING, client.model_status_event(left)).await;
    if !matches!(told, Ok(Ok(_))) {
        tracing::warn!("the scheduler does not know that this gateway leaves: it will wait for it");
    }
}

/// Tells the scheduler what was done, each until it has heard it or a later order of the model is done.
pub(crate) async fn tell(channel: Channel, name: Arc<str>, mut acks: mpsc::UnboundedReceiver<Ack>) {
    let mut telling: HashMap<String, tokio::task::JoinHandle<()>> = HashMap::new();
    while let Some(ack) = acks.recv().await {
        telling.retain(|_, task| !task.is_finished());
        let model = ack.order.model.clone();
        let client = SchedulerClient::new(channel.clone());
        let told = tokio::spawn(tell_one(client, Arc::clone(&name), ack));
        if let Some(former) = telling.insert(model, told) {
            former.abort();
        }
    }
}

async fn tell_one(client: SchedulerClient<Channel>, name: Arc<str>, ack: Ack) {
    let Ack { order, failure } = ack;
    let op = if order.delete {
        Done::Delete
    } else {
        Done::Create
    };
    let message = ModelUpdateStatusMessage {
        success: failure.is_none(),
        reason: failure.unwrap_or_default(),
        update: Some(ModelUpdateMessage {
            op: op.into(),
            model: order.model,
            version: order.version,
            uid: order.uid,
            timestamp: order.timestamp,
            stream: name.to_string(),
        }),
    };
    let backoff = ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times();
    let told = (|| async {
        let mut client = client.clone();
        client.model_status_event(message.clone()).await
    })
    .retry(backoff)
    .when(|status| {
        matches!(
            status.code(),
            tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::DeadlineExceeded
        )
    })
    .await;
    if let Err(status) = told {
        tracing::warn!(
            reason = status.message(),
            "the scheduler does not take an answer"
        );
    }
}
