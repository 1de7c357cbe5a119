//! The leader assigns, and each member gets its part.

use std::time::Instant;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;

use super::{Answer, Group, Phase};

pub(super) fn not_synced(error: ResponseError) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(error.code())
}

impl Group {
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
}
