//! What holds of OpenAI's requests, of answers to them, and of streams, whatever comes.
use seldon_openai::{Call, Context, Events, error_of_model, from_inference, to_inference};
use serde_json::Value;

/// The first two bytes say what the others are: `q` for a request, `a` for an answer, `s` for a stream, and which call.
pub fn any(bytes: &[u8]) {
    let Some(([kind, call], body)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let call = match call & 3 {
        0 => Call::Chat,
        1 => Call::Completions,
        2 => Call::Embeddings,
        _ => Call::Images,
    };
    match kind {
        b'q' => request(call, body),
        b'a' => answer(call, body),
        _ => stream(call, body),
    }
}

fn object(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).expect("it is JSON");
    assert!(value.is_object(), "{text}");
    value
}

/// A request that is taken is made of whole tensors, of one length where they are of messages, and not much longer.
fn request(call: Call, body: &[u8]) {
    let asked = match to_inference(call, body, &["m"]) {
        Ok(asked) => asked,
        Err(failure) => {
            assert!(matches!(failure.status, 400 | 404), "{failure:?}");
            object(&failure.body());
            return;
        }
    };
    assert!(asked.body.len() <= 4 * body.len() + 2048);
    // Options pass unread, and may be nested more deeply than this can read.
    let Ok(sent) = serde_json::from_slice::<Value>(&asked.body) else {
        return;
    };
    let inputs = sent["inputs"].as_array().expect("a list of tensors");
    let mut messages = Vec::new();
    for tensor in inputs {
        let data = tensor["data"].as_array().expect("data");
        let shape = tensor["shape"].as_array().expect("a shape");
        let sizes = shape.iter().map(|size| size.as_u64().expect("a size"));
        assert_eq!(sizes.product::<u64>(), data.len() as u64, "{tensor}");
        assert!(!data.is_empty(), "{tensor}");
        let texts = tensor["datatype"] == "BYTES";
        assert!(data.iter().all(|element| element.is_string() == texts));
        let name = tensor["name"].as_str().expect("a name");
        if [
            "role",
            "content",
            "type",
            "tool_calls",
            "tool_call_id",
            "name",
        ]
        .contains(&name)
        {
            messages.push(data.len());
        }
    }
    assert_eq!(messages.is_empty(), call != Call::Chat);
    assert!(messages.windows(2).all(|pair| pair[0] == pair[1]));
}

fn context(call: Call) -> Context {
    Context {
        call,
        id: "id".into(),
        created: 1,
        model: "m".into(),
        base64: true,
        include_usage: true,
    }
}

/// An answer is an object on one line, or a failure that can be said.
fn answer(call: Call, body: &[u8]) {
    object(&error_of_model(500, body).body());
    match from_inference(&context(call), body) {
        Ok(answer) => assert!(!answer.contains(['\n', '\r']) && answer.starts_with('{')),
        Err(failure) => {
            assert_eq!(failure.status, 502);
            object(&failure.body());
        }
    }
}

/// A stream says the same however it is cut, in lines of data, and ends once.
fn stream(call: Call, body: &[u8]) {
    let run = |piece: usize| {
        let (mut events, mut out) = (Events::new(context(call), 1 << 12), Vec::new());
        for piece in body.chunks(piece) {
            if let Err(failure) = events.push(piece, &mut out) {
                object(&failure.body());
            }
            assert!(events.held() <= 4 << 12);
        }
        events.finish(&mut out);
        assert!(events.ended());
        out
    };
    let whole = run(body.len().max(1));
    for piece in [1, 7, 64] {
        assert!(run(piece) == whole, "in pieces of {piece}");
    }
    let text = String::from_utf8(whole).expect("texts");
    let chunks: Vec<&str> = text.split_terminator("\n\n").collect();
    for chunk in &chunks {
        assert!(
            chunk.starts_with("data: ") && !chunk.contains('\n'),
            "{chunk}"
        );
    }
    let ends = chunks.iter().filter(|chunk| **chunk == "data: [DONE]");
    assert!(ends.count() <= 1);
}
