//! Requests over gRPC.
use anyhow::{Context as _, Result};
use http::HeaderMap;
use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use seldon_inference::{from_protojson, request_from_json, to_protojson, unpack_response};
use seldon_proto::inference::ModelInferRequest;
use tonic::{Request, Status, metadata::MetadataMap, transport::Channel};

use super::{
    Answer, Refusal,
    headers::{self, Headers, ROUTE},
    routes,
};
use crate::{
    connect::{self, Inference},
    errors::RpcError,
    output,
};

const METHOD: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Answers may be as large as the parts between allow.
const MAX_MESSAGE: usize = 1 << 30;

/// Sends one request as often as needed, on one connection.
pub(crate) struct Grpc {
    client: GrpcInferenceServiceClient<Channel>,
    host: String,
    request: ModelInferRequest,
    headers: Headers,
    show_headers: bool,
}

/// Reads a request in protobuf's JSON form; the protocol's own JSON is understood as well.
pub(crate) fn request(name: &str, data: &str) -> Result<ModelInferRequest> {
    let mut request: ModelInferRequest = match from_protojson(data) {
        Ok(request) => request,
        // Where neither form fits, the error of the documented one is the one to tell.
        Err(error) => match request_from_json(data.as_bytes()) {
            Ok(request) if !request.inputs.is_empty() => request,
            _ => return Err(error).context("the data is not a request"),
        },
    };
    request.model_name = name.to_owned();
    Ok(request)
}

impl Grpc {
    /// Connects.
    pub(crate) async fn open(
        target: Inference,
        authority: &str,
        request: ModelInferRequest,
        headers: Headers,
        show_headers: bool,
    ) -> Result<Self> {
        let channel = connect::channel(&target.host, authority, target.tls.clone())
            .await
            .map_err(|error| target.unreachable(error))?;
        let client = GrpcInferenceServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let host = if authority.is_empty() {
            target.host
        } else {
            authority.to_owned()
        };
        Ok(Self {
            client,
            host,
            request,
            headers,
            show_headers,
        })
    }

    /// Sends the request once.
    pub(crate) async fn infer(&mut self, sent: &[String]) -> Result<Answer> {
        let headers = self.headers.with_routes(sent);
        if self.show_headers {
            output::line(format_args!("> {METHOD} HTTP/2"))?;
            output::line(format_args!("> Host: {}", self.host))?;
            headers::print(">", &headers, str::to_owned)?;
            output::line("")?;
        }
        let mut request = Request::new(self.request.clone());
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        match self.client.model_infer(request).await {
            Ok(response) => {
                let (metadata, mut message, _) = response.into_parts();
                let headers = metadata.into_headers();
                self.show(&headers)?;
                unpack_response(&mut message)?;
                Ok(Answer {
                    routes: routes_of(&headers),
                    outcome: Ok(to_protojson(&message)?),
                })
            }
            Err(status) => {
                let headers = status.metadata().clone().into_headers();
                self.show(&headers)?;
                Ok(Answer {
                    routes: routes_of(&headers),
                    outcome: Err(refusal(status)),
                })
            }
        }
    }

    fn show(&self, headers: &HeaderMap) -> Result<()> {
        if !self.show_headers {
            return Ok(());
        }
        // Trailers are told apart from headers by their names: a client gets both as one.
        let (mut first, mut last) = (HeaderMap::new(), HeaderMap::new());
        for (name, value) in headers {
            let map = if name.as_str().starts_with("grpc-") {
                &mut last
            } else {
                &mut first
            };
            map.append(name.clone(), value.clone());
        }
        headers::print("<", &first, str::to_owned)?;
        headers::print("<<", &last, str::to_owned)?;
        output::line("")
    }
}

fn routes_of(headers: &HeaderMap) -> Vec<String> {
    routes(
        headers
            .get_all(ROUTE)
            .iter()
            .filter_map(|value| value.to_str().ok()),
    )
}

fn refusal(status: Status) -> Refusal {
    let code = u16::try_from(i32::from(status.code())).unwrap_or_default();
    Refusal {
        code,
        text: RpcError(status).to_string(),
    }
}
