use std::time::Instant;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

use super::{code, text};
use crate::connection::Session;
use crate::group::{Answer, Group, Member};
use crate::groups::{self, SEPARATOR};
use crate::node::Node;

pub(super) fn valid(group: &str) -> Result<(), ResponseError> {
    let fine = !group.is_empty() && !group.contains(SEPARATOR);
    if fine {
        Ok(())
    } else {
        Err(ResponseError::InvalidGroupId)
    }
}

pub(super) async fn join(
    node: &Node,
    session: &Session,
    request: JoinGroupRequest,
    version: i16,
) -> JoinGroupResponse {
    let refused = |error: ResponseError| {
        JoinGroupResponse::default()
            .with_error_code(error.code())
            .with_generation_id(-1)
            .with_protocol_name(Some(StrBytes::default()))
    };
    if let Err(error) = valid(&request.group_id) {
        return refused(error);
    }
    let answer = {
        let mut groups = node.groups.lock();
        let group = groups.entry(request.group_id.to_string()).or_default();
        group.join(request, version, &session.client, Instant::now())
    };
    node.deadlines.notify_one();
    match answer {
        Answer::Now(response) => response,
        Answer::Later(response) => response
            .await
            .unwrap_or_else(|_| refused(ResponseError::UnknownMemberId)),
    }
}

pub(super) async fn sync(node: &Node, request: &SyncGroupRequest) -> SyncGroupResponse {
    let refused = |error: ResponseError| SyncGroupResponse::default().with_error_code(error.code());
    let answer = {
        let mut groups = node.groups.lock();
        match groups.get_mut(request.group_id.as_str()) {
            Some(group) => group.sync(request, Instant::now()),
            None => Answer::Now(refused(ResponseError::UnknownMemberId)),
        }
    };
    match answer {
        Answer::Now(response) => response,
        Answer::Later(response) => response
            .await
            .unwrap_or_else(|_| refused(ResponseError::RebalanceInProgress)),
    }
}

pub(super) fn heartbeat(node: &Node, request: HeartbeatRequest) -> HeartbeatResponse {
    let mut groups = node.groups.lock();
    let group = groups
        .get_mut(request.group_id.as_str())
        .ok_or(ResponseError::UnknownMemberId);
    let instance = request.group_instance_id.as_ref();
    let done = group.and_then(|group| {
        group.heartbeat(
            &request.member_id,
            instance,
            request.generation_id,
            Instant::now(),
        )
    });
    HeartbeatResponse::default().with_error_code(code(&done))
}

pub(super) fn leave(node: &Node, request: LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
    let now = Instant::now();
    let mut groups = node.groups.lock();
    let mut one = |id: &StrBytes, instance: Option<&StrBytes>| {
        let group = groups
            .get_mut(request.group_id.as_str())
            .ok_or(ResponseError::UnknownMemberId);
        group.and_then(|group| group.leave(id, instance, now))
    };
    let mut response = LeaveGroupResponse::default();
    if version < 3 {
        response.error_code = code(&one(&request.member_id, None));
    } else {
        let member = |wanted: &leave_group_request::MemberIdentity| {
            let done = one(&wanted.member_id, wanted.group_instance_id.as_ref());
            MemberResponse::default()
                .with_error_code(code(&done))
                .with_member_id(wanted.member_id.clone())
                .with_group_instance_id(wanted.group_instance_id.clone())
        };
        response.members = request.members.iter().map(member).collect();
    }
    drop(groups);
    node.deadlines.notify_one();
    response
}

pub(super) fn describe(node: &Node, request: DescribeGroupsRequest) -> DescribeGroupsResponse {
    let groups = node.groups.lock();
    let group = |name: GroupId| {
        let described = match groups.get(name.as_str()) {
            Some(group) => described(group),
            None => DescribedGroup::default().with_group_state(text("Dead")),
        };
        described
            .with_group_id(name)
            .with_authorized_operations(i32::MIN)
    };
    DescribeGroupsResponse::default().with_groups(request.groups.into_iter().map(group).collect())
}

fn described(group: &Group) -> DescribedGroup {
    let member = |member: &Member| {
        DescribedGroupMember::default()
            .with_member_id(member.id.clone())
            .with_group_instance_id(member.instance.clone())
            .with_client_id(member.client.clone())
            .with_client_host(text("/127.0.0.1"))
            .with_member_metadata(member.metadata(&group.protocol))
            .with_member_assignment(member.assignment.clone())
    };
    DescribedGroup::default()
        .with_group_state(text(group.phase.name()))
        .with_protocol_type(group.kind.clone())
        .with_protocol_data(group.protocol.clone())
        .with_members(group.members.values().map(member).collect())
}

pub(super) fn list(node: &Node, request: ListGroupsRequest) -> ListGroupsResponse {
    let groups = node.groups.lock();
    let states = &request.states_filter;
    let wanted = |group: &Group| {
        states.is_empty()
            || states
                .iter()
                .any(|state| state.eq_ignore_ascii_case(group.phase.name()))
    };
    let listed = |(name, group): (&String, &Group)| {
        ListedGroup::default()
            .with_group_id(GroupId(text(name)))
            .with_protocol_type(group.kind.clone())
            .with_group_state(text(group.phase.name()))
    };
    let found = groups.iter().filter(|(_, group)| wanted(group)).map(listed);
    ListGroupsResponse::default().with_groups(found.collect())
}

pub(super) fn delete(node: &Node, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut groups = node.groups.lock();
    let mut one = |name: &str| {
        let group = groups.get(name).ok_or(ResponseError::GroupIdNotFound)?;
        if !group.members.is_empty() {
            return Err(ResponseError::NonEmptyGroup);
        }
        groups::forget_all(name, &node.journal).map_err(|_| ResponseError::KafkaStorageError)?;
        groups.remove(name);
        Ok(())
    };
    let group = |name: GroupId| {
        DeletableGroupResult::default()
            .with_error_code(code(&one(&name)))
            .with_group_id(name)
    };
    DeleteGroupsResponse::default()
        .with_results(request.groups_names.into_iter().map(group).collect())
}
