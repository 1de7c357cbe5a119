//! The API for agents.
use std::{
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use seldon_core::{AgentKey, Event, StreamId};
use seldon_grpc::agent::agent_service_server::AgentService;
use seldon_proto::agent::*;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status, Streaming};

use crate::writer::Handle;

/// Serves `seldon.mlops.agent.AgentService`.
#[derive(Clone)]
pub struct Agents {
    writer: Handle,
    stop: CancellationToken,
}

impl Agents {
    pub fn new(writer: Handle, stop: CancellationToken) -> Self {
        Self { writer, stop }
    }
}

/// Commands for one agent. However it ends, the rules are told.
pub struct Commands {
    messages: mpsc::UnboundedReceiver<ModelOperationMessage>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    writer: Handle,
    agent: AgentKey,
    stream: StreamId,
}

impl Stream for Commands {
    type Item = Result<ModelOperationMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.stopping.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        self.messages.poll_recv(cx).map(|message| message.map(Ok))
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        tracing::info!(server = %self.agent.server, replica = self.agent.replica, "agent left");
        self.writer.happened(Event::AgentDisconnected {
            agent: self.agent.clone(),
            stream: self.stream,
        });
    }
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SubscribeStream = Commands;

    async fn subscribe(
        &self,
        request: Request<AgentSubscribeRequest>,
    ) -> Result<Response<Commands>, Status> {
        let peer = request.extensions().get::<Option<SocketAddr>>().copied();
        let mut subscription = request.into_inner();
        let agent = key(&subscription.server_name, subscription.replica_idx)?;
        if let (Some(config), Some(Some(peer))) = (&mut subscription.replica_config, peer)
            && config.inference_svc.is_empty()
        {
            config.inference_svc = peer.ip().to_string();
        }
        check_endpoint(&agent, subscription.replica_config.as_ref())?;
        tracing::info!(
            server = subscription.server_name,
            replica = subscription.replica_idx,
            loaded = subscription.loaded_models.len(),
            "agent connects"
        );
        let (sender, messages) = mpsc::unbounded_channel();
        // Made first: it reports the end of the stream also where the caller leaves before it has begun.
        let commands = Commands {
            messages,
            stopping: Box::pin(self.stop.clone().cancelled_owned()),
            writer: self.writer.clone(),
            agent,
            stream: self.writer.next_stream(),
        };
        let stream = commands.stream;
        self.writer.connect(stream, subscription, sender).await?;
        Ok(Response::new(commands))
    }

    async fn agent_event(
        &self,
        request: Request<ModelEventMessage>,
    ) -> Result<Response<ModelEventResponse>, Status> {
        let message = request.into_inner();
        tracing::debug!(
            server = message.server_name,
            replica = message.replica_idx,
            model = message.model_name,
            version = message.model_version,
            event = message.event().as_str_name(),
            "agent reports"
        );
        self.writer
            .reported(Event::AgentReported(Box::new(message)))
            .await?;
        Ok(Response::new(ModelEventResponse {}))
    }

    async fn agent_drain(
        &self,
        request: Request<AgentDrainRequest>,
    ) -> Result<Response<AgentDrainResponse>, Status> {
        let request = request.into_inner();
        let agent = key(&request.server_name, request.replica_idx)?;
        tracing::info!(server = %agent.server, replica = agent.replica, "agent asks to drain");
        let success = self.writer.drain(agent).await?;
        Ok(Response::new(AgentDrainResponse { success }))
    }

    /// Each message is taken as it comes; the answer follows the end of the stream.
    async fn model_scaling_trigger(
        &self,
        request: Request<Streaming<ModelScalingTriggerMessage>>,
    ) -> Result<Response<ModelScalingTriggerResponse>, Status> {
        let mut triggers = request.into_inner();
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => break,
                next = triggers.next() => next,
            };
            let Some(trigger) = next.transpose()? else {
                break;
            };
            tracing::debug!(
                server = trigger.server_name,
                replica = trigger.replica_idx,
                model = trigger.model_name,
                trigger = trigger.trigger().as_str_name(),
                "agent sees a threshold crossed"
            );
            // Waits for the rules, so that no stream can fill their queue.
            self.writer
                .reported(Event::ScalingTriggered(Box::new(trigger)))
                .await?;
        }
        Ok(Response::new(ModelScalingTriggerResponse {}))
    }
}

/// An address that cannot be would be refused by every Envoy, with the models behind it.
fn check_endpoint(agent: &AgentKey, config: Option<&ReplicaConfig>) -> Result<(), Status> {
    let AgentKey { server, replica } = agent;
    let refused = |what: String| {
        Status::invalid_argument(format!("replica {replica} of server {server} {what}"))
    };
    let config = config.ok_or_else(|| refused("tells no address for inference".into()))?;
    if config.inference_svc.is_empty() {
        return Err(refused("names no host for inference".into()));
    }
    for port in [config.inference_http_port, config.inference_grpc_port] {
        if !(1..=i32::from(u16::MAX)).contains(&port) {
            return Err(refused(format!(
                "names port {port} for inference: use 1 to 65535"
            )));
        }
    }
    Ok(())
}

fn key(server: &str, replica: u32) -> Result<AgentKey, Status> {
    if server.is_empty() {
        return Err(Status::invalid_argument(
            "the agent names no server: set SELDON_SERVER_NAME or --server-name",
        ));
    }
    Ok(AgentKey {
        server: server.into(),
        replica,
    })
}
