//! The resources as they should be, by type and name.
use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Change, Generation, Node, Tailor};

/// What a resource holds and the hash that is its version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    pub(crate) version: u64,
    pub(crate) body: Bytes,
}

impl Content {
    pub(crate) fn new(body: Bytes) -> Self {
        Content {
            version: xxh3_64(&body),
            body,
        }
    }
}

/// The resources of one type.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) url: &'static str,
    pub(crate) resources: BTreeMap<Arc<str>, Content>,
}

/// All resources, in the order of types in which additions are sent.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) generation: Generation,
}

impl World {
    pub(crate) fn new(order: &[&'static str]) -> Self {
        let kind = |url: &&'static str| Kind {
            url,
            resources: BTreeMap::new(),
        };
        World {
            kinds: order.iter().map(kind).collect(),
            generation: 0,
        }
    }

    pub(crate) fn kind(&self, url: &str) -> Option<usize> {
        self.kinds.iter().position(|k| k.url == url)
    }

    /// Applies the changes; yields those that made a difference.
    pub(crate) fn apply(
        &mut self,
        generation: Generation,
        changes: Vec<Change>,
    ) -> Vec<(usize, Arc<str>)> {
        self.generation = self.generation.max(generation);
        changes.into_iter().filter_map(|c| self.change(c)).collect()
    }

    fn change(&mut self, change: Change) -> Option<(usize, Arc<str>)> {
        let url = match &change {
            Change::Put { type_url, .. } | Change::Remove { type_url, .. } => *type_url,
        };
        let Some(index) = self.kind(url) else {
            tracing::warn!(
                type_url = url,
                "ignored a change of a type that is not served"
            );
            return None;
        };
        let resources = &mut self.kinds[index].resources;
        match change {
            Change::Put { name, body, .. } => {
                let content = Content::new(body);
                match resources.get_mut(&name) {
                    Some(have) if have.version == content.version => return None,
                    Some(have) => *have = content,
                    None => {
                        resources.insert(name.clone(), content);
                    }
                }
                Some((index, name))
            }
            Change::Remove { name, .. } => resources.remove(&name).map(|_| (index, name)),
        }
    }
}

/// The world as one Envoy should see it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) world: &'a World,
    pub(crate) tailor: Option<&'a dyn Tailor>,
}

impl View<'_> {
    pub(crate) fn wanted(&self, node: &Node, kind: usize, name: &str) -> Option<Content> {
        let kind = &self.world.kinds[kind];
        let content = kind.resources.get(name)?;
        let tailored = self
            .tailor
            .and_then(|t| t.tailor(node, kind.url, name, &content.body));
        Some(tailored.map_or_else(|| content.clone(), Content::new))
    }

    /// The world's own copy of a name, so that streams share it.
    pub(crate) fn name(&self, kind: usize, name: &str) -> Arc<str> {
        let known = self.world.kinds[kind].resources.get_key_value(name);
        known.map_or_else(|| Arc::from(name), |(n, _)| n.clone())
    }
}
