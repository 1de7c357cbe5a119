//! A client's connection: its requests in order, each answered before the next is looked at.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader};
use kafka_protocol::protocol::{Decodable as _, StrBytes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, SemaphorePermit};

use crate::api;
use crate::config::Config;
use crate::node::Node;
use crate::schema::Api;

/// Requests that are larger wait until there is room for them.
const SMALL: usize = 64 << 10;
/// No request but one with records has a use for more.
const PLAIN: usize = 8 << 20;
/// Answers that are ready are sent together up to this size.
const BATCH: usize = 64 << 10;
/// A client that has begun a request and does not go on is let go.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the broker knows of a client.
pub(crate) struct Session {
    pub(crate) client: StrBytes,
    /// Woken by the partitions that a fetch of this connection waits for.
    pub(crate) waiter: Arc<Notify>,
}

impl Session {
    fn new() -> Self {
        Self {
            client: StrBytes::default(),
            waiter: Arc::new(Notify::new()),
        }
    }
}

/// Why a connection is closed by the broker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a request of {0} bytes is not taken")]
    Size(i64),
    #[error("a request that is none")]
    Malformed,
    #[error("{0:?} version {1} is not supported")]
    Unsupported(ApiKey, i16),
    #[error("API {0} is not supported")]
    UnknownApi(i16),
    #[error("an answer cannot be written: {0}")]
    Answer(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves a client until it goes or breaks the protocol.
pub(crate) async fn serve(node: Arc<Node>, mut stream: TcpStream) -> Result<(), Refusal> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.split();
    let mut session = Session::new();
    let mut input = BytesMut::with_capacity(SMALL);
    let mut output = BytesMut::new();
    loop {
        let size = match next_size(&input) {
            Some(size) => size,
            None => {
                if reader.read_buf(&mut input).await? == 0 {
                    return Ok(());
                }
                continue;
            }
        };
        let size = allowed(&node.config, size, &input)?;
        let whole = size + 4;
        let _room = if input.len() < whole {
            let room = room(&node, size).await;
            let reading = fill(&mut reader, &mut input, whole);
            let read = tokio::time::timeout(PATIENCE, reading).await;
            if !read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
                return Ok(());
            }
            room
        } else {
            None
        };
        let mut request = input.split_to(whole).freeze();
        request.advance(4);
        let waits = request
            .first_chunk::<2>()
            .is_some_and(|key| api::may_wait(i16::from_be_bytes(*key)));
        if waits && !output.is_empty() {
            writer.write_all_buf(&mut output).await?;
        }
        answer(&node, &mut session, request, &mut output).await?;
        let more =
            next_size(&input).is_some_and(|size| size >= 0 && input.len() as i64 >= size + 4);
        if !more || output.len() > BATCH {
            writer.write_all_buf(&mut output).await?;
            if output.capacity() > PLAIN {
                output = BytesMut::new();
            }
        }
    }
}

fn next_size(input: &[u8]) -> Option<i64> {
    input
        .first_chunk::<4>()
        .map(|size| i64::from(i32::from_be_bytes(*size)))
}

fn allowed(config: &Config, size: i64, input: &[u8]) -> Result<usize, Refusal> {
    let key = input
        .get(4..6)
        .map(|key| i16::from_be_bytes([key[0], key[1]]));
    let produces = key.is_none_or(|key| key == ApiKey::Produce as i16);
    let most = if produces { config.max_frame() } else { PLAIN };
    let fits = usize::try_from(size)
        .ok()
        .filter(|size| (8..=most).contains(size));
    fits.ok_or(Refusal::Size(size))
}

/// Waits until a large request may come in.
async fn room(node: &Node, size: usize) -> Option<SemaphorePermit<'_>> {
    if size <= SMALL {
        return None;
    }
    let permits = u32::try_from(size >> 10).unwrap_or(u32::MAX);
    node.in_flight.acquire_many(permits).await.ok()
}

/// Reads until there are so many bytes; memory is taken as they come. False at the end of the stream.
async fn fill(
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
    input: &mut BytesMut,
    whole: usize,
) -> io::Result<bool> {
    while input.len() < whole {
        if input.capacity() == input.len() {
            let step = input.len().max(SMALL);
            input.reserve(step.min(whole - input.len()));
        }
        if reader.read_buf(input).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Appends the answer to a request, without its length, if there is one.
async fn answer(
    node: &Node,
    session: &mut Session,
    mut request: Bytes,
    output: &mut BytesMut,
) -> Result<(), Refusal> {
    let mut head = request.get(..8).ok_or(Refusal::Malformed)?;
    let (key, mut version, correlation) = (head.get_i16(), head.get_i16(), head.get_i32());
    let key = ApiKey::try_from(key).map_err(|()| Refusal::UnknownApi(key))?;
    let start = output.len();
    output.put_i32(0);
    output.put_i32(correlation);
    // A client asks for versions by the newest it knows, and is answered by the oldest if that is not known here.
    let newer = key == ApiKey::ApiVersions && Api::of(key).is_some_and(|api| !api.has(version));
    if newer {
        version = 0;
        api::versions(true, version, output)?;
    } else {
        let header = key.request_header_version(version);
        let header = RequestHeader::decode(&mut request, header).map_err(|_| Refusal::Malformed)?;
        session.client = header.client_id.unwrap_or_default();
        if key.response_header_version(version) > 0 {
            output.put_u8(0);
        }
        match Api::of(key).filter(|api| api.has(version)) {
            None => {
                api::refuse(key, version, output)?;
            }
            Some(api) if !api.fits(version, &request) => return Err(Refusal::Malformed),
            Some(_) if !api::answer(node, session, key, version, request, output).await? => {
                output.truncate(start);
                return Ok(());
            }
            Some(_) => {}
        }
    }
    let length = (output.len() - start - 4) as i32;
    output[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Answers requests of one client, each given without its length, by a broker that has nothing but the topic `t`, until
/// one ends the connection; for tests. What is not answered at once counts as not answered.
pub async fn answer_each(requests: Vec<Bytes>) -> Vec<Option<Bytes>> {
    const AT_ONCE: Duration = Duration::from_millis(50);
    let Ok(node) = Node::open(Config::default(), 0) else {
        return Vec::new();
    };
    let settings = Default::default();
    let topic = node.topics.create("t", 2, settings, false, &node.journal);
    let mut session = Session::new();
    let mut answers = Vec::new();
    for request in requests {
        let mut output = BytesMut::new();
        let answered = answer(&node, &mut session, request, &mut output);
        match tokio::time::timeout(AT_ONCE, answered).await {
            Ok(Err(_)) => break,
            Ok(Ok(())) => answers.push(Some(output.freeze())),
            Err(_) => answers.push(None),
        }
        node.tick(std::time::Instant::now());
    }
    drop(topic);
    answers
}
