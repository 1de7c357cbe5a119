//! A network that can be cut: a proxy that stops carrying bytes, without a word to either side.
use std::net::TcpListener as StdListener;
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Carries connections from a free port to another, until it is cut.
pub struct Wire {
    pub port: u16,
    target: Arc<OnceLock<u16>>,
    /// Even: whole. Odd: cut. Connections end when it grows to even again.
    era: watch::Sender<u64>,
}

impl Wire {
    /// Takes a free port; where it leads is told later.
    pub fn new() -> Result<Self> {
        let listener = StdListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let listener = TcpListener::from_std(listener)?;
        let (era, eras) = watch::channel(0);
        let target = Arc::new(OnceLock::new());
        let wire = Self {
            port,
            target: target.clone(),
            era,
        };
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let Some(port) = target.get() else { continue };
                tokio::spawn(connection(from, *port, eras.clone()));
            }
        });
        Ok(wire)
    }

    /// Returns what tells where it leads.
    pub fn target(&self) -> Arc<OnceLock<u16>> {
        self.target.clone()
    }

    /// Carries nothing any more; both sides hear nothing of it.
    pub fn cut(&self) {
        self.era
            .send_modify(|era| *era += u64::from(era.is_multiple_of(2)));
    }

    /// Carries new connections again; those of before are closed.
    pub fn mend(&self) {
        self.era.send_modify(|era| *era += *era % 2);
    }
}

async fn connection(mut from: TcpStream, port: u16, mut era: watch::Receiver<u64>) {
    let born = *era.borrow();
    let mut watched = era.clone();
    let carry = async {
        // One that comes while the wire is cut waits for the mending, which closes it.
        if watched.wait_for(|now| now.is_multiple_of(2)).await.is_err() {
            return;
        }
        let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)).await else {
            return;
        };
        let (from_read, from_write) = from.split();
        let (to_read, to_write) = to.split();
        tokio::select! {
            () = pipe(from_read, to_write, watched.clone()) => {}
            () = pipe(to_read, from_write, watched.clone()) => {}
        }
    };
    tokio::select! {
        () = carry => {}
        _ = era.wait_for(|now| now.is_multiple_of(2) && *now > born) => {}
    }
}

/// Ends with the connection; holds still while the wire is cut.
async fn pipe(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut era: watch::Receiver<u64>,
) {
    let mut chunk = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        if era.wait_for(|now| now.is_multiple_of(2)).await.is_err()
            || to.write_all(&chunk[..count]).await.is_err()
        {
            return;
        }
    }
}
