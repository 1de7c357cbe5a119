use proptest::prelude::*;
use prost::Message as _;
use seldon_proto::inference::{ModelInferRequest, ModelMetadataRequest, ModelReadyRequest};

use super::*;

fn frame(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame
}
fn named(name: &str) -> Peek {
    Peek::Name(name.into())
}

#[test]
fn reads_field_1_of_each_request() {
    let name = "iris".to_owned();
    let infer = ModelInferRequest {
        model_name: name.clone(),
        id: "1".into(),
        ..Default::default()
    };
    let ready = ModelReadyRequest {
        name: name.clone(),
        version: "1".into(),
    };
    let metadata = ModelMetadataRequest {
        name,
        version: "1".into(),
    };
    for message in [
        infer.encode_to_vec(),
        ready.encode_to_vec(),
        metadata.encode_to_vec(),
    ] {
        assert_eq!(model_name_in_message(&frame(&message)), named("iris"));
    }
}

#[test]
fn gives_up_what_it_cannot_read() {
    let mut compressed = frame(b"\x0a\x01a");
    compressed[0] = 1;
    let too_late = frame(&[b"\x12\xff\xff\x03".as_slice(), &[0; 0xffff], b"\x0a\x01a"].concat());
    let cases: [(&str, Vec<u8>); 11] = [
        ("compressed", compressed),
        ("flag only, compressed", vec![1]),
        ("no fields", frame(b"")),
        ("empty name", frame(b"\x0a\x00")),
        ("other field", frame(b"\x12\x01a")),
        ("slash", frame(b"\x0a\x03a/b")),
        ("line end", frame(b"\x0a\x03a\r\n")),
        ("not UTF-8", frame(b"\x0a\x02\xff\xff")),
        ("group", frame(b"\x0b\x0a\x01a")),
        ("endless varint", frame(&[0xff; 32])),
        ("after 64 KiB", too_late[..MAX_PEEK].to_vec()),
    ];
    for (what, bytes) in cases {
        assert_eq!(model_name_in_message(&bytes), Peek::Nothing, "{what}");
    }
    // Beyond the message's own end is not looked at.
    let mut two = frame(b"\x12\x01a");
    two.extend(frame(b"\x0a\x01a"));
    assert_eq!(model_name_in_message(&two), Peek::Nothing);
}

#[test]
fn the_first_name_that_is_not_empty_decides() {
    let bytes = frame(b"\x0a\x00\x0a\x01a\x0a\x01b");
    assert_eq!(model_name_in_message(&bytes), named("a"));
}

#[test]
fn crumbs_are_given_up() {
    // Each field of two bytes could be the last before the name.
    let bytes = frame(&b"\x10\x01".repeat(20_000));
    let (mut hold, mut size) = (Hold::default(), 0);
    loop {
        size += 1;
        if !hold.is_due(size) {
            continue;
        }
        match model_name_in_message(&bytes[..size]) {
            Peek::More(needed) if hold.goes_on(needed) => {}
            outcome => {
                assert!(matches!(outcome, Peek::More(_)));
                break;
            }
        }
    }
    assert!(size < 1_000, "{size} bytes");
    // What lies behind a field too long is not waited for.
    assert_eq!(
        model_name_in_message(&[&[0, 0, 1, 0, 9], b"\x12\x80\x80\x04".as_slice()].concat()),
        Peek::Nothing
    );
}

proptest! {
    #[test]
    fn any_bytes_do(bytes in proptest::collection::vec(any::<u8>(), 0..300), framed: bool) {
        let bytes = if framed { frame(&bytes) } else { bytes };
        if let Peek::Name(name) = model_name_in_message(&bytes) {
            prop_assert!(is_name(&name));
        }
    }

    #[test]
    fn finds_the_name_whatever_the_order_and_however_it_arrives(
        name in "[a-z0-9][a-z0-9.-]{0,40}",
        version in ".{0,20}",
        id in ".{0,200}",
        raw in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..4),
        order in Just([0, 1, 2, 3, 4]).prop_shuffle(),
        cut: proptest::sample::Index,
    ) {
        let of = |m: ModelInferRequest| m.encode_to_vec();
        let parts = [
            of(ModelInferRequest { model_name: name.clone(), ..Default::default() }),
            of(ModelInferRequest { model_version: version, ..Default::default() }),
            of(ModelInferRequest { id, ..Default::default() }),
            of(ModelInferRequest { raw_input_contents: raw.into_iter().map(Into::into).collect(), ..Default::default() }),
            b"\xf8\x07\x96\x01\xfd\x07\x01\x02\x03\x04\xf9\x07\x01\x02\x03\x04\x05\x06\x07\x08".to_vec(), // unknown ones
        ];
        let message: Vec<u8> = order.iter().flat_map(|i| parts[*i].clone()).collect();
        prop_assert_eq!(&ModelInferRequest::decode(message.as_slice()).unwrap().model_name, &name);

        let bytes = frame(&message);
        prop_assert_eq!(model_name_in_message(&bytes), Peek::Name(name.clone()));
        let start = model_name_in_message(&bytes[..cut.index(bytes.len())]);
        if let Peek::More(needed) = start {
            prop_assert!(needed <= bytes.len() && needed > cut.index(bytes.len()));
        } else {
            prop_assert_eq!(start, Peek::Name(name.clone()));
        }
        // Byte by byte, a name is found with its last one, though most are not looked at.
        let mut hold = Hold::default();
        let (mut found, mut looks) = (None, 0);
        for size in 1..=bytes.len() {
            if !hold.is_due(size) {
                continue;
            }
            looks += 1;
            match model_name_in_message(&bytes[..size]) {
                Peek::More(needed) => prop_assert!(hold.goes_on(needed)),
                other => {
                    found = Some((size, other));
                    break;
                }
            }
        }
        let (size, found) = found.expect("the whole message decides");
        prop_assert_eq!(found, Peek::Name(name));
        let more = matches!(model_name_in_message(&bytes[..size - 1]), Peek::More(needed) if needed == size);
        prop_assert!(more && looks < 64, "{} looks", looks);
    }
}
