//! One GET of an Envoy's status listener.
use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

const PATIENCE: Duration = Duration::from_secs(1);
/// Far more than a thousand experiments need.
const LARGEST: usize = 16 << 20;
/// The counters, without the histograms.
const PATH: &str = "/stats/prometheus?filter=seldon_experiment_.*_total";

/// Returns the counters of experiments as text.
pub(super) async fn counters(envoy: SocketAddr) -> Result<String, String> {
    match timeout(PATIENCE, get(envoy)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn get(envoy: SocketAddr) -> Result<String, String> {
    let stream = TcpStream::connect(envoy).await.map_err(text)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let request = Request::get(PATH)
        .header(HOST, envoy.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(text)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(text)?;
        if response.status() != StatusCode::OK {
            return Err(format!("answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(text)?.to_bytes();
        String::from_utf8(body.into()).map_err(text)
    };
    tokio::pin!(answer, connection);
    // The connection ends with this, whether it was used up or not.
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
