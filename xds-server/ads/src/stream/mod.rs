//! One stream as a machine without I/O: requests and changes go in, responses come out, time is an argument.
//!
//! Changes are taken in *cuts*: all that differs at one generation becomes a batch, sent type by type as the client
//! acknowledges, additions first and removals the other way round; what changes meanwhile waits for the next cut, the
//! latest body wins. So what a client holds always lies between two consistent worlds, whatever the pace of changes.
//!
//! Endpoints are apart: Envoy withholds the acknowledgement of a cluster until it has the endpoints. They refer to
//! nothing, so they are sent at once; the batch only waits for those that were due at its cut.
mod channel;
mod requests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::envoy::config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment};
use prost::Message;

use crate::{
    Generation, Node, Rejection, TypeStatus,
    stream::channel::{Channel, Item, Need, Outstanding, digest},
    wire::{Answer, hex},
    world::{Content, View},
};

const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// All differences at one generation.
#[derive(Debug)]
struct Batch {
    generation: Generation,
    /// Responses with a later nonce were sent after the cut.
    nonce: u64,
    /// Endpoints that must be acknowledged before what refers to them is sent.
    awaited: BTreeSet<Arc<str>>,
    /// Endpoints, at the cut, of clusters that it adds: what it adds after them sends requests there, even where the
    /// world has dropped the cluster since and its next state is still to come.
    endpoints: BTreeMap<Arc<str>, Content>,
}

/// The state of one stream.
#[derive(Debug)]
pub(crate) struct Stream {
    delta: bool,
    pub(crate) node: Node,
    channels: Vec<Channel>,
    urls: Vec<&'static str>,
    clusters: Option<usize>,
    endpoints: Option<usize>,
    batch: Option<Batch>,
    /// Answers to subscriptions of types that are not served: names that do not exist.
    refusals: BTreeMap<String, Vec<String>>,
    /// Types not served that have had their answer.
    unknown: BTreeSet<String>,
    nonce: u64,
    /// Additions up to here are acknowledged.
    pub(crate) added: Generation,
    /// Removals too.
    pub(crate) released: Generation,
    /// The client came with versions of a former stream.
    pub(crate) returning: bool,
}

impl Stream {
    pub(crate) fn new(order: &[&'static str], delta: bool, node: Node) -> Self {
        let position = |url: &str| order.iter().position(|u| *u == url);
        Stream {
            delta,
            node,
            channels: order.iter().map(|_| Channel::default()).collect(),
            urls: order.to_vec(),
            clusters: position(CLUSTERS),
            endpoints: position(ENDPOINTS),
            batch: None,
            refusals: BTreeMap::new(),
            unknown: BTreeSet::new(),
            nonce: 0,
            added: 0,
            released: 0,
            returning: false,
        }
    }

    /// A resource of the world is another or gone.
    pub(crate) fn on_change(&mut self, kind: usize, name: &Arc<str>) {
        let channel = &mut self.channels[kind];
        if channel.wants(name) {
            channel.touch(name.clone(), false);
        }
    }

    /// What can be sent now.
    pub(crate) fn poll(&mut self, view: View<'_>, now: Duration) -> Vec<Answer> {
        let mut out = self.refuse_unknown();
        loop {
            let before = out.len();
            out.extend(self.send_endpoints(view, now, false));
            self.let_go();
            if self.batch.is_none() && !self.begin(view) {
                break;
            }
            self.advance(view, now, &mut out);
            if self.batch.is_some() && out.len() == before {
                break;
            }
        }
        out
    }

    /// When the oldest response without an answer was sent.
    pub(crate) fn unanswered_since(&self) -> Option<Duration> {
        let sent = |c: &Channel| c.outstanding.as_ref().map(|o| o.at);
        self.channels.iter().filter_map(sent).min()
    }

    /// Everything is acknowledged.
    pub(crate) fn quiet(&self) -> bool {
        self.batch.is_none() && self.channels.iter().all(|c| c.pending() == 0 && !c.owed)
    }

    /// Whether it has subscribed to every type that the other has.
    pub(crate) fn covers(&self, types: &[TypeStatus]) -> bool {
        let has = |t: &TypeStatus| {
            let mut own = self.urls.iter().zip(&self.channels);
            own.any(|(url, c)| *url == t.type_url && c.subscription.is_some())
        };
        types.iter().all(has)
    }

    /// State per type, of types subscribed to.
    pub(crate) fn types(&self) -> Vec<TypeStatus> {
        let own = self.urls.iter().zip(&self.channels);
        let subscribed = own.filter(|(_, c)| c.subscription.is_some());
        let status = |(url, c): (&&str, &Channel)| TypeStatus {
            type_url: (*url).to_owned(),
            sent: c.sent,
            acknowledged: c.acknowledged,
            pending: c.pending(),
            resources: c.held.len() as u64,
        };
        subscribed.map(status).collect()
    }

    /// Grows whenever a rejection begins, changes or ends.
    pub(crate) fn refusal_changes(&self) -> u64 {
        self.channels.iter().map(|c| c.refused.changes).sum()
    }

    pub(crate) fn rejections(&self, now: Duration) -> Vec<Rejection> {
        let mut all = Vec::new();
        for (url, channel) in self.urls.iter().zip(&self.channels) {
            all.extend(channel.refused.iter().map(|(name, r)| Rejection {
                type_url: (*url).to_owned(),
                resource: name.to_string(),
                reason: r.reason.clone(),
                since: now.saturating_sub(r.since),
            }));
        }
        all
    }

    fn flows(&self, kind: usize) -> bool {
        self.endpoints == Some(kind)
    }

    /// Full state in every response.
    fn whole(&self, kind: usize) -> bool {
        !self.delta && self.channels[kind].wildcard()
    }

    /// Takes the next cut; `false` where nothing is to be done.
    fn begin(&mut self, view: View<'_>) -> bool {
        let generation = view.world.generation;
        let due = |c: &Channel| !c.dirty.is_empty() || c.owed;
        if generation == self.released && !self.channels.iter().any(due) {
            return false;
        }
        let mut awaited = BTreeSet::new();
        for kind in 0..self.channels.len() {
            if self.flows(kind) {
                awaited = self.cut_endpoints(view, kind);
            } else {
                self.cut(view, kind);
            }
        }
        self.batch = Some(Batch {
            generation,
            nonce: self.nonce,
            awaited,
            endpoints: self.endpoints_of_adds(view),
        });
        true
    }

    fn endpoints_of_adds(&self, view: View<'_>) -> BTreeMap<Arc<str>, Content> {
        let (Some(clusters), Some(endpoints)) = (self.clusters, self.endpoints) else {
            return BTreeMap::new();
        };
        let adds = self.channels[clusters].adds.iter();
        let of_add = |item: &Item| {
            let name = endpoints_name(item)?;
            let content = view.wanted(&self.node, endpoints, &name)?;
            Some((name, content))
        };
        adds.filter_map(of_add).collect()
    }

    fn cut(&mut self, view: View<'_>, kind: usize) {
        let channel = &mut self.channels[kind];
        channel.answer |= std::mem::take(&mut channel.owed);
        for (name, answer) in std::mem::take(&mut channel.dirty) {
            let wanted = view.wanted(&self.node, kind, &name);
            match channel.need(name, answer, wanted) {
                Need::Nothing => {}
                Need::Add(item) => channel.adds.push_back(item),
                Need::Remove(name) => channel.removes.push_back(Item {
                    name,
                    content: None,
                }),
            }
        }
        self.trust_claim(kind);
    }

    /// State of the world: a client that came back with the very state it should have needs no response.
    fn trust_claim(&mut self, kind: usize) {
        let channel = &mut self.channels[kind];
        let Some(claimed) = channel.claimed.take() else {
            return;
        };
        let versions = channel.adds.iter();
        let versions = versions.filter_map(|i| Some((&i.name, i.content.as_ref()?.version)));
        if channel.adds.is_empty() || digest(versions) != claimed {
            return;
        }
        let items = std::mem::take(&mut channel.adds).into();
        channel.answer = false;
        channel.accept(items, true);
    }

    /// Endpoints that are gone join the batch; those that are due or on their way are awaited.
    fn cut_endpoints(&mut self, view: View<'_>, kind: usize) -> BTreeSet<Arc<str>> {
        let channel = &mut self.channels[kind];
        channel.answer |= std::mem::take(&mut channel.owed);
        // What is on its way cannot be compared with what is held: it may be overtaken by the very state of before.
        let mut awaited = channel.on_the_way();
        for (name, answer) in std::mem::take(&mut channel.dirty) {
            if awaited.contains(&name) {
                channel.dirty.insert(name, answer);
                continue;
            }
            let wanted = view.wanted(&self.node, kind, &name);
            match channel.need(name.clone(), answer, wanted) {
                Need::Nothing => {}
                Need::Add(_) => {
                    channel.dirty.insert(name.clone(), answer);
                    awaited.insert(name);
                }
                Need::Remove(name) => channel.removes.push_back(Item {
                    name,
                    content: None,
                }),
            }
        }
        awaited
    }

    /// Sends what the acknowledgements so far allow; ends the batch when all is acknowledged.
    fn advance(&mut self, view: View<'_>, now: Duration, out: &mut Vec<Answer>) {
        if !self.advance_additions(now, out) {
            return;
        }
        let Some(batch) = &self.batch else { return };
        self.added = self.added.max(batch.generation);
        self.keep_referred();
        for kind in (0..self.channels.len()).rev() {
            if self.flows(kind) {
                out.extend(self.send_endpoints(view, now, true));
                let channel = &self.channels[kind];
                let removing = channel.outstanding.as_ref().is_some_and(|o| o.removal);
                if removing || !channel.removes.is_empty() {
                    return;
                }
                continue;
            }
            let whole = self.whole(kind);
            while let Some(items) = self.channels[kind].next_removal(whole) {
                out.extend(self.send(kind, items, true, now));
                if self.channels[kind].outstanding.is_some() {
                    return;
                }
            }
        }
        if let Some(batch) = self.batch.take() {
            self.released = self.released.max(batch.generation);
        }
    }

    /// Where the last good version of something refused stays in force, what it refers to must stay as well. The
    /// engine does not know what refers to what, so nothing of the earlier types is removed until it is put right.
    fn keep_referred(&mut self) {
        let Some(last) = self.channels.iter().rposition(Channel::outlived) else {
            return;
        };
        for channel in &mut self.channels[..last] {
            let removes = std::mem::take(&mut channel.removes);
            channel.kept.extend(removes.into_iter().map(|i| i.name));
        }
    }

    /// Takes up removals again that were put off.
    fn let_go(&mut self) {
        let from = self.channels.iter().rposition(Channel::outlived);
        for channel in self.channels.iter_mut().skip(from.unwrap_or(0)) {
            for name in std::mem::take(&mut channel.kept) {
                channel.touch(name, false);
            }
        }
    }

    /// `true` when all additions of the batch are acknowledged.
    fn advance_additions(&mut self, now: Duration, out: &mut Vec<Answer>) -> bool {
        for kind in 0..self.channels.len() {
            if self.channels[kind].subscription.is_none() {
                continue;
            }
            if self.flows(kind) {
                if self.batch.as_ref().is_some_and(|b| !b.awaited.is_empty()) {
                    return false;
                }
                continue;
            }
            let whole = self.whole(kind);
            while self.channels[kind].outstanding.is_none() {
                let Some(items) = self.channels[kind].next_add(whole) else {
                    break;
                };
                out.extend(self.send(kind, items, false, now));
            }
            // Endpoints come between clusters and their acknowledgement, but nothing else does.
            if self.channels[kind].adding() {
                return false;
            }
        }
        true
    }

    /// Sends endpoints that are due, with `removals` those that are gone too.
    fn send_endpoints(&mut self, view: View<'_>, now: Duration, removals: bool) -> Vec<Answer> {
        let mut out = Vec::new();
        let Some(kind) = self.endpoints else {
            return out;
        };
        while self.channels[kind].outstanding.is_none() {
            self.gather_endpoints(view, kind, removals);
            let whole = self.whole(kind);
            let channel = &mut self.channels[kind];
            let (items, removal) = match channel.next_add(whole) {
                Some(items) => (items, false),
                None if removals => match channel.next_removal(whole) {
                    Some(items) => (items, true),
                    None => break,
                },
                None => break,
            };
            out.extend(self.send(kind, items, removal, now));
        }
        out
    }

    /// Endpoints are always those of the latest world, but for those that it has dropped while the batch needs them.
    fn gather_endpoints(&mut self, view: View<'_>, kind: usize, removals: bool) {
        let channel = &mut self.channels[kind];
        channel.recall_queued();
        let again = channel.on_the_way();
        let mut gone = BTreeMap::new();
        for (name, answer) in std::mem::take(&mut channel.dirty) {
            if again.contains(&name) {
                gone.insert(name, answer);
                continue;
            }
            let mut wanted = view.wanted(&self.node, kind, &name);
            if wanted.is_none()
                && let Some(batch) = &self.batch
                && let Some(content) = batch.endpoints.get(&name)
            {
                wanted = Some(content.clone());
                // To be looked at again by the next cut.
                gone.insert(name.clone(), false);
            }
            let absent = wanted.is_none();
            match channel.need(name.clone(), answer, wanted) {
                Need::Add(item) if self.delta => channel.adds.push_back(item),
                Need::Add(item) => channel.adds.push_back(or_no_endpoints(item)),
                Need::Remove(name) => {
                    gone.insert(name, false);
                }
                Need::Nothing => {
                    if let Some(batch) = &mut self.batch {
                        batch.awaited.remove(&name);
                    }
                }
            }
            if absent && let Some(batch) = &mut self.batch {
                batch.awaited.remove(&name);
            }
        }
        channel.dirty = gone;
        if removals {
            // It may have come back since the cut, and have been sent again.
            let exists = |i: &Item| view.wanted(&self.node, kind, &i.name).is_some();
            channel.removes.retain(|i| !exists(i));
        }
    }

    /// Sends one response of one type. `None` where the variant has no words for it: then it counts as acknowledged.
    fn send(
        &mut self,
        kind: usize,
        items: Vec<Item>,
        removal: bool,
        now: Duration,
    ) -> Option<Answer> {
        let whole = self.whole(kind);
        let channel = &mut self.channels[kind];
        let asked = items.len();
        let items: Vec<Item> = items
            .into_iter()
            .filter(|i| channel.wants(&i.name))
            .collect();
        if asked > 0 && items.is_empty() {
            return None;
        }
        let says_nothing = !items.is_empty() && items.iter().all(|i| i.content.is_none());
        if !self.delta && !whole && says_nothing {
            self.settle(kind, &items, self.nonce + 1);
            self.channels[kind].accept(items, true);
            return None;
        }
        self.resend_endpoints(kind, &items);
        self.nonce += 1;
        let answer = self.answer(kind, &items, whole);
        let channel = &mut self.channels[kind];
        channel.sent += 1;
        channel.last_nonce = self.nonce;
        channel.outstanding = Some(Outstanding {
            nonce: self.nonce,
            at: now,
            items,
            removal,
        });
        Some(answer)
    }

    fn answer(&self, kind: usize, items: &[Item], whole: bool) -> Answer {
        let mut resources = BTreeMap::new();
        let mut removed = Vec::new();
        if whole {
            let held = self.channels[kind].held.iter();
            resources.extend(held.map(|(n, c)| (n.clone(), c.clone())));
        }
        for item in items {
            match &item.content {
                Some(content) => {
                    resources.insert(item.name.clone(), content.clone());
                }
                None => {
                    resources.remove(&item.name);
                    removed.push(item.name.clone());
                }
            }
        }
        let version = match self.delta {
            true => String::new(),
            false => hex(digest(resources.iter().map(|(n, c)| (n, c.version)))),
        };
        Answer {
            type_url: Arc::from(self.urls[kind]),
            nonce: self.nonce.to_string(),
            version,
            resources: resources.into_iter().collect(),
            removed,
        }
    }

    /// A cluster that is updated is warmed again: Envoy waits for its endpoints, but, having them, does not ask.
    fn resend_endpoints(&mut self, kind: usize, items: &[Item]) {
        let Some(endpoints) = self.endpoints.filter(|_| self.clusters == Some(kind)) else {
            return;
        };
        for item in items {
            if !self.channels[kind].held.contains_key(&item.name) {
                continue;
            }
            let Some(name) = endpoints_name(item) else {
                continue;
            };
            let channel = &mut self.channels[endpoints];
            if channel.wants(&name) {
                channel.touch(name.clone(), true);
                if let Some(batch) = &mut self.batch {
                    batch.awaited.insert(name);
                }
            }
        }
    }

    /// Endpoints that the batch need not wait for any more.
    fn settle(&mut self, kind: usize, items: &[Item], nonce: u64) {
        if !self.flows(kind) {
            return;
        }
        let Some(batch) = &mut self.batch else { return };
        let dirty = &self.channels[kind].dirty;
        for item in items {
            // One that changes all the time must not hold the batch up for ever.
            if nonce > batch.nonce || !dirty.contains_key(&item.name) {
                batch.awaited.remove(&item.name);
            }
        }
    }
}

/// The name of the endpoints of a cluster that is not gone.
fn endpoints_name(cluster: &Item) -> Option<Arc<str>> {
    let content = cluster.content.as_ref()?;
    let service = Cluster::decode(content.body.clone()).ok();
    let service = service.and_then(|c| c.eds_cluster_config);
    let service = service.map(|c| c.service_name).filter(|s| !s.is_empty());
    Some(service.map_or_else(|| cluster.name.clone(), Arc::from))
}

/// State of the world cannot say that endpoints do not exist, and Envoy would wait for them: there are none.
fn or_no_endpoints(item: Item) -> Item {
    let none = ClusterLoadAssignment {
        cluster_name: item.name.to_string(),
        ..Default::default()
    };
    let none = || Content::new(none.encode_to_vec().into());
    Item {
        content: item.content.or_else(|| Some(none())),
        ..item
    }
}
