//! Models behind an Envoy.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use seldon_grpc::inference::grpc_inference_service_server::GrpcInferenceService;
use seldon_proto::inference::{model_infer_response::InferOutputTensor, *};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

/// Doubles; the name of the model says how it behaves.
#[derive(Clone, Default)]
pub struct Models {
    pub headers: Arc<Mutex<HashMap<String, String>>>,
    refused: Arc<AtomicUsize>,
    /// How often the model "unloaded" is not there yet.
    pub absent: Arc<AtomicUsize>,
    pub held: Arc<Notify>,
}

impl Models {
    fn is_absent(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        let (now, then) = (Ordering::Relaxed, Ordering::Relaxed);
        self.absent.fetch_update(now, then, less).is_ok()
    }
}

macro_rules! models {
($($name:ident($request:ty) -> $answer:ty;)*) => {
#[tonic::async_trait]
impl GrpcInferenceService for Models {
            type ModelStreamInferStream = tokio_stream::Empty<Result<ModelInferResponse, Status>>;

            async fn model_stream_infer(
                &self,
                _: Request<tonic::Streaming<ModelInferRequest>>,
            ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
                Err(Status::unimplemented(""))
            }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        let model = headers["seldon-model"].to_str().unwrap().to_owned();
        for (name, value) in &headers {
            let value = value.to_str().unwrap_or_default().to_owned();
            self.headers.lock().unwrap().insert(name.to_string(), value);
        }
        let request = request.into_inner();
        let number = request.inputs[0].contents.as_ref().unwrap().int_contents[0];
        match model.as_str() {
            "invalid" => return Err(Status::invalid_argument("shape is wrong")),
            "unloaded" if self.is_absent() => {
                // As Envoy and agents say it.
                let mut status = Status::not_found("no model named unloaded");
                let mark = "1".parse().unwrap();
                status.metadata_mut().insert("x-seldon-absent", mark);
                return Err(status);
            }
            "missing" => return Err(Status::not_found("no such model")),
            "slow" => std::future::pending().await,
            "held" => self.held.notified().await,
            "flaky" if self.refused.fetch_add(1, Ordering::Relaxed) < 2 => {
                return Err(Status::unavailable("restarting"));
            }
            // The first of a key takes longest.
            "ordered" => tokio::time::sleep(Duration::from_millis(40 - 2 * number as u64)).await,
            _ => {}
        }
        let mut response = Response::new(ModelInferResponse {
            model_name: model.clone(),
            outputs: vec![InferOutputTensor {
                name: "y".into(),
                datatype: "INT32".into(),
                shape: vec![1],
                contents: Some(InferTensorContents {
                    int_contents: vec![number * 2],
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        });
        let route = format!(":{model}_1:").parse().unwrap();
        response.metadata_mut().insert("x-seldon-route", route);
        Ok(response)
    }
$(async fn $name(&self, _: Request<$request>) -> Result<Response<$answer>, Status> {
Err(Status::unimplemented(""))
})*
}
};
}

models! {
    server_live(ServerLiveRequest) -> ServerLiveResponse;
    server_ready(ServerReadyRequest) -> ServerReadyResponse;
    model_ready(ModelReadyRequest) -> ModelReadyResponse;
    server_metadata(ServerMetadataRequest) -> ServerMetadataResponse;
    model_metadata(ModelMetadataRequest) -> ModelMetadataResponse;
    repository_index(RepositoryIndexRequest) -> RepositoryIndexResponse;
    repository_model_load(RepositoryModelLoadRequest) -> RepositoryModelLoadResponse;
    repository_model_unload(RepositoryModelUnloadRequest) -> RepositoryModelUnloadResponse;
}
