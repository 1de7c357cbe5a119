//! Embeddings from a tensor of numbers.
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::value::RawValue;

use crate::{
    Context, Failure,
    answer::{Outputs, head},
    object::{Members, Object, list},
};

/// Where models put them.
const NAMES: [&str; 2] = ["embedding", "embeddings"];

pub(crate) fn answer(context: &Context, outputs: &Outputs<'_>) -> Result<String, Failure> {
    let mut rows = None;
    for name in NAMES {
        if rows.is_none() {
            rows = outputs.rows(name)?;
        }
    }
    let rows = rows.ok_or_else(|| {
        Failure::model(
            "the model's answer has none of the outputs output_all, embedding and embeddings",
        )
    })?;
    let data = rows.iter().enumerate().map(|(index, row)| {
        let mut item = Object::new();
        item.set("object", "embedding").set("index", &index);
        if context.base64 {
            item.set("embedding", &base64(row));
        } else {
            item.set("embedding", row);
        }
        item.end()
    });
    let mut answer = Object::new();
    head(context, &mut answer, context.call.object(), |_| false);
    answer.raw("data", &list(data));
    let usage = outputs.text("usage")?;
    let usage = usage.filter(|usage| serde_json::from_str::<Members<'_>>(usage).is_ok());
    answer.raw("usage", usage.as_deref().unwrap_or("null"));
    Ok(answer.end())
}

/// As little-endian 32-bit floats.
fn base64(row: &[f64]) -> String {
    #[allow(clippy::cast_possible_truncation)] // what the API says
    let bytes: Vec<u8> = row
        .iter()
        .flat_map(|number| (*number as f32).to_le_bytes())
        .collect();
    STANDARD.encode(bytes)
}

/// The data of an answer that the model made itself, with those embeddings in base64 that are numbers.
pub(crate) fn in_base64(data: &RawValue) -> Result<String, Failure> {
    let wrong = |cause| Failure::model(format!("output_all has no list of embeddings: {cause}"));
    let items: Vec<Members<'_>> = serde_json::from_str(data.get()).map_err(wrong)?;
    let mut written = Vec::with_capacity(items.len());
    for Members(members) in items {
        let mut item = Object::new();
        for (name, value) in members {
            if name == "embedding" && value.get().starts_with('[') {
                let row: Vec<f64> = serde_json::from_str(value.get()).map_err(wrong)?;
                item.set("embedding", &base64(&row));
            } else {
                item.raw(&name, value.get());
            }
        }
        written.push(item.end());
    }
    Ok(list(written))
}
