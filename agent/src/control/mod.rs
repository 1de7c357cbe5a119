//! The conversation with the scheduler: register, take orders, report.
mod outbox;
mod usage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use seldon_grpc::agent::agent_service_client::AgentServiceClient;
use seldon_proto::agent::{
    AgentDrainRequest, AgentSubscribeRequest, ModelOperationMessage, ReplicaConfig,
    model_operation_message::Operation,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::models::{Keeping, Outcome, Registry, name_of};
pub use outbox::Outbox;

/// The first pause before the scheduler is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause while the scheduler is away for a short time, such as a restart.
const SHORT_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONG_PAUSE: Duration = Duration::from_secs(15);
/// A scheduler that is away for longer than this is asked less often.
const SHORT_OUTAGE: Duration = Duration::from_secs(60);

/// Who this replica is.
#[derive(Debug, Clone)]
pub struct Identity {
    pub server_name: String,
    pub replica_idx: u32,
    pub config: ReplicaConfig,
}

/// What readiness depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phase {
    /// The scheduler has known this replica once.
    pub registered: bool,
    /// Models leave, none come.
    pub draining: bool,
}

/// The control loop; cheap to clone.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    client: AgentServiceClient<Channel>,
    identity: Identity,
    registry: Registry,
    outbox: Outbox,
    phase: watch::Sender<Phase>,
    connected: watch::Sender<bool>,
    sequence: AtomicU64,
    /// True when the scheduler has moved everything away; held while it is asked.
    drained: tokio::sync::Mutex<bool>,
    drain_limit: Duration,
    /// The last failure that was logged: a scheduler that is away for long is not worth a line a second.
    told: tokio::sync::Mutex<String>,
}

impl Control {
    /// `scheduler` is a lazily connected channel with keep-alive, so that a dead scheduler is noticed.
    pub fn new(
        scheduler: Channel,
        identity: Identity,
        registry: Registry,
        drain_limit: Duration,
    ) -> Self {
        Self(Arc::new(Inner {
            client: AgentServiceClient::new(scheduler),
            identity,
            registry,
            outbox: Outbox::default(),
            phase: watch::Sender::default(),
            connected: watch::Sender::new(false),
            sequence: AtomicU64::new(0),
            drained: tokio::sync::Mutex::default(),
            drain_limit,
            told: tokio::sync::Mutex::default(),
        }))
    }

    /// What readiness depends on.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    /// Runs until `stop`; `unasked` brings events that no order waits for.
    pub async fn run(
        &self,
        mut unasked: mpsc::UnboundedReceiver<(seldon_proto::agent::ModelVersion, Outcome)>,
        stop: CancellationToken,
    ) {
        let inner = &self.0;
        let forward = async {
            while let Some((version, outcome)) = unasked.recv().await {
                let named = (name_of(&version), version.version);
                inner.outbox.put(named, outcome);
            }
            std::future::pending::<()>().await;
        };
        let deliver = inner.outbox.deliver(
            inner.client.clone(),
            &inner.identity,
            &inner.registry,
            inner.connected.subscribe(),
        );
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.subscribe_for_ever() => {}
            () = deliver => {}
            () = forward => {}
        }
    }

    async fn subscribe_for_ever(&self) {
        let mut up = self.0.registry.up();
        let (mut pause, mut away_since) = (FIRST_PAUSE, Instant::now());
        loop {
            // The registry holds the sender.
            let _ = up.wait_for(|up| *up).await;
            let connected_at = Instant::now();
            let connected = tokio::select! {
                connected = self.subscribe_once() => connected,
                // Without its inference server this replica is none: the scheduler sees the stream end.
                _ = self.server_lost() => true,
            };
            self.0.connected.send_replace(false);
            if connected && connected_at.elapsed() > SHORT_PAUSE {
                (pause, away_since) = (FIRST_PAUSE, Instant::now());
            }
            tokio::time::sleep(pause).await;
            let longest = if away_since.elapsed() < SHORT_OUTAGE {
                SHORT_PAUSE
            } else {
                LONG_PAUSE
            };
            pause = (pause * 2).min(longest);
        }
    }

    async fn server_lost(&self) {
        // The registry holds the sender.
        let _ = self.0.registry.up().wait_for(|up| !*up).await;
    }

    /// One subscription from beginning to end; says whether the scheduler accepted it.
    async fn subscribe_once(&self) -> bool {
        let inner = &self.0;
        let request = AgentSubscribeRequest {
            server_name: inner.identity.server_name.clone(),
            shared: true,
            replica_idx: inner.identity.replica_idx,
            replica_config: Some(inner.identity.config.clone()),
            loaded_models: inner.registry.loaded(),
            available_memory_bytes: inner.registry.available(),
        };
        let mut client = inner.client.clone();
        // Resolves with the headers of the answer, which our scheduler sends as soon as it has accepted.
        match client.subscribe(request).await {
            Ok(stream) => {
                tracing::info!("registered with the scheduler");
                inner.told.lock().await.clear();
                inner.connected.send_replace(true);
                inner.phase.send_modify(|phase| phase.registered = true);
                let end = self.follow(stream.into_inner()).await;
                tracing::warn!(reason = end, "the scheduler's stream ended");
                true
            }
            Err(status) => {
                let reason = describe(&status);
                let mut told = inner.told.lock().await;
                if *told != reason {
                    tracing::warn!(reason, "the scheduler does not accept this replica");
                    *told = reason;
                }
                false
            }
        }
    }

    async fn follow(&self, mut orders: Streaming<ModelOperationMessage>) -> String {
        loop {
            match orders.message().await {
                Ok(Some(order)) => self.take(order),
                Ok(None) => return "the scheduler closed it".to_owned(),
                Err(status) => return describe(&status),
            }
        }
    }

    /// Starts on an order; each runs on its own, one model's in their sequence.
    fn take(&self, order: ModelOperationMessage) {
        let control = self.clone();
        let sequence = self.0.sequence.fetch_add(1, Ordering::Relaxed);
        let operation = order.operation();
        let keeping = Keeping {
            watched: order.autoscaling_enabled,
            resting: order.resting,
        };
        let Some(version) = order.model_version else {
            tracing::warn!("the scheduler sent an order without a model");
            return;
        };
        let (name, number) = (name_of(&version).to_owned(), version.version);
        let version = Box::new(version);
        tokio::spawn(async move {
            let registry = &control.0.registry;
            let load = operation == Operation::LoadModel;
            if load {
                registry.heed((&name, number), keeping, sequence);
            }
            let draining = control.0.phase.borrow().draining;
            let outcome = match operation {
                // What it has it has, whatever is said of how to keep it.
                Operation::LoadModel if draining && !registry.has(&version) => {
                    Outcome::LoadFailed("this server replica is being drained".to_owned())
                }
                Operation::LoadModel => registry.load(version, sequence, keeping.resting).await,
                Operation::UnloadModel => registry.unload(&version, sequence).await,
                Operation::UnknownEvent => {
                    return tracing::warn!("the scheduler sent an unknown order");
                }
            };
            tracing::info!(model = name, version = number, ?outcome, "order done");
            // What a newer order has taken over it takes care of.
            let kept = load && outcome != Outcome::Superseded;
            control.0.outbox.put((&name, number), outcome);
            if kept {
                Box::pin(registry.keep((&name, number), keeping, sequence)).await;
            }
        });
    }

    /// Asks the scheduler to move this replica's models elsewhere and waits until it has, for the time of a drain at
    /// most. A scheduler that is away for no longer than `absence` is waited for. What has succeeded is not asked again;
    /// what failed can be.
    pub async fn drain(&self, absence: Duration) -> bool {
        let inner = &self.0;
        inner.phase.send_modify(|phase| phase.draining = true);
        let mut drained = inner.drained.lock().await;
        if !*drained {
            let ask = self.ask_for_drain(absence);
            *drained = tokio::time::timeout(inner.drain_limit, ask)
                .await
                .unwrap_or(false);
        }
        *drained
    }

    async fn ask_for_drain(&self, absence: Duration) -> bool {
        let inner = &self.0;
        let mut connected = inner.connected.subscribe();
        let stream = connected.wait_for(|connected| *connected);
        if !matches!(tokio::time::timeout(absence, stream).await, Ok(Ok(_))) {
            tracing::warn!("the scheduler could not be asked to move the models away");
            return false;
        }
        let request = AgentDrainRequest {
            server_name: inner.identity.server_name.clone(),
            replica_idx: inner.identity.replica_idx,
        };
        match inner.client.clone().agent_drain(request).await {
            Ok(answer) => answer.into_inner().success,
            Err(status) => {
                tracing::warn!(
                    reason = describe(&status),
                    "the scheduler did not move the models away"
                );
                false
            }
        }
    }
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
