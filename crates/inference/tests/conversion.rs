//! JSON, typed and raw forms of the same tensors.
use proptest::prelude::*;
use seldon_inference::*;
use seldon_proto::{
    inference::{
        InferTensorContents, ModelInferRequest, ModelInferResponse,
        model_infer_response::InferOutputTensor,
    },
    scheduler::{ModelReplicaStatus, ModelStatusResponse, ModelVersionStatus},
};
use serde_json::{Value, json};

fn request(datatype: &str, shape: &[i64], data: Value) -> Vec<u8> {
    json!({"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]})
        .to_string()
        .into_bytes()
}

fn there_and_back(datatype: &str, data: Value) -> Value {
    let count = i64::try_from(data.as_array().expect("a list").len()).expect("short");
    let mut message = request_from_json(&request(datatype, &[count], data)).expect("accepted");
    let typed = request_to_json(&message).expect("written")["inputs"][0]["data"].clone();
    pack_request(&mut message).expect("packed");
    assert!(message.inputs[0].contents.is_none());
    let raw = request_to_json(&message).expect("written")["inputs"][0]["data"].clone();
    assert_eq!(typed, raw);
    let packed = message.raw_input_contents.clone();
    unpack_request(&mut message).expect("unpacked");
    assert_eq!(message.raw_input_contents.is_empty(), datatype != "FP16");
    pack_request(&mut message).expect("packed again");
    assert_eq!(message.raw_input_contents, packed);
    typed
}

#[test]
fn all_thirteen_types_survive_at_their_limits() {
    for (datatype, data) in [
        ("BOOL", json!([true, false])),
        ("UINT8", json!([0, 255])),
        ("UINT16", json!([0, 65535])),
        ("UINT32", json!([0, u32::MAX])),
        ("UINT64", json!([0, u64::MAX, 9_007_199_254_740_993u64])),
        ("INT8", json!([-128, 127])),
        ("INT16", json!([-32768, 32767])),
        ("INT32", json!([i32::MIN, i32::MAX])),
        (
            "INT64",
            json!([i64::MIN, i64::MAX, 9_007_199_254_740_993i64]),
        ),
        ("FP16", json!([1.5, -65504.0, "NaN"])),
        ("FP32", json!([0.1, -3.4e38, "Infinity"])),
        ("FP64", json!([0.1, 1.797_693_134_862_315_7e308, 5e-324])),
    ] {
        assert_eq!(there_and_back(datatype, data.clone()), data, "{datatype}");
    }
    // Bytes are texts on the way in and base64 on the way out, unless the content type says text.
    assert_eq!(
        there_and_back("BYTES", json!(["a", ""])),
        json!(["YQ==", ""])
    );
}

#[test]
fn texts_stay_texts_where_the_content_type_says_so() {
    let body = json!({"id": "7", "parameters": {"a": 1, "b": null, "c": true}, "inputs": [{
        "name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"content_type": "str"}, "data": ["hé"]}],
        "outputs": [{"name": "y"}]});
    let message = request_from_json(body.to_string().as_bytes()).expect("accepted");
    let back = request_to_json(&message).expect("written");
    assert_eq!(
        back.to_string(),
        r#"{"id":"7","parameters":{"a":1,"c":true},"inputs":[{"data":["hé"],"name":"x","shape":[1],"datatype":"BYTES","parameters":{"content_type":"str"}}],"outputs":[{"name":"y"}]}"#
    );
}

#[test]
fn nested_data_is_flattened_and_counted() {
    let message =
        request_from_json(&request("FP32", &[1, 4], json!([[1, 2, 3, 4]]))).expect("accepted");
    assert_eq!(
        message.inputs[0]
            .contents
            .as_ref()
            .expect("typed")
            .fp32_contents,
        [1.0, 2.0, 3.0, 4.0]
    );
    for (body, text) in [
        (
            request("FP32", &[1, 4], json!([1])),
            "tensor \"x\": 1 elements, but the shape [1, 4] holds 4",
        ),
        (
            request("FP32", &[-1], json!([1])),
            "tensor \"x\": the shape [-1] has a negative dimension",
        ),
        (
            request("UINT8", &[2], json!([1, 256])),
            "tensor \"x\": element 1 is not UINT8: 256",
        ),
        (
            request("INT32", &[1], json!([1.5])),
            "tensor \"x\": element 0 is not INT32: 1.5",
        ),
        (
            request("INT64", &[1], json!(["1"])),
            "tensor \"x\": element 0 is not INT64: \"1\"",
        ),
        (
            request("FP32", &[1], json!([1e39])),
            "tensor \"x\": element 0 is not FP32: 1e+39",
        ),
        (
            request("FP32", &[1], json!(1)),
            "tensor \"x\": data is missing or not a list",
        ),
    ] {
        assert_eq!(
            request_from_json(&body).expect_err("refused").to_string(),
            text
        );
    }
    // The fields' values in their order are no message, and no tensor.
    for (text, wanted) in [
        ("[]", "invalid type: sequence, expected a JSON object"),
        (r#"["m","1","id",null,[]]"#, "expected a JSON object"),
        ("7", "invalid type: integer `7`, expected a JSON object"),
        ("null", "invalid type: null, expected a JSON object"),
        (
            r#"{"inputs":[["x","INT32",[1],null,[1]]]}"#,
            "expected a JSON object",
        ),
    ] {
        let error = request_from_json(text.as_bytes()).expect_err("refused");
        assert!(error.to_string().contains(wanted), "{text}: {error}");
        assert!(response_from_json(text.replace("inputs", "outputs").as_bytes()).is_err());
    }
    assert!(
        request_from_json(&request("INT", &[1], json!([1])))
            .expect_err("refused")
            .to_string()
            .contains("\"INT\"")
    );
}

#[test]
fn damaged_raw_contents_are_refused() {
    let response = |datatype: &str, raw: &[u8]| ModelInferResponse {
        outputs: vec![InferOutputTensor {
            name: "y".into(),
            datatype: datatype.into(),
            ..Default::default()
        }],
        raw_output_contents: vec![raw.to_vec().into()],
        ..Default::default()
    };
    for (datatype, raw) in [
        ("INT32", &[1, 2, 3][..]),
        ("BYTES", &[1, 0, 0]),
        ("BYTES", &[9, 0, 0, 0, 1]),
        ("BYTES", &[255; 4]),
    ] {
        let mut message = response(datatype, raw);
        assert!(unpack_response(&mut message).is_err(), "{datatype} {raw:?}");
        assert_eq!(message.raw_output_contents.len(), 1, "left as it was");
    }
    let mut two = response("INT8", &[1]);
    two.raw_output_contents.push(vec![1].into());
    assert_eq!(
        unpack_response(&mut two).expect_err("refused").to_string(),
        "2 raw contents for 1 tensors"
    );
}

#[test]
fn protojson_is_the_documented_one() {
    let text = r#"{"model_name":"iris","inputs":[{"name":"input","contents":{"fp32_contents":[1,2,3,4]},"datatype":"FP32","shape":[1,4]}]}"#;
    let message: ModelInferRequest = from_protojson(text).expect("documented");
    assert_eq!(message.inputs[0].shape, [1, 4]);
    let mut answer = ModelInferResponse {
        model_name: "iris_1".into(),
        model_version: "1".into(),
        outputs: vec![InferOutputTensor {
            name: "predict".into(),
            datatype: "INT64".into(),
            shape: vec![1, 1],
            ..Default::default()
        }],
        raw_output_contents: vec![2i64.to_le_bytes().to_vec().into()],
        ..Default::default()
    };
    unpack_response(&mut answer).expect("unpacked");
    assert_eq!(
        to_protojson(&answer).expect("written"),
        r#"{"modelName":"iris_1","modelVersion":"1","outputs":[{"name":"predict","datatype":"INT64","shape":["1","1"],"contents":{"int64Contents":["2"]}}]}"#
    );
    let error =
        from_protojson::<ModelInferRequest>(r#"{"inputs":[{"data":[1]}]}"#).expect_err("refused");
    assert!(error.to_string().contains("data"), "{error}");
}

#[test]
fn protojson_maps_are_sorted_by_number() {
    let status = ModelStatusResponse {
        model_name: "m".into(),
        versions: vec![ModelVersionStatus {
            version: 1,
            model_replica_state: (0..12)
                .map(|replica| (replica, ModelReplicaStatus::default()))
                .collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let text = to_protojson(&status).expect("written");
    assert!(text.contains(r#""9":{},"10":{},"11":{}"#), "{text}");
}

proptest! {
    #[test]
    fn integers_are_exact(signed: Vec<i64>, unsigned: Vec<u64>) {
        prop_assert_eq!(there_and_back("INT64", json!(signed)), json!(signed));
        prop_assert_eq!(there_and_back("UINT64", json!(unsigned)), json!(unsigned));
    }

    #[test]
    fn floats_are_exact(single: Vec<f32>, double: Vec<f64>) {
        let contents = InferTensorContents { fp32_contents: single.clone(), ..Default::default() };
        let text = json!({"outputs": [{"name": "x", "datatype": "FP32", "data": []}]}).to_string();
        let mut message = response_from_json(text.as_bytes()).expect("accepted");
        message.outputs[0].contents = Some(contents);
        message.outputs[0].shape = vec![i64::try_from(single.len()).expect("short")];
        let back = response_from_json(response_to_json(&message).expect("written").to_string().as_bytes());
        let contents = back.map(|mut back| back.outputs.remove(0).contents.unwrap_or_default());
        prop_assert_eq!(contents.map(|contents| contents.fp32_contents).ok(), Some(single));
        prop_assert_eq!(there_and_back("FP64", json!(double)), json!(double));
    }

    #[test]
    fn any_bytes_are_read_or_refused(text: Vec<u8>, datatype in 0usize..13, raw: Vec<u8>) {
        let _ = request_from_json(&text);
        let mut message = ModelInferResponse {
            outputs: vec![InferOutputTensor { datatype: Datatype::ALL[datatype].name().into(), ..Default::default() }],
            raw_output_contents: vec![raw.clone().into()],
            ..Default::default()
        };
        if unpack_response(&mut message).is_ok() && Datatype::ALL[datatype] != Datatype::Bool {
            pack_response(&mut message).expect("what was read can be written");
            prop_assert_eq!(&message.raw_output_contents[0][..], &raw[..]);
        }
    }
}
