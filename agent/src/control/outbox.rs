//! Events for the scheduler: the newest of each model is kept until it is delivered.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use seldon_grpc::agent::agent_service_client::AgentServiceClient;
use seldon_proto::agent::{ModelEventMessage, model_event_message::Event};
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::Identity;
use crate::models::{Outcome, Registry};

/// Events sent at a time.
const BATCH: usize = 32;
/// Time for one delivery.
const LIMIT: Duration = Duration::from_secs(10);
/// Deliveries of an event that the scheduler refuses, before it is given up.
const REFUSALS: u32 = 5;

#[derive(Debug)]
struct Waiting {
    outcome: Outcome,
    refusals: u32,
}

/// Undelivered events; as many as there are models, at most.
#[derive(Default)]
pub struct Outbox {
    waiting: Mutex<HashMap<(String, u32), Waiting>>,
    filled: Notify,
}

impl Outbox {
    /// Adds an event; it replaces an older one of the same model.
    pub fn put(&self, (name, version): (&str, u32), outcome: Outcome) {
        if outcome == Outcome::Superseded {
            return;
        }
        self.lock().insert(
            (name.to_owned(), version),
            Waiting {
                outcome,
                refusals: 0,
            },
        );
        self.filled.notify_one();
    }

    /// Delivers events whenever `open`, for ever.
    pub async fn deliver(
        &self,
        client: AgentServiceClient<Channel>,
        identity: &Identity,
        registry: &Registry,
        mut open: watch::Receiver<bool>,
    ) {
        loop {
            if open.wait_for(|open| *open).await.is_err() {
                return;
            }
            let batch = self.take();
            if batch.is_empty() {
                self.filled.notified().await;
                continue;
            }
            let sends = batch
                .into_iter()
                .map(|(key, waiting)| self.send(client.clone(), identity, registry, key, waiting));
            let failed = futures_util::future::join_all(sends).await.contains(&false);
            if failed {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    fn take(&self) -> Vec<((String, u32), Waiting)> {
        let mut waiting = self.lock();
        let keys: Vec<_> = waiting.keys().take(BATCH).cloned().collect();
        keys.into_iter()
            .filter_map(|key| waiting.remove_entry(&key))
            .collect()
    }

    async fn send(
        &self,
        mut client: AgentServiceClient<Channel>,
        identity: &Identity,
        registry: &Registry,
        key: (String, u32),
        mut waiting: Waiting,
    ) -> bool {
        let mut request = Request::new(message(identity, registry, &key, &waiting.outcome));
        request.set_timeout(LIMIT);
        let Err(status) = client.agent_event(request).await else {
            return true;
        };
        let lost = matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Aborted
                | Code::ResourceExhausted
        );
        if !lost {
            waiting.refusals += 1;
            if waiting.refusals >= REFUSALS {
                tracing::warn!(
                    model = key.0,
                    version = key.1,
                    message = status.message(),
                    "the scheduler refuses an event"
                );
                return true;
            }
        }
        self.lock().entry(key).or_insert(waiting);
        false
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, u32), Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn message(
    identity: &Identity,
    registry: &Registry,
    (name, version): &(String, u32),
    outcome: &Outcome,
) -> ModelEventMessage {
    let (event, text) = match outcome {
        Outcome::Loaded => (Event::Loaded, ""),
        Outcome::LoadFailed(reason) => (Event::LoadFailed, reason.as_str()),
        Outcome::Unloaded => (Event::Unloaded, ""),
        Outcome::UnloadFailed(reason) => (Event::UnloadFailed, reason.as_str()),
        Outcome::Superseded => (Event::UnknownEvent, ""),
    };
    ModelEventMessage {
        server_name: identity.server_name.clone(),
        replica_idx: identity.replica_idx,
        model_name: name.clone(),
        model_version: *version,
        event: event.into(),
        message: text.to_owned(),
        available_memory_bytes: registry.available(),
        runtime_info: (event == Event::Loaded).then(|| registry.runtime_info(name, *version)),
        usage: None,
    }
}
