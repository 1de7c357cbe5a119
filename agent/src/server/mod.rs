//! The inference server's repository API (gRPC): what may be in memory.
mod lifeline;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use seldon_proto::inference::{
    RepositoryIndexRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
    ServerLiveRequest,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

pub use watch::watch;

/// The largest message, as documented: an index of many models is long.
const MAX_MESSAGE: usize = 1000 << 20;
/// The longest text of the inference server that is passed on.
const MAX_TEXT: usize = 1000;

/// How often a server that unloads later is asked whether it has.
const UNLOADING: Duration = Duration::from_millis(50);

/// How long and how often calls are tried.
#[derive(Debug, Clone)]
pub struct Limits {
    pub load: Duration,
    pub load_retries: usize,
    pub unload: Duration,
    pub unload_retries: usize,
    pub control: Duration,
    /// The server answers an unload before the model is out of memory, as Triton does: it is waited for.
    pub unloads_later: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            load: Duration::from_secs(60 * 60),
            load_retries: 5,
            unload: Duration::from_secs(2 * 60),
            unload_retries: 5,
            control: Duration::from_secs(60),
            unloads_later: false,
        }
    }
}

/// What the inference server did not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    #[error("the inference server cannot be reached")]
    Unreachable,
    #[error("the inference server did not answer in time")]
    TimedOut,
    #[error("the inference server failed: {0}")]
    Refused(String),
}

impl ServerError {
    fn of(status: &Status) -> Self {
        match status.code() {
            Code::Unavailable => Self::Unreachable,
            Code::DeadlineExceeded | Code::Cancelled => Self::TimedOut,
            _ => {
                let text: String = status.message().chars().take(MAX_TEXT).collect();
                let text = text.trim();
                Self::Refused(if text.is_empty() {
                    status.code().to_string()
                } else {
                    text.to_owned()
                })
            }
        }
    }
}

/// One model in the server's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexed {
    pub name: String,
    pub state: String,
}

impl Indexed {
    /// In memory, or on the way there.
    pub fn is_resident(&self) -> bool {
        matches!(self.state.as_str(), "READY" | "LOADING")
    }
}

/// The client; cheap to clone.
#[derive(Clone)]
pub struct InferenceServer {
    address: Arc<str>,
    client: GrpcInferenceServiceClient<Channel>,
    limits: Limits,
    loading: Arc<AtomicUsize>,
}

/// Counts a load from its beginning to its end, whatever that is.
struct Loading<'a>(&'a AtomicUsize);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl InferenceServer {
    /// Makes a client; it connects at the first call and again after a loss.
    pub fn new(host: &str, port: u16, limits: Limits) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{host}:{port}"))?
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            // No keep-alive: gRPC servers take pings during a long load for an attack. The watch sees a dead server.
            .connect_lazy();
        let client = GrpcInferenceServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self {
            address: format!("{host}:{port}").into(),
            client,
            limits,
            loading: Arc::default(),
        })
    }

    /// Says whether a load is under way, which may keep a server without workers busy.
    pub fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Relaxed) > 0
    }

    /// Asks whether the server lives; `within` bounds the answer.
    pub async fn live(&self, within: Duration) -> Result<(), ServerError> {
        let answer = self
            .client
            .clone()
            .server_live(timed(ServerLiveRequest {}, within))
            .await;
        match answer {
            Ok(answer) if answer.get_ref().live => Ok(()),
            Ok(_) => Err(ServerError::Refused(
                "it says that it is not live".to_owned(),
            )),
            Err(status) => Err(ServerError::of(&status)),
        }
    }

    /// Every model the server knows. MLServer may give empty names, which are left out.
    pub async fn index(&self) -> Result<Vec<Indexed>, ServerError> {
        let request = timed(RepositoryIndexRequest::default(), self.limits.control);
        let answer = self
            .client
            .clone()
            .repository_index(request)
            .await
            .map_err(|status| ServerError::of(&status))?;
        let models = answer
            .into_inner()
            .models
            .into_iter()
            .filter(|model| !model.name.is_empty());
        Ok(models
            .map(|model| Indexed {
                name: model.name,
                // MLServer writes `State.READY` under Python 3.11 and newer.
                state: model.state.trim_start_matches("State.").to_owned(),
            })
            .collect())
    }

    /// Loads a model from the server's repository.
    pub async fn load(&self, internal: &str) -> Result<(), ServerError> {
        self.loading.fetch_add(1, Ordering::Relaxed);
        let _loading = Loading(&self.loading);
        let attempt = || async {
            let request = RepositoryModelLoadRequest {
                model_name: internal.to_owned(),
                ..Default::default()
            };
            self.client
                .clone()
                .repository_model_load(timed(request, self.limits.load))
                .await
                .map(drop)
        };
        let attempts = attempt
            .retry(back_off(self.limits.load_retries))
            .when(may_pass);
        // Those who wait to call are small.
        Box::pin(attempts.into_future())
            .await
            .map_err(|status| ServerError::of(&status))
    }

    /// Unloads a model; one that the server does not know is unloaded already.
    pub async fn unload(&self, internal: &str) -> Result<(), ServerError> {
        let attempt = || async {
            let request = RepositoryModelUnloadRequest {
                model_name: internal.to_owned(),
                ..Default::default()
            };
            self.client
                .clone()
                .repository_model_unload(timed(request, self.limits.unload))
                .await
                .map(drop)
        };
        let attempts = attempt
            .retry(back_off(self.limits.unload_retries))
            .when(may_pass);
        let answer = Box::pin(attempts.into_future()).await;
        match answer {
            Err(status) if status.code() != Code::NotFound => Err(ServerError::of(&status)),
            _ if self.limits.unloads_later => self.until_unloaded(internal).await,
            _ => Ok(()),
        }
    }

    async fn until_unloaded(&self, internal: &str) -> Result<(), ServerError> {
        let gone = async {
            loop {
                let index = Box::pin(self.index()).await?;
                let model = index.iter().find(|model| model.name == internal);
                if !model.is_some_and(|model| matches!(model.state.as_str(), "READY" | "UNLOADING"))
                {
                    return Ok(());
                }
                tokio::time::sleep(UNLOADING).await;
            }
        };
        tokio::time::timeout(self.limits.unload, gone)
            .await
            .unwrap_or(Err(ServerError::TimedOut))
    }
}

fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn back_off(retries: usize) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(10))
        .with_max_times(retries)
}

/// Failures that another attempt may not meet.
fn may_pass(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::NotFound
            | Code::InvalidArgument
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::DeadlineExceeded
    )
}
