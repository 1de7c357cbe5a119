//! The messages of a chat, each an element of several tensors.
use std::{borrow::Cow, fmt};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Error as _, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::tensors::{Column, Inference};

/// The tensors that messages become, an element a message.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    role: Column,
    content: Column,
    kind: Column,
    tool_calls: Optional,
    tool_call_id: Optional,
    name: Optional,
}

/// A tensor that is only there if one of the messages needs it.
#[derive(Debug, Default)]
struct Optional {
    column: Column,
    used: bool,
}

impl Optional {
    fn push(&mut self, text: Option<&str>) {
        self.used |= text.is_some();
        self.column.text(text.unwrap_or_default());
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_call_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

impl Messages {
    pub(crate) fn count(&self) -> usize {
        self.role.count()
    }

    pub(crate) fn write(&self, inference: &mut Inference) {
        for (name, column) in [
            ("role", &self.role),
            ("content", &self.content),
            ("type", &self.kind),
        ] {
            inference.texts(name, column);
        }
        for (name, optional) in [
            ("tool_calls", &self.tool_calls),
            ("tool_call_id", &self.tool_call_id),
            ("name", &self.name),
        ] {
            if optional.used {
                inference.texts(name, &optional.column);
            }
        }
    }

    fn push(&mut self, message: &Message<'_>) -> Result<(), String> {
        let at = self.count();
        let role = message.role.as_deref().filter(|role| !role.is_empty());
        self.role
            .text(role.ok_or_else(|| format!("messages[{at}].role is missing"))?);
        self.push_content(message.content)
            .map_err(|why| format!("messages[{at}].content {why}"))?;
        let calls = message.tool_calls.map(RawValue::get);
        if calls.is_some_and(|calls| !calls.starts_with('[')) {
            return Err(format!("messages[{at}].tool_calls is no list"));
        }
        self.tool_calls.push(calls);
        self.tool_call_id.push(message.tool_call_id.as_deref());
        self.name.push(message.name.as_deref());
        Ok(())
    }

    /// A text is itself, and so are parts that are all text, a line each. Other parts are their own JSON, with the
    /// types of all of them in `type`.
    fn push_content(&mut self, content: Option<&RawValue>) -> Result<(), String> {
        let json = content.map_or("null", RawValue::get);
        let wrong = |cause: serde_json::Error| format!("is not understood: {cause}");
        match json.as_bytes().first() {
            Some(b'"') => {
                let text: Cow<'_, str> = serde_json::from_str(json).map_err(wrong)?;
                self.content.text(&text);
                self.kind.text("text");
            }
            Some(b'n') => {
                self.content.text("");
                self.kind.text("text");
            }
            Some(b'[') => {
                let parts: Vec<Part<'_>> = serde_json::from_str(json).map_err(wrong)?;
                if parts.is_empty() {
                    return Err("is an empty list".to_owned());
                }
                if parts.iter().all(|part| part.kind == "text") {
                    let texts: Option<Vec<&str>> =
                        parts.iter().map(|part| part.text.as_deref()).collect();
                    let texts = texts.ok_or("has a part of type text without a text")?;
                    self.content.text(&texts.join("\n"));
                    self.kind.text("text");
                } else {
                    let kinds: Vec<&str> = parts.iter().map(|part| part.kind.as_ref()).collect();
                    let kinds = serde_json::to_string(&kinds).map_err(wrong)?;
                    self.content.text(json);
                    self.kind.text(&kinds);
                }
            }
            _ => return Err("is neither a text nor a list of parts".to_owned()),
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Messages {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Messages {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a list of messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut messages: A) -> Result<(), A::Error> {
        while let Some(message) = messages.next_element::<Message<'de>>()? {
            self.push(&message).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
