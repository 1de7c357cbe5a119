//! Answers of chats and completions from tensors.
use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::{
    Call, Context, Failure,
    answer::{Outputs, Texts, head},
    object::{Members, Object, list},
};

/// What one response says of its choices: an element each.
pub(crate) struct Said<'a> {
    role: Texts<'a>,
    content: Texts<'a>,
    tool_calls: Texts<'a>,
    finish_reason: Texts<'a>,
    pub(crate) usage: Option<String>,
}

impl<'a> Said<'a> {
    pub(crate) fn read(outputs: &Outputs<'a>) -> Result<Self, Failure> {
        let mut content = outputs.texts("content")?;
        if content.is_none() {
            content = outputs.texts("text")?;
        }
        let mut tool_calls = outputs.texts("tool_calls")?.unwrap_or_default();
        for calls in &mut tool_calls {
            // A tensor cannot leave an element out.
            calls.take_if(|calls| matches!(calls.trim(), "" | "[]" | "null"));
        }
        let usage = match outputs.text("usage")? {
            Some(usage) => {
                let read: Result<Members<'_>, _> = serde_json::from_str(&usage);
                read.map_err(|cause| {
                    Failure::model(format!("output usage is no JSON object: {cause}"))
                })?;
                Some(usage.into_owned())
            }
            None => None,
        };
        let said = Self {
            role: outputs.texts("role")?.unwrap_or_default(),
            content: content.unwrap_or_default(),
            tool_calls,
            finish_reason: outputs.texts("finish_reason")?.unwrap_or_default(),
            usage,
        };
        if said.choices() == 0 && said.usage.is_none() {
            return Err(Failure::model(
                "the model's answer has none of the outputs output_all, content and tool_calls",
            ));
        }
        Ok(said)
    }

    pub(crate) fn choices(&self) -> usize {
        let lists = [&self.content, &self.tool_calls, &self.finish_reason];
        lists.into_iter().map(Vec::len).max().unwrap_or_default()
    }

    pub(crate) fn role(&self, at: usize) -> &str {
        element(&self.role, at)
            .filter(|role| !role.is_empty())
            .unwrap_or("assistant")
    }

    pub(crate) fn content(&self, at: usize) -> Option<&str> {
        element(&self.content, at)
    }

    pub(crate) fn finish_reason(&self, at: usize) -> Option<&str> {
        element(&self.finish_reason, at).filter(|reason| !reason.is_empty())
    }

    /// Tool calls as a list of JSON; those of a stream say which they are.
    pub(crate) fn tool_calls(&self, at: usize, numbered: bool) -> Result<Option<String>, Failure> {
        let Some(calls) = element(&self.tool_calls, at) else {
            return Ok(None);
        };
        let wrong = |cause| {
            Failure::model(format!(
                "output tool_calls holds no JSON list of objects: {cause}"
            ))
        };
        let calls: Vec<&RawValue> = serde_json::from_str(calls).map_err(wrong)?;
        let mut written = Vec::with_capacity(calls.len());
        for (index, call) in calls.into_iter().enumerate() {
            let members: Members<'_> = serde_json::from_str(call.get()).map_err(wrong)?;
            let mut call = Object::new();
            if numbered && members.get("index").is_none() {
                call.set("index", &index);
            }
            for (name, value) in &members.0 {
                call.raw(name, value.get());
            }
            written.push(call.end());
        }
        Ok(Some(list(written)))
    }
}

fn element<'t>(texts: &'t Texts<'_>, at: usize) -> Option<&'t str> {
    texts.get(at)?.as_deref()
}

/// A whole answer.
pub(crate) fn answer(context: &Context, outputs: &Outputs<'_>) -> Result<String, Failure> {
    let said = Said::read(outputs)?;
    let mut choices = Vec::with_capacity(said.choices());
    for at in 0..said.choices() {
        let mut choice = Object::new();
        choice.set("index", &at);
        let calls = said.tool_calls(at, false)?;
        let reason = said.finish_reason(at);
        let reason = reason.map_or_else(|| ended_by(calls.is_some()), Cow::Borrowed);
        if context.call == Call::Completions {
            choice.set("text", said.content(at).unwrap_or_default());
        } else {
            let mut message = Object::new();
            message.set("role", said.role(at));
            // Where tools are called an element of a tensor can only say nothing by being empty.
            let content = said.content(at);
            message.set(
                "content",
                &content.filter(|content| calls.is_none() || !content.is_empty()),
            );
            if let Some(calls) = &calls {
                message.raw("tool_calls", calls);
            }
            choice.raw("message", &message.end());
        }
        choice.raw("logprobs", "null");
        choice.set("finish_reason", &reason);
        choices.push(choice.end());
    }
    let mut answer = Object::new();
    head(context, &mut answer, context.call.object(), |_| false);
    answer.raw("choices", &list(choices));
    answer.raw("usage", said.usage.as_deref().unwrap_or("null"));
    Ok(answer.end())
}

/// Why a choice ended of which the model says nothing.
pub(crate) fn ended_by(tools: bool) -> Cow<'static, str> {
    Cow::Borrowed(if tools { "tool_calls" } else { "stop" })
}
