//! The documented models, as far as a pipeline sees them.
use seldon_inference::{pack_response, unpack_request};
use seldon_proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse,
    model_infer_request::InferInputTensor, model_infer_response::InferOutputTensor,
};

use super::Model;

/// A request of tensors: names, types, numbers; one row each.
pub fn request(tensors: &[(&str, &str, &[i32])]) -> ModelInferRequest {
    rows_request(tensors, 1)
}

/// The same with as many rows.
pub fn rows_request(tensors: &[(&str, &str, &[i32])], rows: usize) -> ModelInferRequest {
    let inputs = tensors
        .iter()
        .map(|(name, datatype, numbers)| InferInputTensor {
            name: (*name).to_owned(),
            datatype: (*datatype).to_owned(),
            shape: vec![rows as i64, (numbers.len() / rows) as i64],
            contents: Some(contents(datatype, numbers)),
            ..Default::default()
        });
    ModelInferRequest {
        inputs: inputs.collect(),
        ..Default::default()
    }
}

fn contents(datatype: &str, numbers: &[i32]) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    match datatype {
        "INT32" => contents.int_contents = numbers.to_vec(),
        "FP32" => contents.fp32_contents = numbers.iter().map(|number| *number as f32).collect(),
        "BYTES" => contents.bytes_contents = numbers.iter().map(|_| Vec::new()).collect(),
        other => panic!("{other}"),
    }
    contents
}

/// The numbers of a tensor, raw or typed.
pub fn values(request: &ModelInferRequest, name: &str) -> Vec<i32> {
    let mut request = request.clone();
    unpack_request(&mut request).unwrap();
    let tensor = request.inputs.iter().find(|tensor| tensor.name == name);
    tensor.map(numbers).unwrap_or_default()
}

/// The numbers of a typed tensor.
pub fn numbers(tensor: &InferInputTensor) -> Vec<i32> {
    let contents = tensor.contents.clone().unwrap_or_default();
    let floats = contents.fp32_contents.iter().map(|number| *number as i32);
    contents
        .int_contents
        .iter()
        .copied()
        .chain(floats)
        .collect()
}

fn output(name: &str, like: &ModelInferRequest, of: &str, numbers: &[i32]) -> InferOutputTensor {
    let tensor = like.inputs.iter().find(|tensor| tensor.name == of).unwrap();
    InferOutputTensor {
        name: name.to_owned(),
        datatype: tensor.datatype.clone(),
        shape: tensor.shape.clone(),
        contents: Some(contents(&tensor.datatype, numbers)),
        ..Default::default()
    }
}

/// As Triton answers: raw.
fn raw(outputs: Vec<InferOutputTensor>) -> Result<ModelInferResponse, String> {
    let mut response = ModelInferResponse {
        outputs,
        ..Default::default()
    };
    pack_response(&mut response).unwrap();
    Ok(response)
}

fn has(request: &ModelInferRequest, name: &str) -> Result<(), String> {
    let found = request.inputs.iter().any(|tensor| tensor.name == name);
    found
        .then_some(())
        .ok_or_else(|| format!("no input {name}"))
}

/// Sum and difference.
pub const SIMPLE: Model = |request| {
    has(request, "INPUT0")?;
    has(request, "INPUT1")?;
    let (one, two) = (values(request, "INPUT0"), values(request, "INPUT1"));
    let sums: Vec<i32> = one.iter().zip(&two).map(|(one, two)| one + two).collect();
    let differences: Vec<i32> = one.iter().zip(&two).map(|(one, two)| one - two).collect();
    raw(vec![
        output("OUTPUT0", request, "INPUT0", &sums),
        output("OUTPUT1", request, "INPUT0", &differences),
    ])
};

pub const ADD10: Model = |request| {
    has(request, "INPUT")?;
    let numbers: Vec<i32> = values(request, "INPUT")
        .iter()
        .map(|number| number + 10)
        .collect();
    raw(vec![output("OUTPUT", request, "INPUT", &numbers)])
};

pub const MUL10: Model = |request| {
    has(request, "INPUT")?;
    let numbers: Vec<i32> = values(request, "INPUT")
        .iter()
        .map(|number| number * 10)
        .collect();
    raw(vec![output("OUTPUT", request, "INPUT", &numbers)])
};

/// CHOICE 0: INPUT0 as OUTPUT0 only, else INPUT1 as OUTPUT1 only.
pub const CONDITIONAL: Model = |request| {
    let choice = values(request, "CHOICE");
    let (from, to) = if choice == [0] {
        ("INPUT0", "OUTPUT0")
    } else {
        ("INPUT1", "OUTPUT1")
    };
    raw(vec![output(to, request, from, &values(request, from))])
};

/// OUTPUT if the first number is positive, else an answer without tensors.
pub const CHECK: Model = |request| {
    let numbers = values(request, "INPUT");
    let outputs = if numbers[0] > 0 {
        vec![output("OUTPUT", request, "INPUT", &numbers)]
    } else {
        Vec::new()
    };
    Ok(ModelInferResponse {
        outputs,
        ..Default::default()
    })
};

pub const FAILING: Model = |_| Err("this is an outlier".to_owned());

/// Counts to 10: `output`, and `continue` or `stop`, typed.
pub const COUNTER: Model = |request| {
    let first = &request.inputs[0].name.clone();
    let number = values(request, first)[0] + 1;
    let mut message = output(
        if number < 10 { "continue" } else { "stop" },
        request,
        first,
        &[0],
    );
    message.datatype = "BYTES".to_owned();
    message.contents = Some(contents("BYTES", &[0]));
    let outputs = vec![output("output", request, first, &[number]), message];
    Ok(ModelInferResponse {
        outputs,
        ..Default::default()
    })
};

pub const IDENTITY: Model = |request| {
    let request = request.clone();
    Ok(seldon_records::Contents::Request(request).into_response())
};

/// Loses or makes rows.
pub const LOSING: Model = |request| {
    let mut other = request.clone();
    other.inputs[0].shape = vec![3, 1];
    other.inputs[0].contents = Some(contents("INT32", &[7, 8, 9]));
    IDENTITY(&other)
};

/// Says one thing about all rows, as a drift detector does.
pub const SUMMARY: Model = |request| {
    let mut one = request.clone();
    one.inputs[0].shape = vec![1, 1];
    one.inputs[0].contents = Some(contents("INT32", &[7]));
    IDENTITY(&one)
};
