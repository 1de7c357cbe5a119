//! Bodies that stream through: requests on their way up, responses on their way down.
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    errors::Refusal,
    frames::{FrameError, Rewriter},
    headers,
    metrics::Code,
    openai_stream::OpenAiStream,
    pool::{RestSender, Stream},
    proxy::{Core, Exchange},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where a request that was broken off leaves the reason for its response.
pub(crate) type Failure = Arc<OnceLock<FrameError>>;

/// The body of a gRPC request, with the model named in every message.
pub(crate) struct Rewritten {
    incoming: Incoming,
    /// None for requests that name no model, which pass untouched.
    rewriter: Option<Rewriter>,
    ready: VecDeque<Bytes>,
    failure: Failure,
}

impl Rewritten {
    pub(crate) fn new(incoming: Incoming, rewriter: Option<Rewriter>, failure: Failure) -> Self {
        Self {
            incoming,
            rewriter,
            ready: VecDeque::new(),
            failure,
        }
    }

    fn fail(&self, cause: FrameError) -> BoxError {
        let _ = self.failure.set(cause.clone());
        cause.into()
    }
}

impl Body for Rewritten {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let frame = std::task::ready!(Pin::new(&mut this.incoming).poll_frame(cx));
            let Some(rewriter) = &mut this.rewriter else {
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(chunk))) => {
                    if let Err(cause) = rewriter.push(chunk, &mut this.ready) {
                        this.ready.clear();
                        return Poll::Ready(Some(Err(this.fail(cause))));
                    }
                }
                // A gRPC request has no trailers; what a client sends there means nothing.
                Some(Ok(Err(_))) => {}
                Some(Err(cause)) => return Poll::Ready(Some(Err(cause.into()))),
                None => {
                    return Poll::Ready(rewriter.finish().err().map(|cause| Err(this.fail(cause))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty()
            && self.incoming.is_end_stream()
            && self
                .rewriter
                .as_ref()
                .is_none_or(|rewriter| rewriter.finish().is_ok())
    }
}

/// The body of a response: the proxy's own, or the inference server's as it comes.
pub(crate) struct ProxyBody(Kind);

enum Kind {
    Full(Option<Bytes>),
    Rest(Box<RestResponse>),
    Grpc(Box<GrpcResponse>),
    OpenAi(Box<OpenAiStream>),
}

impl ProxyBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self(Kind::Full(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    pub(crate) fn rest(response: RestResponse) -> Self {
        Self(Kind::Rest(Box::new(response)))
    }

    pub(crate) fn openai(response: OpenAiStream) -> Self {
        Self(Kind::OpenAi(Box::new(response)))
    }

    pub(crate) fn grpc(response: GrpcResponse) -> Self {
        Self(Kind::Grpc(Box::new(response)))
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Rest(response) => response.poll(cx),
            Kind::Grpc(response) => response.poll(cx),
            Kind::OpenAi(response) => response.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Rest(response) => response.incoming.is_end_stream(),
            Kind::Grpc(response) => response.ended || response.incoming.is_end_stream(),
            Kind::OpenAi(response) => response.ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Rest(response) => response.incoming.size_hint(),
            Kind::Grpc(_) | Kind::OpenAi(_) => SizeHint::default(),
        }
    }
}

/// A REST response on its way, with the connection it comes on.
pub(crate) struct RestResponse {
    incoming: Incoming,
    sender: Option<RestSender>,
    core: Arc<Core>,
    exchange: Exchange,
    code: Code,
}

impl RestResponse {
    pub(crate) fn new(
        incoming: Incoming,
        sender: RestSender,
        core: Arc<Core>,
        exchange: Exchange,
        code: Code,
    ) -> Self {
        let mut response = Self {
            incoming,
            sender: Some(sender),
            core,
            exchange,
            code,
        };
        if response.incoming.is_end_stream() {
            response.end();
        }
        response
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        // hyper asks no further once a body of known length is complete.
        if frame.is_none() || (matches!(frame, Some(Ok(_))) && self.incoming.is_end_stream()) {
            self.end();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn end(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.core.rest.keep(sender);
        }
        self.exchange.finish(self.code);
    }
}

/// A gRPC response on its way.
pub(crate) struct GrpcResponse {
    incoming: Incoming,
    _stream: Stream,
    exchange: Exchange,
    failure: Failure,
    id: HeaderValue,
    ended: bool,
}

impl GrpcResponse {
    pub(crate) fn new(
        incoming: Incoming,
        stream: Stream,
        exchange: Exchange,
        failure: Failure,
        id: HeaderValue,
    ) -> Self {
        Self {
            incoming,
            _stream: stream,
            exchange,
            failure,
            id,
            ended: false,
        }
    }

    /// The response was complete with its headers.
    pub(crate) fn complete(&mut self, code: Code) {
        self.exchange.finish(code);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    self.exchange
                        .finish(status(&trailers).unwrap_or(Code::Grpc(2)));
                    if !trailers.contains_key(headers::REQUEST_ID) {
                        trailers.insert(headers::REQUEST_ID, self.id.clone());
                    }
                    self.ended = true;
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
                Err(frame) => Poll::Ready(Some(Ok(frame))),
            },
            // The request was broken off by the proxy: its reason takes the place of the server's trailers.
            Some(Err(_)) | None if self.failure.get().is_some() => {
                self.ended = true;
                let refusal = self.failure.get().map(Refusal::frame);
                Poll::Ready(refusal.map(|refusal| {
                    self.exchange.finish(Code::Grpc(refusal.grpc));
                    let mut trailers = HeaderMap::new();
                    refusal.trailers(&mut trailers);
                    trailers.insert(headers::REQUEST_ID, self.id.clone());
                    Ok(Frame::trailers(trailers))
                }))
            }
            Some(Err(cause)) => {
                self.exchange.finish(Code::Grpc(14));
                Poll::Ready(Some(Err(cause.into())))
            }
            None => {
                self.exchange.finish(Code::Grpc(2));
                Poll::Ready(None)
            }
        }
    }
}

/// The status that headers or trailers carry.
pub(crate) fn status(fields: &HeaderMap) -> Option<Code> {
    fields
        .get(headers::GRPC_STATUS)?
        .to_str()
        .ok()?
        .parse()
        .ok()
        .map(Code::Grpc)
}
