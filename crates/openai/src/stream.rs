//! Streams: each event of the inference server becomes a chunk.
use crate::{
    Call, Context, Failure,
    answer::{Outputs, WHOLE, complete, head},
    chat::{Said, ended_by},
    error_of_model,
    object::{Object, list},
    sse::Lines,
};

/// Most choices of a stream.
const MOST: usize = 1_024;

/// A stream on its way: bytes of server-sent events go in, bytes of server-sent events come out.
///
/// A stream that fails ends with an event that holds an error, and without `[DONE]`.
#[derive(Debug)]
pub struct Events {
    context: Context,
    lines: Lines,
    choices: Vec<Choice>,
    /// The model speaks OpenAI's language itself.
    whole: bool,
    usage: Option<String>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Choice {
    began: bool,
    tools: bool,
    finished: bool,
}

impl Events {
    /// A stream whose events are at most `most` bytes long.
    pub fn new(context: Context, most: usize) -> Self {
        Self {
            context,
            lines: Lines::new(most),
            choices: Vec::new(),
            whole: false,
            usage: None,
            ended: false,
        }
    }

    /// Bytes that are held until an event is complete.
    pub fn held(&self) -> usize {
        self.lines.held()
    }

    /// Whether nothing more will come out.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Takes bytes of the inference server and adds the chunks they complete to `out`.
    ///
    /// # Errors
    /// What the client was told when the stream failed, which ends it.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        while !self.ended {
            match self.lines.next(&mut bytes) {
                Ok(Some(event)) => self
                    .event(&event, out)
                    .map_err(|failure| self.fail(failure, out))?,
                Ok(None) => break,
                Err(_) => {
                    let failure = Failure::model("an event of the model is longer than allowed");
                    return Err(self.fail(failure, out));
                }
            }
        }
        Ok(())
    }

    /// The inference server has said all.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.lines.is_inside() {
            let failure = Failure::model("the model's answer ended before its end");
            drop(self.fail(failure, out));
        } else {
            self.end(out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if !self.whole {
            self.finish_choices(out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// Ends the stream with an error.
    pub fn fail(&mut self, failure: Failure, out: &mut Vec<u8>) -> Failure {
        if !std::mem::replace(&mut self.ended, true) {
            send(&failure.body(), out);
        }
        failure
    }

    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        // A model behind another proxy may say so itself.
        if event == b"[DONE]" {
            self.end(out);
            return Ok(());
        }
        let outputs = match Outputs::read(event) {
            Ok(outputs) => outputs,
            Err(_) if is_error(event) => return Err(error_of_model(500, event)),
            Err(failure) => return Err(failure),
        };
        if let Some(chunks) = outputs.texts(WHOLE)? {
            self.whole = true;
            for chunk in chunks.iter().flatten() {
                let object = self.context.call.chunk_object();
                send(&complete(&self.context, chunk, object)?, out);
            }
            return Ok(());
        }
        let said = Said::read(&outputs)?;
        if said.choices() > MOST {
            return Err(Failure::model(format!("more than {MOST} choices")));
        }
        if said.choices() > self.choices.len() {
            self.choices.resize_with(said.choices(), Choice::default);
        }
        let mut choices = Vec::with_capacity(said.choices());
        for at in 0..said.choices() {
            choices.push(self.choice(at, &said)?);
        }
        if !choices.is_empty() {
            self.chunk(choices, out);
        }
        if said.usage.is_some() {
            self.usage = said.usage;
        }
        Ok(())
    }

    /// What an event says of one choice.
    fn choice(&mut self, at: usize, said: &Said<'_>) -> Result<String, Failure> {
        let choice = &mut self.choices[at];
        let mut written = Object::new();
        written.set("index", &at);
        if self.context.call == Call::Completions {
            written.set("text", said.content(at).unwrap_or_default());
        } else {
            let calls = said.tool_calls(at, true)?;
            let mut delta = Object::new();
            // Once: clients join the texts of all deltas.
            if !choice.began {
                delta.set("role", said.role(at));
            }
            let content = said.content(at);
            if let Some(content) = content.filter(|content| calls.is_none() || !content.is_empty())
            {
                delta.set("content", content);
            }
            if let Some(calls) = &calls {
                delta.raw("tool_calls", calls);
                choice.tools = true;
            }
            written.raw("delta", &delta.end());
        }
        choice.began = true;
        let reason = said.finish_reason(at);
        choice.finished |= reason.is_some();
        written.raw("logprobs", "null");
        written.set("finish_reason", &reason);
        Ok(written.end())
    }

    /// Ends what the model has not ended itself, and tells what was used if that is wanted.
    fn finish_choices(&mut self, out: &mut Vec<u8>) {
        if self.choices.is_empty() {
            self.choices.push(Choice::default());
        }
        let open = self.choices.iter().enumerate();
        let open = open.filter(|(_, choice)| !choice.finished);
        let last: Vec<String> = open
            .map(|(at, choice)| {
                let mut written = Object::new();
                written.set("index", &at);
                match self.context.call {
                    Call::Completions => written.set("text", ""),
                    _ => written.raw("delta", "{}"),
                };
                written.raw("logprobs", "null");
                written.set("finish_reason", &ended_by(choice.tools));
                written.end()
            })
            .collect();
        if !last.is_empty() {
            self.chunk(last, out);
        }
        if let Some(usage) = self.usage.take().filter(|_| self.context.include_usage) {
            let mut chunk = self.head();
            chunk.raw("choices", "[]").raw("usage", &usage);
            send(&chunk.end(), out);
        }
    }

    fn chunk(&self, choices: Vec<String>, out: &mut Vec<u8>) {
        let mut chunk = self.head();
        chunk.raw("choices", &list(choices));
        send(&chunk.end(), out);
    }

    fn head(&self) -> Object {
        let mut chunk = Object::new();
        let object = self.context.call.chunk_object();
        head(&self.context, &mut chunk, object, |_| false);
        chunk
    }
}

fn is_error(event: &[u8]) -> bool {
    let members: Result<crate::object::Members<'_>, _> = serde_json::from_slice(event);
    members.is_ok_and(|members| members.get("error").is_some())
}

fn send(data: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\n\n");
}
