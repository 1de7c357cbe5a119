//! What is to be completed or embedded: a text, texts, token numbers, or lists of them.
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};

use crate::tensors::{Column, Inference};

/// One tensor, of texts or of rows of numbers.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    column: Column,
    kind: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Texts,
    /// One list of numbers.
    Numbers,
    /// Lists of numbers: how many there are, and the length of the first.
    Rows {
        count: usize,
        length: usize,
    },
}

const MIXED: &str = "texts and token numbers cannot be mixed";
const RAGGED: &str =
    "lists of token numbers have different lengths and are no tensor: send texts instead";

impl Texts {
    pub(crate) fn of(text: &str) -> Self {
        let (mut column, kind) = (Column::default(), Some(Kind::Texts));
        column.text(text);
        Self { column, kind }
    }

    pub(crate) fn write(&self, name: &str, inference: &mut Inference) -> Result<(), String> {
        match self.kind {
            Some(Kind::Texts) => inference.texts(name, &self.column),
            Some(Kind::Numbers) => inference.numbers(name, 1, &self.column),
            Some(Kind::Rows { count, .. }) => inference.numbers(name, count, &self.column),
            None => return Err(format!("{name} is empty")),
        }
        Ok(())
    }

    /// Makes sure that all elements are of one kind.
    fn is(&mut self, kind: Kind) -> Result<(), &'static str> {
        if *self.kind.get_or_insert(kind) == kind {
            Ok(())
        } else {
            Err(MIXED)
        }
    }

    fn end_row(&mut self, length: usize) -> Result<(), &'static str> {
        if length == 0 {
            return Err("a list of token numbers is empty");
        }
        self.kind = Some(match self.kind {
            None => Kind::Rows { count: 1, length },
            Some(Kind::Rows {
                count,
                length: first,
            }) if first == length => Kind::Rows {
                count: count + 1,
                length,
            },
            Some(Kind::Rows { .. }) => return Err(RAGGED),
            Some(_) => return Err(MIXED),
        });
        Ok(())
    }
}

/// At which depth a value stands.
struct At<'a> {
    texts: &'a mut Texts,
    depth: u8,
}

impl<'de> DeserializeSeed<'de> for &mut Texts {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        let (texts, depth) = (self, 0);
        At { texts, depth }.deserialize(from)
    }
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a text, a list of texts, or lists of token numbers")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.depth > 1 {
            return Err(E::custom(MIXED));
        }
        self.texts.is(Kind::Texts).map_err(E::custom)?;
        self.texts.column.text(text);
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        match self.depth {
            0 => return Err(E::custom("a number is neither a text nor a list")),
            1 => self.texts.is(Kind::Numbers).map_err(E::custom)?,
            _ => {}
        }
        self.texts.column.number(number);
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        let number = i64::try_from(number);
        self.visit_i64(number.map_err(|_| E::custom("a token number is too large"))?)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        if self.depth > 1 {
            return Err(A::Error::custom("lists are nested too deeply"));
        }
        let before = self.texts.column.count();
        let depth = self.depth + 1;
        while elements
            .next_element_seed(At {
                texts: self.texts,
                depth,
            })?
            .is_some()
        {}
        if self.depth == 1 {
            let length = self.texts.column.count() - before;
            self.texts.end_row(length).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
