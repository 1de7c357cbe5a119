//! The streams to agents, gateways and engines.
use std::{collections::HashMap, hash::Hash};

use seldon_core::StreamId;
use tokio::sync::mpsc;

/// The newest stream of each peer. What waits in a stream is bounded by the models and pipelines there are.
pub(super) struct Streams<K, M> {
    streams: HashMap<StreamId, mpsc::UnboundedSender<M>>,
    newest: HashMap<K, StreamId>,
}

impl<K, M> Default for Streams<K, M> {
    fn default() -> Self {
        Self {
            streams: HashMap::new(),
            newest: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash, M> Streams<K, M> {
    pub(super) fn connect(&mut self, stream: StreamId, messages: mpsc::UnboundedSender<M>) {
        self.streams.insert(stream, messages);
    }

    /// The rules have taken the stream in: a second stream of a peer ends the first.
    pub(super) fn take_over(&mut self, peer: K, stream: StreamId) {
        if let Some(former) = self.newest.insert(peer, stream) {
            self.streams.remove(&former);
        }
    }

    pub(super) fn disconnect(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        self.newest.retain(|_, newest| *newest != stream);
    }

    /// Where messages of a stream go, unless it is gone.
    pub(super) fn sender(&self, stream: StreamId) -> Option<mpsc::UnboundedSender<M>> {
        let sender = self.streams.get(&stream);
        sender.filter(|sender| !sender.is_closed()).cloned()
    }

    /// Gives the message back where the stream is gone.
    pub(super) fn send(&self, stream: StreamId, message: M) -> Result<(), M> {
        match self.streams.get(&stream) {
            Some(messages) => messages.send(message).map_err(|refused| refused.0),
            None => Err(message),
        }
    }
}
