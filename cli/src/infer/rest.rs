//! Requests over HTTP/1.1, each on a connection of its own.
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use serde::Deserialize;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::{
    Answer, Refusal,
    headers::{self, Headers, ROUTE, canonical},
    routes,
};
use crate::{connect::Inference, output};

/// The documented limit, which holds with TLS only.
const TLS_TIMEOUT: Duration = Duration::from_secs(15);

/// Sends one request as often as needed.
pub(crate) struct Rest {
    target: Inference,
    authority: String,
    path: String,
    headers: Headers,
    show_headers: bool,
    body: Bytes,
}

impl Rest {
    pub(crate) fn new(
        target: Inference,
        authority: String,
        path: String,
        headers: Headers,
        show_headers: bool,
    ) -> Self {
        Self {
            target,
            authority,
            path,
            headers,
            show_headers,
            body: Bytes::new(),
        }
    }

    pub(crate) fn with_body(self, body: String) -> Self {
        Self {
            body: body.into(),
            ..self
        }
    }

    /// Sends the request once.
    pub(crate) async fn infer(&self, routes: &[String]) -> Result<Answer> {
        let answer = self.send(Method::POST, routes).await?;
        Ok(Answer {
            outcome: answer.outcome.map(|text| output::indent(&text)),
            ..answer
        })
    }

    /// Asks for the metadata of the model.
    pub(crate) async fn metadata(&self) -> Result<Answer> {
        self.send(Method::GET, &[]).await
    }

    async fn send(&self, method: Method, routes: &[String]) -> Result<Answer> {
        let exchange = self.exchange(method, routes);
        match self.target.tls {
            None => exchange.await,
            Some(_) => timeout(TLS_TIMEOUT, exchange)
                .await
                .with_context(|| format!("no answer within {} s", TLS_TIMEOUT.as_secs()))?,
        }
    }

    async fn exchange(&self, method: Method, sent: &[String]) -> Result<Answer> {
        let request = self.request(method, sent)?;
        let address = format!("{}://{}", self.target.scheme(), self.target.host);
        let stream = seldon_tls::connector(self.target.tls.clone())
            .oneshot(address.parse()?)
            .await
            .map_err(|error| self.target.unreachable(error))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .title_case_headers(true)
            .handshake(stream)
            .await
            .map_err(|error| self.target.unreachable(error))?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await;
        let response =
            response.with_context(|| format!("{} closed the connection", self.target.host))?;
        if self.show_headers {
            headers::print("<", response.headers(), canonical)?;
            output::line("")?;
        }
        let answer = self.read(response).await;
        // The connection was for one request, whatever is left of it.
        driver.abort();
        answer
    }

    fn request(&self, method: Method, sent: &[String]) -> Result<Request<Full<Bytes>>> {
        let mut headers = self.headers.with_routes(sent);
        if !headers.contains_key(header::CONTENT_TYPE) {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
        }
        let host = if self.authority.is_empty() {
            &self.target.host
        } else {
            &self.authority
        };
        if self.show_headers {
            output::line(format_args!("> {method} {} HTTP/1.1", self.path))?;
            output::line(format_args!("> Host: {host}"))?;
            headers::print(">", &headers, canonical)?;
            output::line("")?;
        }
        headers.insert(header::HOST, HeaderValue::from_str(host)?);
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let path: http::uri::PathAndQuery = self
            .path
            .parse()
            .with_context(|| format!("\"{}\" cannot be part of a URL", self.path))?;
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = method;
        *request.uri_mut() = http::Uri::from(path);
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Answer> {
        let status = response.status();
        let values = response
            .headers()
            .get_all(ROUTE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let routes = routes(values);
        let body = response.into_body().collect().await;
        let body = body
            .with_context(|| format!("{} broke off its answer", self.target.host))?
            .to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        let outcome = if status.is_success() {
            Ok(text)
        } else {
            Err(Refusal {
                code: status.as_u16(),
                text: refusal(status, &text),
            })
        };
        Ok(Answer { routes, outcome })
    }
}

/// The text of an error: the server's own words for a bad request, else status and body.
fn refusal(status: StatusCode, body: &str) -> String {
    #[derive(Deserialize)]
    struct Wrong {
        error: String,
    }
    match serde_json::from_str::<Wrong>(body) {
        Ok(wrong) if status == StatusCode::BAD_REQUEST => wrong.error,
        _ => format!("V2 server error: {} {}", status.as_u16(), body.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_as_documented() {
        let table = [
            (400, r#"{"error":"bad shape"}"#, "bad shape"),
            (400, "oops", "V2 server error: 400 oops"),
            (
                404,
                r#"{"error":"no model"}"#,
                r#"V2 server error: 404 {"error":"no model"}"#,
            ),
            (500, "Traceback\n", "V2 server error: 500 Traceback"),
        ];
        for (status, body, text) in table {
            let status = StatusCode::from_u16(status).expect("valid");
            assert_eq!(refusal(status, body), text);
        }
    }
}
