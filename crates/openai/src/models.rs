//! The list of models.
use serde_json::json;

/// What an address serves: its one model, or, with `retrieved`, that model itself.
pub fn models(model: &str, retrieved: bool) -> String {
    // Nobody knows here since when it exists.
    let model = json!({"id": model, "object": "model", "created": 0, "owned_by": "seldon"});
    let answer = if retrieved {
        model
    } else {
        json!({"object": "list", "data": [model]})
    };
    answer.to_string()
}
