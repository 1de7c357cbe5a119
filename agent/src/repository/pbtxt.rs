//! Protobuf's text format, as far as a Triton model's configuration must be read: where each field lies and what it
//! holds, without knowing any message. What is not understood stays as it is written.
use std::ops::Range;

/// Messages deeper than this are refused.
const MAX_DEPTH: usize = 64;

/// A field and the bytes of its text, from its name to the end of its value.
#[derive(Debug, PartialEq)]
pub struct Field<'a> {
    pub name: &'a str,
    pub value: Value<'a>,
    pub span: Range<usize>,
}

#[derive(Debug, PartialEq)]
pub enum Value<'a> {
    /// A number, a word, or strings, as they are written.
    Scalar(&'a str),
    Message(Vec<Field<'a>>),
    List(Vec<Value<'a>>),
}

impl<'a> Value<'a> {
    /// The messages of a repeated field, which may be written as a list or as one message a field.
    pub fn messages(&self) -> Vec<&[Field<'a>]> {
        match self {
            Self::Message(fields) => vec![fields],
            Self::List(values) => values.iter().flat_map(Self::messages).collect(),
            Self::Scalar(_) => Vec::new(),
        }
    }

    /// The text of a word, a number or a single string without escapes.
    pub fn text(&self) -> Option<&'a str> {
        let Self::Scalar(text) = self else {
            return None;
        };
        let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
        Some(inner('"').or_else(|| inner('\'')).unwrap_or(text))
    }
}

/// Reads the fields of a whole text; an error says what is wrong and in which line.
pub fn parse(text: &str) -> Result<Vec<Field<'_>>, String> {
    let mut reader = Reader { text, at: 0 };
    reader
        .fields(None, 0)
        .map_err(|what| format!("{what} in line {}", reader.line()))
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn line(&self) -> usize {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        before.matches('\n').count() + 1
    }

    /// The next character that is neither space nor in a comment.
    fn peek(&mut self) -> Option<char> {
        loop {
            let rest = self.rest().trim_start();
            self.at = self.text.len() - rest.len();
            if !rest.starts_with('#') {
                return rest.chars().next();
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn take(&mut self, wanted: &str) -> Option<char> {
        let found = self.peek().filter(|found| wanted.contains(*found))?;
        self.at += found.len_utf8();
        Some(found)
    }

    fn word(&mut self) -> Result<&'a str, String> {
        self.peek();
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "_.+-/".contains(c)))
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return Err(match after.chars().next() {
                Some(found) => format!("unexpected {found:?}"),
                None => "unexpected end".to_owned(),
            });
        }
        self.at += end;
        Ok(word)
    }

    fn fields(&mut self, closing: Option<char>, depth: usize) -> Result<Vec<Field<'a>>, String> {
        let mut fields = Vec::new();
        loop {
            match self.peek() {
                Some(found) if Some(found) == closing => break,
                None if closing.is_none() => break,
                None => return Err("a message is not closed".to_owned()),
                Some(_) => fields.push(self.field(depth)?),
            }
            self.take(",;");
        }
        if closing.is_some() {
            self.at += 1;
        }
        Ok(fields)
    }

    fn field(&mut self, depth: usize) -> Result<Field<'a>, String> {
        let start = self.at;
        // The name of an extension is in brackets.
        let name = if self.take("[").is_some() {
            let name = self.word()?;
            self.take("]").ok_or("a name is not closed")?;
            name
        } else {
            self.word()?
        };
        let colon = self.take(":").is_some();
        let value = match self.peek() {
            // Messages need no colon, nor do lists of them.
            Some('{' | '<' | '[') => self.value(depth)?,
            _ if colon => self.value(depth)?,
            _ => return Err(format!("no value of {name}")),
        };
        Ok(Field {
            name,
            value,
            span: start..self.at,
        })
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, String> {
        if depth > MAX_DEPTH {
            return Err("messages are nested too deeply".to_owned());
        }
        match self.peek() {
            Some('{') => self.message('}', depth),
            Some('<') => self.message('>', depth),
            Some('[') => self.list(depth),
            Some('"' | '\'') => self.strings(),
            _ => self.word().map(Value::Scalar),
        }
    }

    fn message(&mut self, closing: char, depth: usize) -> Result<Value<'a>, String> {
        self.at += 1;
        self.fields(Some(closing), depth + 1).map(Value::Message)
    }

    fn list(&mut self, depth: usize) -> Result<Value<'a>, String> {
        self.at += 1;
        let mut values = Vec::new();
        while self.take("]").is_none() {
            values.push(self.value(depth + 1)?);
            if self.take(",").is_none() && self.peek() != Some(']') {
                return Err("a list is not closed".to_owned());
            }
        }
        Ok(Value::List(values))
    }

    /// Strings that follow each other are one.
    fn strings(&mut self) -> Result<Value<'a>, String> {
        let (start, mut end) = (self.at, self.at);
        while let Some(quote) = self.take("\"'") {
            let mut escaped = false;
            let close = self.rest().find(|c: char| {
                let closes = c == quote && !escaped;
                escaped = c == '\\' && !escaped;
                closes || c == '\n'
            });
            match close {
                Some(length) if self.rest()[length..].starts_with(quote) => self.at += length + 1,
                _ => return Err("a string is not closed".to_owned()),
            }
            end = self.at;
        }
        self.at = end;
        Ok(Value::Scalar(&self.text[start..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_every_way_of_writing() {
        let text = "# a comment\nname: 'a' \"b\\\"c\"; size: -8 input [ { dims: [ 1, 2 ] }, < x: 1 > ],\n\
                    [some.ext/ension] { y: TYPE_FP32 } z: []";
        let fields = parse(text).unwrap();
        let written: Vec<_> = fields
            .iter()
            .map(|field| (field.name, &text[field.span.clone()]))
            .collect();
        assert_eq!(
            written,
            [
                ("name", "name: 'a' \"b\\\"c\""),
                ("size", "size: -8"),
                ("input", "input [ { dims: [ 1, 2 ] }, < x: 1 > ]"),
                ("some.ext/ension", "[some.ext/ension] { y: TYPE_FP32 }"),
                ("z", "z: []"),
            ]
        );
        assert_eq!(fields[2].value.messages().len(), 2);
        assert_eq!(fields[1].value.text(), Some("-8"));
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        for (text, error) in [
            ("a: 1\nb {", "a message is not closed in line 2"),
            ("a: [1", "a list is not closed in line 1"),
            ("a: \"x\n\"", "a string is not closed in line 1"),
            ("a", "no value of a in line 1"),
            ("}", "unexpected '}' in line 1"),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text}");
        }
        let deep = "a {".repeat(100_000);
        assert!(parse(&deep).unwrap_err().contains("too deeply"));
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a\\[\\]{}<>:,;\"'\\\\ \n#é]{0,40}") {
            let _ = parse(&text);
        }
    }
}
