//! Answers that are what was asked: a wrong one is seen.
use seldon_proto::inference::{
    ModelInferRequest, ModelInferResponse, model_infer_response::InferOutputTensor,
};
use serde_json::{Value, json};

/// A request's inputs as outputs, `None` where it has none.
pub(crate) fn rest(model: &str, body: &[u8]) -> Option<String> {
    let mut request: Value = serde_json::from_slice(body).ok()?;
    let inputs = request.get_mut("inputs")?.take();
    let id = request.get("id").cloned().unwrap_or_default();
    Some(json!({"model_name": model, "id": id, "outputs": inputs}).to_string())
}

/// A request's inputs as outputs.
pub(crate) fn grpc(request: ModelInferRequest) -> ModelInferResponse {
    let output = |tensor: seldon_proto::inference::model_infer_request::InferInputTensor| {
        InferOutputTensor {
            name: tensor.name,
            datatype: tensor.datatype,
            shape: tensor.shape,
            parameters: tensor.parameters,
            contents: tensor.contents,
        }
    };
    ModelInferResponse {
        model_name: request.model_name,
        id: request.id,
        outputs: request.inputs.into_iter().map(output).collect(),
        raw_output_contents: request.raw_input_contents,
        ..Default::default()
    }
}
