use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse,
};

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
