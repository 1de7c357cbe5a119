//! Just enough of JSON for the configuration. Every worker reads each configuration anew, within its event loop, and a
//! derived reader took longer and 37 KB more of the module. It accepts no more than serde does: a test and a fuzz target
//! hold it against that one.

use std::borrow::Cow;

/// Deepest nesting of what is skipped.
const MAX_DEPTH: u32 = 64;

/// What was expected instead of what is there.
pub(crate) type Expected = &'static str;
pub(crate) type Result<T> = std::result::Result<T, Expected>;

/// Reads one value after the other.
pub(crate) struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// Bytes not read yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may follow but space.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.peek().map_or(Ok(()), |_| Err("the end"))
    }

    /// Calls `each` with every key; it must read the value.
    pub(crate) fn object(
        &mut self,
        mut each: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>,
    ) -> Result<()> {
        self.list(b'{', b'}', |reader| {
            let key = reader.string()?;
            if !reader.eat(b':') {
                return Err("a colon");
            }
            each(reader, key)
        })
    }

    /// Reads every element of an array.
    pub(crate) fn array<T>(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        self.list(b'[', b']', |reader| {
            if all.is_empty() {
                all.reserve_exact(1); // most have one or two; the least that is reserved otherwise is four
            }
            all.push(each(reader)?);
            Ok(())
        })?;
        Ok(all)
    }

    fn list(
        &mut self,
        open: u8,
        close: u8,
        mut each: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if !self.eat(open) {
            return Err(if open == b'{' {
                "an object"
            } else {
                "an array"
            });
        }
        if self.eat(close) {
            return Ok(());
        }
        loop {
            each(self)?;
            if self.eat(close) {
                return Ok(());
            }
            if !self.eat(b',') {
                return Err("a comma or the list's end");
            }
        }
    }

    /// `null`, or what `read` reads.
    pub(crate) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.peek() == Some(b'n') {
            return self.word("null").map(|()| None);
        }
        read(self).map(Some)
    }

    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>> {
        if !self.eat(b'"') {
            return Err("a string");
        }
        let plain = self.plain()?;
        if self.eat_here(b'"') {
            return Ok(plain.into());
        }
        let mut whole = plain.to_owned();
        while !self.eat_here(b'"') {
            if !self.eat_here(b'\\') {
                return Err("no control character");
            }
            whole.push(self.escaped()?);
            whole.push_str(self.plain()?);
        }
        Ok(whole.into())
    }

    /// What comes before a quote, an escape or a control character.
    fn plain(&mut self) -> Result<&'a str> {
        let (plain, rest) = plain_length(self.rest.as_bytes())
            .and_then(|length| self.rest.split_at_checked(length))
            .ok_or("the string's end")?;
        self.rest = rest;
        Ok(plain)
    }

    fn escaped(&mut self) -> Result<char> {
        Ok(match self.next() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.unit()?;
                let second = match first {
                    0xD800..0xDC00 if self.rest.starts_with("\\u") => {
                        self.next();
                        self.next();
                        Some(self.unit()?)
                    }
                    _ => None,
                };
                let mut units = char::decode_utf16(std::iter::once(first).chain(second));
                match (units.next(), units.next()) {
                    (Some(Ok(c)), None) => c,
                    _ => return Err("a whole surrogate pair"),
                }
            }
            _ => return Err("an escape"),
        })
    }

    fn unit(&mut self) -> Result<u16> {
        let digits = self.rest.get(..4).ok_or("four hexadecimal digits")?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("four hexadecimal digits");
        }
        self.rest = self.rest.get(4..).unwrap_or_default();
        u16::from_str_radix(digits, 16).map_err(|_| "four hexadecimal digits")
    }

    pub(crate) fn number(&mut self) -> Result<u32> {
        const KIND: Expected = "a whole number from 0 to 4294967295";
        self.peek();
        let digits = self.digits();
        if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
            return Err(KIND);
        }
        if self.rest.starts_with(['.', 'e', 'E']) {
            return Err(KIND);
        }
        digits.parse().map_err(|_| KIND)
    }

    fn digits(&mut self) -> &'a str {
        let length = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self
            .rest
            .split_at_checked(length)
            .unwrap_or(("", self.rest));
        self.rest = rest;
        digits
    }

    /// Passes over a value of any kind.
    pub(crate) fn skip(&mut self) -> Result<()> {
        self.skip_within(MAX_DEPTH)
    }

    fn skip_within(&mut self, depth: u32) -> Result<()> {
        let within = depth.checked_sub(1).ok_or("less nesting")?;
        match self.peek() {
            Some(b'{') => self.object(|reader, _| reader.skip_within(within)),
            Some(b'[') => self.list(b'[', b']', |reader| reader.skip_within(within)),
            Some(b'"') => self.string().map(|_| ()),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            _ => self.skip_number(),
        }
    }

    fn skip_number(&mut self) -> Result<()> {
        self.eat_here(b'-');
        let whole = self.digits();
        let mut good = !whole.is_empty() && (whole == "0" || !whole.starts_with('0'));
        if self.eat_here(b'.') {
            good &= !self.digits().is_empty();
        }
        if self.eat_here(b'e') || self.eat_here(b'E') {
            let _ = self.eat_here(b'+') || self.eat_here(b'-');
            good &= !self.digits().is_empty();
        }
        if good { Ok(()) } else { Err("a value") }
    }

    fn word(&mut self, word: &str) -> Result<()> {
        self.rest = self.rest.strip_prefix(word).ok_or("a value")?;
        Ok(())
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let first = self.rest.as_bytes().first().copied()?;
            if !matches!(first, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(first);
            }
            self.next();
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.peek();
        self.eat_here(byte)
    }

    fn eat_here(&mut self, byte: u8) -> bool {
        let here = self.rest.as_bytes().first() == Some(&byte);
        if here {
            self.next();
        }
        here
    }

    /// The next byte, if it is a character by itself.
    fn next(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_at_checked(1)?;
        self.rest = rest;
        byte.bytes().next()
    }
}

/// Where the first quote, backslash or control character is; eight bytes at a time, as half of all bytes pass here.
fn plain_length(bytes: &[u8]) -> Option<usize> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The lowest high bit that these set is that of the first byte in question: borrows only go upwards.
    let below = |x: u64, bound: u64| x.wrapping_sub(EACH.wrapping_mul(bound)) & !x;
    let is = |x: u64, byte: u64| below(x ^ EACH.wrapping_mul(byte), 1);
    let mut before = 0usize;
    let mut rest = bytes;
    while let Some((eight, after)) = rest.split_first_chunk::<8>() {
        let x = u64::from_le_bytes(*eight);
        let found = (below(x, 0x20) | is(x, 0x22) | is(x, 0x5C)) & HIGH;
        if found != 0 {
            let within = usize::try_from(found.trailing_zeros() / 8).ok()?;
            return before.checked_add(within);
        }
        before = before.checked_add(8)?;
        rest = after;
    }
    let special = |b: &u8| matches!(b, b'"' | b'\\' | 0..0x20);
    before.checked_add(rest.iter().position(special)?)
}
