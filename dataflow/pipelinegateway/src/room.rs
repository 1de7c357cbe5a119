//! Bytes of requests in flight: how many there are at most, and who holds how many.
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame, SizeHint};

/// All requests together.
#[derive(Debug)]
pub(crate) struct Room {
    limit: usize,
    taken: AtomicUsize,
}

/// What one request holds, until it is dropped: its body, and then its answer until that is sent.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    bytes: AtomicUsize,
}

impl Room {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            taken: AtomicUsize::new(0),
        })
    }

    /// A share of nothing.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share {
            room: Arc::clone(self),
            bytes: AtomicUsize::new(0),
        })
    }
}

impl Share {
    /// Takes more, and says whether there was room. A request that is alone may be of any size: it would never be taken
    /// otherwise.
    fn take(&self, more: usize) -> bool {
        let own = self.bytes.load(Relaxed);
        let fits = |taken: usize| {
            let after = taken.checked_add(more)?;
            (after <= self.room.limit || taken <= own).then_some(after)
        };
        let took = self.room.taken.fetch_update(Relaxed, Relaxed, fits).is_ok();
        if took {
            self.bytes.fetch_add(more, Relaxed);
        }
        took
    }

    /// The answer has come in place of the request. It is there already, so there is no question whether it fits.
    pub(crate) fn turn_into(&self, bytes: usize) {
        self.room.taken.fetch_add(bytes, Relaxed);
        let before = self.bytes.swap(bytes, Relaxed);
        self.room.taken.fetch_sub(before, Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes.load(Relaxed), Relaxed);
    }
}

/// Why a body is not read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("the body is too large")]
    TooLarge,
    #[error("there is no room for the body")]
    Full,
    #[error("the body was broken off: {0}")]
    Broken(hyper::Error),
}

/// A request's body that takes room before it takes memory: for all of it at once where its length is known.
pub(crate) struct Measured<B> {
    body: B,
    share: Arc<Share>,
    limit: usize,
    seen: usize,
    paid: usize,
}

impl<B: Body> Measured<B> {
    /// At most `limit` bytes of a body.
    pub(crate) fn new(body: B, limit: usize, share: Arc<Share>) -> Result<Self, Unread> {
        let known = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if known > limit {
            return Err(Unread::TooLarge);
        }
        if !share.take(known) {
            return Err(Unread::Full);
        }
        Ok(Self {
            body,
            share,
            limit,
            seen: 0,
            paid: known,
        })
    }

    fn see(&mut self, more: usize) -> Result<(), Unread> {
        self.seen = self.seen.saturating_add(more);
        if self.seen > self.limit {
            return Err(Unread::TooLarge);
        }
        let unpaid = self.seen.saturating_sub(self.paid);
        if unpaid > 0 && !self.share.take(unpaid) {
            return Err(Unread::Full);
        }
        self.paid += unpaid;
        Ok(())
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Measured<B> {
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(task) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(Unread::Broken(error)))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        };
        let more = frame.data_ref().map_or(0, Bytes::remaining);
        Poll::Ready(Some(self.see(more).map(|()| frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body that holds its share until it is sent.
pub(crate) struct Held<B> {
    body: B,
    _share: Arc<Share>,
}

impl<B> Held<B> {
    pub(crate) fn new(body: B, share: Arc<Share>) -> Self {
        Self {
            body,
            _share: share,
        }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(task)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(room: &Room) -> usize {
        room.taken.load(Relaxed)
    }

    #[test]
    fn what_is_in_flight_is_bounded_and_given_back() {
        let room = Room::new(100);
        let (one, other) = (room.share(), room.share());
        assert!(one.take(60) && other.take(40));
        assert!(!other.take(1) && !one.take(1));
        drop(other);
        assert_eq!(taken(&room), 60);
        // Alone it may be larger than everything; nobody else gets in before it has ended.
        assert!(one.take(1000));
        assert!(!room.share().take(1));
        one.turn_into(5);
        assert_eq!(taken(&room), 5);
        let third = room.share();
        assert!(third.take(95) && !third.take(1));
        drop((one, third));
        assert_eq!(taken(&room), 0);
    }

    #[test]
    fn a_body_pays_before_it_is_taken() {
        use http_body_util::Full;
        let room = Room::new(100);
        let body = |size: usize| Full::new(Bytes::from(vec![0; size]));
        let refused = Measured::new(body(11), 10, room.share()).err();
        assert!(matches!(refused, Some(Unread::TooLarge)));
        let first = Measured::new(body(60), 1000, room.share()).ok();
        assert_eq!(taken(&room), 60);
        let refused = Measured::new(body(41), 1000, room.share()).err();
        assert!(matches!(refused, Some(Unread::Full)));
        drop(first);
        // Of unknown length: as it comes, over and above what was known.
        let Ok(mut growing) = Measured::new(body(10), 50, room.share()) else {
            panic!("there is room for 10 bytes");
        };
        assert!(growing.see(10).is_ok() && taken(&room) == 10);
        assert!(growing.see(40).is_ok() && taken(&room) == 50);
        assert!(matches!(growing.see(1), Err(Unread::TooLarge)));
    }
}
