//! Server-sent events as they come, however they are cut.

/// An event's data in the making.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Of the line that has not ended.
    line: Vec<u8>,
    data: Vec<u8>,
    /// Whether the event has data, which may be empty.
    some: bool,
    most: usize,
}

/// An event is longer than allowed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Lines {
    pub(crate) fn new(most: usize) -> Self {
        let (line, data, some) = Default::default();
        Self {
            line,
            data,
            some,
            most,
        }
    }

    /// Bytes that are held until the event is complete.
    pub(crate) fn held(&self) -> usize {
        self.line.capacity() + self.data.capacity()
    }

    /// Whether an event has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        self.some || !self.line.is_empty()
    }

    /// Takes bytes off `rest` until an event is complete; none when all are taken.
    pub(crate) fn next(&mut self, rest: &mut &[u8]) -> Result<Option<Vec<u8>>, TooLong> {
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let (part, tail) = rest.split_at(end.unwrap_or(rest.len()));
            if self.line.len() + self.data.len() + part.len() > self.most {
                return Err(TooLong);
            }
            self.line.extend_from_slice(part);
            let Some(tail) = tail.split_first().map(|(_, tail)| tail) else {
                *rest = tail;
                break;
            };
            *rest = tail;
            if let Some(event) = self.end_line() {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        if line.is_empty() {
            self.line.clear();
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.some).then_some(data);
        }
        // Names, numbers and comments are of no use here.
        if let Some(data) = line.strip_prefix(b"data:") {
            if self.some {
                self.data.push(b'\n');
            }
            self.data
                .extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            self.some = true;
        }
        self.line.clear();
        None
    }
}
