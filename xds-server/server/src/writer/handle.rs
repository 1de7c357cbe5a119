//! How everyone else talks to the writer.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use seldon_ads::Change;
use seldon_core::{AgentKey, Event, Now, Order, Refusal, State, StreamId};
use seldon_proto::agent::{AgentSubscribeRequest, ModelOperationMessage};
use tokio::sync::{mpsc, oneshot, watch};

use crate::resources::Tls;

use super::{Command, Connection, Kind, Names, Subscription};

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Accepted, but not durable: it may be lost with the next restart.
    #[error("could not be stored: {0}; see to the disk of --db-path and send it again")]
    Store(String),
    #[error("the scheduler is stopping")]
    Stopping,
}

impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        match failure {
            Failure::Refused(Refusal::Precondition(_)) => Self::failed_precondition(text),
            Failure::Refused(Refusal::Invalid(_)) => Self::invalid_argument(text),
            Failure::Refused(Refusal::Mismatch(_)) | Failure::Store(_) => Self::internal(text),
            Failure::Stopping => Self::unavailable(text),
        }
    }
}

/// Sends commands to the writer.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    streams: Arc<AtomicU64>,
    synchronised: watch::Receiver<bool>,
    measured: watch::Receiver<Names>,
}

impl Handle {
    pub(super) fn new(
        commands: mpsc::UnboundedSender<Command>,
        synchronised: watch::Receiver<bool>,
        measured: watch::Receiver<Names>,
    ) -> Self {
        Self {
            commands,
            streams: Arc::default(),
            synchronised,
            measured,
        }
    }

    /// Answered once the request's changes are durable.
    pub async fn durable(&self, event: Event) -> Result<(), Failure> {
        self.ask(|reply| Command::Durable(event, reply)).await
    }

    /// Answered once the rules have seen it.
    pub async fn reported(&self, event: Event) -> Result<(), Failure> {
        self.ask(|reply| Command::Reported(event, reply)).await
    }

    /// A stream's id, before anyone is told of it.
    pub fn next_stream(&self) -> StreamId {
        self.streams.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Takes an agent's stream in; `messages` is dropped where a newer stream of the replica takes over. Whoever calls
    /// this reports `AgentDisconnected` in the end, even if it does not wait for the answer.
    pub async fn connect(
        &self,
        stream: StreamId,
        subscription: AgentSubscribeRequest,
        messages: mpsc::UnboundedSender<ModelOperationMessage>,
    ) -> Result<(), Failure> {
        let subscription = Box::new(subscription);
        self.ask(|reply| Command::Connect {
            stream,
            subscription,
            messages,
            reply,
        })
        .await
    }

    /// Takes the stream of a gateway or an engine in, as `connect` does an agent's.
    pub async fn connect_worker(
        &self,
        connection: Connection,
        orders: mpsc::UnboundedSender<Order>,
    ) -> Result<(), Failure> {
        self.ask(|reply| Command::ConnectWorker {
            connection,
            orders,
            reply,
        })
        .await
    }

    /// Nobody waits for this; callable where nothing can be awaited.
    pub fn happened(&self, event: Event) {
        let _ = self.commands.send(Command::Happened(event)); // fails only while stopping
    }

    /// Answered once the drain has ended; whether nothing is routed to the replica any more.
    pub async fn drain(&self, agent: AgentKey) -> Result<bool, Failure> {
        self.ask(|reply| Command::Drain { agent, reply }).await
    }

    /// Looks at the state between two batches. `look` must be quick: everyone waits for it.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State, Now) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, receiver) = oneshot::channel();
        let query = Command::Read(Box::new(move |state, now| {
            let _ = sender.send(look(state, now));
        }));
        self.commands.send(query).map_err(|_| Failure::Stopping)?;
        receiver.await.map_err(|_| Failure::Stopping)
    }

    /// Gives Envoys other certificates; `listener` holds them as well.
    pub fn renew(&self, tls: Arc<Tls>, listener: Change) {
        let _ = self.commands.send(Command::Renew(tls, listener)); // fails only while stopping
    }

    /// Begins with every name there is.
    pub async fn subscribe(&self, kind: Kind) -> Result<Subscription, Failure> {
        let (sender, receiver) = oneshot::channel();
        self.commands
            .send(Command::Subscribe(kind, sender))
            .map_err(|_| Failure::Stopping)?;
        receiver.await.map_err(|_| Failure::Stopping)
    }

    /// Waits until the world is whole after a start.
    pub async fn synchronised(&self) -> Result<(), Failure> {
        let mut synchronised = self.synchronised.clone();
        let whole = synchronised.wait_for(|whole| *whole).await;
        whole.map(drop).map_err(|_| Failure::Stopping)
    }

    /// Experiments whose decisions wait for what Envoys count.
    pub fn measured(&self) -> watch::Receiver<Names> {
        self.measured.clone()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Command,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .map_err(|_| Failure::Stopping)?;
        answer.await.map_err(|_| Failure::Stopping)?
    }
}
