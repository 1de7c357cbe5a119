//! One tensor's `data` in JSON to typed contents and back.
use base64::{Engine as _, prelude::BASE64_STANDARD};
use seldon_proto::inference::InferTensorContents;
use serde_json::{Number, Value};

use crate::{Datatype, Problem};

pub(crate) fn misfit(index: usize, datatype: Datatype, found: &str) -> Problem {
    let mut found = found.to_owned();
    if let Some((cut, _)) = found.char_indices().nth(60) {
        found.truncate(cut);
        found.push('…');
    }
    Problem::Element {
        index,
        datatype,
        found,
    }
}

/// Typed contents from nested or flat data. FP16 is put into `fp32_contents`.
pub(crate) fn from_json(datatype: Datatype, data: &Value) -> Result<InferTensorContents, Problem> {
    if !data.is_array() {
        return Err(Problem::Data);
    }
    let mut flat = Vec::new();
    flatten(data, &mut flat);
    let mut contents = InferTensorContents::default();
    macro_rules! elements {
        ($field:ident, $convert:expr) => {{
            contents.$field.reserve(flat.len());
            for (index, element) in flat.into_iter().enumerate() {
                let converted = $convert(element);
                contents
                    .$field
                    .push(converted.ok_or_else(|| misfit(index, datatype, &element.to_string()))?);
            }
        }};
    }
    match datatype {
        Datatype::Bool => elements!(bool_contents, boolean),
        Datatype::Uint8 => elements!(uint_contents, |v| integer::<u8>(v).map(u32::from)),
        Datatype::Uint16 => elements!(uint_contents, |v| integer::<u16>(v).map(u32::from)),
        Datatype::Uint32 => elements!(uint_contents, integer::<u32>),
        Datatype::Uint64 => elements!(uint64_contents, integer::<u64>),
        Datatype::Int8 => elements!(int_contents, |v| integer::<i8>(v).map(i32::from)),
        Datatype::Int16 => elements!(int_contents, |v| integer::<i16>(v).map(i32::from)),
        Datatype::Int32 => elements!(int_contents, integer::<i32>),
        Datatype::Int64 => elements!(int64_contents, integer::<i64>),
        Datatype::Fp16 | Datatype::Fp32 => elements!(fp32_contents, single),
        Datatype::Fp64 => elements!(fp64_contents, double),
        Datatype::Bytes => {
            elements!(bytes_contents, |v: &Value| v
                .as_str()
                .map(|text| text.as_bytes().to_vec()))
        }
    }
    Ok(contents)
}

/// Elements of typed contents; FP16 is taken from `fp32_contents`.
pub(crate) fn len(datatype: Datatype, contents: &InferTensorContents) -> usize {
    match datatype {
        Datatype::Bool => contents.bool_contents.len(),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => contents.uint_contents.len(),
        Datatype::Uint64 => contents.uint64_contents.len(),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => contents.int_contents.len(),
        Datatype::Int64 => contents.int64_contents.len(),
        Datatype::Fp16 | Datatype::Fp32 => contents.fp32_contents.len(),
        Datatype::Fp64 => contents.fp64_contents.len(),
        Datatype::Bytes => contents.bytes_contents.len(),
    }
}

/// Flat data from typed contents. BYTES elements are base64 unless they are texts.
pub(crate) fn to_json(datatype: Datatype, contents: &InferTensorContents, text: bool) -> Value {
    match datatype {
        Datatype::Bool => contents.bool_contents.clone().into(),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => {
            contents.uint_contents.clone().into()
        }
        Datatype::Uint64 => contents.uint64_contents.clone().into(),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => contents.int_contents.clone().into(),
        Datatype::Int64 => contents.int64_contents.clone().into(),
        Datatype::Fp16 | Datatype::Fp32 => contents
            .fp32_contents
            .iter()
            .map(|v| from_single(*v))
            .collect(),
        Datatype::Fp64 => contents
            .fp64_contents
            .iter()
            .map(|v| from_double(*v))
            .collect(),
        Datatype::Bytes => contents
            .bytes_contents
            .iter()
            .map(|bytes| match std::str::from_utf8(bytes) {
                Ok(readable) if text => Value::from(readable),
                _ => Value::from(BASE64_STANDARD.encode(bytes)),
            })
            .collect(),
    }
}

/// Writes what [`to_json`] makes, without making it.
pub(crate) fn write_json(
    datatype: Datatype,
    contents: &InferTensorContents,
    text: bool,
    out: &mut Vec<u8>,
) -> serde_json::Result<()> {
    match datatype {
        Datatype::Bool => serde_json::to_writer(out, &contents.bool_contents),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => {
            serde_json::to_writer(out, &contents.uint_contents)
        }
        Datatype::Uint64 => serde_json::to_writer(out, &contents.uint64_contents),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => {
            serde_json::to_writer(out, &contents.int_contents)
        }
        Datatype::Int64 => serde_json::to_writer(out, &contents.int64_contents),
        Datatype::Fp16 | Datatype::Fp32 => list(out, &contents.fp32_contents, |out, number| {
            if number.is_finite() {
                serde_json::to_writer(out, number)
            } else {
                serde_json::to_writer(out, &from_single(*number))
            }
        }),
        Datatype::Fp64 => list(out, &contents.fp64_contents, |out, number| {
            if number.is_finite() {
                serde_json::to_writer(out, number)
            } else {
                serde_json::to_writer(out, &from_double(*number))
            }
        }),
        Datatype::Bytes => {
            list(
                out,
                &contents.bytes_contents,
                |out, bytes| match std::str::from_utf8(bytes) {
                    Ok(readable) if text => serde_json::to_writer(out, readable),
                    _ => serde_json::to_writer(out, &BASE64_STANDARD.encode(bytes)),
                },
            )
        }
    }
}

fn list<T>(
    out: &mut Vec<u8>,
    elements: &[T],
    mut write: impl FnMut(&mut Vec<u8>, &T) -> serde_json::Result<()>,
) -> serde_json::Result<()> {
    out.push(b'[');
    for (index, element) in elements.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, element)?;
    }
    out.push(b']');
    Ok(())
}

fn flatten<'a>(value: &'a Value, flat: &mut Vec<&'a Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, flat)),
        element => flat.push(element),
    }
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(yes) => Some(*yes),
        Value::Number(number) => match number.as_u64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        },
        _ => None,
    }
}

/// An integer. `2.0` is one as well, as far as a double holds integers exactly.
fn integer<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = value.as_number()?;
    let wide = match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(signed), ..) => i128::from(signed),
        (_, Some(unsigned), _) => i128::from(unsigned),
        #[allow(clippy::cast_possible_truncation)]
        (.., Some(float)) if float.fract() == 0.0 && float.abs() <= EXACT => float as i128,
        _ => return None,
    };
    T::try_from(wide).ok()
}

fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => special(text),
        _ => None,
    }
}

fn single(value: &Value) -> Option<f32> {
    let wide = double(value)?;
    #[allow(clippy::cast_possible_truncation)]
    let narrow = wide as f32;
    // A finite number must not become infinite unseen.
    (narrow.is_finite() || !wide.is_finite()).then_some(narrow)
}

/// What JSON numbers lack, named as protobuf's JSON form names them.
fn special(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn from_double(number: f64) -> Value {
    let name = match number {
        _ if number.is_nan() => "NaN",
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        finite => return Number::from_f64(finite).map_or(Value::Null, Value::Number),
    };
    Value::from(name)
}

/// The double with the shortest digits of the single, so that 0.1 is not written as 0.10000000149011612.
fn from_single(number: f32) -> Value {
    from_double(
        number
            .to_string()
            .parse()
            .unwrap_or_else(|_| f64::from(number)),
    )
}
