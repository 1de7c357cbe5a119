//! How answers are written.
use std::{
    collections::BTreeMap,
    fmt::Display,
    io::{self, Write as _},
};

use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One line of JSON
    Json,
    /// YAML
    Yaml,
    /// A table
    Table,
}

/// Prints a line.
pub(crate) fn line(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints an answer, `default` where the user does not say how.
pub(crate) fn answer(
    value: &Value,
    table: impl FnOnce() -> String,
    format: Option<Format>,
    default: Format,
) -> Result<()> {
    match format.unwrap_or(default) {
        Format::Json => line(value),
        Format::Yaml => line(serde_saphyr::to_string(value)?.trim_end()),
        Format::Table => line(table().trim_end_matches('\n')),
    }
}

/// A table as Go's tabwriter makes it with tabs of eight: every cell but the last is padded to a common tab stop.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    const TAB: usize = 8;
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let widest = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max();
        (widest.unwrap_or_default() + 1).next_multiple_of(TAB)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                let tabs = (widths[column] - cell.chars().count()).div_ceil(TAB);
                text.extend(std::iter::repeat_n('\t', tabs));
            }
        }
        text.push('\n');
    }
    text
}

/// A row of a table.
pub(crate) fn row<const N: usize>(cells: [&dyn Display; N]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// A map as Go prints it, in the order of its keys: `map[a:1 b:2]`.
pub(crate) fn go_map<V: Display>(map: &BTreeMap<String, V>) -> String {
    let entries: Vec<_> = map
        .iter()
        .map(|(key, value)| format!("{key}:{value}"))
        .collect();
    format!("map[{}]", entries.join(" "))
}

/// JSON indented with tabs. Keys keep their order and numbers their digits; what is not JSON stays as it is.
pub(crate) fn indent(json: &str) -> String {
    if serde_json::from_str::<serde::de::IgnoredAny>(json).is_err() {
        return json.to_owned();
    }
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    let mut opened = false;
    for symbol in json.trim().chars() {
        if in_string {
            out.push(symbol);
            in_string = escaped || symbol != '"';
            escaped = symbol == '\\' && !escaped;
            continue;
        }
        if symbol.is_ascii_whitespace() {
            continue;
        }
        let closing = matches!(symbol, '}' | ']');
        if opened && !closing {
            depth += 1;
            new_line(&mut out, depth);
        }
        match symbol {
            ',' => {
                out.push(',');
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => {
                if closing && !opened {
                    depth = depth.saturating_sub(1);
                    new_line(&mut out, depth);
                }
                out.push(symbol);
            }
        }
        in_string = symbol == '"';
        opened = matches!(symbol, '{' | '[');
    }
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n('\t', depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_end_columns_at_tab_stops() {
        let rows = |cells: &[[&str; 3]]| {
            cells
                .iter()
                .map(|r| r.map(str::to_owned).to_vec())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            table(&rows(&[
                ["model", "state", "reason"],
                ["-----", "-----", "------"],
                ["iris", "ModelAvailable", ""],
                ["tfsimple1", "ModelFailed", "no such artefact"],
            ])),
            "model\t\tstate\t\treason\n\
             -----\t\t-----\t\t------\n\
             iris\t\tModelAvailable\t\n\
             tfsimple1\tModelFailed\tno such artefact\n"
        );
        // A cell of seven fills its stop, one of eight needs the next.
        assert_eq!(table(&rows(&[["1234567", "a", "b"]])), "1234567\ta\tb\n");
        assert_eq!(table(&rows(&[["12345678", "a", "b"]])), "12345678\ta\tb\n");
    }

    #[test]
    fn go_maps_are_sorted() {
        let map = BTreeMap::from([(":iris_1:".to_owned(), 25), (":iris2_1:".to_owned(), 25)]);
        assert_eq!(go_map(&map), "map[:iris2_1::25 :iris_1::25]");
        assert_eq!(go_map(&BTreeMap::<String, u8>::new()), "map[]");
    }

    #[test]
    fn json_is_indented_as_go_does() {
        assert_eq!(
            indent(r#"{"a":[1, 2.50,"x:,{\"}\\"],"b":{},"c":[ ],"d":{"e":null}}"#),
            "{\n\t\"a\": [\n\t\t1,\n\t\t2.50,\n\t\t\"x:,{\\\"}\\\\\"\n\t],\n\t\"b\": {},\n\t\"c\": [],\n\t\"d\": {\n\t\t\"e\": null\n\t}\n}"
        );
        assert_eq!(indent("not json"), "not json");
        assert_eq!(indent("[]"), "[]");
        assert_eq!(indent("3"), "3");
    }
}
