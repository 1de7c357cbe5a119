//! The proxy-wasm module that runs inside Envoy: hands the decisions of `seldon-routing` to the host.
//!
//! Nothing here may panic, since that takes the worker's whole VM down. So it calls [`hostcalls`] and not the SDK's
//! methods of the same names, which panic on an error of the host or on a header that is not UTF-8.
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
use seldon_routing::{Config, Decision, Headers, MAX_HOLD, MAX_PEEK, Random, Router};

use crate::counters::Counters;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
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
        let config = match Config::from_json(&bytes) {
            Ok(config) => config,
            Err(error) => {
                log::error!("{error}");
                return false;
            }
        };
        let experiments = config.experiments.len();
        log::debug!(
            "configuration {:?}: {experiments} experiments",
            config.version
        );
        self.shared = Rc::new(Shared {
            config,
            random: Random::from_seed(seed()),
            counters: Counters::define(),
        });
        true
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request {
            shared: self.shared.clone(),
            held_since: None,
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
}

impl Request {
    fn router(&self) -> Router<'_> {
        Router {
            config: &self.shared.config,
            random: &self.shared.random,
        }
    }

    fn act(&self, decision: &Decision<'_>) -> Action {
        self.shared.counters.count(decision);
        match decision {
            Decision::AwaitMessage => return Action::Pause,
            Decision::Leave => {}
            Decision::Steer(steering) => {
                for write in &steering.writes {
                    let value = Some(write.value.as_bytes());
                    let map = MapType::HttpRequestHeaders;
                    if let Err(status) = hostcalls::set_map_value_bytes(map, write.name, value) {
                        log::warn!("header {} cannot be set: {status:?}", write.name);
                    }
                }
            }
        }
        Action::Continue
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
        let decision = self.router().on_headers(&HostHeaders, end);
        let action = self.act(&decision);
        if decision == Decision::AwaitMessage {
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
        let first = size.min(MAX_PEEK);
        let bytes = hostcalls::get_buffer(BufferType::HttpRequestBody, 0, first)
            .ok()
            .flatten()
            .unwrap_or_default();
        let last = end || self.held_too_long();
        let decision = self.router().on_message(&HostHeaders, &bytes, last);
        let action = self.act(&decision);
        if decision != Decision::AwaitMessage {
            self.held_since = None;
        }
        action
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
