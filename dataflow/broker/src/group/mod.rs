//! A consumer group by the classic protocol: members join, the leader assigns, all get their part.

mod join;
mod member;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use kafka_protocol::ResponseError;
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;

use self::join::refused;
pub(crate) use self::member::Member;

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Empty,
    /// Waits for its members to join.
    Joining,
    /// Waits for the leader's assignment.
    Assigning,
    Stable,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Joining => "PreparingRebalance",
            Self::Assigning => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// An answer now, or when the group has come so far.
pub(crate) enum Answer<T> {
    Now(T),
    Later(oneshot::Receiver<T>),
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    pub(crate) metadata: Option<String>,
}

/// Committed offsets by topic and partition.
pub(crate) type Offsets = HashMap<(String, i32), Committed>;

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) phase: Phase,
    pub(crate) generation: i32,
    pub(crate) kind: StrBytes,
    pub(crate) protocol: StrBytes,
    pub(crate) members: BTreeMap<StrBytes, Member>,
    pub(crate) offsets: Offsets,
    /// Offsets of open transactions by producer.
    pub(crate) pending: HashMap<i64, Offsets>,
    leader: StrBytes,
    /// Ids given to members that have to come again with them.
    expected: HashSet<StrBytes>,
    deadline: Instant,
    joined: u64,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            phase: Phase::Empty,
            generation: 0,
            kind: StrBytes::default(),
            protocol: StrBytes::default(),
            members: BTreeMap::new(),
            offsets: HashMap::new(),
            pending: HashMap::new(),
            leader: StrBytes::default(),
            expected: HashSet::new(),
            deadline: Instant::now(),
            joined: 0,
        }
    }
}

impl Group {
    fn static_member(&self, instance: Option<&StrBytes>) -> Option<StrBytes> {
        let instance = instance?;
        let member = self
            .members
            .values()
            .find(|member| member.instance.as_ref() == Some(instance))?;
        Some(member.id.clone())
    }

    /// Checks that a member speaks for itself and of now; it counts as a sign of life.
    pub(crate) fn check(
        &mut self,
        id: &StrBytes,
        instance: Option<&StrBytes>,
        generation: i32,
        now: Instant,
    ) -> Result<(), ResponseError> {
        let other = self
            .static_member(instance)
            .is_some_and(|known| known != *id);
        if other {
            return Err(ResponseError::FencedInstanceId);
        }
        let member = self
            .members
            .get_mut(id)
            .ok_or(ResponseError::UnknownMemberId)?;
        member.heard = now;
        if generation == self.generation {
            Ok(())
        } else {
            Err(ResponseError::IllegalGeneration)
        }
    }

    pub(crate) fn heartbeat(
        &mut self,
        id: &StrBytes,
        instance: Option<&StrBytes>,
        generation: i32,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.check(id, instance, generation, now)?;
        if self.phase == Phase::Joining {
            Err(ResponseError::RebalanceInProgress)
        } else {
            Ok(())
        }
    }

    /// Checks who commits: a member, or anybody while there are no members.
    pub(crate) fn may_commit(
        &mut self,
        id: &StrBytes,
        instance: Option<&StrBytes>,
        generation: i32,
        now: Instant,
    ) -> Result<(), ResponseError> {
        if generation < 0 && id.is_empty() {
            let free = self.members.is_empty();
            return if free {
                Ok(())
            } else {
                Err(ResponseError::UnknownMemberId)
            };
        }
        self.check(id, instance, generation, now)?;
        if self.phase == Phase::Assigning {
            Err(ResponseError::RebalanceInProgress)
        } else {
            Ok(())
        }
    }

    pub(crate) fn leave(
        &mut self,
        id: &StrBytes,
        instance: Option<&StrBytes>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        let id = if id.is_empty() {
            self.static_member(instance).unwrap_or_default()
        } else {
            id.clone()
        };
        if self.expected.remove(&id) {
            return Ok(());
        }
        let mut member = self
            .members
            .remove(&id)
            .ok_or(ResponseError::UnknownMemberId)?;
        if let Some(joining) = member.joining.take() {
            let _ = joining.send(refused(ResponseError::UnknownMemberId, &id));
        }
        self.rebalance(now);
        self.complete(now);
        Ok(())
    }

    /// Drops members not heard of and goes on without those that are late; returns when to look again.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Instant> {
        let before = self.members.len();
        self.members
            .retain(|_, member| member.waits() || member.expires() > now);
        if self.members.len() < before {
            self.rebalance(now);
        }
        self.complete(now);
        let quiet = self.members.values().filter(|member| !member.waits());
        let expires = quiet.map(Member::expires).min();
        let deadline = (self.phase == Phase::Joining).then_some(self.deadline);
        expires.into_iter().chain(deadline).min()
    }

    /// True if nothing would be lost with it.
    pub(crate) fn is_void(&self) -> bool {
        self.members.is_empty()
            && self.expected.is_empty()
            && self.offsets.is_empty()
            && self.pending.is_empty()
    }
}
