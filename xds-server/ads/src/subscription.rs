//! What a client wants of one type.
use std::{collections::BTreeSet, sync::Arc};

pub(crate) const WILDCARD: &str = "*";

/// Names, or everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Subscription {
    pub(crate) wildcard: bool,
    pub(crate) names: BTreeSet<Arc<str>>,
    /// State of the world: the client has named something, so that no names now mean nothing at all.
    pub(crate) explicit: bool,
}

impl Subscription {
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}
