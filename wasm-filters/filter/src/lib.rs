//! The proxy-wasm module that runs inside Envoy: hands the decisions of `seldon-routing` to the host.
//!
//! Nothing here may panic, since that takes the worker's whole VM down. So it calls [`hostcalls`] and not the SDK's
//! methods of the same names, which panic on any error of the host or on a header that is not UTF-8. Those of 0.2.5
//! still panic on statuses that they do not expect: `BadArgument` for a header map that is not there, an unknown kind of
//! metric or an offset past the buffer's end, `InvalidMemoryAccess` for a bad pointer. None can occur as they are called
//! here: request headers are written and listed in request callbacks only, where Envoy has them; in `on_log`
//! Envoy answers `NotFound` for a map that is not there; buffers are read from 0; pointers are the SDK's.
//!
//! The host must run it with `allow_on_headers_stop_iteration: true`: a gRPC request without a name is held at its
//! headers until the first message is there.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod counters;

use std::{
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, BufferType, ContextType, LogLevel, MapType},
};
use seldon_routing::{
    Answer, Config, Decision, Headers, Hold, MAX_HOLD, MAX_PEEK, Random, Router, header, is_failure,
};

use crate::counters::{Counters, OfCandidate, OfExperiments};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Debug);
    proxy_wasm::set_root_context(|_| Box::new(Plugin::default()));
}}

/// One configuration in one worker.
#[derive(Default)]
struct Plugin {
    shared: Rc<Shared>,
}

/// What the requests of a plugin share.
#[derive(Default)]
struct Shared {
    config: Config,
    random: Random,
    counters: Counters,
    of_experiments: OfExperiments,
}

impl Context for Plugin {}

impl RootContext for Plugin {
    /// `false` makes Envoy refuse the configuration and keep the last good one.
    fn on_configure(&mut self, _size: usize) -> bool {
        let bytes = match hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(status) => {
                log::error!("filter configuration cannot be read: {status:?}");
                return false;
            }
        };
        let begin = now();
        let config = match Config::from_json(&bytes) {
            Ok(config) => config,
            Err(error) => {
                log::error!("{error}");
                return false;
            }
        };
        let experiments = config.experiments.len();
        let took = begin.and_then(|begin| now()?.duration_since(begin).ok());
        log::debug!(
            "configuration {:?}: {experiments} experiments, {} bytes read in {} us",
            config.version,
            bytes.len(),
            took.map_or(0, |took| took.as_micros())
        );
        self.shared = Rc::new(Shared {
            config,
            random: Random::from_seed(seed()),
            counters: Counters::define(),
            of_experiments: OfExperiments::default(),
        });
        true
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request {
            shared: self.shared.clone(),
            held_since: None,
            hold: Hold::default(),
            chosen: None,
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One request.
struct Request {
    shared: Rc<Shared>,
    /// When its headers were held back to wait for the first message.
    held_since: Option<SystemTime>,
    hold: Hold,
    /// The candidate that it was given to, for counting the answer.
    chosen: Option<Chosen>,
}

/// Where an answer is to be counted.
struct Chosen {
    counters: OfCandidate,
    /// None for a stream: its life is no latency.
    at: Option<SystemTime>,
    grpc: bool,
}

impl Request {
    fn router(&self) -> Router<'_> {
        Router {
            config: &self.shared.config,
            random: &self.shared.random,
        }
    }

    fn act(&self, decision: &Decision<'_>) -> (Action, Option<Chosen>) {
        self.shared.counters.count(decision);
        let mut chosen = None;
        match decision {
            Decision::AwaitMessage => return (Action::Pause, None),
            Decision::Leave => {}
            Decision::Steer(steering) => {
                chosen = steering.choice.as_ref().map(|choice| {
                    let grpc = seldon_routing::is_grpc(&HostHeaders);
                    let stream = grpc && seldon_routing::is_stream(&HostHeaders);
                    Chosen {
                        counters: self.shared.of_experiments.chosen(choice),
                        at: if stream { None } else { now() },
                        grpc,
                    }
                });
                for write in &steering.writes {
                    let value = Some(write.value.as_bytes());
                    let map = MapType::HttpRequestHeaders;
                    if let Err(status) = hostcalls::set_map_value_bytes(map, write.name, value) {
                        log::warn!("header {} cannot be set: {status:?}", write.name);
                    }
                }
            }
        }
        (Action::Continue, chosen)
    }

    fn held_too_long(&self) -> bool {
        let held = self.held_since.zip(now());
        held.is_some_and(|(since, now)| now.duration_since(since).is_ok_and(|d| d >= MAX_HOLD))
    }
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _count: usize, end: bool) -> Action {
        self.shared.counters.entered();
        #[cfg(feature = "panic-for-tests")]
        panic_sometimes();
        let decision = self.router().on_headers(&HostHeaders, end);
        let (action, chosen) = self.act(&decision);
        let awaits = decision == Decision::AwaitMessage;
        self.chosen = chosen;
        if awaits {
            self.shared.counters.held();
            self.held_since = now().or(Some(UNIX_EPOCH));
        }
        action
    }

    /// Called with all bytes held so far; `size` is their number.
    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        if self.held_since.is_none() {
            return Action::Continue;
        }
        let last = end || self.held_too_long();
        if !last && !self.hold.is_due(size) {
            return Action::Pause;
        }
        let first = size.min(MAX_PEEK);
        let bytes = hostcalls::get_buffer(BufferType::HttpRequestBody, 0, first)
            .ok()
            .flatten()
            .unwrap_or_default();
        let mut hold = self.hold;
        let router = self.router();
        let decision = router.on_message(&HostHeaders, &mut hold, &bytes, last);
        let (action, chosen) = self.act(&decision);
        let awaits = decision == Decision::AwaitMessage;
        self.chosen = chosen;
        self.hold = hold;
        if !awaits {
            self.held_since = None;
        }
        action
    }

    /// The request is over, answered or not: a callback that comes in any case, once.
    fn on_log(&mut self) {
        if let Some(chosen) = self.chosen.take() {
            let after = chosen.at.and_then(|at| now()?.duration_since(at).ok());
            chosen
                .counters
                .ended(is_failure(&HostAnswer, chosen.grpc), after);
        }
    }
}

/// The headers of the request in whose callback this is used.
struct HostHeaders;

impl Headers for HostHeaders {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, name)
            .ok()
            .flatten()
    }

    /// The host reads one value by name, so all headers are taken. Their names are text: Envoy refuses others.
    fn all(&self, name: &str) -> Vec<u8> {
        let headers = hostcalls::get_map_bytes(MapType::HttpRequestHeaders).unwrap_or_default();
        let own = headers.into_iter().filter(|(found, _)| found == name);
        own.map(|(_, value)| value).collect::<Vec<_>>().join(&b',')
    }
}

/// The answer of the request in whose `on_log` this is used.
struct HostAnswer;

impl HostAnswer {
    fn header(name: &str) -> Option<Vec<u8>> {
        hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, name)
            .ok()
            .flatten()
    }
}

impl Answer for HostAnswer {
    fn status(&self) -> Option<Vec<u8>> {
        Self::header(":status")
    }

    fn grpc_status(&self) -> Option<Vec<u8>> {
        let name = "grpc-status";
        let in_trailers = hostcalls::get_map_value_bytes(MapType::HttpResponseTrailers, name);
        in_trailers.ok().flatten().or_else(|| Self::header(name))
    }

    fn is_routed(&self) -> bool {
        Self::header(header::ROUTE).is_some()
    }

    fn is_cut(&self) -> bool {
        /// Envoy's response flags of an answer that its upstream did not end: timeout, reset here, reset there,
        /// connection gone, and HTTP/1 that ended before its length (seen in Envoy 1.40).
        const CUT: u64 = (1 << 2) | (1 << 3) | (1 << 4) | (1 << 6) | (1 << 23);
        let flags = hostcalls::get_property(vec!["response", "flags"]);
        let flags = flags.ok().flatten().unwrap_or_default();
        let flags = flags.try_into().map_or(0, u64::from_le_bytes);
        flags & CUT != 0
    }
}

/// The host's clock: this target has none of its own.
fn now() -> Option<SystemTime> {
    hostcalls::get_current_time().ok()
}

fn seed() -> u64 {
    let since = now().and_then(|now| now.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| {
        d.as_secs().rotate_left(32) ^ u64::from(d.subsec_nanos())
    })
}

/// Takes the VM down at every hundredth request that enters it.
#[cfg(feature = "panic-for-tests")]
#[allow(clippy::panic)]
fn panic_sometimes() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static ENTERED: AtomicU32 = AtomicU32::new(0);
    if ENTERED.fetch_add(1, Ordering::Relaxed) == 99 {
        panic!("as asked for by the feature panic-for-tests");
    }
}
