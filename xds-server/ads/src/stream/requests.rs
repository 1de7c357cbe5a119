//! What a request does to a stream.
use std::{collections::HashMap, sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::runtime::v3::Runtime;
use prost::Message;

use crate::{
    Node,
    stream::Stream,
    subscription::{Subscription, WILDCARD},
    wire::{Answer, Asked, Names, hex, unhex},
    world::{Content, View},
};

/// More types than that that are not served are not answered.
const UNKNOWN_TYPES: usize = 32;
const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";

impl Stream {
    /// Takes a request: an answer to a response, a change of subscription, or both.
    pub(crate) fn on_request(&mut self, asked: Asked, view: View<'_>, now: Duration) {
        if let Some(node) = asked.node {
            self.identify(node);
        }
        let Some(kind) = view.world.kind(&asked.type_url) else {
            self.on_unknown(asked.type_url, &asked.names);
            return;
        };
        self.on_answer(kind, &asked.nonce, asked.error, now);
        match asked.names {
            Names::Delta {
                subscribe,
                unsubscribe,
                initial,
            } => self.on_delta(kind, subscribe, unsubscribe, initial, view),
            Names::Full { names, version } => {
                let fresh = asked.nonce.is_empty();
                self.on_full(kind, names, version, fresh, view);
            }
        }
    }

    /// Only the first message of a stream need carry the node; nobody changes who he is.
    fn identify(&mut self, node: Node) {
        if self.node.id.is_empty() && self.node.cluster.is_empty() {
            let address = std::mem::take(&mut self.node.address);
            self.node = Node { address, ..node };
        }
    }

    fn on_answer(&mut self, kind: usize, nonce: &str, error: Option<String>, now: Duration) {
        let channel = &mut self.channels[kind];
        let Some(outstanding) = channel
            .outstanding
            .take_if(|o| nonce.parse() == Ok(o.nonce))
        else {
            // Stale, or the answer to a response already answered.
            return;
        };
        let number = outstanding.nonce;
        match error {
            None => {
                channel.acknowledged += 1;
                let names: Vec<_> = outstanding.items.to_vec();
                channel.accept(outstanding.items, !self.delta);
                self.settle(kind, &names, number);
            }
            Some(reason) => {
                let count = outstanding.items.len();
                tracing::debug!(
                    type_url = self.urls[kind],
                    count,
                    reason,
                    "a response was refused"
                );
                if let Some(item) = channel.refuse(outstanding.items, &reason, now) {
                    tracing::warn!(type_url = self.urls[kind], resource = %item.name, reason, "an envoy refuses a resource");
                    self.settle(kind, &[item], number);
                }
            }
        }
    }

    fn on_delta(
        &mut self,
        kind: usize,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        initial: HashMap<String, String>,
        view: View<'_>,
    ) {
        let first = self.channels[kind].subscription.is_none();
        if first {
            self.returning |= !initial.is_empty();
            self.remember(kind, &initial, view);
        }
        for name in &unsubscribe {
            self.unsubscribe(kind, name);
        }
        let everything =
            first && subscribe.is_empty() || subscribe.iter().any(|name| name == WILDCARD);
        if everything {
            self.subscribe_all(kind, view);
        }
        for name in subscribe.iter().filter(|name| *name != WILDCARD) {
            // With a version of a former stream only a difference is of interest.
            let answer = !(first && initial.contains_key(name));
            self.subscribe(kind, name, answer, view);
        }
        if first {
            self.drop_unwanted(kind);
        }
    }

    /// What the client holds from a former stream.
    fn remember(&mut self, kind: usize, initial: &HashMap<String, String>, view: View<'_>) {
        let channel = &mut self.channels[kind];
        channel.subscription = Some(Subscription::default());
        for (name, version) in initial {
            let name = view.name(kind, name);
            let content = Content {
                version: unhex(version),
                body: bytes::Bytes::new(),
            };
            channel.held.insert(name.clone(), content);
            channel.touch(name, false);
        }
    }

    fn drop_unwanted(&mut self, kind: usize) {
        let channel = &mut self.channels[kind];
        let Some(subscription) = &channel.subscription else {
            return;
        };
        channel.held.retain(|name, _| subscription.wants(name));
        channel.dirty.retain(|name, _| subscription.wants(name));
        channel.refused.retain(|name| subscription.wants(name));
        self.stop_awaiting(kind);
    }

    fn subscribe_all(&mut self, kind: usize, view: View<'_>) {
        let channel = &mut self.channels[kind];
        let subscription = channel.subscription.get_or_insert_default();
        let again = std::mem::replace(&mut subscription.wildcard, true);
        channel.owed = true;
        for name in view.world.kinds[kind].resources.keys() {
            channel.touch(name.clone(), again);
        }
    }

    fn subscribe(&mut self, kind: usize, name: &str, answer: bool, view: View<'_>) {
        let name = view.name(kind, name);
        let flows = self.flows(kind);
        let channel = &mut self.channels[kind];
        let subscription = channel.subscription.get_or_insert_default();
        subscription.names.insert(name.clone());
        channel.touch(name.clone(), answer);
        if flows && let Some(batch) = &mut self.batch {
            batch.awaited.insert(name);
        }
    }

    fn unsubscribe(&mut self, kind: usize, name: &str) {
        let channel = &mut self.channels[kind];
        let Some(subscription) = &mut channel.subscription else {
            return;
        };
        if name == WILDCARD {
            subscription.wildcard = false;
            self.drop_unwanted(kind);
            return;
        }
        subscription.names.remove(name);
        if subscription.wildcard {
            // The client may have dropped it, though it still is among all.
            channel.touch(Arc::from(name), true);
        } else {
            channel.forget(name);
            self.stop_awaiting(kind);
        }
    }

    fn on_full(
        &mut self,
        kind: usize,
        names: Vec<String>,
        version: String,
        fresh: bool,
        view: View<'_>,
    ) {
        let first = self.channels[kind].subscription.is_none();
        let subscription = self.channels[kind].subscription.get_or_insert_default();
        let before = subscription.clone();
        subscription.explicit |= !names.is_empty();
        let explicit = subscription.explicit;
        let everything = !explicit || names.iter().any(|name| name == WILDCARD);
        let names: Vec<Arc<str>> = names
            .iter()
            .filter(|name| *name != WILDCARD)
            .map(|name| view.name(kind, name))
            .collect();
        subscription.wildcard = everything;
        subscription.names = names.iter().cloned().collect();
        if everything && !before.wildcard {
            self.channels[kind]
                .subscription
                .get_or_insert_default()
                .wildcard = false;
            self.subscribe_all(kind, view);
        }
        if first && fresh && everything && !version.is_empty() {
            self.channels[kind].claimed = Some(unhex(&version));
        }
        for name in names.iter().filter(|name| !before.wants(name)) {
            self.subscribe(kind, name, true, view);
        }
        if !first {
            self.drop_unwanted(kind);
        }
    }

    fn stop_awaiting(&mut self, kind: usize) {
        if self.endpoints != Some(kind) {
            return;
        }
        let channel = &self.channels[kind];
        if let Some(batch) = &mut self.batch {
            batch.awaited.retain(|name| channel.wants(name));
        }
    }

    /// A type that is not served: its names do not exist, and the stream goes on.
    fn on_unknown(&mut self, type_url: String, names: &Names) {
        let fresh = !self.unknown.contains(&type_url);
        if fresh && self.unknown.len() >= UNKNOWN_TYPES {
            return;
        }
        let missing = match names {
            Names::Delta { subscribe, .. } => subscribe.as_slice(),
            // Every request repeats all names, so only the first is answered.
            Names::Full { names, .. } if fresh => names.as_slice(),
            Names::Full { .. } => &[],
        };
        let missing: Vec<String> = missing.iter().filter(|n| *n != WILDCARD).cloned().collect();
        if fresh || !missing.is_empty() {
            tracing::debug!(type_url, "answered a type that is not served as empty");
            self.unknown.insert(type_url.clone());
            self.refusals.entry(type_url).or_default().extend(missing);
        }
    }

    /// Answers to types that are not served; nobody waits for their acknowledgement.
    pub(super) fn refuse_unknown(&mut self) -> Vec<Answer> {
        let mut out = Vec::new();
        for (type_url, names) in std::mem::take(&mut self.refusals) {
            self.nonce += 1;
            let names: Vec<Arc<str>> = names.into_iter().map(Arc::from).collect();
            let (removed, resources) = match self.delta {
                true => (names, Vec::new()),
                false if type_url == RUNTIME => {
                    (Vec::new(), names.into_iter().map(layer).collect())
                }
                false => (Vec::new(), Vec::new()),
            };
            out.push(Answer {
                type_url: Arc::from(type_url),
                nonce: self.nonce.to_string(),
                version: hex(0),
                resources,
                removed,
            });
        }
        out
    }
}

/// An empty layer of the runtime. State of the world cannot say that it does not exist, and an Envoy with the
/// documented bootstrap would wait 15 seconds for it.
fn layer(name: Arc<str>) -> (Arc<str>, Content) {
    let runtime = Runtime {
        name: name.to_string(),
        layer: Some(Default::default()),
    };
    (name, Content::new(runtime.encode_to_vec().into()))
}
