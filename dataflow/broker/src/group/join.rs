//! Members come, and all come together again when one does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;

use super::sync::not_synced;
use super::{Answer, Group, Member, Phase};

pub(super) fn refused(error: ResponseError, member: &StrBytes) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_member_id(member.clone())
        .with_generation_id(-1)
        .with_protocol_name(Some(StrBytes::default()))
        .with_protocol_type(Some(StrBytes::default()))
}

fn millis(ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// Distinct in this process, and from those of the one before.
fn new_id(start: &str) -> StrBytes {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    StrBytes::from_string(format!("{start}-{time:x}-{count:x}"))
}

impl Group {
    pub(crate) fn join(
        &mut self,
        request: JoinGroupRequest,
        version: i16,
        client: &StrBytes,
        now: Instant,
    ) -> Answer<JoinGroupResponse> {
        let instance = request.group_instance_id.clone();
        let mut id = request.member_id.clone();
        let protocols: Vec<(StrBytes, Bytes)> = request
            .protocols
            .into_iter()
            .map(|protocol| (protocol.name, protocol.metadata))
            .collect();
        if !self.fits(&request.protocol_type, &protocols) {
            return Answer::Now(refused(ResponseError::InconsistentGroupProtocol, &id));
        }
        if id.is_empty() {
            if let Some(old) = self.static_member(instance.as_ref()) {
                id = new_id(instance.as_deref().unwrap_or_default());
                if let Some(answer) = self.replace(&old, &id, &protocols, now) {
                    return Answer::Now(answer);
                }
            } else {
                id = new_id(instance.as_deref().unwrap_or(client));
                if version >= 4 && instance.is_none() {
                    self.expected.insert(id.clone());
                    return Answer::Now(refused(ResponseError::MemberIdRequired, &id));
                }
            }
        } else if !self.members.contains_key(&id) && !self.expected.contains(&id) {
            let replaced = self.static_member(instance.as_ref()).is_some();
            let error = if replaced {
                ResponseError::FencedInstanceId
            } else {
                ResponseError::UnknownMemberId
            };
            return Answer::Now(refused(error, &id));
        }
        self.expected.remove(&id);
        let session = millis(request.session_timeout_ms);
        let rebalance = if version >= 1 {
            millis(request.rebalance_timeout_ms)
        } else {
            session
        };
        if let Some(member) = self.members.get_mut(&id) {
            let same = member.protocols == protocols;
            member.protocols = protocols;
            member.heard = now;
            member.session = session;
            member.rebalance = rebalance;
            let settled = self.phase == Phase::Assigning
                || (self.phase == Phase::Stable && id != self.leader);
            if same && settled {
                return Answer::Now(self.joined(&id));
            }
        } else {
            self.joined += 1;
            self.kind = request.protocol_type;
            let member = Member {
                id: id.clone(),
                instance,
                client: client.clone(),
                protocols,
                assignment: Bytes::new(),
                session,
                rebalance,
                heard: now,
                order: self.joined,
                joining: None,
                syncing: None,
            };
            self.members.insert(id.clone(), member);
        }
        self.rebalance(now);
        let (sender, receiver) = oneshot::channel();
        if let Some(member) = self.members.get_mut(&id) {
            member.joining = Some(sender);
        }
        self.complete(now);
        Answer::Later(receiver)
    }

    /// A member must be of the group's kind and share a protocol with all others.
    fn fits(&self, kind: &StrBytes, protocols: &[(StrBytes, Bytes)]) -> bool {
        if self.members.is_empty() {
            return true;
        }
        let shared = |name: &StrBytes| self.members.values().all(|member| member.knows(name));
        self.kind == *kind && protocols.iter().any(|(name, _)| shared(name))
    }

    /// A static member is back under a new id; without change of its protocols nobody else notices.
    fn replace(
        &mut self,
        old: &StrBytes,
        id: &StrBytes,
        protocols: &[(StrBytes, Bytes)],
        now: Instant,
    ) -> Option<JoinGroupResponse> {
        let mut member = self.members.remove(old)?;
        if let Some(joining) = member.joining.take() {
            let _ = joining.send(refused(ResponseError::FencedInstanceId, old));
        }
        if let Some(syncing) = member.syncing.take() {
            let _ = syncing.send(not_synced(ResponseError::FencedInstanceId));
        }
        let same = member.protocols == protocols;
        member.id = id.clone();
        member.heard = now;
        self.members.insert(id.clone(), member);
        let led = self.leader == *old;
        if led {
            self.leader = id.clone();
        }
        if self.phase != Phase::Stable || !same {
            return None;
        }
        let mut answer = self.joined(id);
        // A leader that is back must not assign again: it is told that another one leads.
        answer.members.clear();
        if led {
            answer.leader = old.clone();
        }
        Some(answer)
    }

    fn joined(&self, id: &StrBytes) -> JoinGroupResponse {
        let mut answer = JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type(Some(self.kind.clone()))
            .with_protocol_name(Some(self.protocol.clone()))
            .with_leader(self.leader.clone())
            .with_member_id(id.clone());
        if *id == self.leader {
            let listed = |member: &Member| {
                JoinGroupResponseMember::default()
                    .with_member_id(member.id.clone())
                    .with_group_instance_id(member.instance.clone())
                    .with_metadata(member.metadata(&self.protocol))
            };
            answer.members = self.members.values().map(listed).collect();
        }
        answer
    }

    /// Asks all members to join again.
    pub(super) fn rebalance(&mut self, now: Instant) {
        if self.phase == Phase::Joining {
            return;
        }
        for member in self.members.values_mut() {
            if let Some(syncing) = member.syncing.take() {
                let _ = syncing.send(not_synced(ResponseError::RebalanceInProgress));
            }
        }
        self.phase = Phase::Joining;
        let longest = self.members.values().map(|member| member.rebalance).max();
        self.deadline = now + longest.unwrap_or_default();
    }

    /// Goes on once all have joined, or those that have not are too late.
    pub(super) fn complete(&mut self, now: Instant) {
        if self.phase != Phase::Joining {
            return;
        }
        if now >= self.deadline {
            self.members
                .retain(|_, member| member.joining.is_some() || member.instance.is_some());
            self.expected.clear();
        } else if self.members.values().any(|member| member.joining.is_none()) {
            return;
        }
        self.generation = self.generation.wrapping_add(1).max(1);
        let Some(first) = self.members.values().min_by_key(|member| member.order) else {
            self.phase = Phase::Empty;
            self.leader = StrBytes::default();
            return;
        };
        if !self.members.contains_key(&self.leader) {
            self.leader = first.id.clone();
        }
        self.protocol = self.chosen();
        self.phase = Phase::Assigning;
        // A leader that never assigns holds the group no longer than its session.
        let ids: Vec<StrBytes> = self.members.keys().cloned().collect();
        for id in ids {
            let answer = self.joined(&id);
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            member.heard = now;
            member.assignment = Bytes::new();
            if let Some(joining) = member.joining.take() {
                let _ = joining.send(answer);
            }
        }
    }

    /// The leader's first protocol that all know.
    fn chosen(&self) -> StrBytes {
        let leader = self.members.get(&self.leader);
        let mut names = leader
            .into_iter()
            .flat_map(|leader| &leader.protocols)
            .map(|(name, _)| name);
        let shared = names.find(|name| self.members.values().all(|member| member.knows(name)));
        shared.cloned().unwrap_or_default()
    }
}
