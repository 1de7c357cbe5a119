//! However a request is written and cut, every message names the proxy's model and keeps everything else.
#![allow(clippy::unwrap_used)] // a test may
use std::{collections::VecDeque, fs, io::Write as _, path::Path};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use prost::Message as _;
use seldon_agent_proxy::{FrameError, Limits, Rewriter};
use seldon_proto::inference::{
    InferParameter, ModelInferRequest, infer_parameter::ParameterChoice,
    model_infer_request::InferInputTensor,
};

const INTERNAL: &str = "iris_1";

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flag];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame
}

fn gzipped(message: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(message).unwrap();
    encoder.finish().unwrap()
}

/// Everything sent on for a request cut into `chunks`.
fn rewrite<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    limits: &Limits,
) -> Result<Vec<u8>, FrameError> {
    let mut rewriter = Rewriter::new(INTERNAL, true, limits);
    let mut out = VecDeque::new();
    for chunk in chunks {
        rewriter.push(Bytes::copy_from_slice(chunk), &mut out)?;
    }
    rewriter.finish()?;
    Ok(out.into_iter().flatten().collect())
}

fn messages(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !stream.is_empty() {
        assert_eq!(stream[0], 0, "messages go on uncompressed");
        let length = u32::from_be_bytes(stream[1..5].try_into().unwrap()) as usize;
        found.push(&stream[5..5 + length]);
        stream = &stream[5 + length..];
    }
    found
}

fn request() -> impl Strategy<Value = ModelInferRequest> {
    let tensor =
        ("[a-z]{0,8}", proptest::collection::vec(any::<i64>(), 0..4)).prop_map(|(name, shape)| {
            InferInputTensor {
                name,
                datatype: "FP32".into(),
                shape,
                ..Default::default()
            }
        });
    let raw = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20_000), 0..3);
    let names = ("[a-z_0-9]{0,200}", "[0-9]{0,3}", "[a-z]{0,5}");
    (
        names,
        proptest::collection::vec(tensor, 0..3),
        raw,
        proptest::option::of(any::<i64>()),
    )
        .prop_map(
            |((model_name, model_version, id), inputs, raw, parameter)| ModelInferRequest {
                model_name,
                model_version,
                id,
                inputs,
                raw_input_contents: raw.into_iter().map(Bytes::from).collect(),
                parameters: parameter
                    .map(|n| {
                        (
                            "n".to_owned(),
                            InferParameter {
                                parameter_choice: Some(ParameterChoice::Int64Param(n)),
                            },
                        )
                    })
                    .into_iter()
                    .collect(),
                ..Default::default()
            },
        )
}

/// Cuts `stream` after each of `sizes` bytes, over and over.
fn cut<'a>(stream: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let (mut chunks, mut rest, mut sizes) = (Vec::new(), stream, sizes.iter().cycle());
    while !rest.is_empty() {
        let size = sizes
            .next()
            .map_or(rest.len(), |&size| size.clamp(1, rest.len()));
        chunks.push(&rest[..size]);
        rest = &rest[size..];
    }
    chunks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_names_the_model_and_keeps_the_rest(
        requests in proptest::collection::vec((request(), any::<bool>()), 1..4),
        sizes in proptest::collection::vec(1usize..9_000, 0..5),
    ) {
        let stream: Vec<u8> = requests
            .iter()
            .flat_map(|(request, gzip)| match gzip {
                true => framed(1, &gzipped(&request.encode_to_vec())),
                false => framed(0, &request.encode_to_vec()),
            })
            .collect();
        let sent = rewrite(cut(&stream, &sizes), &Limits::default()).unwrap();
        let received: Vec<_> =
            messages(&sent).into_iter().map(|message| ModelInferRequest::decode(message).unwrap()).collect();
        let wanted: Vec<_> = requests
            .into_iter()
            .map(|(request, _)| ModelInferRequest {
                model_name: INTERNAL.into(),
                model_version: String::new(),
                ..request
            })
            .collect();
        prop_assert_eq!(received, wanted);
    }

    #[test]
    fn no_bytes_name_another_model(message in proptest::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(sent) = rewrite([&*framed(0, &message)], &Limits::default()) {
            names_the_model(&sent);
        }
    }

    /// Fields that a client may add by hand, unfinished and unknown ones among them, around names it forged.
    #[test]
    fn no_fields_name_another_model(fields in proptest::collection::vec(field(), 0..6), lost in 0usize..4) {
        let mut message = fields.concat();
        message.truncate(message.len().saturating_sub(lost));
        if let Ok(sent) = rewrite([&*framed(0, &message)], &Limits::default()) {
            names_the_model(&sent);
        }
    }
}

fn field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"\x0a\x06evil_1".to_vec()),
        Just(b"\x8a\x00\x06evil_1".to_vec()),
        Just(b"\x0a\x86\x80\x00evil_1".to_vec()),
        Just(b"\x12\x017".to_vec()),
        Just(b"\xa2\x06\x0a".to_vec()),
        Just(b"\xa3\x06".to_vec()),
        Just(b"\xa4\x06".to_vec()),
        Just(b"\xa0\x06\xff".to_vec()),
        Just(b"\xa1\x06\0\0\0\0\0\0\0\0".to_vec()),
        (0u8..24).prop_map(|length| vec![0xa2, 0x06, length]),
        (0u8..24).prop_map(|length| vec![0x1a, length]),
    ]
}

fn names_the_model(sent: &[u8]) {
    for message in messages(sent) {
        // What does not decode here does not decode at the inference server either.
        if let Ok(request) = ModelInferRequest::decode(message) {
            assert_eq!(
                (request.model_name.as_str(), request.model_version.as_str()),
                (INTERNAL, "")
            );
        }
    }
}

#[test]
fn a_field_that_would_swallow_the_name_is_refused() {
    // An unknown field that claims as many bytes as the proxy appends.
    let message = [
        b"\x0a\x06evil_1\xa2\x06".as_slice(),
        &[INTERNAL.len() as u8 + 4],
    ]
    .concat();
    assert!(matches!(
        rewrite([&*framed(0, &message)], &Limits::default()),
        Err(FrameError::Malformed(_))
    ));
    let group = b"\x0a\x06evil_1\xa3\x06";
    assert!(matches!(
        rewrite([&*framed(0, group)], &Limits::default()),
        Err(FrameError::Malformed(_))
    ));
}

#[test]
fn sizes_are_bounded() {
    let limits = Limits {
        message_bytes: 100,
        decompressed_bytes: 1_000,
        ..Limits::default()
    };
    let claimed = [0, 0, 0, 0, 101];
    assert!(matches!(
        rewrite([&claimed[..]], &limits),
        Err(FrameError::TooLarge {
            bytes: 101,
            limit: 100
        })
    ));
    let unlimited = Limits {
        message_bytes: u32::MAX,
        ..Limits::default()
    };
    let overflow = [0, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(
        rewrite([&overflow[..]], &unlimited),
        Err(FrameError::TooLarge { .. })
    ));
    let bomb = framed(1, &gzipped(&vec![0; 10 << 20]));
    assert_eq!(rewrite([&*bomb], &limits), Err(FrameError::Inflated));
}

#[test]
fn decompressed_messages_share_a_bound() {
    let limits = Limits {
        all_decompressed_bytes: 1_000,
        ..Limits::default()
    };
    let message = framed(1, &gzipped(&framed_field(800)));
    let mut rewriter = Rewriter::new(INTERNAL, true, &limits);
    let mut out = VecDeque::new();
    for _ in 0..3 {
        rewriter
            .push(Bytes::copy_from_slice(&message), &mut out)
            .unwrap();
    }
    // Small messages are copied into a frame and no longer counted; one too large never fits.
    let large = framed(1, &gzipped(&framed_field(2_000)));
    assert_eq!(
        rewriter.push(Bytes::from(large), &mut out),
        Err(FrameError::Inflated)
    );
}

/// A message with one field of `length` bytes, in raw_input_contents.
fn framed_field(length: usize) -> Vec<u8> {
    let contents = Bytes::from(vec![7; length]);
    ModelInferRequest {
        raw_input_contents: vec![contents],
        ..Default::default()
    }
    .encode_to_vec()
}

#[test]
fn damage_is_told_apart() {
    let limits = Limits::default();
    assert_eq!(
        rewrite([&[0u8, 0, 0][..]], &limits),
        Err(FrameError::Truncated)
    );
    assert!(matches!(
        rewrite([&*framed(2, b"")], &limits),
        Err(FrameError::Compression(_))
    ));
    assert!(matches!(
        rewrite([&*framed(1, b"not gzip")], &limits),
        Err(FrameError::Compression(_))
    ));
    let mut plain = Rewriter::new(INTERNAL, false, &limits);
    let compressed = Bytes::from(framed(1, &gzipped(b"")));
    assert!(matches!(
        plain.push(compressed, &mut VecDeque::new()),
        Err(FrameError::Compression(_))
    ));
}

/// Each file is the body of one gRPC request.
#[test]
fn corpus_is_replayed() {
    let limits = Limits {
        decompressed_bytes: 1 << 20,
        ..Limits::default()
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut replayed = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stream = fs::read(&path).unwrap();
        let whole = rewrite([&*stream], &limits);
        let bytewise = rewrite(stream.chunks(1), &limits);
        assert_eq!(whole, bytewise, "{}", path.display());
        if let Ok(sent) = &whole {
            names_the_model(sent);
        }
        let refused = path
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .starts_with("refused");
        assert_eq!(whole.is_err(), refused, "{}: {whole:?}", path.display());
        replayed += 1;
    }
    assert!(replayed >= 12);
}
