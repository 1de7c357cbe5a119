//! A stream in OpenAI's language on its way.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use seldon_openai::{Events, Failure};

use crate::{
    held::Share,
    metrics::Code,
    openai::Begun,
    pool::RestSender,
    proxy::{Core, Exchange},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Translates each event when it comes. A client that goes away drops this, and with it the connection to the inference
/// server, which so learns that nobody listens.
pub(crate) struct OpenAiStream {
    incoming: Incoming,
    sender: Option<RestSender<Full<Bytes>>>,
    events: Events,
    /// What is held of an event that is not complete.
    share: Share,
    core: Arc<Core>,
    exchange: Exchange,
}

impl OpenAiStream {
    pub(crate) fn new(begun: Begun, core: Arc<Core>, exchange: Exchange) -> Self {
        Self {
            incoming: begun.incoming,
            sender: Some(begun.sender),
            events: begun.events,
            share: Share::none(&core.budget),
            core,
            exchange,
        }
    }

    pub(crate) fn ended(&self) -> bool {
        self.events.ended()
    }

    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        while !self.events.ended() {
            let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
            let out = self.translate(frame);
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
        Poll::Ready(None)
    }

    /// What the client is told of a frame, or of the end.
    fn translate(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) -> Vec<u8> {
        let mut out = Vec::new();
        match frame {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else {
                    return out;
                };
                let pushed = self.events.push(&data, &mut out);
                let fits = self.share.resize(self.events.held());
                if let Err(failure) = pushed {
                    self.broken(&failure);
                } else if !fits {
                    let failure = Failure::new(503, "too much is held, try again later");
                    let failure = self.events.fail(failure, &mut out);
                    self.broken(&failure);
                } else if self.events.ended() {
                    // The model said so; what follows means nothing.
                    self.exchange.finish(Code::Http(200));
                }
            }
            Some(Err(cause)) => {
                tracing::debug!(%cause, "a stream broke");
                let message = "the inference server broke off its answer";
                let failure = Failure::coded(502, "upstream_error", message);
                let failure = self.events.fail(failure, &mut out);
                self.broken(&failure);
            }
            None => {
                self.events.finish(&mut out);
                if let Some(sender) = self.sender.take() {
                    self.core.translated.keep(sender);
                }
                self.exchange.finish(Code::Http(200));
            }
        }
        out
    }

    fn broken(&mut self, failure: &Failure) {
        // Its connection has more to say, and is of no use to others.
        self.sender = None;
        self.exchange.finish(Code::Http(failure.status));
    }
}
