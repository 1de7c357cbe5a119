//! One type on one stream: what the client holds, what is on its way, what it refused.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{subscription::Subscription, world::Content};

/// A response holds at most about so many bytes; gRPC clients commonly stop at 4 MiB.
const RESPONSE: usize = 2 << 20;

/// One resource of a response; without content it is gone.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) name: Arc<str>,
    pub(crate) content: Option<Content>,
}

/// A response that has no answer yet.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub(crate) nonce: u64,
    pub(crate) at: Duration,
    pub(crate) items: Vec<Item>,
    pub(crate) removal: bool,
}

/// A version that the client refused.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) version: u64,
    pub(crate) reason: String,
    pub(crate) since: Duration,
}

/// What a resource that may have changed needs.
pub(crate) enum Need {
    Nothing,
    Add(Item),
    Remove(Arc<str>),
}

#[derive(Debug, Default)]
pub(crate) struct Channel {
    pub(crate) subscription: Option<Subscription>,
    /// Acknowledged; the last good version of what was refused since. Bodies are kept only for the state of the world.
    pub(crate) held: BTreeMap<Arc<str>, Content>,
    /// Names that may differ from what is held; `true`: to be answered even if they do not.
    pub(crate) dirty: BTreeMap<Arc<str>, bool>,
    /// The subscription is new and must be answered, be it by nothing.
    pub(crate) owed: bool,
    /// State of the world: version of the full state that the client says it has.
    pub(crate) claimed: Option<u64>,
    /// The batch in work.
    pub(crate) adds: VecDeque<Item>,
    pub(crate) removes: VecDeque<Item>,
    pub(crate) answer: bool,
    /// Gone from the world, but the last good version of a refused resource may refer to them.
    pub(crate) kept: Vec<Arc<str>>,
    /// Parts of refused responses, the next one last.
    pub(crate) retries: Vec<Vec<Item>>,
    pub(crate) outstanding: Option<Outstanding>,
    pub(crate) refused: Refusals,
    pub(crate) last_nonce: u64,
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
}

/// What the client refuses, and how often that changed.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    by_name: BTreeMap<Arc<str>, Refused>,
    pub(crate) changes: u64,
}

impl Refusals {
    pub(crate) fn get(&self, name: &str) -> Option<&Refused> {
        self.by_name.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Refused)> {
        self.by_name.iter()
    }

    pub(crate) fn insert(&mut self, name: Arc<str>, refused: Refused) {
        self.by_name.insert(name, refused);
        self.changes += 1;
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.changes += u64::from(self.by_name.remove(name).is_some());
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&Arc<str>) -> bool) {
        self.by_name.retain(|name, _| keep(name));
        self.changes += 1;
    }
}

impl Channel {
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.subscription.as_ref().is_some_and(|s| s.wants(name))
    }

    pub(crate) fn wildcard(&self) -> bool {
        self.subscription.as_ref().is_some_and(|s| s.wildcard)
    }

    /// Marks a name as possibly changed.
    pub(crate) fn touch(&mut self, name: Arc<str>, answer: bool) {
        *self.dirty.entry(name).or_default() |= answer;
    }

    /// Compares what is wanted with what is held.
    pub(crate) fn need(&mut self, name: Arc<str>, answer: bool, wanted: Option<Content>) -> Need {
        let Some(content) = wanted else {
            self.refused.remove(&name);
            let held = self.held.contains_key(&name);
            return match (answer, held) {
                (true, _) => Need::Add(Item {
                    name,
                    content: None,
                }),
                (false, true) => Need::Remove(name),
                (false, false) => Need::Nothing,
            };
        };
        if self
            .refused
            .get(&name)
            .is_some_and(|r| r.version == content.version)
        {
            return Need::Nothing;
        }
        let held = self.held.get(&name).map(|c| c.version);
        if held == Some(content.version) && !answer {
            self.refused.remove(&name);
            return Need::Nothing;
        }
        Need::Add(Item {
            name,
            content: Some(content),
        })
    }

    /// Names that are sent and not acknowledged, or wait to be sent.
    pub(crate) fn on_the_way(&self) -> BTreeSet<Arc<str>> {
        let sent = self.outstanding.iter().flat_map(|o| &o.items);
        let waiting = self.retries.iter().flatten().chain(&self.adds);
        sent.chain(waiting).map(|i| i.name.clone()).collect()
    }

    /// Takes back what waits to be sent and has changed since; it must be sent all the same.
    pub(crate) fn recall_queued(&mut self) {
        let Channel { adds, dirty, .. } = self;
        adds.retain(|item| match dirty.get_mut(&item.name) {
            Some(answer) => {
                *answer = true;
                false
            }
            None => true,
        });
    }

    /// The client goes on with a former version of something it refused.
    pub(crate) fn outlived(&self) -> bool {
        self.refused
            .iter()
            .any(|(name, _)| self.held.contains_key(name))
    }

    /// Something of the batch waits or has no answer yet.
    pub(crate) fn adding(&self) -> bool {
        self.outstanding.is_some()
            || self.answer
            || !self.retries.is_empty()
            || !self.adds.is_empty()
    }

    /// The next part of what waits, no larger than a response may be.
    pub(crate) fn next_add(&mut self, whole: bool) -> Option<Vec<Item>> {
        if let Some(part) = self.retries.pop() {
            return Some(part);
        }
        if self.adds.is_empty() && !std::mem::take(&mut self.answer) {
            return None;
        }
        let part = chunk(&mut self.adds, whole);
        self.answer = false;
        Some(part)
    }

    pub(crate) fn next_removal(&mut self, whole: bool) -> Option<Vec<Item>> {
        if let Some(part) = self.retries.pop() {
            return Some(part);
        }
        (!self.removes.is_empty()).then(|| chunk(&mut self.removes, whole))
    }

    /// The client has taken these.
    pub(crate) fn accept(&mut self, items: Vec<Item>, keep_bodies: bool) {
        for item in items {
            self.refused.remove(&item.name);
            match item.content {
                Some(mut content) if self.wants(&item.name) => {
                    if !keep_bodies {
                        content.body = bytes::Bytes::new();
                    }
                    self.held.insert(item.name, content);
                }
                _ => {
                    self.held.remove(&item.name);
                }
            }
        }
    }

    /// The client has refused these: halves are tried until the bad ones are alone. Yields what is settled by it.
    pub(crate) fn refuse(
        &mut self,
        mut items: Vec<Item>,
        reason: &str,
        now: Duration,
    ) -> Option<Item> {
        if items.len() > 1 {
            let second = items.split_off(items.len() / 2);
            self.retries.push(second);
            self.retries.push(items);
            return None;
        }
        let item = items.pop()?;
        match &item.content {
            Some(content) if self.wants(&item.name) => {
                let refused = Refused {
                    version: content.version,
                    reason: reason.to_owned(),
                    since: now,
                };
                self.refused.insert(item.name.clone(), refused);
            }
            // A removal cannot be wrong; asking again would not end.
            _ => {
                self.held.remove(&item.name);
            }
        }
        Some(item)
    }

    /// Forgets a name the client no longer wants.
    pub(crate) fn forget(&mut self, name: &str) {
        self.held.remove(name);
        self.dirty.remove(name);
        self.refused.remove(name);
    }

    pub(crate) fn pending(&self) -> u64 {
        let on_the_way = self.outstanding.as_ref().map_or(0, |o| o.items.len());
        let again: usize = self.retries.iter().map(Vec::len).sum();
        (self.dirty.len() + self.adds.len() + self.removes.len() + on_the_way + again) as u64
    }
}

fn chunk(queue: &mut VecDeque<Item>, whole: bool) -> Vec<Item> {
    if whole {
        return queue.drain(..).collect();
    }
    let mut size = 0;
    let mut part = Vec::new();
    while let Some(item) = queue.front() {
        size += 64 + item.name.len() + item.content.as_ref().map_or(0, |c| c.body.len());
        if size > RESPONSE && !part.is_empty() {
            break;
        }
        part.extend(queue.pop_front());
    }
    part
}

/// The version of a set of resources, in whatever order.
pub(crate) fn digest<'a>(resources: impl Iterator<Item = (&'a Arc<str>, u64)>) -> u64 {
    resources.fold(0, |sum, (name, version)| {
        sum.wrapping_add(xxh3_64_with_seed(name.as_bytes(), version))
    })
}
