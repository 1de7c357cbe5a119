//! Tensors of every datatype and size come back as they went.
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use seldon_e2e::{Ask, Case, Loaded, Running, Spec};
use seldon_proto::inference as pb;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const CASES: &[Case] = &[
    ("tensors::every_datatype_as_json", as_json),
    ("tensors::every_datatype_as_raw_bytes", as_raw),
    ("tensors::sixty_four_megabytes", large),
];

fn as_json(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::echo("echo-json"))?;
    let tensors = json!([
        {"name": "bool", "shape": [2], "datatype": "BOOL", "data": [true, false]},
        {"name": "u8", "shape": [2], "datatype": "UINT8", "data": [0, 255]},
        {"name": "u16", "shape": [1], "datatype": "UINT16", "data": [65535]},
        {"name": "u32", "shape": [1], "datatype": "UINT32", "data": [4294967295u32]},
        {"name": "u64", "shape": [1], "datatype": "UINT64", "data": [18446744073709551615u64]},
        {"name": "i8", "shape": [1], "datatype": "INT8", "data": [-128]},
        {"name": "i16", "shape": [1], "datatype": "INT16", "data": [-32768]},
        {"name": "i32", "shape": [1], "datatype": "INT32", "data": [-2147483648]},
        {"name": "i64", "shape": [2], "datatype": "INT64", "data": [-9223372036854775808i64, 9007199254740993i64]},
        {"name": "f16", "shape": [1], "datatype": "FP16", "data": [0.5]},
        {"name": "f32", "shape": [2, 1], "datatype": "FP32", "data": [1.5, -0.25]},
        {"name": "f64", "shape": [1], "datatype": "FP64", "data": [0.1]},
        {"name": "bytes", "shape": [2], "datatype": "BYTES", "data": ["ünïcode", ""]},
    ]);
    let request = json!({"id": "all", "inputs": tensors}).to_string();
    let answer = Ask::post("/v2/models/echo-json/infer", request)
        .send(running.data())?
        .ok()?;
    for (sent, got) in tensors
        .as_array()
        .into_iter()
        .flatten()
        .zip(answer["outputs"].as_array().context("no outputs")?)
    {
        for key in ["name", "shape", "datatype", "data"] {
            ensure!(
                sent[key] == got[key],
                "{}: {} became {}",
                sent["name"],
                sent[key],
                got[key]
            );
        }
    }
    Ok(())
}

/// Raw little-endian contents of each datatype that the inference server takes over gRPC.
fn raw() -> Vec<(&'static str, Vec<i64>, Vec<u8>)> {
    vec![
        ("BOOL", vec![2], vec![1, 0]),
        ("UINT8", vec![2], vec![0, 255]),
        ("UINT16", vec![1], vec![255, 255]),
        ("UINT32", vec![1], vec![255; 4]),
        ("UINT64", vec![1], vec![255; 8]),
        ("INT8", vec![1], vec![128]),
        ("INT16", vec![1], vec![0, 128]),
        ("INT32", vec![1], vec![0, 0, 0, 128]),
        (
            "INT64",
            vec![1],
            9_007_199_254_740_993_i64.to_le_bytes().to_vec(),
        ),
        (
            "FP32",
            vec![2, 1],
            [1.5_f32, -0.25].map(f32::to_le_bytes).concat(),
        ),
        ("FP64", vec![1], 0.1_f64.to_le_bytes().to_vec()),
        ("BYTES", vec![1], vec![3, 0, 0, 0, b'a', b'b', b'c']),
    ]
}

fn as_raw(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::echo("echo-raw"))?;
    let all = raw();
    let inputs = all.iter().enumerate().map(|(index, (datatype, shape, _))| {
        pb::model_infer_request::InferInputTensor {
            name: format!("t{index}"),
            datatype: (*datatype).to_owned(),
            shape: shape.clone(),
            ..Default::default()
        }
    });
    let request = pb::ModelInferRequest {
        model_name: "echo-raw".into(),
        inputs: inputs.collect(),
        raw_input_contents: all
            .iter()
            .map(|(_, _, bytes)| Bytes::from(bytes.clone()))
            .collect(),
        ..Default::default()
    };
    let answer = running
        .block_on(running.inference().model_infer(request))?
        .into_inner();
    ensure!(answer.outputs.len() == all.len(), "{answer:?}");
    for (index, (datatype, shape, bytes)) in all.iter().enumerate() {
        let output = &answer.outputs[index];
        ensure!(
            output.datatype == *datatype && output.shape == *shape,
            "{output:?}"
        );
        let raw = answer
            .raw_output_contents
            .get(index)
            .with_context(|| format!("{datatype} came back in typed form: {output:?}"))?;
        ensure!(raw == bytes, "{datatype}: {bytes:?} became {raw:?}");
    }
    Ok(())
}

const LARGE: usize = 64 << 20;

fn large(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::echo("echo-large"))?;
    // Letters that no compression or repetition would hide a gap in.
    let text: String = (0..LARGE as u64)
        .map(|n| char::from(b'a' + (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59) as u8 % 26))
        .collect();
    let digest = Sha256::digest(&text);
    let request = format!(
        r#"{{"inputs": [{{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["{text}"]}}]}}"#
    );
    let answer = Ask::post("/v2/models/echo-large/infer", request).send(running.data())?;
    ensure!(
        answer.status == 200,
        "REST: {} {}",
        answer.status,
        answer.text().chars().take(300).collect::<String>()
    );
    let Value::String(back) = &answer.json()?["outputs"][0]["data"][0] else {
        anyhow::bail!("no text came back")
    };
    ensure!(
        back.len() == LARGE && Sha256::digest(back) == digest,
        "REST: {} bytes came back, or others",
        back.len()
    );

    let tensor = pb::model_infer_request::InferInputTensor {
        name: "t".into(),
        datatype: "BYTES".into(),
        shape: vec![1],
        contents: Some(pb::InferTensorContents {
            bytes_contents: vec![text.into_bytes()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = pb::ModelInferRequest {
        model_name: "echo-large".into(),
        inputs: vec![tensor],
        ..Default::default()
    };
    ensure!(request.encoded_len() > LARGE, "too small a message");
    let mut request = tonic::Request::new(request);
    request
        .metadata_mut()
        .insert("seldon-model", "echo-large".parse()?);
    let answer = running
        .block_on(running.inference().model_infer(request))?
        .into_inner();
    let back = answer
        .outputs
        .first()
        .and_then(|output| output.contents.as_ref()?.bytes_contents.first());
    let back = back.context("gRPC: no bytes came back")?;
    ensure!(
        back.len() == LARGE && Sha256::digest(back) == digest,
        "gRPC: {} bytes came back, or others",
        back.len()
    );
    Ok(())
}
