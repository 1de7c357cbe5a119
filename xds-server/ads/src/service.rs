//! The gRPC service: a task per stream that carries messages to and from its machine.
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Engine,
    engine::Shared,
    wire::{Answer, Asked},
};

/// An Envoy that comes back names every resource it holds in one request.
const REQUEST: usize = 64 << 20;
/// One response per type is on its way at most.
const RESPONSES: usize = 64;

/// Aggregated discovery in both variants.
#[derive(Clone)]
pub struct Discovery(Arc<Shared>);

impl Engine {
    /// The service to add to a server. A dead connection shows only by HTTP/2 keepalive, which the server should set.
    pub fn service(&self) -> AggregatedDiscoveryServiceServer<Discovery> {
        AggregatedDiscoveryServiceServer::new(Discovery(self.0.clone()))
            .max_decoding_message_size(REQUEST)
            .max_encoding_message_size(usize::MAX)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.serve(request, false)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.serve(request, true)
    }
}

impl Discovery {
    fn serve<Q, A>(
        &self,
        request: Request<Streaming<Q>>,
        delta: bool,
    ) -> Result<Response<ReceiverStream<Result<A, Status>>>, Status>
    where
        Q: Into<Asked> + Send + 'static,
        A: From<Answer> + Send + 'static,
    {
        let peer = request.remote_addr().map(|a| a.ip());
        let (id, wake) = self.0.connect(peer, delta).ok_or_else(closing)?;
        let task = Task {
            shared: self.0.clone(),
            id,
            wake,
        };
        let (answers, receiver) = mpsc::channel(RESPONSES);
        tokio::spawn(task.run(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn closing() -> Status {
    Status::unavailable("the discovery service is closing; connect again")
}

struct Task {
    shared: Arc<Shared>,
    id: u64,
    wake: Arc<Notify>,
}

/// However the task ends, the stream is no more.
impl Drop for Task {
    fn drop(&mut self) {
        self.shared.depart(self.id);
    }
}

impl Task {
    async fn run<Q, A>(self, mut requests: Streaming<Q>, answers: mpsc::Sender<Result<A, Status>>)
    where
        Q: Into<Asked>,
        A: From<Answer>,
    {
        loop {
            let turn = self.shared.turn(self.id);
            if turn.closed {
                let _ = answers.try_send(Err(closing()));
                return;
            }
            for answer in turn.answers {
                if answers.send(Ok(answer.into())).await.is_err() {
                    return;
                }
            }
            let late = async {
                match turn.deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(message)) => self.shared.ask(self.id, message.into()),
                    _ => return,
                },
                () = self.wake.notified() => {}
                () = late => {}
            }
        }
    }
}
