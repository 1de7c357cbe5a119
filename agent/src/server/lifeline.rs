//! A connection that carries nothing and ends when the inference server does: one that restarts in a blink is always
//! alive when it is asked, and yet has lost its models.
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{InferenceServer, ServerError};

/// How long opening it may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Ends when the server does. Dropped, it is closed.
pub struct Lifeline {
    connection: JoinHandle<()>,
    /// Without it the connection would be closed from this side.
    _requests: SendRequest<Empty<Bytes>>,
}

impl Lifeline {
    /// Connects to a server.
    pub async fn open(server: &InferenceServer) -> Result<Self, ServerError> {
        let open = async {
            let stream = TcpStream::connect(&*server.address)
                .await
                .map_err(|_| ServerError::Unreachable)?;
            let (requests, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|_| ServerError::Unreachable)?;
            let connection = tokio::spawn(async move {
                // How it ended does not matter.
                let _ = connection.await;
            });
            Ok(Self {
                connection,
                _requests: requests,
            })
        };
        tokio::time::timeout(LIMIT, open)
            .await
            .unwrap_or(Err(ServerError::TimedOut))
    }

    /// Resolves when the server has ended, or has closed the connection.
    pub async fn ended(&mut self) {
        let _ = (&mut self.connection).await;
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
