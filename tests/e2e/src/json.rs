//! Comparing printed JSON with the documented one.
use serde_json::Value;

/// How far two documents must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Equal, but for ids, which must have the form of one.
    Same,
    /// Ours may have more keys.
    Subset,
    /// Of an answer, what pages of any age agree on: model, and each output's name, datatype and data.
    Outputs,
}

/// Lists where `actual` differs from `expected`.
pub fn differences(rule: Rule, expected: &Value, actual: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if rule == Rule::Outputs {
        compare(
            Rule::Same,
            "",
            &outputs(expected),
            &outputs(actual),
            &mut found,
        );
    } else {
        compare(rule, "", expected, actual, &mut found);
    }
    found
}

/// Keys that hold an id: each run has another.
const IDS: [&str; 2] = ["id", "inference_id"];
/// Keys whose text is another in each run, and short ids.
const OTHERS: [&str; 2] = ["uid", "lastChangeTimestamp"];

fn compare(rule: Rule, path: &str, expected: &Value, actual: &Value, found: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(wanted), Value::Object(given)) => {
            for (key, value) in wanted {
                let path = format!("{path}.{key}");
                match given.get(key) {
                    None => found.push(format!("{path} is missing")),
                    Some(id) if IDS.contains(&key.as_str()) => {
                        if !id.as_str().is_some_and(is_uuid) {
                            found.push(format!("{path} is {id}, not a uuid"));
                        }
                    }
                    Some(text) if OTHERS.contains(&key.as_str()) => {
                        if text.as_str().is_none_or(str::is_empty) {
                            found.push(format!("{path} is {text}, not a text"));
                        }
                    }
                    Some(other) => compare(rule, &path, value, other, found),
                }
            }
            if rule == Rule::Same {
                let more = given.keys().filter(|key| !wanted.contains_key(*key));
                found.extend(more.map(|key| format!("{path}.{key} is not documented")));
            }
        }
        (Value::Array(wanted), Value::Array(given)) if wanted.len() == given.len() => {
            for (index, (wanted, given)) in wanted.iter().zip(given).enumerate() {
                compare(rule, &format!("{path}[{index}]"), wanted, given, found);
            }
        }
        _ if expected == actual => {}
        // 10 and 10.0 are one number.
        (Value::Number(wanted), Value::Number(given)) if wanted.as_f64() == given.as_f64() => {}
        _ => found.push(format!("{path} is {actual}, documented is {expected}")),
    }
}

fn outputs(answer: &Value) -> Value {
    let outputs = answer["outputs"].as_array().cloned().unwrap_or_default();
    let outputs: Vec<Value> = outputs
        .iter()
        .map(|tensor| serde_json::json!([tensor["name"], tensor["datatype"], tensor["data"]]))
        .collect();
    serde_json::json!({"model_name": answer["model_name"], "outputs": outputs})
}

fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_differ_and_nothing_else() {
        let documented = json!({"id": "983bd95f-4b4d-4ff1-95b2-df9d6d089164", "a": [1, {"b": {}}]});
        let ours = json!({"a": [1, {"b": {}}], "id": "00000000-4b4d-4ff1-95b2-df9d6d089164"});
        assert!(differences(Rule::Same, &documented, &ours).is_empty());
        let wrong = json!({"a": [1, {"b": 1}], "id": "1", "c": 2});
        assert_eq!(differences(Rule::Same, &documented, &wrong).len(), 3);
        assert_eq!(differences(Rule::Subset, &documented, &wrong).len(), 2);
    }
}
