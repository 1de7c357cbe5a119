//! Whatever bytes come, the broker answers or closes: it does not panic, and takes no memory for what is not there.
#![allow(clippy::unwrap_used)]

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Encodable, StrBytes};
use proptest::prelude::*;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn name() -> TopicName {
    TopicName(text("t"))
}

fn framed(key: ApiKey, version: i16, body: &impl Encodable) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_correlation_id(7)
        .with_client_id(Some(text("c")));
    header
        .encode(&mut bytes, key.request_header_version(version))
        .unwrap();
    body.encode(&mut bytes, version).unwrap();
    bytes.to_vec()
}

/// Requests that are valid, to be spoilt.
fn valid() -> Vec<Vec<u8>> {
    let produced = produce_request::PartitionProduceData::default()
        .with_records(Some(Bytes::from_static(&[0; 80])));
    let produce = ProduceRequest::default()
        .with_acks(-1)
        .with_topic_data(vec![
            produce_request::TopicProduceData::default()
                .with_name(name())
                .with_partition_data(vec![produced]),
        ]);
    let fetched = fetch_request::FetchPartition::default().with_partition_max_bytes(1000);
    let fetch = FetchRequest::default().with_topics(vec![
        fetch_request::FetchTopic::default()
            .with_topic(name())
            .with_partitions(vec![fetched]),
    ]);
    let protocol = join_group_request::JoinGroupRequestProtocol::default().with_name(text("range"));
    let join = JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_protocols(vec![protocol]);
    let create = CreateTopicsRequest::default().with_topics(vec![
        create_topics_request::CreatableTopic::default()
            .with_name(name())
            .with_num_partitions(3),
    ]);
    let begin = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(text("x"))))
        .with_transaction_timeout_ms(1000);
    vec![
        framed(ApiKey::Produce, 9, &produce),
        framed(ApiKey::Produce, 7, &produce),
        framed(ApiKey::Fetch, 12, &fetch),
        framed(ApiKey::Fetch, 4, &fetch),
        framed(ApiKey::JoinGroup, 7, &join),
        framed(ApiKey::JoinGroup, 4, &join),
        framed(ApiKey::CreateTopics, 6, &create),
        framed(ApiKey::CreateTopics, 4, &create),
        framed(ApiKey::InitProducerId, 4, &begin),
        framed(ApiKey::Metadata, 9, &MetadataRequest::default()),
        framed(ApiKey::Metadata, 1, &MetadataRequest::default()),
        framed(ApiKey::ApiVersions, 3, &ApiVersionsRequest::default()),
    ]
}

fn ask(request: Vec<u8>) -> Option<Bytes> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answers = runtime.block_on(seldon_broker::answer_each(vec![request.into()]));
    answers.into_iter().flatten().next()
}

#[test]
fn valid_requests_are_answered() {
    for request in valid() {
        let answered = ask(request.clone()).is_some();
        // The first of a group's members waits for no one; a fetch without time does not wait.
        assert!(answered, "API {} version {}", request[1], request[3]);
    }
}

#[test]
fn an_array_that_claims_two_billion_elements_is_refused() {
    let mut request = BytesMut::new();
    request.put_slice(&[0, 3, 0, 1, 0, 0, 0, 7, 0xff, 0xff]);
    request.put_i32(i32::MAX);
    assert_eq!(ask(request.to_vec()), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn random_bytes(key in 0u8..70, version in 0u8..14, rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut request = vec![0, key, 0, version, 0, 0, 0, 1, 0xff, 0xff];
        request.extend(rest);
        ask(request);
    }

    #[test]
    fn spoilt_requests(which in 0usize..12, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let mut request = valid().swap_remove(which);
        for (at, byte) in changes {
            let at = at.index(request.len());
            request[at] = byte;
        }
        if cut.index(4) == 0 {
            request.truncate(cut.index(request.len()));
        }
        ask(request);
    }
}

#[path = "../../../fuzz/checks/broker.rs"]
mod requests;
#[path = "../../../fuzz/checks/seeds.rs"]
mod seeds;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_corpus_is_replayed() {
    for seed in seeds::read(CRATE, "corpus", 10) {
        requests::requests(&seed);
    }
}

proptest! {
    #[test]
    fn damaged_conversations(bytes in seeds::damaged(seeds::read(CRATE, "corpus", 10))) {
        requests::requests(&bytes);
    }
}
