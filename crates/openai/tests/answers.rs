//! Tensors as OpenAI's answers.
#![allow(clippy::unwrap_used)] // a test may
use seldon_openai::{Call, Context, from_inference, models};
use serde_json::{Value, json};

fn context(call: Call) -> Context {
    Context {
        call,
        id: "abc".into(),
        created: 1_700_000_000,
        model: "m".into(),
        base64: false,
        include_usage: false,
    }
}

fn texts(name: &str, data: &Value) -> Value {
    json!({"name": name, "shape": [data.as_array().map_or(0, Vec::len), 1], "datatype": "BYTES", "data": data})
}

/// As MLServer writes a response.
fn response(outputs: &[Value]) -> String {
    json!({"model_name": "m_1", "model_version": "1", "id": "x", "parameters": {}, "outputs": outputs}).to_string()
}

fn answer(call: Call, outputs: &[Value]) -> Value {
    let answer = from_inference(&context(call), response(outputs).as_bytes()).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[test]
fn role_and_content_make_a_message() {
    let answer = answer(
        Call::Chat,
        &[
            texts("role", &json!(["assistant"])),
            texts("content", &json!([["hi \"you\"\n"]])),
            texts("type", &json!(["text"])),
            texts(
                "usage",
                &json!([r#"{"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}"#]),
            ),
        ],
    );
    assert_eq!(
        answer,
        json!({
            "id": "chatcmpl-abc", "object": "chat.completion", "created": 1_700_000_000, "model": "m",
            "choices": [{
                "index": 0, "message": {"role": "assistant", "content": "hi \"you\"\n"}, "logprobs": null, "finish_reason": "stop",
            }],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        })
    );
}

#[test]
fn elements_are_choices() {
    let call =
        r#"{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}"#;
    let answer = answer(
        Call::Chat,
        &[
            texts("content", &json!(["a", "", null])),
            texts("tool_calls", &json!(["", format!("[{call}]"), "[]"])),
            texts("finish_reason", &json!(["length"])),
        ],
    );
    let choices = &answer["choices"];
    let parsed: Value = serde_json::from_str(call).unwrap();
    assert_eq!(
        choices[0]["message"],
        json!({"role": "assistant", "content": "a"})
    );
    assert_eq!(choices[0]["finish_reason"], "length");
    assert_eq!(
        choices[1]["message"],
        json!({"role": "assistant", "content": null, "tool_calls": [parsed]})
    );
    assert_eq!(choices[1]["finish_reason"], "tool_calls");
    assert_eq!(
        choices[2]["message"],
        json!({"role": "assistant", "content": null})
    );
    assert_eq!(choices[2]["finish_reason"], "stop");
    assert_eq!(answer["usage"], Value::Null);
}

#[test]
fn completions_have_texts() {
    for name in ["content", "text"] {
        let answer = answer(Call::Completions, &[texts(name, &json!(["a", "b"]))]);
        assert_eq!(
            (&answer["id"], &answer["object"]),
            (&"cmpl-abc".into(), &"text_completion".into())
        );
        let choice = |at: u32, text: &str| json!({"index": at, "text": text, "logprobs": null, "finish_reason": "stop"});
        assert_eq!(answer["choices"], json!([choice(0, "a"), choice(1, "b")]));
    }
}

#[test]
fn a_model_may_say_all_itself() {
    let whole = r#"{"id": "own", "model": "gpt-x", "created": 1, "choices": [{"a": 1.50}], "extra": {"b": [null]}}"#;
    let outputs = [
        texts("output_all", &json!([whole])),
        texts("content", &json!(["not this"])),
    ];
    let answer = from_inference(&context(Call::Chat), response(&outputs).as_bytes()).unwrap();
    assert_eq!(
        answer,
        r#"{"object":"chat.completion","id":"own","model":"gpt-x","created":1,"choices":[{"a": 1.50}],"extra":{"b": [null]}}"#
    );
    // Written over several lines, it is one.
    let outputs = [texts("output_all", &json!(["{\n \"choices\": [\r\n]}"]))];
    let answer = from_inference(&context(Call::Chat), response(&outputs).as_bytes()).unwrap();
    assert_eq!(
        answer,
        r#"{"id":"chatcmpl-abc","object":"chat.completion","created":1700000000,"model":"m","choices":[  ]}"#
    );
}

#[test]
fn embeddings_are_rows() {
    let rows = |data: Value, shape: Value| json!({"name": "embedding", "shape": shape, "datatype": "FP64", "data": data});
    let item = |at: u32, row: Value| json!({"object": "embedding", "index": at, "embedding": row});
    for (data, shape) in [
        (json!([0.1, -2.0, 3.0, 1e-9]), json!([2, 2])),
        (json!([[0.1, -2.0], [3.0, 1e-9]]), json!([2, 2])),
    ] {
        assert_eq!(
            answer(Call::Embeddings, &[rows(data, shape)]),
            json!({
                "object": "list", "model": "m", "usage": null,
                "data": [item(0, json!([0.1, -2.0])), item(1, json!([3.0, 1e-9]))],
            })
        );
    }
    let one = answer(
        Call::Embeddings,
        &[
            json!({"name": "embeddings", "shape": [2], "datatype": "FP32", "data": [1, 2]}),
            texts(
                "usage",
                &json!([r#"{"prompt_tokens": 1, "total_tokens": 1}"#]),
            ),
        ],
    );
    assert_eq!(one["data"], json!([item(0, json!([1.0, 2.0]))]));
    assert_eq!(one["usage"]["total_tokens"], 1);
}

#[test]
fn embeddings_in_base64() {
    let context = Context {
        base64: true,
        ..context(Call::Embeddings)
    };
    let rows =
        json!({"name": "embedding", "shape": [1, 2], "datatype": "FP32", "data": [1.0, -0.5]});
    let whole = r#"{"data": [{"embedding": [1.0, -0.5], "index": 0}, {"embedding": "AACAPwAAAL8=", "index": 1}]}"#;
    for outputs in [rows, texts("output_all", &json!([whole]))] {
        let answer = from_inference(&context, response(&[outputs]).as_bytes()).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        for item in answer["data"].as_array().unwrap() {
            assert_eq!(item["embedding"], "AACAPwAAAL8=");
        }
    }
}

#[test]
fn images_are_texts() {
    assert_eq!(
        answer(
            Call::Images,
            &[
                texts("url", &json!(["http://a", "http://b"])),
                texts("revised_prompt", &json!(["c"]))
            ]
        ),
        json!({"created": 1_700_000_000, "data": [{"url": "http://a", "revised_prompt": "c"}, {"url": "http://b"}]})
    );
    let answer = answer(Call::Images, &[texts("b64_json", &json!(["AA=="]))]);
    assert_eq!(answer["data"], json!([{"b64_json": "AA=="}]));
}

#[test]
fn what_no_answer_can_be_made_of_is_said() {
    let number = json!({"name": "content", "shape": [1], "datatype": "FP32", "data": [1.0]});
    let flat =
        json!({"name": "embedding", "shape": [2, 2], "datatype": "FP32", "data": [1.0, 2.0, 3.0]});
    let cube = json!({"name": "embedding", "shape": [1, 1, 1], "datatype": "FP32", "data": [1.0]});
    let other = texts("predict", &json!(["a"]));
    let many = texts("content", &json!(vec!["a"; 5000]));
    for (call, body, why) in [
        (
            Call::Chat,
            "{}".to_owned(),
            "no inference response: missing field `outputs`",
        ),
        (Call::Chat, "x".to_owned(), "no inference response"),
        (
            Call::Chat,
            response(&[]),
            "none of the outputs output_all, content",
        ),
        (
            Call::Chat,
            response(std::slice::from_ref(&other)),
            "none of the outputs output_all, content",
        ),
        (
            Call::Embeddings,
            response(std::slice::from_ref(&other)),
            "none of the outputs output_all, embedding",
        ),
        (
            Call::Images,
            response(&[other]),
            "none of the outputs output_all, url",
        ),
        (
            Call::Chat,
            response(&[number]),
            "output content holds no texts",
        ),
        (Call::Chat, response(&[many]), "more than 4096 elements"),
        (
            Call::Embeddings,
            response(&[flat]),
            "has 3 numbers but shape [2, 2]",
        ),
        (
            Call::Embeddings,
            response(&[cube]),
            "has 1 numbers but shape [1, 1, 1]",
        ),
        (
            Call::Embeddings,
            response(&[texts("embedding", &json!(["a"]))]),
            "no rows of numbers",
        ),
        (
            Call::Chat,
            response(&[texts("output_all", &json!([]))]),
            "output_all has 0 elements",
        ),
        (
            Call::Chat,
            response(&[texts("output_all", &json!(["{}", "{}"]))]),
            "output_all has 2 elements",
        ),
        (
            Call::Chat,
            response(&[texts("output_all", &json!([null]))]),
            "output_all has 1 elements",
        ),
        (
            Call::Chat,
            response(&[texts("output_all", &json!(["[1]"]))]),
            "output_all is no JSON object",
        ),
        (
            Call::Chat,
            response(&[
                texts("content", &json!(["a"])),
                texts("tool_calls", &json!(["f()"])),
            ]),
            "tool_calls holds no JSON list",
        ),
        (
            Call::Chat,
            response(&[
                texts("content", &json!(["a"])),
                texts("usage", &json!(["7"])),
            ]),
            "usage is no JSON object",
        ),
    ] {
        let failure = from_inference(&context(call), body.as_bytes()).unwrap_err();
        assert_eq!((failure.status, failure.code), (502, "bad_model_output"));
        assert!(failure.message.contains(why), "{body}: {}", failure.message);
    }
}

#[test]
fn an_address_serves_one_model() {
    let model = json!({"id": "a\"b", "object": "model", "created": 0, "owned_by": "seldon"});
    let parsed = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    assert_eq!(
        parsed(models("a\"b", false)),
        json!({"object": "list", "data": [model]})
    );
    assert_eq!(parsed(models("a\"b", true)), model);
}
