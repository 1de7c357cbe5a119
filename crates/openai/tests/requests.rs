//! OpenAI's requests as tensors.
#![allow(clippy::unwrap_used)] // a test may
use seldon_openai::{Asked, Call, Failure, to_inference};
use serde_json::{Value, json};

fn asked(call: Call, body: &Value) -> Asked {
    to_inference(call, body.to_string().as_bytes(), &["m"]).unwrap()
}

fn refused(call: Call, body: &str) -> Failure {
    to_inference(call, body.as_bytes(), &["m"]).unwrap_err()
}

/// What the inference server is asked.
fn sent(call: Call, body: &Value) -> Value {
    serde_json::from_slice(&asked(call, body).body).unwrap()
}

fn texts(name: &str, data: &[&str]) -> Value {
    json!({
        "name": name, "shape": [data.len()], "datatype": "BYTES",
        "parameters": {"content_type": "str"}, "data": data,
    })
}

#[test]
fn a_chat_becomes_an_element_a_message() {
    let body = json!({
        "messages": [
            {"role": "system", "content": "be \"brief\"\n"},
            {"role": "user", "content": "héllo"},
        ],
        "model": "m",
    });
    assert_eq!(
        sent(Call::Chat, &body),
        json!({"inputs": [
            texts("role", &["system", "user"]),
            texts("content", &["be \"brief\"\n", "héllo"]),
            texts("type", &["text", "text"]),
        ]})
    );
}

#[test]
fn options_pass_as_they_were_written() {
    let body = br#"{"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 0.10, "seed": 18446744073709551616,
        "logit_bias": {"50256": -100}, "stop": ["a", "b"], "user": null, "my \"own\"": {"deep": [1, {"a": null}]}}"#;
    let asked = to_inference(Call::Chat, body, &["m"]).unwrap();
    let text = String::from_utf8(asked.body).unwrap();
    let options = r#""parameters":{"llm_parameters":{"temperature":0.10,"seed":18446744073709551616,"logit_bias":{"50256": -100},"stop":["a", "b"],"my \"own\"":{"deep": [1, {"a": null}]}}}}"#;
    assert!(text.ends_with(options), "{text}");
}

#[test]
fn what_is_between_the_client_and_us_goes_no_further() {
    let body = json!({
        "model": "m", "messages": [{"role": "user", "content": "a"}], "stream": true,
        "stream_options": {"include_usage": true},
    });
    let stream = asked(Call::Chat, &body);
    assert_eq!((stream.stream, stream.include_usage), (Some(true), true));
    let options = json!({"llm_parameters": {"stream_options": {"include_usage": true}}});
    assert_eq!(sent(Call::Chat, &body)["parameters"], options);

    let body = json!({"model": "m", "input": "a", "encoding_format": "base64", "dimensions": 8});
    let embedding = asked(Call::Embeddings, &body);
    assert_eq!((embedding.stream, embedding.base64), (None, true));
    assert_eq!(
        sent(Call::Embeddings, &body),
        json!({"inputs": [texts("input", &["a"])], "parameters": {"llm_parameters": {"dimensions": 8}}})
    );
    let body = json!({"model": "m", "input": "a", "encoding_format": "float", "stream": false});
    let embedding = asked(Call::Embeddings, &body);
    assert_eq!((embedding.stream, embedding.base64), (Some(false), false));
    // It is an option like any other elsewhere.
    let body = json!({"model": "m", "prompt": "a", "encoding_format": "x"});
    let options = json!({"llm_parameters": {"encoding_format": "x"}});
    assert_eq!(sent(Call::Completions, &body)["parameters"], options);
}

#[test]
fn tools_and_their_calls_are_tensors_too() {
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    let tool =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let body = json!({
        "model": "m",
        "messages": [
            {"role": "user", "content": "what?", "name": "ann"},
            {"role": "assistant", "content": null, "tool_calls": [call], "refusal": null, "annotations": []},
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        ],
        "tools": [tool, tool], "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false,
    });
    let wanted = [
        texts("tools", &[&tool.to_string(), &tool.to_string()]),
        texts("tool_choice", &[&body["tool_choice"].to_string()]),
        texts("parallel_tool_calls", &["false"]),
        texts("role", &["user", "assistant", "tool"]),
        texts("content", &["what?", "", "42"]),
        texts("type", &["text", "text", "text"]),
        texts("tool_calls", &["", &format!("[{call}]"), ""]),
        texts("tool_call_id", &["", "", "call_1"]),
        texts("name", &["ann", "", ""]),
    ];
    assert_eq!(sent(Call::Chat, &body), json!({ "inputs": wanted }));

    let choice = |choice: Value| {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}], "tool_choice": choice, "tools": []});
        sent(Call::Chat, &body)["inputs"][0].clone()
    };
    assert_eq!(choice("auto".into()), texts("tool_choice", &["auto"]));
    assert_eq!(choice(Value::Null), texts("role", &["user"]));
}

#[test]
fn parts_are_one_text_or_their_own_json() {
    let picture = json!([
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]);
    let body = json!({
        "model": "m",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "one"}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "more": 1}]},
            {"role": "user", "content": picture},
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        ],
    });
    let inputs = &sent(Call::Chat, &body)["inputs"];
    let audio = body["messages"][3]["content"].to_string();
    assert_eq!(
        inputs[1],
        texts("content", &["one", "a\nb", &picture.to_string(), &audio])
    );
    let kinds = [
        "text",
        "text",
        r#"["text","image_url"]"#,
        r#"["input_audio"]"#,
    ];
    assert_eq!(inputs[2], texts("type", &kinds));
}

#[test]
fn prompts_and_inputs_are_texts_or_numbers() {
    let numbers = |name: &str, shape: [usize; 2], data: &[i64]| json!({"name": name, "shape": shape, "datatype": "INT64", "data": data});
    for (call, name) in [(Call::Completions, "prompt"), (Call::Embeddings, "input")] {
        for (given, wanted) in [
            (json!("a \u{1}\\"), texts(name, &["a \u{1}\\"])),
            (json!(["a", "b", ""]), texts(name, &["a", "b", ""])),
            (json!([1, 2, 3]), numbers(name, [1, 3], &[1, 2, 3])),
            (
                json!([[1, 2], [3, 4]]),
                numbers(name, [2, 2], &[1, 2, 3, 4]),
            ),
            (json!([[7]]), numbers(name, [1, 1], &[7])),
        ] {
            let body = json!({"model": "m", (name): given});
            assert_eq!(sent(call, &body)["inputs"], json!([wanted]), "{given}");
        }
        for (given, why) in [
            ("[]", "is empty"),
            ("[[]]", "is empty"),
            ("[[1], [1, 2]]", "different lengths"),
            ("[1, \"a\"]", "mixed"),
            ("[\"a\", 1]", "mixed"),
            ("[[1], 2]", "mixed"),
            ("[2, [1]]", "mixed"),
            ("[[1], \"a\"]", "mixed"),
            ("[[\"a\"]]", "mixed"),
            ("[[[1]]]", "too deeply"),
            ("7", "neither a text nor a list"),
            ("[1.5]", "token numbers"),
            ("[18446744073709551615]", "too large"),
            ("{}", "a text, a list of texts"),
            ("null", "a text, a list of texts"),
            ("true", "a text, a list of texts"),
        ] {
            let failure = refused(call, &format!(r#"{{"model": "m", "{name}": {given}}}"#));
            assert_eq!((failure.status, failure.code), (400, "invalid_value"));
            assert_eq!(failure.param.as_deref(), Some(name));
            assert!(
                failure.message.contains(why),
                "{given}: {}",
                failure.message
            );
        }
    }
}

#[test]
fn an_image_is_made_from_one_text() {
    let body = json!({"prompt": "a cat", "n": 2, "size": "256x256"});
    assert_eq!(
        sent(Call::Images, &body),
        json!({"inputs": [texts("prompt", &["a cat"])], "parameters": {"llm_parameters": {"n": 2, "size": "256x256"}}})
    );
    let failure = refused(Call::Images, r#"{"model": "m", "prompt": ["a"]}"#);
    assert_eq!(failure.param.as_deref(), Some("prompt"));
}

#[test]
fn the_model_is_the_one_of_the_address() {
    let body = br#"{"messages": [{"role": "user", "content": "a"}], "model": "other"}"#;
    let failure = to_inference(Call::Chat, body, &["m", "e.experiment"]).unwrap_err();
    assert_eq!((failure.status, failure.code), (404, "model_not_found"));
    assert_eq!(failure.param.as_deref(), Some("model"));
    assert_eq!(
        failure.message,
        "no model other at this address, which serves m: name it so, or use the address of other"
    );
    assert!(to_inference(Call::Chat, body, &["m", "other"]).is_ok());
}

#[test]
fn what_is_wrong_is_named() {
    const HI: &str = r#""messages": [{"role": "user", "content": "a"}]"#;
    for (call, body, code, param, message) in [
        (Call::Chat, "", "invalid_json", None, "no JSON: EOF"),
        (Call::Chat, "{", "invalid_json", None, "no JSON: EOF"),
        (
            Call::Chat,
            "nonsense",
            "invalid_json",
            None,
            "no JSON: expected",
        ),
        (
            Call::Chat,
            "[]",
            "invalid_value",
            None,
            "the body is no request: invalid type: sequence, expected an object",
        ),
        (
            Call::Chat,
            "{} x",
            "invalid_json",
            None,
            "trailing characters",
        ),
        (
            Call::Chat,
            "{\"a\": \"\u{1}\"}",
            "invalid_json",
            None,
            "control character",
        ),
        (
            Call::Chat,
            "{}",
            "missing_required_parameter",
            Some("model"),
            "model is missing",
        ),
        (
            Call::Chat,
            r#"{"model": null, "messages": []}"#,
            "missing_required_parameter",
            Some("model"),
            "model is missing",
        ),
        (
            Call::Chat,
            r#"{"model": "m"}"#,
            "missing_required_parameter",
            Some("messages"),
            "messages is missing",
        ),
        (
            Call::Completions,
            r#"{"model": "m"}"#,
            "missing_required_parameter",
            Some("prompt"),
            "prompt is missing",
        ),
        (
            Call::Embeddings,
            r#"{"model": "m"}"#,
            "missing_required_parameter",
            Some("input"),
            "input is missing",
        ),
        (
            Call::Images,
            "{}",
            "missing_required_parameter",
            Some("prompt"),
            "prompt is missing",
        ),
        (
            Call::Chat,
            r#"{"model": 7}"#,
            "invalid_value",
            Some("model"),
            "model: invalid type",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "model": "m"}"#,
            "invalid_value",
            Some("model"),
            "given twice",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": []}"#,
            "invalid_value",
            Some("messages"),
            "messages is empty",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": "hi"}"#,
            "invalid_value",
            Some("messages"),
            "a list of messages",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": [{"content": "a"}]}"#,
            "invalid_value",
            Some("messages"),
            "messages[0].role is missing",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": [{"role": ""}]}"#,
            "invalid_value",
            Some("messages"),
            "messages[0].role is missing",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": [{"role": "user", "content": 7}]}"#,
            "invalid_value",
            Some("messages"),
            "messages[0].content is neither",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": [{"role": "user", "content": []}]}"#,
            "invalid_value",
            Some("messages"),
            "is an empty list",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": [{"role": "user", "content": [{"type": "text"}]}]}"#,
            "invalid_value",
            Some("messages"),
            "without a text",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": [{"role": "user", "content": ["a"]}]}"#,
            "invalid_value",
            Some("messages"),
            "is not understood",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": [{"role": "assistant", "tool_calls": {}}]}"#,
            "invalid_value",
            Some("messages"),
            "tool_calls is no list",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "messages": [7]}"#,
            "invalid_value",
            Some("messages"),
            "invalid type",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "tools": {}}"#,
            "invalid_value",
            Some("tools"),
            "a list of tools",
        ),
        (
            Call::Chat,
            r#"{"model": "m", "stream": "yes"}"#,
            "invalid_value",
            Some("stream"),
            "stream: invalid type",
        ),
        (
            Call::Embeddings,
            r#"{"model": "m", "input": "a", "encoding_format": "x"}"#,
            "invalid_value",
            Some("encoding_format"),
            "x is neither float nor base64",
        ),
        (
            Call::Embeddings,
            r#"{"model": "m", "input": "a", "stream": true}"#,
            "invalid_value",
            Some("stream"),
            "cannot be streamed",
        ),
        (
            Call::Images,
            r#"{"prompt": "a", "stream": true}"#,
            "invalid_value",
            Some("stream"),
            "cannot be streamed",
        ),
    ] {
        let failure = refused(call, body);
        assert_eq!(
            (failure.status, failure.code),
            (400, code),
            "{body}: {failure:?}"
        );
        assert_eq!(failure.param.as_deref(), param, "{body}");
        assert!(
            failure.message.contains(message),
            "{body}: {}",
            failure.message
        );
    }
    let invalid = to_inference(Call::Chat, b"{\"model\": \"\xff\"}", &["m"]).unwrap_err();
    assert_eq!((invalid.status, invalid.code), (400, "invalid_json"));
    // Deeper than any parser of ours goes.
    let deep = format!(
        r#"{{"model": "m", {HI}, "x": {}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(to_inference(Call::Chat, deep.as_bytes(), &["m"]).is_ok());
}
