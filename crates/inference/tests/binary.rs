//! Binary tensors of REST, and the JSON that is written without a tree.
use bytes::Bytes;
use proptest::prelude::*;
use seldon_inference::*;
use seldon_proto::inference::{
    InferTensorContents, ModelInferResponse, model_infer_response::InferOutputTensor,
};
use serde_json::{Value, json};

fn body(json: &Value, binary: &[u8]) -> (Bytes, Option<usize>) {
    let text = json.to_string();
    let length = text.len();
    ([text.as_bytes(), binary].concat().into(), Some(length))
}

#[test]
fn binary_and_json_tensors_mix() {
    let json = json!({"id": "7", "parameters": {"binary_data_output": true, "a": 1}, "inputs": [
        {"name": "x", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}},
        {"name": "y", "datatype": "INT32", "shape": [1], "data": [[5]]},
        {"name": "z", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6, "content_type": "str"}},
    ], "outputs": [{"name": "a", "parameters": {"binary_data": false}}, {"name": "b"}]});
    let (bytes, length) = body(&json, &[1, 0, 2, 0, 2, 0, 0, 0, b'h', b'i']);
    let (request, wanted) = request_from_rest(&bytes, length).expect("accepted");
    let raw: Vec<&[u8]> = request
        .raw_input_contents
        .iter()
        .map(AsRef::as_ref)
        .collect();
    assert_eq!(raw, [&[1, 0, 2, 0][..], &[5, 0, 0, 0], b"\x02\0\0\0hi"]);
    assert!(
        request
            .inputs
            .iter()
            .all(|tensor| tensor.contents.is_none())
    );
    assert!(request.inputs[0].parameters.is_empty() && request.inputs[2].parameters.len() == 1);
    assert!(!request.parameters.contains_key("binary_data_output"));
    assert!(request.outputs[0].parameters.is_empty());
    assert_eq!((wanted.binary("a"), wanted.binary("b")), (false, true));
}

#[test]
fn wrong_lengths_are_refused_by_name() {
    let tensor = |size: Value, shape: i64| json!({"inputs": [{"name": "x", "datatype": "INT16", "shape": [shape], "parameters": {"binary_data_size": size}}]});
    for (json, binary, text) in [
        (
            tensor(json!(4), 2),
            &[0; 2][..],
            "tensor \"x\" has 4 bytes, but 2 are left",
        ),
        (tensor(json!(4), 2), &[0; 6], "2 bytes belong to no tensor"),
        (
            tensor(json!(4), 3),
            &[0; 4],
            "2 elements, but the shape [3] holds 3",
        ),
        (
            tensor(json!(3), 1),
            &[0; 3],
            "3 raw bytes are not a whole number of INT16 elements",
        ),
        (
            tensor(json!("4"), 2),
            &[0; 4],
            "binary_data_size of tensor \"x\" is not a length",
        ),
        (
            json!({"parameters": {"binary_data_output": 1}}),
            &[],
            "must be true or false",
        ),
    ] {
        let (bytes, length) = body(&json, binary);
        let error = request_from_rest(&bytes, length)
            .expect_err("refused")
            .to_string();
        assert!(error.contains(text), "{error}");
    }
    let error = request_from_rest(&Bytes::from_static(b"{}"), Some(3)).expect_err("refused");
    assert!(error.to_string().contains("3 bytes of JSON"), "{error}");
}

fn output(datatype: &str, contents: InferTensorContents) -> InferOutputTensor {
    InferOutputTensor {
        name: datatype.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![2],
        parameters: Default::default(),
        contents: Some(contents),
    }
}

fn written(response: &ModelInferResponse) -> Value {
    let body = response_to_rest(response, &Wanted::default()).expect("written");
    assert_eq!(body.json_length, None);
    serde_json::from_slice(&body.bytes).expect("JSON")
}

#[test]
fn outputs_are_binary_where_wanted_and_keys_have_their_order() {
    let contents = InferTensorContents {
        int_contents: vec![1, -1],
        ..Default::default()
    };
    let mut response = ModelInferResponse {
        outputs: vec![output("INT8", contents.clone()), output("INT32", contents)],
        ..Default::default()
    };
    response.outputs[0].parameters = Default::default();
    let asked =
        json!({"inputs": [], "outputs": [{"name": "INT8", "parameters": {"binary_data": true}}]});
    let (_, wanted) = request_from_rest(&asked.to_string().into(), None).expect("accepted");
    for _ in 0..2 {
        let body = response_to_rest(&response, &wanted).expect("written");
        let (text, binary) = body.bytes.split_at(body.json_length.expect("binary"));
        assert_eq!(
            std::str::from_utf8(text).expect("text"),
            r#"{"model_name":"","outputs":[{"name":"INT8","shape":[2],"datatype":"INT8","parameters":{"binary_data_size":2}},{"data":[1,-1],"name":"INT32","shape":[2],"datatype":"INT32"}]}"#
        );
        assert_eq!(binary, [1, 255]);
        pack_response(&mut response).expect("packed");
    }
}

/// Of two shortest spellings of one single either will do: numbers as singles.
fn rounded(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(rounded).collect(),
        Value::Object(fields) => fields.into_iter().map(|(k, v)| (k, rounded(v))).collect(),
        Value::Number(number) if number.is_f64() => json!(number.as_f64().map(|n| n as f32)),
        other => other,
    }
}

fn same(response: &ModelInferResponse) {
    let (quick, tree) = (
        written(response),
        response_to_json(response).expect("written"),
    );
    assert_eq!(
        quick["outputs"][7], tree["outputs"][7],
        "doubles to the last digit"
    );
    assert_eq!(rounded(quick), rounded(tree));
}

proptest! {
    #[test]
    fn the_quick_writer_writes_the_same(
        ints: Vec<i32>, longs: Vec<i64>, words: Vec<u64>, singles: Vec<f32>, doubles: Vec<f64>,
        bytes: Vec<Vec<u8>>, flags: Vec<bool>, id: String,
    ) {
        let mut response = ModelInferResponse { id, model_name: "m".into(), ..Default::default() };
        let singles: Vec<f32> = singles.into_iter().chain([f32::NAN, f32::INFINITY, 1e20, 0.1]).collect();
        let all = InferTensorContents {
            bool_contents: flags, int_contents: ints, int64_contents: longs, uint_contents: vec![0, 1],
            uint64_contents: words, fp32_contents: singles, fp64_contents: doubles, bytes_contents: bytes,
        };
        for datatype in ["BOOL", "UINT16", "UINT64", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"] {
            response.outputs.push(output(datatype, all.clone()));
        }
        same(&response);
        pack_response(&mut response).expect("packed");
        same(&response);
    }

    #[test]
    fn any_body_is_read_or_refused(text: Vec<u8>, length in proptest::option::of(0usize..64)) {
        let _ = request_from_rest(&text.into(), length);
    }
}
