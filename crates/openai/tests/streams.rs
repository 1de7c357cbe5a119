//! Events of the inference server as chunks.
#![allow(clippy::unwrap_used)] // a test may
use seldon_openai::{Call, Context, Events};
use serde_json::{Value, json};

fn context(call: Call) -> Context {
    Context {
        call,
        id: "abc".into(),
        created: 7,
        model: "m".into(),
        base64: false,
        include_usage: true,
    }
}

fn event(outputs: &[(&str, Value)]) -> String {
    let outputs: Vec<Value> = outputs
        .iter()
        .map(|(name, data)| json!({"name": name, "shape": [1, 1], "datatype": "BYTES", "parameters": null, "data": data}))
        .collect();
    format!(
        "data: {}\n\n",
        json!({"model_name": "m_1", "id": "x", "outputs": outputs})
    )
}

/// The chunks that come out, the last one `[DONE]` if it was said.
fn chunks(events: Events, bytes: &str) -> Vec<Value> {
    let out = run(events, bytes.as_bytes(), bytes.len().max(1));
    let text = String::from_utf8(out).unwrap();
    let lines = text.split_terminator("\n\n");
    lines
        .map(|line| match line.strip_prefix("data: ").unwrap() {
            "[DONE]" => "[DONE]".into(),
            json => serde_json::from_str(json).unwrap(),
        })
        .collect()
}

fn run(mut events: Events, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in bytes.chunks(piece) {
        let _ = events.push(piece, &mut out);
    }
    events.finish(&mut out);
    assert!(events.ended());
    let length = out.len();
    events.push(b"data: {}\n\n", &mut out).unwrap();
    events.finish(&mut out);
    assert_eq!(out.len(), length, "nothing follows the end");
    out
}

fn chunk(choices: Value) -> Value {
    json!({"id": "chatcmpl-abc", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": choices})
}

fn choice(at: u32, delta: Value, reason: Option<&str>) -> Value {
    json!({"index": at, "delta": delta, "logprobs": null, "finish_reason": reason})
}

#[test]
fn each_event_is_a_chunk() {
    let bytes = [
        event(&[("role", json!(["assistant"])), ("content", json!([["He"]]))]),
        event(&[("role", json!(["assistant"])), ("content", json!(["llo"]))]),
        event(&[("usage", json!([r#"{"total_tokens": 2}"#]))]),
    ];
    let mut last = chunk(json!([]));
    last["usage"] = json!({"total_tokens": 2});
    assert_eq!(
        chunks(Events::new(context(Call::Chat), 1 << 20), &bytes.concat()),
        [
            chunk(json!([choice(
                0,
                json!({"role": "assistant", "content": "He"}),
                None
            )])),
            // The role is not said again: clients join the texts of all deltas.
            chunk(json!([choice(0, json!({"content": "llo"}), None)])),
            chunk(json!([choice(0, json!({}), Some("stop"))])),
            last,
            "[DONE]".into(),
        ]
    );
}

#[test]
fn usage_is_told_where_it_is_wanted() {
    let quiet = Context {
        include_usage: false,
        ..context(Call::Chat)
    };
    let bytes = event(&[("content", json!(["a"])), ("usage", json!(["{}"]))]);
    let chunks = chunks(Events::new(quiet, 1 << 20), &bytes);
    assert!(
        chunks.iter().all(|chunk| chunk.get("usage").is_none()),
        "{chunks:?}"
    );
}

#[test]
fn choices_end_for_themselves() {
    let call = r#"[{"id": "c", "function": {"name": "f", "arguments": ""}}, {"index": 5}]"#;
    let bytes = [
        event(&[
            ("content", json!(["a", "", "z"])),
            ("tool_calls", json!(["", call])),
        ]),
        event(&[
            ("content", json!(["b"])),
            ("finish_reason", json!(["length"])),
        ]),
    ];
    let calls =
        json!([{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}, {"index": 5}]);
    assert_eq!(
        chunks(Events::new(context(Call::Chat), 1 << 20), &bytes.concat()),
        [
            chunk(json!([
                choice(0, json!({"role": "assistant", "content": "a"}), None),
                choice(1, json!({"role": "assistant", "tool_calls": calls}), None),
                choice(2, json!({"role": "assistant", "content": "z"}), None),
            ])),
            chunk(json!([choice(0, json!({"content": "b"}), Some("length"))])),
            chunk(json!([
                choice(1, json!({}), Some("tool_calls")),
                choice(2, json!({}), Some("stop")),
            ])),
            "[DONE]".into(),
        ]
    );
}

#[test]
fn a_model_may_speak_in_chunks_itself() {
    let chunk = r#"{"id": "own", "choices": [{"delta": {"content": "a"}}]}"#;
    let bytes = [
        event(&[("output_all", json!([chunk, "{\n\"choices\": []}"]))]),
        event(&[("output_all", json!([]))]),
    ];
    let chunks = chunks(Events::new(context(Call::Chat), 1 << 20), &bytes.concat());
    assert_eq!(
        chunks,
        [
            json!({"object": "chat.completion.chunk", "created": 7, "model": "m", "id": "own", "choices": [{"delta": {"content": "a"}}]}),
            json!({"id": "chatcmpl-abc", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": []}),
            "[DONE]".into(),
        ]
    );
}

#[test]
fn completions_have_texts() {
    let events = Events::new(context(Call::Completions), 1 << 20);
    let chunks = chunks(events, &event(&[("text", json!(["a"]))]));
    let choice = |text: &str, reason: Option<&str>| json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(chunks.len(), 3);
    assert_eq!(
        (&chunks[0]["id"], &chunks[0]["object"]),
        (&"cmpl-abc".into(), &"text_completion".into())
    );
    assert_eq!(chunks[0]["choices"], choice("a", None));
    assert_eq!(chunks[1]["choices"], choice("", Some("stop")));
}

#[test]
fn a_stream_of_nothing_ends_well() {
    for bytes in [
        "",
        ": a comment\n\nevent: x\nid: 1\n\n",
        "data: [DONE]\n\ndata: x\n\n",
    ] {
        assert_eq!(
            chunks(Events::new(context(Call::Chat), 1 << 20), bytes),
            [
                chunk(json!([choice(0, json!({}), Some("stop"))])),
                "[DONE]".into()
            ],
            "{bytes}"
        );
    }
}

#[test]
fn a_stream_that_fails_ends_with_the_reason() {
    let good = event(&[("content", json!(["a"]))]);
    for (bad, code, why) in [
        (
            "data: {\"error\": \"ValueError: no\"}\n\n".to_owned(),
            "server_error",
            "ValueError: no",
        ),
        (
            "data: nonsense\n\n".to_owned(),
            "bad_model_output",
            "no inference response",
        ),
        (
            "data: {}\n\n".to_owned(),
            "bad_model_output",
            "no inference response",
        ),
        (
            event(&[("other", json!(["a"]))]),
            "bad_model_output",
            "none of the outputs",
        ),
        (
            event(&[("output_all", json!(["x"]))]),
            "bad_model_output",
            "no JSON object",
        ),
        (
            event(&[("content", json!(vec!["a"; 2000]))]),
            "bad_model_output",
            "more than 1024 choices",
        ),
        (
            format!("data: {}", "x".repeat(2 << 20)),
            "bad_model_output",
            "longer than allowed",
        ),
    ] {
        let bytes = format!("{good}{bad}{good}");
        let chunks = chunks(Events::new(context(Call::Chat), 1 << 20), &bytes);
        assert_eq!(chunks.len(), 2, "{bad}");
        let error = &chunks[1]["error"];
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(why), "{error}");
    }
}

#[test]
fn however_it_is_cut_the_same_comes_out() {
    let bytes = [
        event(&[
            ("role", json!(["assistant"])),
            ("content", json!(["Héllo \"you\"\n"])),
        ]),
        event(&[("content", json!(["b"]))]).replace("\n\n", "\r\n\r\n"),
        // Data over several lines, and without the space.
        event(&[("content", json!(["c"]))]).replace(",\"outputs\"", ",\ndata:\"outputs\""),
        event(&[
            ("content", json!(["d"])),
            ("finish_reason", json!(["stop"])),
        ]),
    ]
    .concat();
    let whole = run(
        Events::new(context(Call::Chat), 1 << 20),
        bytes.as_bytes(),
        bytes.len(),
    );
    assert_eq!(
        whole
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .count(),
        5
    );
    for piece in 1..200 {
        let cut = run(
            Events::new(context(Call::Chat), 1 << 20),
            bytes.as_bytes(),
            piece,
        );
        assert!(cut == whole, "in pieces of {piece}");
    }
}

#[test]
fn what_is_held_is_an_event() {
    let mut events = Events::new(context(Call::Chat), 1 << 10);
    let mut out = Vec::new();
    let long = event(&[("content", json!(["x".repeat(800)]))]);
    for _ in 0..1000 {
        events.push(long.as_bytes(), &mut out).unwrap();
    }
    assert!(events.held() < 4 << 10, "{}", events.held());
}

#[test]
fn a_stream_that_is_cut_within_an_event_is_no_whole_answer() {
    let whole = event(&[("content", json!(["a"]))]);
    let cut = format!("{whole}{}", &whole[..whole.len() - 2]);
    let out = run(Events::new(context(Call::Chat), 1 << 20), cut.as_bytes(), 7);
    let out = String::from_utf8(out).unwrap();
    assert!(
        out.contains(r#""content":"a""#) && out.contains(r#""error""#),
        "{out}"
    );
    assert!(!out.contains("[DONE]"), "{out}");
}
