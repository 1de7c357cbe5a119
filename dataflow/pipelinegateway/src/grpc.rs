//! gRPC: inference without taking messages apart, and the small calls around it.
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message as _;
use seldon_grpc::{
    Plain,
    inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
};
use seldon_proto::inference::*;
use seldon_records::Record;
use tonic::{
    Code, Status, Streaming,
    body::Body,
    metadata::MetadataMap,
    server::{Grpc, UnaryService},
    service::Routes as Services,
};
use tower::Service as _;

use crate::{
    failure::Failure,
    gateway::{self, Gateway, Permit},
    headers,
    metrics::{self, Method},
    room::{Held, Measured, Share},
    target::{Target, Unnamed},
};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// All gRPC services of a gateway.
#[derive(Clone)]
pub(crate) struct Rpcs {
    gateway: Arc<Gateway>,
    others: Services,
}

impl Rpcs {
    pub(crate) fn new(gateway: Arc<Gateway>) -> anyhow::Result<Self> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(seldon_proto::DESCRIPTORS)
                .with_service_name("inference.GRPCInferenceService")
        };
        let others = Services::new(GrpcInferenceServiceServer::new(Calls(gateway.clone())))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        Ok(Self { gateway, others })
    }

    pub(crate) async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == INFER {
            return infer(&self.gateway, request).await;
        }
        let answered: Result<_, Infallible> = self.others.clone().call(request).await;
        let Ok(response) = answered;
        response
    }
}

async fn infer(gateway: &Arc<Gateway>, mut request: Request<Incoming>) -> Response<Body> {
    let id = gateway::request_id(request.headers());
    request
        .headers_mut()
        .insert(headers::REQUEST_ID, id.clone());
    // Before the message is read, where the headers name the target: who gets no place sends none in vain.
    let permit = match Target::of_headers(request.headers()) {
        Ok(None) => None,
        Ok(Some(target)) => match gateway
            .admit(&target, Method::Grpc, request.headers())
            .await
        {
            Ok(permit) => Some(permit),
            Err(failure) => return failure.status(&id).into_http(),
        },
        Err(cause) => return Failure::unnamed(&cause).status(&id).into_http(),
    };
    let (limit, share) = (gateway.limits.body, gateway.room.share());
    let (parts, body) = request.into_parts();
    let target = permit.as_ref().map(|permit| permit.route.target.clone());
    let (limits, of) = (gateway.limits.clone(), id.clone());
    let refused = move |cause| Failure::unread(target.as_ref(), &cause, &limits).status(&of);
    let permit = Arc::new(Mutex::new(permit));
    let call = Infer {
        gateway: gateway.clone(),
        permit: permit.clone(),
        share: share.clone(),
    };
    let response = match Measured::new(body, limit.saturating_add(PREFIX), share.clone()) {
        Ok(body) => {
            let request = Request::from_parts(parts, body.map_err(refused));
            let grpc = Grpc::new(Plain);
            let mut grpc = grpc.apply_max_message_size_config(Some(limit), Some(usize::MAX));
            grpc.unary(call, request).await
        }
        Err(cause) => refused(cause).into_http(),
    };
    // Where the message was not read, nobody has taken the place.
    if let Some(mut permit) = lock(&permit).take() {
        let code = Status::from_header_map(response.headers()).map_or(Code::Unknown, |s| s.code());
        permit.exchange.finish(metrics::grpc_code(code));
    }
    response.map(|body| Body::new(Held::new(body, share)))
}

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

struct Infer {
    gateway: Arc<Gateway>,
    permit: Arc<Mutex<Option<Permit>>>,
    share: Arc<Share>,
}

// Nothing is half done while it is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answered<T> = Result<tonic::Response<T>, Status>;

impl UnaryService<Bytes> for Infer {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Answered<Bytes>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let (gateway, permit) = (self.gateway.clone(), lock(&self.permit).take());
        let share = self.share.clone();
        Box::pin(async move {
            let (metadata, _, message) = request.into_parts();
            model_infer(&gateway, permit, metadata.into_headers(), message, &share).await
        })
    }
}

async fn model_infer(
    gateway: &Gateway,
    permit: Option<Permit>,
    fields: HeaderMap,
    message: Bytes,
    share: &Share,
) -> Answered<Bytes> {
    let id = gateway::request_id(&fields);
    let failed = |failure: Failure| failure.status(&id);
    let request = ModelInferRequest::decode(message.clone());
    let request = request.map_err(|cause| {
        failed(Failure::invalid(format!(
            "not a ModelInferRequest: {cause}"
        )))
    })?;
    let mut permit = match permit {
        Some(permit) => permit,
        None => {
            let target = Target::parse(&request.model_name);
            let target = target.map_err(|cause| failed(Failure::unnamed(&cause)))?;
            let admitted = gateway.admit(&target, Method::Grpc, &fields).await;
            admitted.map_err(failed)?
        }
    };
    let answered = admitted(gateway, &permit, &fields, &id, request, message).await;
    let code = answered
        .as_ref()
        .map_or_else(|failure| failure.grpc, |_| Code::Ok);
    permit.exchange.finish(metrics::grpc_code(code));
    let (record, value) = answered.map_err(failed)?;
    share.turn_into(value.len());
    let mut answer = headers::of_answer(&record);
    answer
        .entry(headers::REQUEST_ID)
        .or_insert_with(|| id.clone());
    let metadata = MetadataMap::from_headers(answer);
    Ok(tonic::Response::from_parts(
        metadata,
        value,
        Default::default(),
    ))
}

async fn admitted(
    gateway: &Gateway,
    permit: &Permit,
    fields: &HeaderMap,
    id: &HeaderValue,
    mut request: ModelInferRequest,
    message: Bytes,
) -> Result<(Record, Bytes), Failure> {
    let target = &permit.route.target;
    let (raw, tensors) = (request.raw_input_contents.len(), request.inputs.len());
    if raw != 0 && raw != tensors {
        let what = target.describe();
        return Err(Failure::invalid(format!(
            "{what}: {raw} raw contents for {tensors} tensors"
        )));
    }
    let outputs: Vec<String> = request.outputs.iter().map(|one| one.name.clone()).collect();
    let value = if outputs.is_empty() || matches!(target, Target::Model(_)) {
        message
    } else {
        // They name what the pipeline gives; its first step may know none of them.
        request.outputs.clear();
        request.encode_to_vec().into()
    };
    let record = gateway.infer(permit, fields, id, value).await?;
    let value = record.value.clone().unwrap_or_default();
    if outputs.is_empty()
        && let Some(response) = gateway::protobuf(&record, &value)
        && (response.id == request.id || request.id.is_empty() || !response.id.is_empty())
    {
        return Ok((record, value));
    }
    let mut response = gateway::response(target, &record)?;
    gateway::select(target, &mut response, &outputs)?;
    if response.id.is_empty() {
        response.id = request.id;
    }
    Ok((record, response.encode_to_vec().into()))
}

/// The calls that are no inference.
struct Calls(Arc<Gateway>);

impl Calls {
    /// The pipeline that the headers name, else the message.
    fn route(&self, fields: &HeaderMap, name: &str) -> Result<Arc<crate::routes::Route>, Status> {
        let id = gateway::request_id(fields);
        let target = match Target::of_headers(fields) {
            Ok(Some(target)) => Ok(target),
            Ok(None) if name.is_empty() => Err(Unnamed::Missing),
            Ok(None) => Ok(Target::Pipeline(
                name.strip_suffix(".pipeline").unwrap_or(name).to_owned(),
            )),
            Err(cause) => Err(cause),
        };
        let target = target.map_err(|cause| Failure::unnamed(&cause).status(&id))?;
        let found = self.0.routes.get(&target);
        let pipeline = found.filter(|route| matches!(route.target, Target::Pipeline(_)));
        pipeline.ok_or_else(|| Failure::unknown(&target, fields).status(&id))
    }
}

/// Never any: pipelines do not stream.
type NoStream = Pin<Box<dyn Stream<Item = Result<ModelInferResponse, Status>> + Send>>;

fn refused<T>(call: &str) -> Answered<T> {
    Err(Status::unimplemented(format!(
        "{call} is not served for pipelines"
    )))
}

#[tonic::async_trait]
impl GrpcInferenceService for Calls {
    async fn server_live(
        &self,
        _: tonic::Request<ServerLiveRequest>,
    ) -> Answered<ServerLiveResponse> {
        Ok(ServerLiveResponse { live: true }.into())
    }

    async fn server_ready(
        &self,
        _: tonic::Request<ServerReadyRequest>,
    ) -> Answered<ServerReadyResponse> {
        let stopping = self.0.stopping.load(std::sync::atomic::Ordering::Relaxed);
        Ok(ServerReadyResponse { ready: !stopping }.into())
    }

    async fn server_metadata(
        &self,
        _: tonic::Request<ServerMetadataRequest>,
    ) -> Answered<ServerMetadataResponse> {
        let metadata = ServerMetadataResponse {
            name: "seldon-pipelinegateway".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: vec!["binary_tensor_data".to_owned()],
        };
        Ok(metadata.into())
    }

    async fn model_ready(
        &self,
        request: tonic::Request<ModelReadyRequest>,
    ) -> Answered<ModelReadyResponse> {
        let (metadata, _, message) = request.into_parts();
        let fields = metadata.into_headers();
        let route = self.route(&fields, &message.name)?;
        match self.0.models.ready(&route).await {
            Ok(()) => Ok(ModelReadyResponse { ready: true }.into()),
            Err(failure) if failure.status == http::StatusCode::FAILED_DEPENDENCY => {
                Ok(ModelReadyResponse { ready: false }.into())
            }
            Err(failure) => Err(failure.status(&gateway::request_id(&fields))),
        }
    }

    async fn model_metadata(
        &self,
        request: tonic::Request<ModelMetadataRequest>,
    ) -> Answered<ModelMetadataResponse> {
        let (metadata, _, message) = request.into_parts();
        let route = self.route(&metadata.into_headers(), &message.name)?;
        Ok(self.0.models.metadata(&route).await.into())
    }

    /// Only reached by other ways than [`Rpcs::handle`].
    async fn model_infer(
        &self,
        request: tonic::Request<ModelInferRequest>,
    ) -> Answered<ModelInferResponse> {
        let (metadata, _, message) = request.into_parts();
        let value = message.encode_to_vec().into();
        let share = self.0.room.share();
        let answer = model_infer(&self.0, None, metadata.into_headers(), value, &share).await?;
        let (metadata, value, extensions) = answer.into_parts();
        let response = ModelInferResponse::decode(value)
            .map_err(|cause| Status::internal(format!("the answer cannot be read: {cause}")))?;
        Ok(tonic::Response::from_parts(metadata, response, extensions))
    }

    type ModelStreamInferStream = NoStream;

    async fn model_stream_infer(
        &self,
        request: tonic::Request<Streaming<ModelInferRequest>>,
    ) -> Answered<NoStream> {
        let id = gateway::request_id(request.metadata().as_ref());
        Err(Failure::stream("ModelStreamInfer").status(&id))
    }

    async fn repository_index(
        &self,
        _: tonic::Request<RepositoryIndexRequest>,
    ) -> Answered<RepositoryIndexResponse> {
        refused("RepositoryIndex")
    }

    async fn repository_model_load(
        &self,
        _: tonic::Request<RepositoryModelLoadRequest>,
    ) -> Answered<RepositoryModelLoadResponse> {
        refused("RepositoryModelLoad")
    }

    async fn repository_model_unload(
        &self,
        _: tonic::Request<RepositoryModelUnloadRequest>,
    ) -> Answered<RepositoryModelUnloadResponse> {
        refused("RepositoryModelUnload")
    }
}
