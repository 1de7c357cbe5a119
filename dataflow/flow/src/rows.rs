//! Rows: tensors of several requests one after another along their first dimension, and apart again.
use bytes::{Bytes, BytesMut};
use seldon_inference::Datatype;
use seldon_proto::inference::{InferTensorContents, ModelInferRequest};

use crate::tensors::alike;

/// How many rows a request has, if it can be stacked at all: every tensor has the same first dimension and as many
/// elements as its shape says.
pub fn rows(message: &ModelInferRequest) -> Option<usize> {
    let first = message.inputs.first()?;
    let rows = usize::try_from(*first.shape.first()?).ok()?;
    (rows > 0 && is_splittable(message, rows)).then_some(rows)
}

/// Whether two requests fit together: same tensors but for their first dimension.
pub fn fit(one: &ModelInferRequest, other: &ModelInferRequest) -> bool {
    one.inputs.len() == other.inputs.len()
        && one.parameters == other.parameters
        && one.outputs == other.outputs
        && one.inputs.iter().zip(&other.inputs).all(|(one, other)| {
            one.name == other.name
                && one.datatype == other.datatype
                && one.shape.get(1..) == other.shape.get(1..)
                && one.parameters == other.parameters
        })
}

/// Requests that fit together as one.
pub fn stack(
    messages: Vec<ModelInferRequest>,
) -> Result<ModelInferRequest, seldon_inference::Error> {
    let mut messages = alike(messages)?.into_iter();
    let mut stacked = messages.next().unwrap_or_default();
    stacked.id.clear();
    let mut raw: Vec<BytesMut> = stacked
        .raw_input_contents
        .drain(..)
        .map(BytesMut::from)
        .collect();
    for message in messages {
        for (whole, part) in stacked.inputs.iter_mut().zip(message.inputs) {
            if let (Some(whole), Some(part)) = (whole.shape.first_mut(), part.shape.first()) {
                *whole += part;
            }
            if let Some(part) = part.contents {
                append(whole.contents.get_or_insert_default(), part);
            }
        }
        for (whole, part) in raw.iter_mut().zip(message.raw_input_contents) {
            whole.extend_from_slice(&part);
        }
    }
    stacked.raw_input_contents = raw.into_iter().map(BytesMut::freeze).collect();
    Ok(stacked)
}

/// The parts of a message, as many rows each as asked for; `None` where its tensors do not have that many.
pub fn split(message: &ModelInferRequest, parts: &[usize]) -> Option<Vec<ModelInferRequest>> {
    let total = parts
        .iter()
        .try_fold(0_usize, |sum, part| sum.checked_add(*part))?;
    if total == 0 || !is_splittable(message, total) {
        return None;
    }
    let mut split = Vec::with_capacity(parts.len());
    let mut from = 0;
    for part in parts {
        split.push(slice(message, from, from + part)?);
        from += part;
    }
    Some(split)
}

/// Whether it has one row: what a model such as a drift detector says of a whole batch.
pub fn is_one(message: &ModelInferRequest) -> bool {
    let mut tensors = message.inputs.iter();
    !message.inputs.is_empty() && tensors.all(|tensor| tensor.shape.first() == Some(&1))
}

fn slice(message: &ModelInferRequest, from: usize, to: usize) -> Option<ModelInferRequest> {
    let mut part = ModelInferRequest {
        id: message.id.clone(),
        parameters: message.parameters.clone(),
        outputs: message.outputs.clone(),
        ..Default::default()
    };
    for (index, tensor) in message.inputs.iter().enumerate() {
        let width = width(&tensor.shape)?;
        let mut piece = tensor.clone();
        piece.contents = None;
        *piece.shape.first_mut()? = i64::try_from(to - from).ok()?;
        match (message.raw_input_contents.get(index), &tensor.contents) {
            (Some(raw), _) => {
                let datatype = tensor.datatype.parse().ok()?;
                let piece = raw_elements(datatype, raw, from * width, to * width)?;
                part.raw_input_contents.push(piece);
            }
            (None, Some(contents)) => {
                piece.contents = Some(elements(contents, from * width, to * width));
            }
            (None, None) => {}
        }
        part.inputs.push(piece);
    }
    Some(part)
}

fn is_splittable(message: &ModelInferRequest, rows: usize) -> bool {
    let raw = &message.raw_input_contents;
    !message.inputs.is_empty()
        && (raw.is_empty() || raw.len() == message.inputs.len())
        && message.inputs.iter().enumerate().all(|(index, tensor)| {
            let is_rows = tensor
                .shape
                .first()
                .and_then(|first| usize::try_from(*first).ok())
                == Some(rows);
            let elements = width(&tensor.shape).and_then(|width| width.checked_mul(rows));
            let (true, Some(elements)) = (is_rows, elements) else {
                return false;
            };
            match (raw.get(index), &tensor.contents) {
                (Some(raw), _) => tensor
                    .datatype
                    .parse()
                    .is_ok_and(|datatype| raw_len(datatype, raw) == Some(elements)),
                (None, Some(contents)) => len(contents) == Some(elements),
                (None, None) => elements == 0,
            }
        })
}

/// Elements of one row.
fn width(shape: &[i64]) -> Option<usize> {
    shape.get(1..)?.iter().try_fold(1_usize, |product, size| {
        product.checked_mul(usize::try_from(*size).ok()?)
    })
}

macro_rules! fields {
    ($act:ident) => {
        $act!(
            bool_contents,
            int_contents,
            int64_contents,
            uint_contents,
            uint64_contents,
            fp32_contents,
            fp64_contents,
            bytes_contents
        )
    };
}

/// How many elements; `None` where more than one kind is filled, of which one could not say which is meant.
fn len(contents: &InferTensorContents) -> Option<usize> {
    macro_rules! lens {
        ($($field:ident),*) => { [$(contents.$field.len()),*] };
    }
    let lens = fields!(lens);
    let filled = lens.iter().filter(|len| **len > 0).count();
    (filled <= 1).then(|| lens.iter().sum())
}

fn append(whole: &mut InferTensorContents, part: InferTensorContents) {
    macro_rules! appends {
        ($($field:ident),*) => { $(whole.$field.extend(part.$field);)* };
    }
    fields!(appends);
}

fn elements(contents: &InferTensorContents, from: usize, to: usize) -> InferTensorContents {
    macro_rules! slices {
        ($($field:ident),*) => {
            InferTensorContents { $($field: contents.$field.get(from..to).unwrap_or_default().to_vec()),* }
        };
    }
    fields!(slices)
}

fn raw_len(datatype: Datatype, raw: &Bytes) -> Option<usize> {
    match datatype.size() {
        Some(size) => raw.len().is_multiple_of(size).then_some(raw.len() / size),
        None => {
            let (mut count, mut at) = (0, 0);
            while at < raw.len() {
                at = after(raw, at)?;
                count += 1;
            }
            Some(count)
        }
    }
}

fn raw_elements(datatype: Datatype, raw: &Bytes, from: usize, to: usize) -> Option<Bytes> {
    let (start, end) = match datatype.size() {
        Some(size) => (from * size, to * size),
        None => {
            let mut at = 0;
            for _ in 0..from {
                at = after(raw, at)?;
            }
            let start = at;
            for _ in from..to {
                at = after(raw, at)?;
            }
            (start, at)
        }
    };
    (end <= raw.len()).then(|| raw.slice(start..end))
}

/// Where the BYTES element that begins at `at` ends.
fn after(raw: &Bytes, at: usize) -> Option<usize> {
    let length = raw.get(at..)?.first_chunk::<4>()?;
    let end = at
        .checked_add(4)?
        .checked_add(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    (end <= raw.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seldon_inference::{pack_request, unpack_request};
    use seldon_proto::inference::model_infer_request::InferInputTensor;

    use super::*;
    use crate::tensors::{Selection, merge, select};

    fn raw(datatype: Datatype, elements: usize, seed: &[u8]) -> Bytes {
        let mut bytes = seed.iter().cycle().copied();
        let mut raw = Vec::new();
        for _ in 0..elements {
            match datatype.size() {
                // A half that is a number, so that typed contents hold it exactly.
                _ if datatype == Datatype::Fp16 => raw.extend([bytes.next().unwrap(), 0x3c]),
                _ if datatype == Datatype::Bool => raw.push(bytes.next().unwrap() & 1),
                // No NaN, which no comparison finds equal.
                Some(size) => raw.extend((0..size).map(|_| bytes.next().unwrap() & 0x3f)),
                None => {
                    let length = bytes.next().unwrap() % 5;
                    raw.extend(u32::from(length).to_le_bytes());
                    raw.extend((0..length).map(|_| bytes.next().unwrap()));
                }
            }
        }
        raw.into()
    }

    fn request(kinds: &[(Datatype, usize)], rows: usize, seed: &[u8]) -> ModelInferRequest {
        let tensor = |(index, (datatype, width)): (usize, &(Datatype, usize))| InferInputTensor {
            name: format!("t{}", index % 3),
            datatype: datatype.name().to_owned(),
            shape: vec![rows as i64, *width as i64],
            ..Default::default()
        };
        ModelInferRequest {
            inputs: kinds.iter().enumerate().map(tensor).collect(),
            raw_input_contents: kinds
                .iter()
                .map(|(kind, width)| raw(*kind, rows * width, seed))
                .collect(),
            ..Default::default()
        }
    }

    fn packed(mut request: ModelInferRequest) -> ModelInferRequest {
        pack_request(&mut request).unwrap();
        request
    }

    fn kinds() -> impl Strategy<Value = Vec<(Datatype, usize)>> {
        prop::collection::vec(
            (prop::sample::select(Datatype::ALL.to_vec()), 1..4_usize),
            1..5,
        )
    }

    fn seeds() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 1..40)
    }

    proptest! {
        #[test]
        fn taken_apart_a_stack_is_what_it_was(
            kinds in kinds(),
            parts in prop::collection::vec((1..4_usize, any::<bool>(), seeds()), 1..6),
        ) {
            let mut members: Vec<_> = parts.iter().map(|(rows, _, seed)| request(&kinds, *rows, seed)).collect();
            let originals = members.clone();
            for (member, (_, typed, _)) in members.iter_mut().zip(&parts) {
                if *typed {
                    unpack_request(member).unwrap();
                }
                prop_assert!(rows(member).is_some());
                prop_assert!(fit(member, &originals[0]));
            }
            let stacked = stack(members).unwrap();
            let counts: Vec<usize> = parts.iter().map(|(rows, ..)| *rows).collect();
            prop_assert_eq!(rows(&stacked), Some(counts.iter().sum()));
            let apart = split(&stacked, &counts).unwrap();
            for (part, original) in apart.into_iter().zip(originals) {
                prop_assert_eq!(packed(part), original);
            }
            prop_assert!(split(&stacked, &[counts.iter().sum::<usize>() + 1]).is_none());
        }

        #[test]
        fn merged_values_stay_exact(
            parts in prop::collection::vec((kinds(), any::<bool>(), seeds()), 1..4),
        ) {
            let originals: Vec<_> = parts.iter().map(|(kinds, _, seed)| request(kinds, 2, seed)).collect();
            let mut messages = originals.clone();
            for (message, (_, typed, _)) in messages.iter_mut().zip(&parts) {
                if *typed {
                    unpack_request(message).unwrap();
                }
            }
            let renames = [("t0".to_owned(), "new".to_owned())];
            let selected: Vec<_> = messages
                .iter()
                .map(|message| select(message, &Selection::All, &renames).unwrap())
                .collect();
            let merged = packed(merge(selected).unwrap());
            let raw: Vec<_> = originals.iter().flat_map(|original| original.raw_input_contents.clone()).collect();
            prop_assert_eq!(merged.raw_input_contents, raw);
            prop_assert!(merged.inputs.iter().all(|tensor| tensor.name != "t0"));
        }

        #[test]
        fn a_selection_keeps_contents_with_their_tensors(kinds in kinds(), seed in seeds(), typed in any::<bool>()) {
            let original = request(&kinds, 1, &seed);
            let mut message = original.clone();
            if typed {
                unpack_request(&mut message).unwrap();
            }
            let mut selection = Selection::Named(Default::default());
            selection.add(Some("t1"));
            let selected = packed(select(&message, &selection, &[]).unwrap());
            let expected: Vec<_> = original
                .inputs
                .iter()
                .zip(&original.raw_input_contents)
                .filter(|(tensor, _)| tensor.name == "t1")
                .map(|(_, raw)| raw.clone())
                .collect();
            prop_assert_eq!(selection.finds(&message), !expected.is_empty());
            prop_assert_eq!(selected.raw_input_contents, expected);
        }
    }
}
