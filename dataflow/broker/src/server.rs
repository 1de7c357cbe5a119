//! Starting and stopping: the listener, the clock, the health port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connection::{self, Refusal};
use crate::node::Node;

/// How often topics are looked through for what may go.
const RETAIN: Duration = Duration::from_secs(2);

/// A broker that can be started.
#[derive(Debug)]
pub struct Broker;

/// A broker that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    health: Option<SocketAddr>,
    stopped: CancellationToken,
    tasks: JoinSet<()>,
}

impl Broker {
    /// Starts a broker; with a folder, with all that the folder holds. It serves clients when this returns.
    pub async fn start(config: Config) -> Result<Running> {
        let listen = config.listen;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        let health = match config.health {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on {address}"))?,
            ),
            None => None,
        };
        let address = listener.local_addr()?;
        let folder = config.data_dir.clone();
        let open = tokio::task::spawn_blocking(move || Node::open(config, address.port()));
        let node = open.await?.with_context(|| match folder {
            Some(folder) => format!("cannot open the data in {}", folder.display()),
            None => "cannot start".to_owned(),
        })?;
        let node = Arc::new(node);
        let stopped = CancellationToken::new();
        let mut running = Running {
            address,
            health: None,
            stopped: stopped.clone(),
            tasks: JoinSet::new(),
        };
        if let Some(health) = health {
            running.health = Some(health.local_addr()?);
            running
                .tasks
                .spawn(until(stopped.clone(), answer_health(health)));
        }
        running
            .tasks
            .spawn(until(stopped.clone(), accept(node.clone(), listener)));
        running
            .tasks
            .spawn(until(stopped.clone(), keep_time(node.clone())));
        running.tasks.spawn(until(stopped, retain(node)));
        Ok(running)
    }
}

impl Running {
    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The address that it listens on, as clients take it.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// The port of `/ready`, if it has one.
    pub fn health_port(&self) -> Option<u16> {
        self.health.map(|address| address.port())
    }

    /// Closes all connections and the listener.
    pub async fn stop(mut self) {
        self.stopped.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn until(stopped: CancellationToken, work: impl Future<Output = ()>) {
    let _ = stopped.run_until_cancelled(work).await;
}

async fn accept(node: Arc<Node>, listener: TcpListener) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let node = node.clone();
                    clients.spawn(async move {
                        match connection::serve(node, stream).await {
                            Ok(()) | Err(Refusal::Io(_)) => {}
                            Err(refusal) => tracing::warn!(%peer, %refusal, "a client is cut off"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a client cannot be accepted");
                    // Out of files, most likely: it gets better when a client goes.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn keep_time(node: Arc<Node>) {
    loop {
        let next = node.tick(Instant::now());
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = node.deadlines.notified() => {}
        }
    }
}

async fn retain(node: Arc<Node>) {
    loop {
        tokio::time::sleep(RETAIN).await;
        let node = node.clone();
        if tokio::task::spawn_blocking(move || node.retain())
            .await
            .is_err()
        {
            tracing::error!("looking for old records has failed");
        }
    }
}

async fn answer_health(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            continue;
        };
        let answered = async move {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await?;
            let known = [&b"GET /ready"[..], b"GET /live"]
                .iter()
                .any(|start| request[..length].starts_with(start));
            let status = if known { "200 OK" } else { "404 Not Found" };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await
        };
        let _: Result<io::Result<()>, _> =
            tokio::time::timeout(Duration::from_secs(2), answered).await;
    }
}
