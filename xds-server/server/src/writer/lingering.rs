//! Clusters that no route names any more.
//!
//! A request that Envoy has sent by one of them may have to be sent again, to another replica of the same cluster. Without
//! the cluster there is none, and the request fails with a healthy replica beside it. So clusters go a while after the
//! routes; one that is wanted again meanwhile was never away.
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use seldon_ads::Change;
use tokio::time::Instant;

use crate::resources::names::types;

/// Longer than it takes an agent to give up a request whose inference server is away, and Envoy to send it again.
const SPAN: Duration = Duration::from_secs(10);

type Key = (&'static str, Arc<str>);

/// Removals that are put off.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    /// The oldest first; what was wanted again is among them still.
    queue: VecDeque<(Instant, Key)>,
    due: HashMap<Key, Instant>,
}

impl Lingering {
    /// Takes out what is not to be carried out yet.
    pub(super) fn hold_back(&mut self, changes: &mut Vec<Change>, now: Instant) {
        changes.retain(|change| match change {
            Change::Put { type_url, name, .. } => {
                self.due.remove(&(*type_url, name.clone()));
                true
            }
            Change::Remove { type_url, name } => {
                let lingers = matches!(*type_url, types::CLUSTER | types::ENDPOINTS);
                if lingers {
                    let key = (*type_url, name.clone());
                    self.due.insert(key.clone(), now + SPAN);
                    self.queue.push_back((now + SPAN, key));
                }
                !lingers
            }
        });
    }

    /// What is to be carried out by now.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((at, key)) = self.queue.pop_front_if(|(at, _)| *at <= now) {
            if self.due.get(&key) == Some(&at) {
                self.due.remove(&key);
                let (type_url, name) = key;
                changes.push(Change::Remove { type_url, name });
            }
        }
        changes
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(type_url: &'static str, name: &str) -> Change {
        Change::Put {
            type_url,
            name: name.into(),
            body: Default::default(),
        }
    }

    fn remove(type_url: &'static str, name: &str) -> Change {
        Change::Remove {
            type_url,
            name: name.into(),
        }
    }

    #[test]
    fn a_cluster_goes_after_the_routes_unless_it_is_wanted_again() {
        let mut lingering = Lingering::default();
        let begin = Instant::now();
        let at_once = [put(types::CLUSTER, "a_0"), remove(types::SCOPE, "c:iris")];
        let mut changes = at_once.to_vec();
        changes.push(remove(types::ENDPOINTS, "a_0-1"));
        changes.push(remove(types::CLUSTER, "a_0-1"));
        changes.push(remove(types::CLUSTER, "a_1"));
        lingering.hold_back(&mut changes, begin);
        assert_eq!(changes, at_once);

        // Wanted again, and given up again later.
        let second = begin + SPAN / 2;
        lingering.hold_back(&mut vec![put(types::CLUSTER, "a_1")], second);
        lingering.hold_back(&mut vec![remove(types::CLUSTER, "a_1")], second);
        assert_eq!(lingering.deadline(), Some(begin + SPAN));
        assert_eq!(lingering.take(second), []);
        assert_eq!(
            lingering.take(begin + SPAN),
            [
                remove(types::ENDPOINTS, "a_0-1"),
                remove(types::CLUSTER, "a_0-1")
            ]
        );
        assert_eq!(
            lingering.take(second + SPAN),
            [remove(types::CLUSTER, "a_1")]
        );
        assert_eq!(lingering.deadline(), None);
    }
}
