//! Images from tensors of texts.
use crate::{
    Context, Failure,
    answer::{Outputs, Texts, head},
    object::{Object, list},
};

pub(crate) fn answer(context: &Context, outputs: &Outputs<'_>) -> Result<String, Failure> {
    let mut columns: Vec<(&str, Texts<'_>)> = Vec::new();
    for name in ["url", "b64_json", "revised_prompt"] {
        columns.extend(outputs.texts(name)?.map(|texts| (name, texts)));
    }
    let images = columns
        .iter()
        .filter(|(name, _)| *name != "revised_prompt")
        .map(|(_, texts)| texts.len())
        .max();
    let images = images.ok_or_else(|| {
        Failure::model("the model's answer has none of the outputs output_all, url and b64_json")
    })?;
    let data = (0..images).map(|at| {
        let mut image = Object::new();
        for (name, texts) in &columns {
            if let Some(Some(text)) = texts.get(at) {
                image.set(name, text);
            }
        }
        image.end()
    });
    let mut answer = Object::new();
    head(context, &mut answer, context.call.object(), |_| false);
    answer.raw("data", &list(data));
    Ok(answer.end())
}
