//! Watches the top-level fields of a protobuf message that streams by, without decoding it.
//!
//! The proxy names the model by appending a field. That only holds if the message before it ends where a field ends:
//! a last field that claims more bytes than there are, or an open group, would swallow what is appended and let a
//! client name the model itself.

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a field of the message has an invalid tag")]
    Tag,
    #[error("a field of the message claims more bytes than there are")]
    Length,
    #[error("the message holds a number of more than 64 bits")]
    Number,
    #[error("the message ends within a field")]
    Unfinished,
}

/// Where the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Tag(Varint),
    Number(Varint),
    Length(Varint),
    Skip(u64),
}

/// Follows one message.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
    left: u64,
}

impl Scanner {
    /// For a message of `length` bytes.
    pub(crate) fn new(length: u64) -> Self {
        Self {
            state: State::Tag(Varint::default()),
            left: length,
        }
    }

    /// Bytes of the message that are still to come.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Takes the next part of the message, no longer than [`Self::left`]; checks the end when it has come.
    pub(crate) fn scan(&mut self, mut part: &[u8]) -> Result<(), Malformed> {
        while !part.is_empty() {
            let used = self.step(part)?;
            part = &part[used..];
        }
        if self.left == 0 && self.state != State::Tag(Varint::default()) {
            return Err(Malformed::Unfinished);
        }
        Ok(())
    }

    /// Takes a byte, or as many as the current field has, and says how many.
    fn step(&mut self, part: &[u8]) -> Result<usize, Malformed> {
        let used = match self.state {
            State::Skip(count) => count.min(part.len() as u64),
            _ => 1,
        };
        self.left -= used;
        let boundary = State::Tag(Varint::default());
        self.state = match self.state {
            State::Skip(count) if count == used => boundary,
            State::Skip(count) => State::Skip(count - used),
            State::Tag(mut tag) => match tag.push(part[0])? {
                Some(tag) => self.field(tag)?,
                None => State::Tag(tag),
            },
            State::Number(mut number) => match number.push(part[0])? {
                Some(_) => boundary,
                None => State::Number(number),
            },
            State::Length(mut length) => match length.push(part[0])? {
                Some(length) => self.skip(length)?,
                None => State::Length(length),
            },
        };
        Ok(used as usize)
    }

    /// What follows a tag. Tags above 32 bits are refused, as parsers differ in what they make of them.
    fn field(&self, tag: u64) -> Result<State, Malformed> {
        if tag > u64::from(u32::MAX) || tag >> 3 == 0 {
            return Err(Malformed::Tag);
        }
        match tag & 7 {
            0 => Ok(State::Number(Varint::default())),
            1 => self.skip(8),
            2 => Ok(State::Length(Varint::default())),
            5 => self.skip(4),
            _ => Err(Malformed::Tag),
        }
    }

    fn skip(&self, count: u64) -> Result<State, Malformed> {
        match count {
            count if count > self.left => Err(Malformed::Length),
            0 => Ok(State::Tag(Varint::default())),
            count => Ok(State::Skip(count)),
        }
    }
}

/// A number that arrives seven bits at a time, in any spelling a parser accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Varint {
    value: u64,
    bits: u32,
}

impl Varint {
    fn push(&mut self, byte: u8) -> Result<Option<u64>, Malformed> {
        if self.bits == 63 && byte > 1 {
            return Err(Malformed::Number);
        }
        self.value |= u64::from(byte & 0x7f) << self.bits;
        self.bits += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}
