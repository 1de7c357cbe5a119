//! Streams to callers.
use std::{future::Future, pin::Pin, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// What a streaming call answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A subscriber that takes nothing for so long is cut off, so that it connects again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers on their way to one caller.
const UNDERWAY: usize = 64;

/// Where a stream's task puts its answers.
pub(super) struct Outlet<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The caller has left, or takes nothing any more.
#[derive(Debug)]
pub(super) struct Gone;

impl<T> Outlet<T> {
    pub(super) async fn send(&self, answer: T) -> Result<(), Gone> {
        match tokio::time::timeout(PATIENCE, self.0.send(Ok(answer))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Gone),
            Err(_) => {
                tracing::warn!("a subscriber took nothing for 30 s: its stream is closed");
                Err(Gone)
            }
        }
    }

    pub(super) async fn fail(&self, status: Status) {
        let _ = tokio::time::timeout(PATIENCE, self.0.send(Err(status))).await;
    }

    /// Resolves when the caller leaves.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Runs `produce` in a task of its own until it ends, the caller leaves, or the scheduler stops.
pub(super) fn answers<T, F>(
    stop: &CancellationToken,
    produce: impl FnOnce(Outlet<T>) -> F,
) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(UNDERWAY);
    let (last, watched, stop) = (sender.clone(), sender.clone(), stop.clone());
    let produced = produce(Outlet(sender));
    tokio::spawn(async move {
        tokio::select! {
            _ = produced => {}
            () = watched.closed() => {}
            () = stop.cancelled() => {
                let _ = last.try_send(Err(Status::unavailable("the scheduler is stopping")));
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}
