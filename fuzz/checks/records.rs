//! What holds for any record that others write.
use bytes::Bytes;
use prost::Message as _;
use seldon_inference::{pack_request, unpack_request};
use seldon_proto::inference::ModelInferRequest;
use seldon_records::{
    Contents, Headers, Identity, Record, Visits, decode_request, decode_response, header,
};

/// Lines of `name:value`: there is an identity, and visits travel.
pub fn headers(bytes: &[u8]) {
    let pair = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b':')?;
        let name = String::from_utf8_lossy(&line[..at]).into_owned();
        Some((name, Bytes::copy_from_slice(&line[at + 1..])))
    };
    let headers: Headers = bytes
        .split(|byte| *byte == b'\n')
        .filter_map(pair)
        .collect();
    let record = Record {
        topic: "t".into(),
        partition: 0,
        offset: 7,
        key: None,
        value: None,
        headers: headers.clone(),
        timestamp_ms: 0,
    };
    let identity = Identity::of(&record);
    assert!(!identity.as_str().is_empty());
    assert_eq!(identity, Identity::of(&record));
    let before = Visits::of(&headers);
    let travels = |visits: &Visits| {
        let mut written = headers.clone();
        visits.write(&mut written);
        assert_eq!(Visits::of(&written), *visits);
    };
    travels(&before);
    let mut after = before.clone();
    assert_eq!(after.add("step"), before.count("step").saturating_add(1));
    after.again(0, 7);
    travels(&after);
    assert!(after.greatest() >= before.greatest());
    let mut merged = before.clone();
    merged.merge(&after);
    assert!(merged.count("step") >= after.count("step"));
}

const TYPES: [&str; 6] = [
    "",
    "proto/InferModelRequest",
    "proto/InferModelResponse",
    "json/inferModelRequest",
    "json/inferModelResponse",
    "other",
];

/// A value, after a byte that says what its header declares it to be: what can be read can be written and read again.
pub fn contents(bytes: &[u8]) {
    let Some((declared, value)) = bytes.split_first() else {
        return;
    };
    let declared = TYPES[usize::from(*declared) % TYPES.len()];
    let headers: Headers = [(header::INFER_TYPE, declared)].into_iter().collect();
    if let Ok(request) = decode_request(&headers, value) {
        written(request);
    }
    if let Ok(response) = decode_response(&headers, value) {
        written(Contents::Response(response).into_request());
    }
}

fn written(request: ModelInferRequest) {
    let request = bare(request);
    let encoded = request.encode_to_vec();
    if !request.inputs.is_empty() {
        let again =
            decode_request(&Headers::new(), &encoded).expect("what was written can be read");
        assert_eq!(again.encode_to_vec(), encoded);
    }
    let mut typed = request;
    if unpack_request(&mut typed).is_ok() && pack_request(&mut typed).is_ok() {
        let packed = typed.encode_to_vec();
        unpack_request(&mut typed).expect("what was packed can be unpacked");
        pack_request(&mut typed).expect("what was unpacked can be packed");
        assert_eq!(typed.encode_to_vec(), packed);
    }
}

/// Without maps, whose order is another each time.
fn bare(mut request: ModelInferRequest) -> ModelInferRequest {
    request.parameters.clear();
    request
        .inputs
        .iter_mut()
        .for_each(|tensor| tensor.parameters.clear());
    request
        .outputs
        .iter_mut()
        .for_each(|tensor| tensor.parameters.clear());
    request
}
