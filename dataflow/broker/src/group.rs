//! A consumer group by the classic protocol: members join, the leader assigns, all get their part.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{
    JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;

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

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: StrBytes,
    pub(crate) instance: Option<StrBytes>,
    pub(crate) client: StrBytes,
    pub(crate) protocols: Vec<(StrBytes, Bytes)>,
    pub(crate) assignment: Bytes,
    session: Duration,
    rebalance: Duration,
    heard: Instant,
    order: u64,
    joining: Option<oneshot::Sender<JoinGroupResponse>>,
    syncing: Option<oneshot::Sender<SyncGroupResponse>>,
}

impl Member {
    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self
            .protocols
            .iter()
            .find(|(name, _)| name.as_str() == protocol);
        found
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }

    fn waits(&self) -> bool {
        self.joining
            .as_ref()
            .is_some_and(|joining| !joining.is_closed())
            || self
                .syncing
                .as_ref()
                .is_some_and(|syncing| !syncing.is_closed())
    }

    fn expires(&self) -> Instant {
        self.heard + self.session
    }
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

fn refused(error: ResponseError, member: &StrBytes) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_member_id(member.clone())
        .with_generation_id(-1)
        .with_protocol_name(Some(StrBytes::default()))
        .with_protocol_type(Some(StrBytes::default()))
}

fn not_synced(error: ResponseError) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(error.code())
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
        let knows = |member: &Member, name: &StrBytes| {
            member.protocols.iter().any(|(known, _)| known == name)
        };
        let shared = |name: &StrBytes| self.members.values().all(|member| knows(member, name));
        self.kind == *kind && protocols.iter().any(|(name, _)| shared(name))
    }

    fn static_member(&self, instance: Option<&StrBytes>) -> Option<StrBytes> {
        let instance = instance?;
        let member = self
            .members
            .values()
            .find(|member| member.instance.as_ref() == Some(instance))?;
        Some(member.id.clone())
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
    fn rebalance(&mut self, now: Instant) {
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
    fn complete(&mut self, now: Instant) {
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
        let knows = |member: &Member, name: &StrBytes| {
            member.protocols.iter().any(|(known, _)| known == name)
        };
        let leader = self.members.get(&self.leader);
        let mut names = leader
            .into_iter()
            .flat_map(|leader| &leader.protocols)
            .map(|(name, _)| name);
        let shared = names.find(|name| self.members.values().all(|member| knows(member, name)));
        shared.cloned().unwrap_or_default()
    }

    pub(crate) fn sync(
        &mut self,
        request: &SyncGroupRequest,
        now: Instant,
    ) -> Answer<SyncGroupResponse> {
        let id = &request.member_id;
        if let Err(error) = self.check(
            id,
            request.group_instance_id.as_ref(),
            request.generation_id,
            now,
        ) {
            return Answer::Now(not_synced(error));
        }
        match self.phase {
            Phase::Empty => return Answer::Now(not_synced(ResponseError::UnknownMemberId)),
            Phase::Joining => return Answer::Now(not_synced(ResponseError::RebalanceInProgress)),
            Phase::Stable => return Answer::Now(self.assigned(id)),
            Phase::Assigning => {}
        }
        if *id != self.leader {
            let (sender, receiver) = oneshot::channel();
            if let Some(member) = self.members.get_mut(id) {
                member.syncing = Some(sender);
            }
            return Answer::Later(receiver);
        }
        for part in &request.assignments {
            if let Some(member) = self.members.get_mut(&part.member_id) {
                member.assignment = part.assignment.clone();
            }
        }
        self.phase = Phase::Stable;
        let ids: Vec<StrBytes> = self.members.keys().cloned().collect();
        for other in ids {
            let answer = self.assigned(&other);
            let Some(member) = self.members.get_mut(&other) else {
                continue;
            };
            if let Some(syncing) = member.syncing.take() {
                member.heard = now;
                let _ = syncing.send(answer);
            }
        }
        Answer::Now(self.assigned(id))
    }

    fn assigned(&self, id: &StrBytes) -> SyncGroupResponse {
        let assignment = self.members.get(id).map(|member| member.assignment.clone());
        SyncGroupResponse::default()
            .with_assignment(assignment.unwrap_or_default())
            .with_protocol_name(Some(self.protocol.clone()))
            .with_protocol_type(Some(self.kind.clone()))
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

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
    use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;

    use super::*;

    fn text(text: &str) -> StrBytes {
        StrBytes::from_string(text.to_owned())
    }

    fn request(id: &str) -> JoinGroupRequest {
        let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
        JoinGroupRequest::default()
            .with_member_id(text(id))
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol])
            .with_session_timeout_ms(1000)
            .with_rebalance_timeout_ms(2000)
    }

    fn enter(group: &mut Group, now: Instant) -> (StrBytes, oneshot::Receiver<JoinGroupResponse>) {
        let Answer::Now(first) = group.join(request(""), 5, &text("c"), now) else {
            panic!("an id first")
        };
        assert_eq!(first.error_code, ResponseError::MemberIdRequired.code());
        match group.join(request(&first.member_id), 5, &text("c"), now) {
            Answer::Later(answer) => (first.member_id, answer),
            Answer::Now(answer) => panic!("{answer:?}"),
        }
    }

    fn assign(
        group: &mut Group,
        id: &StrBytes,
        generation: i32,
        to: &[&StrBytes],
        now: Instant,
    ) -> Answer<SyncGroupResponse> {
        let part = |id: &&StrBytes| {
            SyncGroupRequestAssignment::default()
                .with_member_id((*id).clone())
                .with_assignment(Bytes::from_static(b"x"))
        };
        let request = SyncGroupRequest::default()
            .with_member_id(id.clone())
            .with_generation_id(generation)
            .with_assignments(to.iter().map(part).collect());
        group.sync(&request, now)
    }

    #[test]
    fn members_come_wait_for_each_other_and_are_dropped_when_silent() {
        let mut group = Group::default();
        let now = Instant::now();
        let (one, mut answer) = enter(&mut group, now);
        assert_eq!(answer.try_recv().unwrap().leader, one);
        assert!(matches!(
            assign(&mut group, &one, 1, &[&one], now),
            Answer::Now(_)
        ));
        assert_eq!(group.phase, Phase::Stable);

        let (two, mut second) = enter(&mut group, now);
        assert!(second.try_recv().is_err(), "the first has to join again");
        assert_eq!(
            group.heartbeat(&one, None, 1, now),
            Err(ResponseError::RebalanceInProgress)
        );
        let Answer::Later(mut again) = group.join(request(&one), 5, &text("c"), now) else {
            panic!()
        };
        assert_eq!(again.try_recv().unwrap().members.len(), 2);
        assert_eq!(second.try_recv().unwrap().generation_id, 2);
        let Answer::Later(mut part) = assign(&mut group, &two, 2, &[], now) else {
            panic!()
        };
        assert!(matches!(
            assign(&mut group, &one, 2, &[&one, &two], now),
            Answer::Now(_)
        ));
        assert_eq!(part.try_recv().unwrap().assignment, "x");

        let later = now + Duration::from_millis(900);
        group.heartbeat(&one, None, 2, later).unwrap();
        group.tick(now + Duration::from_millis(1500));
        assert_eq!(group.members.keys().collect::<Vec<_>>(), [&one]);
        assert_eq!(group.phase, Phase::Joining);
    }

    #[test]
    fn a_static_member_comes_back_to_what_it_had() {
        let mut group = Group::default();
        let now = Instant::now();
        let joining = || request("").with_group_instance_id(Some(text("i")));
        let Answer::Later(mut answer) = group.join(joining(), 5, &text("c"), now) else {
            panic!()
        };
        let old = answer.try_recv().unwrap().member_id;
        assign(&mut group, &old, 1, &[&old], now);
        let Answer::Now(back) = group.join(joining(), 5, &text("c"), now) else {
            panic!()
        };
        assert_eq!((back.error_code, back.generation_id), (0, 1));
        let Answer::Now(part) = assign(&mut group, &back.member_id, 1, &[], now) else {
            panic!()
        };
        assert_eq!(part.assignment, "x");
        let instance = text("i");
        assert_eq!(
            group.heartbeat(&old, Some(&instance), 1, now),
            Err(ResponseError::FencedInstanceId)
        );
    }
}
