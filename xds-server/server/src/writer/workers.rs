//! The streams to gateways and engines.
use std::{collections::HashMap, sync::Arc};

use seldon_core::{Event, Order, StreamId, Worker};
use tokio::sync::mpsc;

type Orders = mpsc::UnboundedSender<Order>;

/// The newest stream of each worker. What waits in a stream is bounded by the models and pipelines there are.
#[derive(Default)]
pub(super) struct Workers {
    streams: HashMap<StreamId, Orders>,
    newest: HashMap<(Worker, Arc<str>), StreamId>,
}

impl Workers {
    pub(super) fn connect(&mut self, stream: StreamId, orders: Orders) {
        self.streams.insert(stream, orders);
    }

    /// The rules have taken the stream in: a second stream of a worker ends the first.
    pub(super) fn take_over(&mut self, worker: Worker, name: Arc<str>, stream: StreamId) {
        if let Some(former) = self.newest.insert((worker, name), stream) {
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
        worker: Worker,
        stream: StreamId,
        name: Arc<str>,
        order: Order,
    ) -> Option<Event> {
        let sent = self.streams.get(&stream).map(|orders| orders.send(order));
        match sent {
            Some(Ok(())) => None,
            _ => Some(Event::WorkerDisconnected {
                worker,
                stream,
                name,
            }),
        }
    }
}
