//! The conversation with the scheduler: which pipelines are served here.
use std::{collections::HashMap, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable as _};
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_proto::{
    chainer::{
        PipelineUpdateMessage, PipelineUpdateStatusMessage,
        pipeline_update_message::PipelineOperation as Done,
    },
    scheduler::{
        Pipeline, PipelineStatusResponse, PipelineSubscriptionRequest,
        pipeline_status_response::PipelineOperation,
    },
};
use tokio::sync::{mpsc, watch};
use tonic::{Status, transport::Channel};

use crate::routes::Routes;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A pipeline that cannot be served is reported after this; it is tried on.
const REPORT_AFTER: Duration = Duration::from_secs(20);

/// Who this gateway is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) ip: String,
    pub(crate) port: u16,
}

/// Follows the scheduler's orders.
pub(crate) struct Control {
    client: SchedulerClient<Channel>,
    identity: Identity,
    routes: Arc<Routes>,
    drain: Duration,
    subscribed: watch::Sender<bool>,
}

/// One thing to do for one pipeline.
struct Order {
    version: Arc<Pipeline>,
    create: bool,
    timestamp: u64,
}

impl Control {
    pub(crate) fn new(
        scheduler: Channel,
        identity: Identity,
        routes: Arc<Routes>,
        drain: Duration,
    ) -> Self {
        Self {
            client: SchedulerClient::new(scheduler),
            identity,
            routes,
            drain,
            subscribed: watch::Sender::new(false),
        }
    }

    /// Whether the scheduler has known this gateway once.
    pub(crate) fn subscribed(&self) -> watch::Receiver<bool> {
        self.subscribed.subscribe()
    }

    /// Runs until it is dropped. Without its scheduler a gateway goes on with what it serves.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut workers = HashMap::new();
        let (mut pause, mut told) = (FIRST_PAUSE, String::new());
        loop {
            let (accepted, status) = self.follow(&mut workers).await;
            if accepted {
                pause = FIRST_PAUSE;
            }
            let reason = describe(&status);
            if accepted || reason != told {
                tracing::warn!(reason, "the scheduler's stream ended: asking again");
                told = reason;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One subscription; says whether it was accepted, and how it ended.
    async fn follow(
        self: &Arc<Self>,
        workers: &mut HashMap<String, mpsc::UnboundedSender<Order>>,
    ) -> (bool, Status) {
        let request = PipelineSubscriptionRequest {
            subscriber_name: self.identity.name.clone(),
            subscriber_ip: self.identity.ip.clone(),
            is_pipeline_gateway: true,
            // One for both: Envoy speaks HTTP/2 to it then, over which it finds a gateway that is stopped.
            subscriber_http_port: self.identity.port.into(),
            subscriber_grpc_port: self.identity.port.into(),
        };
        let mut client = self.client.clone();
        let mut orders = match client.subscribe_pipeline_status(request).await {
            Ok(orders) => orders.into_inner(),
            Err(status) => return (false, status),
        };
        tracing::info!("subscribed to the scheduler");
        self.subscribed.send_replace(true);
        loop {
            match orders.message().await {
                Ok(Some(order)) => self.take(order, workers),
                Ok(None) => return (true, Status::unavailable("the scheduler closed it")),
                Err(status) => return (true, status),
            }
        }
    }

    /// Hands an order to its pipeline's worker: one pipeline's orders run in their sequence, others beside them.
    fn take(
        self: &Arc<Self>,
        message: PipelineStatusResponse,
        workers: &mut HashMap<String, mpsc::UnboundedSender<Order>>,
    ) {
        let create = match message.operation() {
            PipelineOperation::PipelineCreate => true,
            PipelineOperation::PipelineDelete => false,
            // A status for those who only watch.
            PipelineOperation::Unknown => return,
        };
        workers.retain(|_, worker| !worker.is_closed());
        for version in message.versions.into_iter().filter_map(|one| one.pipeline) {
            let name = version.name.clone();
            let order = Order {
                version: version.into(),
                create,
                timestamp: message.timestamp,
            };
            let worker = workers.entry(name).or_insert_with(|| {
                let (sender, orders) = mpsc::unbounded_channel();
                let control = self.clone();
                tokio::spawn(async move { control.work(orders).await });
                sender
            });
            // The worker ends only when this sender is gone.
            let _ = worker.send(order);
        }
    }

    async fn work(&self, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            if order.create {
                self.create(&order, &mut orders).await;
            } else {
                let version = &order.version;
                let pipeline = version.name.as_str();
                self.routes
                    .remove(pipeline, Some(version.version), self.drain)
                    .await;
                tracing::info!(pipeline, version = version.version, "pipeline left");
                self.report(&order, Ok(())).await;
            }
        }
    }

    /// Tries until the pipeline is served, or until there is another order for it.
    async fn create(&self, order: &Order, orders: &mut mpsc::UnboundedReceiver<Order>) {
        let pipeline = order.version.name.as_str();
        let started = tokio::time::Instant::now();
        let mut reported = false;
        loop {
            let error = match self.routes.add(order.version.clone()).await {
                Ok(()) => {
                    tracing::info!(pipeline, version = order.version.version, "pipeline served");
                    return self.report(order, Ok(())).await;
                }
                Err(error) => error,
            };
            tracing::warn!(pipeline, "cannot be served yet: {error:#}");
            if !orders.is_empty() {
                return;
            }
            if !reported && started.elapsed() > REPORT_AFTER {
                self.report(order, Err(format!("{error:#}"))).await;
                reported = true;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Tells the scheduler; one that is away sends its orders again when it is back.
    async fn report(&self, order: &Order, outcome: Result<(), String>) {
        let operation = if order.create {
            Done::Create
        } else {
            Done::Delete
        };
        let message = PipelineUpdateStatusMessage {
            update: Some(PipelineUpdateMessage {
                op: operation.into(),
                pipeline: order.version.name.clone(),
                version: order.version.version,
                uid: order.version.uid.clone(),
                timestamp: order.timestamp,
                stream: self.identity.name.clone(),
                ..Default::default()
            }),
            success: outcome.is_ok(),
            reason: outcome.err().unwrap_or_default(),
        };
        let send = || async {
            let mut client = self.client.clone();
            client.pipeline_status_event(message.clone()).await
        };
        let policy = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_max_times(10);
        if let Err(status) = send.retry(policy).await {
            let reason = describe(&status);
            tracing::warn!(reason, "the scheduler does not take a report");
        }
    }
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
