//! The members of a batch, as they travel with it.
use bytes::Bytes;
use seldon_records::Headers;
use serde_json::{Value, json};

/// One request in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its record's key.
    pub key: Option<Bytes>,
    /// Its record's headers.
    pub headers: Headers,
    /// How many rows of the batch are its own, in the order of the members.
    pub rows: usize,
}

/// The header's value: `[{"key": …, "rows": …, "headers": [[name, value], …]}, …]`; what is no text is written as
/// `{"hex": …}`.
pub fn write_members(members: &[Member]) -> Bytes {
    let members = members.iter().map(|member| {
        let headers = member
            .headers
            .iter()
            .map(|(name, value)| json!([name, text(value)]));
        json!({
            "key": member.key.as_ref().map_or(Value::Null, text),
            "rows": member.rows,
            "headers": headers.collect::<Vec<_>>(),
        })
    });
    Value::from(members.collect::<Vec<_>>()).to_string().into()
}

/// The members that such a value names.
pub fn read_members(header: &[u8]) -> Result<Vec<Member>, String> {
    let list: Vec<Value> = serde_json::from_slice(header).map_err(|error| {
        format!(
            "header {} cannot be read: {error}",
            seldon_records::header::BATCH
        )
    })?;
    let members = list.iter().map(member).collect::<Option<Vec<_>>>();
    members
        .filter(|members| !members.is_empty())
        .ok_or_else(|| {
            format!(
                "header {} names no members of a batch",
                seldon_records::header::BATCH
            )
        })
}

fn member(value: &Value) -> Option<Member> {
    let headers = value.get("headers")?.as_array()?.iter().map(|pair| {
        let [name, value] = pair.as_array()?.as_slice() else {
            return None;
        };
        Some((name.as_str()?.to_owned(), bytes(value)?))
    });
    let key = match value.get("key")? {
        Value::Null => None,
        key => Some(bytes(key)?),
    };
    Some(Member {
        key,
        rows: usize::try_from(value.get("rows")?.as_u64()?).ok()?,
        headers: headers.collect::<Option<Vec<_>>>()?.into_iter().collect(),
    })
}

fn text(bytes: &Bytes) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "hex": hex })
        }
    }
}

fn bytes(value: &Value) -> Option<Bytes> {
    if let Some(text) = value.as_str() {
        return Some(Bytes::copy_from_slice(text.as_bytes()));
    }
    let hex = value.get("hex")?.as_str()?.as_bytes();
    let (pairs, []) = hex.as_chunks::<2>() else {
        return None;
    };
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}
