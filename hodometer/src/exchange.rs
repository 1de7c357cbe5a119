//! One HTTP request on a connection of its own.
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use seldon_tls::ClientTls;
use tower::Service as _;

/// Far more than any answer needs that is read here.
const LARGEST: usize = 16 << 20;

/// Sends a request, whose target is a path, to the host in `uri`, and reads the whole answer. Redirections are not
/// followed: nothing goes where nobody sent it. The caller sets a time limit.
pub(crate) async fn exchange(
    uri: &Uri,
    tls: Option<ClientTls>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let stream = seldon_tls::connector(tls).call(uri.clone());
    let stream = stream.await.map_err(text)?;
    let (mut sender, connection) = http1::handshake(stream).await.map_err(text)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        Ok((status, body.map_err(text)?.to_bytes()))
    };
    tokio::pin!(answer, connection);
    // The connection ends with this, whether it was used up or not.
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(text(error)),
        },
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
