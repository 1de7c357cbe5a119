//! The model's name in the first message of a gRPC stream.
//!
//! In each request of the inference service the name is field 1: `ModelInferRequest.model_name`,
//! `ModelMetadataRequest.name`, `ModelReadyRequest.name`. Fields may come in any order.
//!
//! **The first occurrence that is not empty decides.** Protobuf gives a repeated scalar its last value, but then every
//! request would be held until its whole message is there. It makes no difference to the model: the agent
//! overwrites the name in the message with that of the route.

use std::time::Duration;

use crate::name::is_name;

/// Whether it is compressed, and the message's length.
const FRAME_HEADER: usize = 5;
/// A name that has not appeared within these first bytes of the stream is given up.
pub const MAX_PEEK: usize = 64 * 1024;
/// A stream whose bytes still name nothing this long after its headers is given up; one that sends none at all ends by
/// the listener's stream idle timeout, since the filter is not called for it.
pub const MAX_HOLD: Duration = Duration::from_secs(10);

/// A stream that was looked at this often without saying its name is given up: it comes in crumbs, and each look begins
/// at its first byte.
pub const MAX_LOOKS: u32 = 256;

/// What the first bytes of a stream say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peek {
    /// The message names this model.
    Name(String),
    /// It names none, or none that can be read: compressed, malformed, not a name.
    Nothing,
    /// So many bytes are needed, at least, counted from the first.
    More(usize),
}

/// When to look at a stream that is held.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    needed: usize,
    looks: u32,
}

impl Hold {
    /// Whether so many bytes can say more than those before.
    pub fn is_due(&self, size: usize) -> bool {
        size >= self.needed
    }

    /// After a look that asked for more: whether there is another one.
    pub(crate) fn goes_on(&mut self, needed: usize) -> bool {
        self.needed = needed;
        self.looks = self.looks.saturating_add(1);
        self.looks < MAX_LOOKS
    }
}

/// Looks for the name in the first bytes of a stream, the frame header included.
pub fn model_name_in_message(bytes: &[u8]) -> Peek {
    let Some((&compressed, after_flag)) = bytes.split_first() else {
        return Peek::More(FRAME_HEADER);
    };
    if compressed != 0 {
        return Peek::Nothing;
    }
    let Some((length, body)) = after_flag.split_first_chunk::<4>() else {
        return Peek::More(FRAME_HEADER);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let message = Message {
        bytes: body.get(..length).unwrap_or(body),
        whole: body.len() >= length,
    };
    match message.first_field_1() {
        Ok(name) => match std::str::from_utf8(name) {
            Ok(name) if is_name(name) => Peek::Name(name.to_owned()),
            _ => Peek::Nothing,
        },
        Err(Missing::Bytes(more)) => match bytes.len().saturating_add(more) {
            needed if needed <= MAX_PEEK => Peek::More(needed),
            _ => Peek::Nothing,
        },
        Err(Missing::Field) => Peek::Nothing,
    }
}

struct Message<'a> {
    bytes: &'a [u8],
    /// No more bytes of this message are to come.
    whole: bool,
}

/// Why a field is not there.
#[derive(Clone, Copy)]
enum Missing {
    /// The bytes end so many too early, at least; more may come.
    Bytes(usize),
    /// The message ends, or is malformed.
    Field,
}

impl<'a> Message<'a> {
    /// The first length-delimited field 1 that is not empty.
    fn first_field_1(mut self) -> Result<&'a [u8], Missing> {
        loop {
            let tag = self.varint()?;
            let number = tag >> 3;
            match tag & 7 {
                _ if number == 0 => return Err(Missing::Field),
                0 => {
                    self.varint()?;
                }
                1 => {
                    self.take(8)?;
                }
                2 => {
                    let length = self.varint()?;
                    let value = self.take(length)?;
                    if number == 1 && !value.is_empty() {
                        return Ok(value);
                    }
                }
                5 => {
                    self.take(4)?;
                }
                // Groups are not used by this service, 6 and 7 do not exist.
                _ => return Err(Missing::Field),
            }
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Missing> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some((value, rest)) = self.bytes.split_at_checked(length) else {
            return Err(self.without(length.saturating_sub(self.bytes.len())));
        };
        self.bytes = rest;
        Ok(value)
    }

    fn varint(&mut self) -> Result<u64, Missing> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some((&byte, rest)) = self.bytes.split_first() else {
                return Err(self.without(1));
            };
            self.bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Missing::Field)
    }

    /// For want of so many bytes.
    fn without(&self, more: usize) -> Missing {
        if self.whole {
            Missing::Field
        } else {
            Missing::Bytes(more)
        }
    }
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
