//! Whatever is written to a topic of a pipeline: no panic, no silence for its caller, nothing left.
#![allow(clippy::unwrap_used)]

mod world;

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;
use seldon_flow::{Flow, Input, Limits};
use seldon_records::{Record, header};
use world::{
    Spec, Step,
    models::{request, rows_request},
    names, update,
};

fn spec() -> Spec {
    let steps = vec![
        Step::new("one", &[]).batch(Some(2), Some(20)),
        Step::new("two", &["one.outputs.x"]),
        Step::new("last", &["one", "two"]).triggers(&["p.inputs.ok"]),
    ];
    let external = Step::new("", &["q.outputs", "q.step.s.inputs"]);
    Spec::new("p", steps, &["last"])
        .external(external)
        .cycles(2)
}

fn headers() -> impl Strategy<Value = (String, Vec<u8>)> {
    let names = [
        header::PIPELINE,
        header::PIPELINE_VERSION,
        header::ID,
        header::VISITS,
        header::REPEAT,
        header::DEADLINE,
        header::BATCH,
        header::ROUTE,
        header::ERROR,
        header::INFER_TYPE,
    ];
    let batch = |rows: u64| {
        format!(
            r#"[{{"key":"a","rows":{rows},"headers":[]}},{{"key":null,"rows":1,"headers":[["seldon-id","z"]]}}]"#
        )
    };
    let texts = prop_oneof![
        Just("p".to_owned()),
        Just("q".to_owned()),
        Just("1".to_owned()),
        Just("-9223372036854775808".to_owned()),
        Just("one=4294967295,two=1".to_owned()),
        prop_oneof![Just(1), Just(u64::MAX), 0..4_u64].prop_map(batch),
    ];
    let value = prop_oneof![
        texts.prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..20)
    ];
    (
        prop::sample::select(names.to_vec()).prop_map(str::to_owned),
        value,
    )
}

fn records() -> impl Strategy<Value = Record> {
    let names = names();
    let topics = vec![
        names.pipeline_inputs("p"),
        names.model_inputs("s"),
        names.model_outputs("one"),
        names.model_outputs("two"),
        names.pipeline_outputs("q"),
        names.errors(),
        "other".to_owned(),
    ];
    let good = [
        request(&[("x", "INT32", &[1]), ("ok", "FP32", &[1])]).encode_to_vec(),
        rows_request(&[("x", "INT32", &[1, 2])], 2).encode_to_vec(),
        br#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT32","data":[7]}]}"#.to_vec(),
    ];
    let value = prop_oneof![
        3 => prop::sample::select(good.to_vec()).prop_map(Some),
        1 => prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
    ];
    let headers = prop::collection::vec(headers(), 0..6);
    (
        prop::sample::select(topics),
        0..3_i32,
        any::<bool>(),
        value,
        headers,
        any::<bool>(),
    )
        .prop_map(|(topic, partition, keyed, value, headers, ours)| {
            let ours = ours.then(|| (header::PIPELINE.to_owned(), b"p".to_vec()));
            Record {
                topic: topic.into(),
                partition,
                offset: 0,
                key: keyed.then(|| "k".into()),
                value: value.map(Into::into),
                headers: ours.into_iter().chain(headers).collect(),
                timestamp_ms: 0,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn any_record_is_taken(records in prop::collection::vec((records(), any::<bool>(), 0..40_i64), 1..40)) {
        let mut flow = Flow::new("p", names(), Limits { records: 8, ..Limits::default() });
        flow.put(&update(&spec(), 1)).unwrap();
        let mut now_ms = 0;
        for (offset, (mut record, replayed, later)) in records.into_iter().enumerate() {
            now_ms += later;
            record.offset = offset as i64;
            let input = Arc::new(Input { record, replayed });
            for emit in flow.handle(input.clone(), now_ms) {
                prop_assert!(!emit.causes.is_empty());
                prop_assert_eq!(emit.record.headers.text(header::PIPELINE), Some("p"));
                prop_assert!(emit.record.headers.has(header::ID) || emit.record.headers.has(header::ERROR));
            }
        }
        for _ in 0..10 {
            now_ms += 200_000;
            flow.tick(now_ms);
        }
        prop_assert_eq!(flow.waiting(), 0);
    }
}
