//! Records of producers that know nothing of us: each has a result or an error.
use prost::Message as _;
use seldon_proto::inference::{
    InferTensorContents, ModelInferResponse, model_infer_response::InferOutputTensor,
};
use seldon_proto::scheduler::model_status_response::ModelOperation;
use seldon_records::{Headers, Outgoing, header};

use crate::{Scene, headers, next, number, request};

const JSON: &str = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT32","data":[7]}]}"#;

/// What a model answered, as another would be asked with it.
fn response(value: i32) -> Vec<u8> {
    let tensor = InferOutputTensor {
        name: "x".into(),
        datatype: "INT32".into(),
        shape: vec![1],
        contents: Some(InferTensorContents {
            int_contents: vec![value],
            ..Default::default()
        }),
        ..Default::default()
    };
    let response = ModelInferResponse {
        outputs: vec![tensor],
        ..Default::default()
    };
    response.encode_to_vec()
}

/// As serializers with a schema registry do: a zero, the schema's number, the message's index.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0, 9, 0], message].concat()
}

async fn write(
    scene: &Scene,
    model: &str,
    headers: Headers,
    key: Option<&str>,
    value: Option<Vec<u8>>,
) {
    let record = Outgoing {
        topic: scene.names.model_inputs(model).into(),
        partition: None,
        key: key.map(|key| key.to_owned().into()),
        value: value.map(Into::into),
        headers,
    };
    scene.producer.send(record).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_is_answered() {
    let mut scene = Scene::new().await;
    let gateway = scene.gateway();
    for model in ["double", "json"] {
        scene.order(model, ModelOperation::ModelCreate).await;
    }
    let results = scene.reader(&scene.names.model_outputs("double"));
    let of_type = |text: &str| headers(&[(header::INFER_TYPE, text)]);
    let none = Headers::new;
    for (key, sent, value) in [
        (None, none(), request(21)),
        (Some("key"), none(), framed(&request(21))),
        (Some("key"), none(), response(21)),
        (None, of_type("proto/InferModelRequest"), request(21)),
        (None, of_type("PROTO/inferModelResponse"), response(21)),
        (None, headers(&[("other", "\u{1}")]), request(21)),
    ] {
        let what = format!("{key:?} {sent:?}");
        write(&scene, "double", sent.clone(), key, Some(value)).await;
        let result = next(&results).await;
        assert_eq!(number(&result), 42, "{what}");
        assert_eq!(result.key.as_deref(), key.map(str::as_bytes), "{what}");
        // Who says how a value is encoded is told it of the answer, too.
        let declared = sent.has(header::INFER_TYPE);
        let encoding = result.headers.text(header::INFER_TYPE);
        assert_eq!(encoding, declared.then_some("proto/InferModelResponse"));
    }

    let results = scene.reader(&scene.names.model_outputs("json"));
    for sent in [none(), of_type("json/inferModelRequest")] {
        write(&scene, "json", sent.clone(), None, Some(JSON.into())).await;
        let result = next(&results).await;
        let answer: serde_json::Value = serde_json::from_slice(&result.value.unwrap()).unwrap();
        assert_eq!(answer["outputs"][0]["data"][0], 7);
        let declared = sent.has(header::INFER_TYPE);
        let encoding = result.headers.text(header::INFER_TYPE);
        assert_eq!(encoding, declared.then_some("json/inferModelResponse"));
    }

    let errors = scene.reader(&scene.names.errors());
    for (sent, value) in [
        (none(), None),
        (none(), Some(b"{\"inputs\": 7}".to_vec())),
        (none(), Some(b"\xff\xff\xff".to_vec())),
        (none(), Some(framed(b"\xff\xff"))),
        (of_type("avro"), Some(request(1))),
        (of_type("json/inferModelRequest"), Some(request(1))),
        (
            headers(&[(header::DEADLINE, "yesterday")]),
            Some(b"no".to_vec()),
        ),
    ] {
        let what = format!("{sent:?} {value:?}");
        write(&scene, "double", sent, Some("bad"), value).await;
        let error = next(&errors).await;
        assert_eq!(error.key.as_deref(), Some(&b"bad"[..]), "{what}");
        assert_eq!(error.headers.text(header::ERROR), Some("double"), "{what}");
        assert_eq!(error.headers.text(header::STATUS), Some("400"), "{what}");
        assert!(!error.value.unwrap().is_empty(), "{what}");
    }
    gateway.stop().await;
}
