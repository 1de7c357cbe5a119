//! Streams of orders to gateways and engines.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use seldon_core::{Endpoint, Event, Order, Worker};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use crate::writer::{Connection, Handle};

/// Orders for one worker. However it ends, the rules are told.
pub struct Orders<T> {
    orders: mpsc::UnboundedReceiver<Order>,
    /// The message of an order of this kind of worker.
    message: fn(Order) -> Option<T>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    writer: Handle,
    connection: Connection,
}

impl<T> Orders<T> {
    /// Takes a worker in.
    pub(super) async fn of(
        writer: &Handle,
        stop: &CancellationToken,
        worker: Worker,
        name: &str,
        endpoint: Option<Endpoint>,
        message: fn(Order) -> Option<T>,
    ) -> Result<Self, Status> {
        if name.is_empty() {
            return Err(Status::invalid_argument(
                "the subscription names no subscriber: set POD_NAME to a name of its own for each replica",
            ));
        }
        tracing::info!(?worker, name, "worker connects");
        let connection = Connection {
            worker,
            stream: writer.next_stream(),
            name: Arc::from(name),
            endpoint,
        };
        let (sender, orders) = mpsc::unbounded_channel();
        // Made first: it reports the end of the stream also where the caller leaves before it has begun.
        let stream = Self {
            orders,
            message,
            stopping: Box::pin(stop.clone().cancelled_owned()),
            writer: writer.clone(),
            connection: connection.clone(),
        };
        writer.connect_worker(connection, sender).await?;
        Ok(stream)
    }
}

impl<T> Stream for Orders<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.stopping.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        while let Poll::Ready(order) = self.orders.poll_recv(cx) {
            let Some(order) = order else {
                return Poll::Ready(None);
            };
            if let Some(message) = (self.message)(order) {
                return Poll::Ready(Some(Ok(message)));
            }
        }
        Poll::Pending
    }
}

impl<T> Drop for Orders<T> {
    fn drop(&mut self) {
        let Connection {
            worker,
            stream,
            name,
            ..
        } = self.connection.clone();
        tracing::info!(?worker, %name, "worker left");
        self.writer.happened(Event::WorkerDisconnected {
            worker,
            stream,
            name,
        });
    }
}
