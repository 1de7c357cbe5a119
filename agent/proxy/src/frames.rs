//! Names the model in every gRPC request message of a stream of bytes, however it is cut.
use std::{collections::VecDeque, io, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::write::GzDecoder;

use crate::{
    held::{Budget, Share},
    models::Limits,
    protobuf::{Malformed, Scanner},
};

/// Pieces up to this size are copied together, so that a small message stays one frame; larger ones are never copied.
const COPIED: usize = 8 << 10;

/// Why a request was broken off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A message longer than allowed, or than its length can say.
    #[error("a message of {bytes} bytes is larger than the {limit} allowed")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The most allowed.
        limit: u64,
    },
    /// A compressed message that grows beyond what is allowed.
    #[error("a compressed message holds more than may be decompressed; send it uncompressed")]
    Inflated,
    /// Compressed without an encoding, damaged, or an unknown flag.
    #[error("a message cannot be decompressed: {0}")]
    Compression(&'static str),
    /// Not a protobuf message.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// The stream ended within a message.
    #[error("malformed request: it ends within a message")]
    Truncated,
    /// A call that takes one message ended without it; an inference server may wait for it forever.
    #[error("malformed request: it holds no message")]
    Missing,
}

impl From<Malformed> for FrameError {
    fn from(cause: Malformed) -> Self {
        Self::Malformed(cause.to_string())
    }
}

/// Rewrites request messages as they stream by: the length grows, the bytes pass untouched, `model_name` (field 1) and
/// an empty `model_version` (field 2) follow. The last value of a field counts, so whatever a client wrote loses.
pub struct Rewriter {
    suffix: Bytes,
    gzip: bool,
    message_bytes: u32,
    decompressed_bytes: usize,
    budget: Arc<Budget>,
    state: State,
    joined: BytesMut,
    /// Whether a message has still to come.
    expecting: bool,
}

enum State {
    Header {
        bytes: [u8; 5],
        filled: usize,
    },
    Plain(Scanner),
    Gzip {
        left: u32,
        decoder: Box<GzDecoder<Capped>>,
    },
}

const START: State = State::Header {
    bytes: [0; 5],
    filled: 0,
};

/// The fields that name a model, to be appended to its requests.
pub(crate) fn suffix(internal: &str) -> Bytes {
    let mut fields = BytesMut::with_capacity(internal.len() + 8);
    fields.put_u8(0x0a);
    let mut length = internal.len();
    while length >= 0x80 {
        fields.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    fields.put_u8(length as u8);
    fields.put_slice(internal.as_bytes());
    fields.put_slice(&[0x12, 0]);
    fields.freeze()
}

impl Rewriter {
    /// For requests of one model; `gzip` says whether messages may be compressed.
    pub fn new(internal: &str, gzip: bool, limits: &Limits) -> Self {
        Self::with_suffix(suffix(internal), gzip, limits, Budget::new(limits))
    }

    pub(crate) fn with_suffix(
        suffix: Bytes,
        gzip: bool,
        limits: &Limits,
        budget: Arc<Budget>,
    ) -> Self {
        Self {
            suffix,
            gzip,
            message_bytes: limits.message_bytes,
            decompressed_bytes: limits.decompressed_bytes,
            budget,
            state: START,
            joined: BytesMut::new(),
            expecting: false,
        }
    }

    /// For a call that takes one message: a request without any is malformed.
    pub fn expecting_one(self) -> Self {
        Self {
            expecting: true,
            ..self
        }
    }

    /// Takes the next bytes of the request and appends what to send to `out`.
    pub fn push(&mut self, mut chunk: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), FrameError> {
        self.joined
            .reserve(chunk.len().min(COPIED) + self.suffix.len() + 5);
        while !chunk.is_empty() {
            self.step(&mut chunk, out)?;
        }
        self.flush(out);
        Ok(())
    }

    /// Checks that the request ended where a message ends.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.state {
            State::Header { filled: 0, .. } if self.expecting => Err(FrameError::Missing),
            State::Header { filled: 0, .. } => Ok(()),
            _ => Err(FrameError::Truncated),
        }
    }

    /// Takes a header or a part of a message from the front of `chunk`.
    fn step(&mut self, chunk: &mut Bytes, out: &mut VecDeque<Bytes>) -> Result<(), FrameError> {
        match &mut self.state {
            State::Header { bytes, filled } => {
                let part = chunk.split_to(chunk.len().min(5 - *filled));
                bytes[*filled..*filled + part.len()].copy_from_slice(&part);
                *filled += part.len();
                if *filled == 5 {
                    let [flag, length @ ..] = *bytes;
                    self.begin(flag, u32::from_be_bytes(length))?;
                }
            }
            State::Plain(scanner) => {
                let size = scanner.left().min(chunk.len() as u64);
                let part = chunk.split_to(size as usize);
                scanner.scan(&part)?;
                let ended = scanner.left() == 0;
                self.emit(part, out);
                if ended {
                    self.end();
                }
            }
            State::Gzip { left, decoder } => {
                let part = chunk.split_to(chunk.len().min(*left as usize));
                *left -= part.len() as u32;
                let written = io::Write::write_all(decoder, &part);
                let ended = *left == 0;
                self.checked(written)?;
                if ended {
                    self.inflate(out)?;
                }
            }
        }
        Ok(())
    }

    /// A message's header is complete.
    fn begin(&mut self, flag: u8, length: u32) -> Result<(), FrameError> {
        self.expecting = false;
        match flag {
            0 => {
                self.header(u64::from(length))?;
                self.state = State::Plain(Scanner::new(u64::from(length)));
                if length == 0 {
                    self.end();
                }
                Ok(())
            }
            1 if !self.gzip => Err(FrameError::Compression(
                "its flag is set without grpc-encoding",
            )),
            1 if length == 0 => Err(FrameError::Compression("it is empty")),
            1 => {
                let decoder = Box::new(GzDecoder::new(Capped::new(
                    self.decompressed_bytes,
                    &self.budget,
                )));
                self.state = State::Gzip {
                    left: length,
                    decoder,
                };
                Ok(())
            }
            _ => Err(FrameError::Compression("its flag is unknown")),
        }
    }

    /// Writes the header of a message of `length` bytes, which the suffix makes longer.
    fn header(&mut self, length: u64) -> Result<(), FrameError> {
        let longer = length + self.suffix.len() as u64;
        match u32::try_from(longer) {
            Ok(longer) if length <= u64::from(self.message_bytes) => {
                self.joined.put_u8(0);
                self.joined.put_u32(longer);
                Ok(())
            }
            _ => Err(FrameError::TooLarge {
                bytes: length,
                limit: u64::from(self.message_bytes),
            }),
        }
    }

    fn end(&mut self) {
        self.joined.put_slice(&self.suffix);
        self.state = START;
    }

    /// A compressed message is complete: it goes on uncompressed.
    fn inflate(&mut self, out: &mut VecDeque<Bytes>) -> Result<(), FrameError> {
        let State::Gzip { mut decoder, .. } = std::mem::replace(&mut self.state, START) else {
            return Ok(());
        };
        let finished = decoder.try_finish();
        if decoder.get_ref().full {
            return Err(FrameError::Inflated);
        }
        finished.map_err(|_| FrameError::Compression("it is damaged"))?;
        let message = decoder.get_mut().take();
        Scanner::new(message.len() as u64).scan(&message)?;
        self.header(message.len() as u64)?;
        self.emit(message, out);
        self.end();
        Ok(())
    }

    fn checked(&self, written: io::Result<()>) -> Result<(), FrameError> {
        match &self.state {
            State::Gzip { decoder, .. } if decoder.get_ref().full => Err(FrameError::Inflated),
            _ => written.map_err(|_| FrameError::Compression("it is damaged")),
        }
    }

    fn emit(&mut self, part: Bytes, out: &mut VecDeque<Bytes>) {
        if part.len() <= COPIED {
            self.joined.put_slice(&part);
        } else {
            self.flush(out);
            out.push_back(part);
        }
    }

    fn flush(&mut self, out: &mut VecDeque<Bytes>) {
        if !self.joined.is_empty() {
            out.push_back(self.joined.split().freeze());
        }
    }
}

/// What a decompressor may write into; counted until the last byte has been sent.
struct Capped {
    bytes: Vec<u8>,
    share: Share,
    cap: usize,
    full: bool,
}

impl Capped {
    fn new(cap: usize, budget: &Arc<Budget>) -> Self {
        Self {
            bytes: Vec::new(),
            share: Share::none(budget),
            cap,
            full: false,
        }
    }

    fn take(&mut self) -> Bytes {
        self.share.take().keep(std::mem::take(&mut self.bytes))
    }
}

impl io::Write for Capped {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let length = self.bytes.len() + part.len();
        if length > self.cap || !self.share.resize(length) {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
