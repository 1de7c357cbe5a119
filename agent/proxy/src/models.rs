//! What the proxy asks of the agent, and what it is configured with.
use std::{future::Future, time::Duration};

/// The agent's registry of models, as the proxy sees it.
pub trait Models: Send + Sync + 'static {
    /// Makes sure that a model can answer, loading it if it was evicted; concurrent callers share one load.
    ///
    /// `internal` is the name on the inference server, `<name>_<version>`. Called once a request: it should cost next
    /// to nothing for a model in memory. The model must not be evicted while a lease lives.
    fn acquire(&self, internal: &str) -> impl Future<Output = Result<Lease, NotServed>> + Send;
}

/// Marks a request as in flight until it is dropped, which happens when the response has been passed on.
pub struct Lease(Option<Box<dyn Send + Sync>>);

impl Lease {
    /// Holds `guard` as long as the request lasts.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Some(Box::new(guard)))
    }

    /// A lease that marks nothing.
    pub fn unguarded() -> Self {
        Self(None)
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.0.is_some()).finish()
    }
}

/// Why a model cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// No such model on this replica: 404 or `NOT_FOUND`, marked so that Envoy tries another replica: its routes are
    /// older than what is known here.
    #[error("no such model on this server replica")]
    Unknown,
    /// The model will answer later: 503 or `UNAVAILABLE`.
    #[error("the model is not loaded yet")]
    Loading {
        /// When a client may try again.
        retry_after: Duration,
    },
    /// No memory can be freed, as every model is in use: 429 or `RESOURCE_EXHAUSTED`.
    #[error("every loaded model is in use")]
    Overloaded {
        /// When a client may try again.
        retry_after: Duration,
    },
    /// As many requests as may be held wait for the model to be loaded: 429 or `RESOURCE_EXHAUSTED`.
    #[error("as many requests as it can take wait for it to be loaded")]
    Crowded {
        /// When a client may try again.
        retry_after: Duration,
    },
    /// The inference server is away: the request is reset, so that Envoy tries another replica.
    #[error("the inference server is away")]
    Away,
    /// Loading failed: 503 or `UNAVAILABLE`, with the reason, marked so that Envoy tries another replica.
    #[error("loading failed: {0}")]
    Failed(String),
}

/// Where the inference server listens, each as `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// REST, HTTP/1.1.
    pub http: String,
    /// gRPC, HTTP/2 with prior knowledge.
    pub grpc: String,
}

/// The server replica whose models answer: labels of every metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name of the Server.
    pub server: String,
    /// Ordinal of this replica.
    pub replica: u32,
}

/// Bounds of the proxy. The defaults suit one inference server on the same host.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests of one model at the inference server at a time; default 256.
    pub concurrent_per_model: usize,
    /// Requests of one model that wait for their turn; default 2,048. More are refused with 429 at once.
    pub queue_per_model: usize,
    /// How long a request waits for its turn before it is refused with 429; default 30 s.
    pub queue_deadline: Duration,
    /// How long a request waits for its model to be loaded before it is refused with 503; default 120 s.
    pub load_deadline: Duration,
    /// Bytes of all headers of a request; default 64 KiB.
    pub header_bytes: usize,
    /// Time a client has to send a request's headers, and an HTTP/1.1 connection to stay idle; default 75 s, above the
    /// 60 s after which Envoy closes its own idle connections, so that the two do not race.
    pub header_deadline: Duration,
    /// Bytes of one gRPC message; default 1,000 MiB.
    pub message_bytes: u32,
    /// Bytes of one compressed gRPC message when decompressed, which has to be held whole; default 64 MiB.
    pub decompressed_bytes: usize,
    /// Bytes of all such messages together, and of all bodies that are held to be translated; default 512 MiB.
    pub all_decompressed_bytes: usize,
    /// Bytes of a request of OpenAI's API, and of the answer to it, each of which has to be held whole; default 16 MiB.
    pub translated_bytes: usize,
    /// Bytes of one event of a stream that is translated; default 1 MiB.
    pub translated_event_bytes: usize,
    /// Time a client has to send such a request; default 60 s.
    pub translated_deadline: Duration,
    /// Streams of one connection from a client; default 1,000.
    pub streams_per_client: u32,
    /// Requests that share one gRPC connection to the inference server before another is opened; default 32.
    pub streams_per_upstream: usize,
    /// Time to connect to the inference server; default 1 s.
    pub connect_deadline: Duration,
    /// How long an idle REST connection to the inference server is kept; default 3 s, below uvicorn's 5 s.
    pub upstream_idle: Duration,
    /// How long requests in flight may go on after a shutdown began; default 30 s.
    pub drain_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_per_model: 256,
            queue_per_model: 2_048,
            queue_deadline: Duration::from_secs(30),
            load_deadline: Duration::from_secs(120),
            header_bytes: 64 << 10,
            header_deadline: Duration::from_secs(75),
            message_bytes: 1_000 << 20,
            decompressed_bytes: 64 << 20,
            all_decompressed_bytes: 512 << 20,
            translated_bytes: 16 << 20,
            translated_event_bytes: 1 << 20,
            translated_deadline: Duration::from_secs(60),
            streams_per_client: 1_000,
            streams_per_upstream: 32,
            connect_deadline: Duration::from_secs(1),
            upstream_idle: Duration::from_secs(3),
            drain_deadline: Duration::from_secs(30),
        }
    }
}
