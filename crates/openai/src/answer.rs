//! Inference responses as OpenAI's answers.
use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    Call, Context, Failure, chat, embeddings, images,
    object::{Members, Object},
};

/// The tensor that holds whole answers, or chunks of a stream, as JSON.
pub(crate) const WHOLE: &str = "output_all";
/// Most elements of a tensor of texts.
const MOST: usize = 4_096;

/// Translates a whole answer.
///
/// # Errors
/// With status 502, what no answer can be made of.
pub fn from_inference(context: &Context, body: &[u8]) -> Result<String, Failure> {
    let outputs = Outputs::read(body)?;
    if let Some(whole) = outputs.texts(WHOLE)? {
        let [Some(whole)] = &whole[..] else {
            let message = format!("{WHOLE} has {} elements, an answer is one", whole.len());
            return Err(Failure::model(message));
        };
        return complete(context, whole, context.call.object());
    }
    match context.call {
        Call::Chat | Call::Completions => chat::answer(context, &outputs),
        Call::Embeddings => embeddings::answer(context, &outputs),
        Call::Images => images::answer(context, &outputs),
    }
}

/// What the model itself says in OpenAI's form, with what it left out.
pub(crate) fn complete(
    context: &Context,
    whole: &str,
    object: Option<&'static str>,
) -> Result<String, Failure> {
    let members: Members<'_> = serde_json::from_str(whole)
        .map_err(|cause| Failure::model(format!("{WHOLE} is no JSON object: {cause}")))?;
    let mut answer = Object::new();
    head(context, &mut answer, object, |name| {
        members.get(name).is_some()
    });
    for (name, value) in &members.0 {
        if name == "data" && context.base64 && context.call == Call::Embeddings {
            answer.raw(name, &embeddings::in_base64(value)?);
        } else {
            answer.raw(name, value.get());
        }
    }
    Ok(answer.end())
}

/// What every answer begins with, but what is `there` already.
pub(crate) fn head(
    context: &Context,
    answer: &mut Object,
    object: Option<&'static str>,
    there: impl Fn(&str) -> bool,
) {
    if let Some(prefix) = context.call.id_prefix().filter(|_| !there("id")) {
        answer.set("id", &format!("{prefix}{}", context.id));
    }
    if let Some(object) = object.filter(|_| !there("object")) {
        answer.set("object", object);
    }
    if context.call != Call::Embeddings && !there("created") {
        answer.set("created", &context.created);
    }
    if context.call != Call::Images && !there("model") {
        answer.set("model", &context.model);
    }
}

/// The tensors of a response.
pub(crate) struct Outputs<'a>(Vec<Output<'a>>);

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    outputs: Vec<Output<'a>>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    shape: Vec<usize>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// The elements of a tensor of texts; none for `null`.
pub(crate) type Texts<'a> = Vec<Option<Cow<'a, str>>>;

impl<'a> Outputs<'a> {
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, Failure> {
        let response: Result<Response<'a>, _> = serde_json::from_slice(body);
        response
            .map(|response| Self(response.outputs))
            .map_err(|cause| {
                Failure::model(format!(
                    "the model's answer is no inference response: {cause}"
                ))
            })
    }

    fn find(&self, name: &str) -> Option<&Output<'a>> {
        self.0.iter().find(|output| output.name == name)
    }

    /// The texts of a tensor, if it is there.
    pub(crate) fn texts(&self, name: &str) -> Result<Option<Texts<'a>>, Failure> {
        let Some(output) = self.find(name) else {
            return Ok(None);
        };
        let (mut texts, mut json) = (
            Vec::new(),
            serde_json::Deserializer::from_str(output.data.get()),
        );
        let read = Elements(&mut texts).deserialize(&mut json);
        read.map_err(|cause| Failure::model(format!("output {name} holds no texts: {cause}")))?;
        Ok(Some(texts))
    }

    /// The only text of a tensor, if it is there and has one.
    pub(crate) fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, Failure> {
        Ok(self
            .texts(name)?
            .and_then(|texts| texts.into_iter().next().flatten()))
    }

    /// The rows of a tensor of numbers, if it is there.
    pub(crate) fn rows(&self, name: &str) -> Result<Option<Vec<Vec<f64>>>, Failure> {
        let Some(output) = self.find(name) else {
            return Ok(None);
        };
        let wrong = |why: &dyn fmt::Display| Failure::model(format!("output {name} {why}"));
        let data = output.data.get();
        let nested: Result<Vec<Vec<f64>>, _> = serde_json::from_str(data);
        if let Ok(rows) = nested {
            return Ok(Some(rows));
        }
        let flat: Vec<f64> = serde_json::from_str(data)
            .map_err(|cause| wrong(&format!("holds no rows of numbers: {cause}")))?;
        let length = match output.shape[..] {
            [_, length] => length,
            [length] => length,
            _ => 0,
        };
        if length == 0 || !flat.len().is_multiple_of(length) {
            let why = format!("has {} numbers but shape {:?}", flat.len(), output.shape);
            return Err(wrong(&why));
        }
        Ok(Some(flat.chunks(length).map(<[f64]>::to_vec).collect()))
    }
}

/// Collects texts, however they are nested.
struct Elements<'t, 'a>(&'t mut Texts<'a>);

impl<'de> DeserializeSeed<'de> for Elements<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'a> Elements<'_, 'a> {
    fn push<E: serde::de::Error>(self, text: Option<Cow<'a, str>>) -> Result<(), E> {
        if self.0.len() >= MOST {
            return Err(E::custom(format!("more than {MOST} elements")));
        }
        self.0.push(text);
        Ok(())
    }
}

impl<'de> Visitor<'de> for Elements<'_, 'de> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("texts")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<(), E> {
        self.push(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.push(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.push(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while elements.next_element_seed(Elements(self.0))?.is_some() {}
        Ok(())
    }
}
