//! The streams to agents.
use std::collections::HashMap;

use seldon_core::{AgentKey, Event, StreamId};
use seldon_proto::agent::ModelOperationMessage;
use tokio::sync::mpsc;

type Messages = mpsc::UnboundedSender<ModelOperationMessage>;

/// The newest stream of each replica. What waits in a stream is bounded by the models of its replica.
#[derive(Default)]
pub(super) struct Agents {
    streams: HashMap<StreamId, Messages>,
    newest: HashMap<AgentKey, StreamId>,
}

impl Agents {
    pub(super) fn connect(&mut self, stream: StreamId, messages: Messages) {
        self.streams.insert(stream, messages);
    }

    /// The rules have taken the stream in: a second stream of a replica ends the first.
    pub(super) fn take_over(&mut self, agent: AgentKey, stream: StreamId) {
        if let Some(former) = self.newest.insert(agent, stream) {
            self.streams.remove(&former);
        }
    }

    pub(super) fn disconnect(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        self.newest.retain(|_, newest| *newest != stream);
    }

    /// `Some` where the stream is gone.
    pub(super) fn send(
        &self,
        agent: AgentKey,
        stream: StreamId,
        message: ModelOperationMessage,
    ) -> Option<Event> {
        let refused = match self.streams.get(&stream) {
            Some(messages) => messages.send(message).err()?.0,
            None => message,
        };
        let version = refused.model_version.unwrap_or_default();
        let meta = version.model.and_then(|m| m.meta).unwrap_or_default();
        Some(Event::SendFailed {
            agent,
            stream,
            model: meta.name,
            version: version.version,
        })
    }
}
