//! HTTP/1.1 byte for byte: what is sent is what a case wrote, proper or not.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Nothing here takes so long; a hang is a failure.
const LIMIT: Duration = Duration::from_secs(30);

/// A request on a connection of its own.
#[derive(Clone, Debug)]
pub struct Ask {
    method: String,
    target: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Ask {
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            fields: Vec::new(),
            body: Vec::new(),
        }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A request for inference.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        let ask = Self::new("POST", target).header("content-type", "application/json");
        Self {
            body: body.into(),
            ..ask
        }
    }

    /// Adds a header; names are sent as they are written.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    fn has(&self, name: &str) -> bool {
        self.fields
            .iter()
            .any(|(field, _)| field.eq_ignore_ascii_case(name))
    }

    /// Sends it and reads the whole answer.
    pub fn send(&self, port: u16) -> Result<Answer> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.has("host") {
            head.push_str("Host: seldon.test\r\n");
        }
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || self.method == "POST" {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        if !self.has("connection") {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        Answer::to(port, head.as_bytes(), &self.body)
            .with_context(|| format!("{} {}", self.method, self.target))
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, in the order received.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// Sends bytes as they are and reads one answer.
    pub fn to(port: u16, head: &[u8], body: &[u8]) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut writer = stream.try_clone()?;
        std::thread::scope(|scope| {
            // A refusal may come, and the connection close, before all is sent.
            scope.spawn(move || {
                let _ = writer.write_all(head).and_then(|()| writer.write_all(body));
            });
            Self::read(stream, head.starts_with(b"HEAD "))
        })
    }

    fn read(mut stream: TcpStream, headless: bool) -> Result<Self> {
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 1 << 16];
        loop {
            if let Some(answer) = Self::parse(&bytes, headless, false)? {
                return Ok(answer);
            }
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                Err(error) => {
                    let seen = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
                    return Err(error).with_context(|| format!("no whole answer, only {seen:?}"));
                }
            }
        }
        Self::parse(&bytes, headless, true)?.context("the connection was closed without an answer")
    }

    fn parse(bytes: &[u8], headless: bool, ended: bool) -> Result<Option<Self>> {
        let Some(end) = bytes
            .windows(4)
            .take(1 << 16)
            .position(|four| four == b"\r\n\r\n")
        else {
            return Ok(None);
        };
        let head = std::str::from_utf8(&bytes[..end]).context("the head is text")?;
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("not an answer: {first}"))?;
        let fields: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let field = |wanted: &str| fields.iter().find(|(name, _)| name == wanted);
        let rest = &bytes[end + 4..];
        let body = if headless {
            rest.to_vec()
        } else if let Some((_, length)) = field("content-length") {
            let length: usize = length.parse()?;
            match rest.get(..length) {
                Some(body) => body.to_vec(),
                None if ended => bail!("the body ended after {} of {length} bytes", rest.len()),
                None => return Ok(None),
            }
        } else if field("transfer-encoding").is_some() {
            match dechunked(rest)? {
                Some(body) => body,
                None if ended => bail!("the chunked body was cut off"),
                None => return Ok(None),
            }
        } else if ended {
            rest.to_vec()
        } else {
            return Ok(None);
        };
        Ok(Some(Self {
            status,
            fields,
            body,
        }))
    }

    /// Returns the values of a header, in the order received.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let found = self.fields.iter().filter(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// Returns the first value of a header, or an empty text.
    pub fn field(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{} with no JSON: {}", self.status, self.text()))
    }

    /// Returns the JSON of a success.
    pub fn ok(&self) -> Result<Value> {
        ensure!(self.status == 200, "{}: {}", self.status, self.text());
        self.json()
    }

    /// Checks that it is a refusal as JSON, in whatever words.
    pub fn refused(&self) -> Result<()> {
        ensure!(
            (400..500).contains(&self.status),
            "{}: {}",
            self.status,
            self.text()
        );
        self.json().map(|_| ())
    }

    /// Returns the text of the protocol's error: JSON with `error`, in any status of the 4xx class.
    pub fn error(&self) -> Result<String> {
        ensure!(
            (400..500).contains(&self.status),
            "{}: {}",
            self.status,
            self.text()
        );
        let json = self.json()?;
        let text = json["error"].as_str();
        Ok(text
            .with_context(|| format!("no error in {json}"))?
            .to_owned())
    }
}

/// Returns the body, or nothing while its end is missing.
fn dechunked(mut rest: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&rest[..end])?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        if size == 0 {
            return Ok(Some(body));
        }
        let Some(chunk) = rest.get(end + 2..end + 2 + size) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        let Some(next) = rest.get(end + 4 + size..) else {
            return Ok(None);
        };
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_waited_for() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        for cut in 0..chunked.len() - 5 {
            assert!(
                Answer::parse(&chunked[..cut], false, false)
                    .unwrap()
                    .is_none()
            );
        }
        let answer = Answer::parse(chunked, false, false).unwrap().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "abcde"));
        let counted = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nA: b\r\n\r\n{}";
        let answer = Answer::parse(counted, false, false).unwrap().unwrap();
        assert_eq!((answer.status, answer.field("a")), (404, "b"));
        assert!(Answer::parse(&counted[..counted.len() - 1], false, true).is_err());
    }
}
