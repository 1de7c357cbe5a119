//! OpenAI's requests as inference requests.
use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{error::Category, value::RawValue};

use crate::{
    Call, Failure,
    messages::Messages,
    tensors::{Column, Inference},
    texts::Texts,
};

/// A request for the inference server, and what its answer has to look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The inference request's JSON.
    pub body: Vec<u8>,
    /// Whether the client said that it wants a stream, or wants none.
    pub stream: Option<bool>,
    /// Embeddings are wanted as base64.
    pub base64: bool,
    /// A stream is to end with what it used.
    pub include_usage: bool,
}

/// Translates a request whose path, or header, names one of `names`.
///
/// # Errors
/// What OpenAI's API would refuse, and what no tensor can say; all with status 400, but 404 for another model's name.
pub fn to_inference(call: Call, body: &[u8], names: &[&str]) -> Result<Asked, Failure> {
    let mut reader = Reader::new(call);
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = (&mut reader).deserialize(&mut json);
    read.and_then(|()| json.end())
        .map_err(|cause| reader.failure(&cause))?;
    reader.check_model(names)?;
    reader.finish()
}

/// Writes tensors and options while the request is read.
struct Reader {
    call: Call,
    inference: Inference,
    messages: Option<Messages>,
    texts: Option<Texts>,
    model: Option<String>,
    stream: Option<bool>,
    base64: bool,
    include_usage: bool,
    /// The option that is being read.
    at: String,
    /// Options of ours that were there, as bits: none may be there twice.
    seen: u16,
}

/// What does not pass unread, and for which calls.
const OURS: [(&str, &[Call]); 10] = [
    ("model", &ALL),
    ("stream", &ALL),
    ("stream_options", &[Call::Chat, Call::Completions]),
    ("messages", &[Call::Chat]),
    ("tools", &[Call::Chat]),
    ("tool_choice", &[Call::Chat]),
    ("parallel_tool_calls", &[Call::Chat]),
    ("prompt", &[Call::Completions, Call::Images]),
    ("input", &[Call::Embeddings]),
    ("encoding_format", &[Call::Embeddings]),
];
const ALL: [Call; 4] = [
    Call::Chat,
    Call::Completions,
    Call::Embeddings,
    Call::Images,
];

impl Reader {
    fn new(call: Call) -> Self {
        Self {
            call,
            inference: Inference::default(),
            messages: None,
            texts: None,
            model: None,
            stream: None,
            base64: false,
            include_usage: false,
            at: String::new(),
            seen: 0,
        }
    }

    fn failure(&self, cause: &serde_json::Error) -> Failure {
        match cause.classify() {
            Category::Data if !self.at.is_empty() => {
                Failure::request("invalid_value", &self.at, format!("{}: {cause}", self.at))
            }
            Category::Data => Failure::coded(
                400,
                "invalid_value",
                format!("the body is no request: {cause}"),
            ),
            _ => Failure::coded(400, "invalid_json", format!("the body is no JSON: {cause}")),
        }
    }

    /// The model is chosen before the body is read, so another name can only be a mistake. Images may leave it out.
    fn check_model(&self, names: &[&str]) -> Result<(), Failure> {
        let Some(model) = &self.model else {
            return match self.call {
                Call::Images => Ok(()),
                _ => Err(missing("model")),
            };
        };
        if names.contains(&model.as_str()) {
            return Ok(());
        }
        let served = names.first().copied().unwrap_or_default();
        let message = format!(
            "no model {model} at this address, which serves {served}: name it so, or use the address of {model}"
        );
        Err(Failure {
            param: Some("model".to_owned()),
            ..Failure::coded(404, "model_not_found", message)
        })
    }

    fn finish(mut self) -> Result<Asked, Failure> {
        let inference = &mut self.inference;
        let main = match self.call {
            Call::Chat => "messages",
            Call::Completions | Call::Images => "prompt",
            Call::Embeddings => "input",
        };
        match (&self.messages, &self.texts) {
            (Some(messages), _) if messages.count() > 0 => messages.write(inference),
            (Some(_), _) => {
                return Err(Failure::request("invalid_value", main, "messages is empty"));
            }
            (None, Some(texts)) => texts
                .write(main, inference)
                .map_err(|why| Failure::request("invalid_value", main, why))?,
            (None, None) => return Err(missing(main)),
        }
        if self.stream == Some(true) && !self.call.streams() {
            let message = "stream: this call cannot be streamed";
            return Err(Failure::request("invalid_value", "stream", message));
        }
        Ok(Asked {
            body: self.inference.body(),
            stream: self.stream,
            base64: self.base64,
            include_usage: self.include_usage,
        })
    }

    /// Whether the option does not pass unread.
    fn is_ours(&mut self) -> Result<bool, &'static str> {
        let found = OURS
            .iter()
            .position(|(ours, calls)| *ours == self.at && calls.contains(&self.call));
        let Some(found) = found else {
            return Ok(false);
        };
        if self.seen & (1 << found) != 0 {
            return Err("is given twice");
        }
        self.seen |= 1 << found;
        Ok(true)
    }

    fn read<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<(), A::Error> {
        match self.at.as_str() {
            "model" => self.model = map.next_value()?,
            "stream" => self.stream = map.next_value()?,
            "stream_options" => {
                let raw: &RawValue = map.next_value()?;
                self.include_usage = usage_is_wanted(raw);
                self.option("stream_options", raw);
            }
            "messages" => {
                let mut messages = Messages::default();
                map.next_value_seed(&mut messages)?;
                self.messages = Some(messages);
            }
            "tools" => {
                let tools: Option<Tools> = map.next_value()?;
                if let Some(Tools(column)) = tools.filter(|tools| tools.0.count() > 0) {
                    self.inference.texts("tools", &column);
                }
            }
            "tool_choice" | "parallel_tool_calls" => {
                let raw: &RawValue = map.next_value()?;
                if raw.get() != "null" {
                    let text = serde_json::from_str(raw.get());
                    let text = text.unwrap_or_else(|_| raw.get().to_owned());
                    self.inference.single(&self.at, &text);
                }
            }
            "prompt" if self.call == Call::Images => {
                let text: String = map.next_value()?;
                self.texts = Some(Texts::of(&text));
            }
            "prompt" | "input" => {
                let mut texts = Texts::default();
                map.next_value_seed(&mut texts)?;
                self.texts = Some(texts);
            }
            "encoding_format" => {
                let format: Option<String> = map.next_value()?;
                self.base64 = match format.as_deref() {
                    None | Some("float") => false,
                    Some("base64") => true,
                    Some(other) => {
                        return Err(A::Error::custom(format!(
                            "{other} is neither float nor base64"
                        )));
                    }
                };
            }
            other => unreachable!("{other} is not among the options that are read"),
        }
        Ok(())
    }

    /// A `null` says nothing and is left out.
    fn option(&mut self, name: &str, value: &RawValue) {
        if value.get() != "null" {
            self.inference.option(name, value);
        }
    }
}

fn missing(name: &str) -> Failure {
    Failure::request(
        "missing_required_parameter",
        name,
        format!("{name} is missing"),
    )
}

fn usage_is_wanted(options: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Options {
        #[serde(default)]
        include_usage: Option<bool>,
    }
    let options: Result<Options, _> = serde_json::from_str(options.get());
    options.is_ok_and(|options| options.include_usage == Some(true))
}

impl<'de> DeserializeSeed<'de> for &mut Reader {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Reader {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key()? {
            self.at = name;
            if self.is_ours().map_err(A::Error::custom)? {
                self.read(&mut map)?;
            } else {
                let raw: &RawValue = map.next_value()?;
                let name = std::mem::take(&mut self.at);
                self.option(&name, raw);
            }
        }
        self.at.clear();
        Ok(())
    }
}

/// Tools, each its own JSON.
struct Tools(Column);

impl<'de> Deserialize<'de> for Tools {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Tools;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a list of tools")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut tools: A) -> Result<Tools, A::Error> {
                let mut column = Column::default();
                while let Some(tool) = tools.next_element::<&RawValue>()? {
                    column.text(tool.get());
                }
                Ok(Tools(column))
            }
        }
        from.deserialize_seq(List)
    }
}
