//! What holds for the body of any REST request.
use bytes::Bytes;
use prost::Message as _;
use seldon_inference::{request_from_json, request_from_rest, request_to_json, response_to_rest};
use seldon_proto::inference::{
    ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor,
    model_infer_response::InferOutputTensor,
};
use serde_json::Value;

/// A JSON request that is read can be sent, written, and read again as the same.
pub fn json(body: &[u8]) {
    let Ok(request) = request_from_json(body) else {
        return;
    };
    let sent = ModelInferRequest::decode(&request.encode_to_vec()[..]).expect("it can be sent");
    let written = request_to_json(&sent)
        .expect("it can be written")
        .to_string();
    // BYTES are texts in requests and base64 in answers; a shape that was left out is written as none.
    let differs = |tensor: &InferInputTensor| tensor.datatype == "BYTES" || tensor.shape.is_empty();
    if request.inputs.iter().any(differs) {
        return;
    }
    let again = request_from_json(written.as_bytes()).expect("what was written can be read");
    assert_eq!(again.id, request.id);
    assert_eq!(again.parameters, request.parameters);
    assert_eq!(again.outputs, request.outputs);
    assert_eq!(again.raw_input_contents, request.raw_input_contents);
    assert_eq!(again.inputs.len(), request.inputs.len());
    for (one, other) in again.inputs.iter().zip(&request.inputs) {
        assert_eq!(
            (&one.name, &one.datatype, &one.shape),
            (&other.name, &other.datatype, &other.shape)
        );
        assert_eq!(one.parameters, other.parameters);
        // Bytes, since NaN does not equal itself.
        let contents = |tensor: &InferInputTensor| {
            tensor
                .contents
                .as_ref()
                .map(prost::Message::encode_to_vec)
                .unwrap_or_default()
        };
        assert_eq!(contents(one), contents(other), "{}", one.name);
    }
}

/// A request with tensors behind its JSON, whose length the first two bytes say, can be answered by its own tensors.
pub fn binary(bytes: &[u8]) {
    let Some((length, body)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let length = usize::from(u16::from_be_bytes(*length));
    let body = Bytes::copy_from_slice(body);
    let Ok((request, wanted)) = request_from_rest(&body, (length != 0xffff).then_some(length))
    else {
        return;
    };
    let outputs = request.inputs.into_iter().map(|tensor| InferOutputTensor {
        name: tensor.name,
        datatype: tensor.datatype,
        shape: tensor.shape,
        parameters: tensor.parameters,
        contents: tensor.contents,
    });
    let response = ModelInferResponse {
        id: request.id,
        parameters: request.parameters,
        outputs: outputs.collect(),
        raw_output_contents: request.raw_input_contents,
        ..Default::default()
    };
    let answer = response_to_rest(&response, &wanted).expect("its tensors can be answered");
    let length = answer.json_length.unwrap_or(answer.bytes.len());
    let json: Value = serde_json::from_slice(&answer.bytes[..length]).expect("JSON in front");
    let outputs = json["outputs"].as_array().expect("outputs");
    let sizes = outputs.iter().map(|output| {
        output["parameters"]["binary_data_size"]
            .as_u64()
            .unwrap_or(0)
    });
    if answer.json_length.is_some() {
        assert_eq!(sizes.sum::<u64>(), (answer.bytes.len() - length) as u64);
    }
}
