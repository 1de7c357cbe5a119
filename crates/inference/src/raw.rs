//! Typed contents to raw bytes and back. Raw is little-endian, BYTES elements have their length before them.
use bytes::{BufMut, Bytes, BytesMut};
use seldon_proto::inference::{InferTensorContents, ModelInferRequest, ModelInferResponse};

use crate::{Datatype, Error, Problem, half, value};

/// Moves raw contents of a request into typed ones. A message with an FP16 tensor stays raw.
pub fn unpack_request(request: &mut ModelInferRequest) -> Result<(), Error> {
    let mut tensors: Vec<_> = request
        .inputs
        .iter_mut()
        .map(|tensor| {
            (
                tensor.name.as_str(),
                tensor.datatype.as_str(),
                &mut tensor.contents,
            )
        })
        .collect();
    unpack(&mut tensors, &mut request.raw_input_contents)
}

/// Moves raw contents of a response into typed ones. A message with an FP16 tensor stays raw.
pub fn unpack_response(response: &mut ModelInferResponse) -> Result<(), Error> {
    let mut tensors: Vec<_> = response
        .outputs
        .iter_mut()
        .map(|tensor| {
            (
                tensor.name.as_str(),
                tensor.datatype.as_str(),
                &mut tensor.contents,
            )
        })
        .collect();
    unpack(&mut tensors, &mut response.raw_output_contents)
}

/// Moves typed contents of a request into raw ones.
pub fn pack_request(request: &mut ModelInferRequest) -> Result<(), Error> {
    let mut tensors: Vec<_> = request
        .inputs
        .iter_mut()
        .map(|tensor| {
            (
                tensor.name.as_str(),
                tensor.datatype.as_str(),
                &mut tensor.contents,
            )
        })
        .collect();
    pack(&mut tensors, &mut request.raw_input_contents)
}

/// Moves typed contents of a response into raw ones.
pub fn pack_response(response: &mut ModelInferResponse) -> Result<(), Error> {
    let mut tensors: Vec<_> = response
        .outputs
        .iter_mut()
        .map(|tensor| {
            (
                tensor.name.as_str(),
                tensor.datatype.as_str(),
                &mut tensor.contents,
            )
        })
        .collect();
    pack(&mut tensors, &mut response.raw_output_contents)
}

/// Name, type and contents of a tensor.
type Tensor<'a> = (&'a str, &'a str, &'a mut Option<InferTensorContents>);

fn unpack(tensors: &mut [Tensor<'_>], raw: &mut Vec<Bytes>) -> Result<(), Error> {
    if raw.is_empty() {
        return Ok(());
    }
    check_count(tensors, raw)?;
    let mut contents = Vec::with_capacity(raw.len());
    for ((name, datatype, _), bytes) in tensors.iter().zip(raw.iter()) {
        let datatype = parse(name, datatype)?;
        if datatype == Datatype::Fp16 {
            return Ok(());
        }
        contents.push(from_raw(datatype, bytes).map_err(|problem| problem.of(name))?);
    }
    for ((_, _, place), contents) in tensors.iter_mut().zip(contents) {
        **place = Some(contents);
    }
    raw.clear();
    Ok(())
}

fn pack(tensors: &mut [Tensor<'_>], raw: &mut Vec<Bytes>) -> Result<(), Error> {
    if !raw.is_empty() {
        return check_count(tensors, raw);
    }
    for (name, datatype, contents) in tensors.iter() {
        let datatype = parse(name, datatype)?;
        let contents = contents.as_ref();
        let packed = contents.map_or(Ok(Bytes::new()), |contents| to_raw(datatype, contents));
        raw.push(packed.map_err(|problem| problem.of(name))?);
    }
    for (_, _, contents) in tensors.iter_mut() {
        **contents = None;
    }
    Ok(())
}

fn check_count(tensors: &[Tensor<'_>], raw: &[Bytes]) -> Result<(), Error> {
    if raw.len() == tensors.len() {
        Ok(())
    } else {
        Err(Error::RawCount {
            raw: raw.len(),
            tensors: tensors.len(),
        })
    }
}

fn parse(name: &str, datatype: &str) -> Result<Datatype, Error> {
    datatype
        .parse()
        .map_err(|problem: Problem| problem.of(name))
}

/// Elements of raw bytes.
pub(crate) fn len(datatype: Datatype, raw: &[u8]) -> Result<usize, Problem> {
    let broken = || Problem::Raw(raw.len(), datatype);
    if let Some(size) = datatype.size() {
        let whole = raw.len().is_multiple_of(size);
        return whole.then_some(raw.len() / size).ok_or_else(broken);
    }
    let (mut rest, mut elements) = (raw, 0);
    while !rest.is_empty() {
        (_, rest) = element(rest).ok_or_else(broken)?;
        elements += 1;
    }
    Ok(elements)
}

/// The first of BYTES elements, which have their length before them, and the others.
fn element(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, tail) = raw.split_first_chunk()?;
    tail.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

/// Typed contents from raw bytes. FP16 becomes `fp32_contents`, for writing JSON only.
pub(crate) fn from_raw(datatype: Datatype, raw: &[u8]) -> Result<InferTensorContents, Problem> {
    let mut contents = InferTensorContents::default();
    macro_rules! elements {
        ($field:ident, $from:ty, $convert:expr) => {{
            let (chunks, rest) = raw.as_chunks::<{ size_of::<$from>() }>();
            if !rest.is_empty() {
                return Err(Problem::Raw(raw.len(), datatype));
            }
            let convert: fn($from) -> _ = $convert;
            contents.$field = chunks
                .iter()
                .map(|chunk| convert(<$from>::from_le_bytes(*chunk)))
                .collect();
        }};
    }
    match datatype {
        Datatype::Bool => elements!(bool_contents, u8, |byte| byte != 0),
        Datatype::Uint8 => elements!(uint_contents, u8, u32::from),
        Datatype::Uint16 => elements!(uint_contents, u16, u32::from),
        Datatype::Uint32 => elements!(uint_contents, u32, |number| number),
        Datatype::Uint64 => elements!(uint64_contents, u64, |number| number),
        Datatype::Int8 => elements!(int_contents, i8, i32::from),
        Datatype::Int16 => elements!(int_contents, i16, i32::from),
        Datatype::Int32 => elements!(int_contents, i32, |number| number),
        Datatype::Int64 => elements!(int64_contents, i64, |number| number),
        Datatype::Fp16 => elements!(fp32_contents, u16, half::to_f32),
        Datatype::Fp32 => elements!(fp32_contents, f32, |number| number),
        Datatype::Fp64 => elements!(fp64_contents, f64, |number| number),
        Datatype::Bytes => {
            let mut rest = raw;
            while !rest.is_empty() {
                let (first, tail) = element(rest).ok_or(Problem::Raw(raw.len(), datatype))?;
                contents.bytes_contents.push(first.to_vec());
                rest = tail;
            }
        }
    }
    Ok(contents)
}

/// Raw bytes from typed contents; FP16 is taken from `fp32_contents`, as some clients send it.
pub(crate) fn to_raw(datatype: Datatype, contents: &InferTensorContents) -> Result<Bytes, Problem> {
    let mut raw = BytesMut::new();
    macro_rules! narrow {
        ($field:ident, $to:ty) => {
            for (index, number) in contents.$field.iter().enumerate() {
                let narrow = <$to>::try_from(*number)
                    .map_err(|_| value::misfit(index, datatype, &number.to_string()))?;
                raw.put_slice(&narrow.to_le_bytes());
            }
        };
    }
    match datatype {
        Datatype::Bool => raw.extend(contents.bool_contents.iter().map(|yes| u8::from(*yes))),
        Datatype::Uint8 => narrow!(uint_contents, u8),
        Datatype::Uint16 => narrow!(uint_contents, u16),
        Datatype::Uint32 => narrow!(uint_contents, u32),
        Datatype::Uint64 => narrow!(uint64_contents, u64),
        Datatype::Int8 => narrow!(int_contents, i8),
        Datatype::Int16 => narrow!(int_contents, i16),
        Datatype::Int32 => narrow!(int_contents, i32),
        Datatype::Int64 => narrow!(int64_contents, i64),
        Datatype::Fp16 => contents
            .fp32_contents
            .iter()
            .for_each(|number| raw.put_u16_le(half::from_f32(*number))),
        Datatype::Fp32 => contents
            .fp32_contents
            .iter()
            .for_each(|number| raw.put_f32_le(*number)),
        Datatype::Fp64 => contents
            .fp64_contents
            .iter()
            .for_each(|number| raw.put_f64_le(*number)),
        Datatype::Bytes => {
            for (index, element) in contents.bytes_contents.iter().enumerate() {
                let length = u32::try_from(element.len())
                    .map_err(|_| value::misfit(index, datatype, "longer than 4 GiB"))?;
                raw.put_u32_le(length);
                raw.put_slice(element);
            }
        }
    }
    Ok(raw.freeze())
}
