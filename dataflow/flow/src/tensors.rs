//! Selecting, renaming and merging tensors. A request stands for both kinds of messages: their tensors are alike.
use std::collections::BTreeSet;

use seldon_inference::{pack_request, unpack_request};
use seldon_proto::inference::ModelInferRequest;

/// Which tensors of a record a source asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Whatever there is.
    All,
    /// Those named.
    Named(BTreeSet<String>),
}

impl Selection {
    /// Asks for one more, or for all of them.
    pub fn add(&mut self, tensor: Option<&str>) {
        match (&mut *self, tensor) {
            (Self::All, _) => {}
            (_, None) => *self = Self::All,
            (Self::Named(names), Some(tensor)) => {
                names.insert(tensor.to_owned());
            }
        }
    }

    /// Whether it asks for a tensor.
    pub fn wants(&self, tensor: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(tensor),
        }
    }

    /// Whether a message has anything that it asks for. All of nothing is something: a request may be empty.
    pub fn finds(&self, message: &ModelInferRequest) -> bool {
        *self == Self::All || message.inputs.iter().any(|tensor| self.wants(&tensor.name))
    }
}

/// The wanted tensors of a message with their contents, renamed as the pairs say. The model's name goes, id and
/// parameters stay.
pub fn select(
    message: &ModelInferRequest,
    selection: &Selection,
    renames: &[(String, String)],
) -> Result<ModelInferRequest, seldon_inference::Error> {
    let (tensors, raw) = (&message.inputs, &message.raw_input_contents);
    if !raw.is_empty() && raw.len() != tensors.len() {
        return Err(seldon_inference::Error::RawCount {
            raw: raw.len(),
            tensors: tensors.len(),
        });
    }
    let mut selected = ModelInferRequest {
        id: message.id.clone(),
        parameters: message.parameters.clone(),
        outputs: message.outputs.clone(),
        ..Default::default()
    };
    for (index, tensor) in tensors.iter().enumerate() {
        if !selection.wants(&tensor.name) {
            continue;
        }
        let mut tensor = tensor.clone();
        if let Some((_, to)) = renames.iter().find(|(from, _)| *from == tensor.name) {
            tensor.name.clone_from(to);
        }
        selected.inputs.push(tensor);
        selected.raw_input_contents.extend(raw.get(index).cloned());
    }
    Ok(selected)
}

/// All tensors of the messages in their order, names that come twice too. Where some are raw and some typed they
/// become raw, or typed if that cannot be.
pub fn merge(
    messages: Vec<ModelInferRequest>,
) -> Result<ModelInferRequest, seldon_inference::Error> {
    let mut messages = alike(messages)?.into_iter();
    let mut merged = messages.next().unwrap_or_default();
    for message in messages {
        merged.inputs.extend(message.inputs);
        merged.raw_input_contents.extend(message.raw_input_contents);
        for output in message.outputs {
            if !merged.outputs.contains(&output) {
                merged.outputs.push(output);
            }
        }
        if merged.id.is_empty() {
            merged.id = message.id;
        }
        for (name, value) in message.parameters {
            merged.parameters.entry(name).or_insert(value);
        }
    }
    Ok(merged)
}

/// Makes messages all raw or all typed.
pub fn alike(
    mut messages: Vec<ModelInferRequest>,
) -> Result<Vec<ModelInferRequest>, seldon_inference::Error> {
    let is_raw = |message: &ModelInferRequest| !message.raw_input_contents.is_empty();
    let is_typed = |message: &ModelInferRequest| !message.inputs.is_empty() && !is_raw(message);
    if !(messages.iter().any(is_raw) && messages.iter().any(is_typed)) {
        return Ok(messages);
    }
    let mut packed = messages.clone();
    match packed.iter_mut().try_for_each(pack_request) {
        Ok(()) => Ok(packed),
        Err(error) => {
            // A number too large for its type cannot be raw; FP16 cannot be typed.
            let unpacked = messages.iter_mut().try_for_each(unpack_request);
            if unpacked.is_err() || messages.iter().any(is_raw) {
                return Err(error);
            }
            Ok(messages)
        }
    }
}
