//! Bodies that have to be held whole, counted with all others that are.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;

use crate::models::Limits;

/// Bytes of decompressed messages, and of bodies that are translated, that all requests of a proxy hold together, and the
/// most they may.
pub(crate) struct Budget {
    held: AtomicUsize,
    most: usize,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            most: limits.all_decompressed_bytes,
        })
    }

    /// Counts bytes that are about to be held, unless they are too many.
    fn take(&self, bytes: usize) -> bool {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > self.most {
            self.give(bytes);
        }
        held <= self.most
    }

    /// Counts them no more.
    fn give(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A share of what may be held, given back when it is dropped.
pub(crate) struct Share {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Share {
    pub(crate) fn none(budget: &Arc<Budget>) -> Self {
        let (bytes, budget) = (0, budget.clone());
        Self { bytes, budget }
    }

    /// Makes it so many bytes, unless that is more than may be held.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        match bytes.checked_sub(self.bytes) {
            Some(more) if !self.budget.take(more) => return false,
            Some(_) => {}
            None => self.budget.give(self.bytes - bytes),
        }
        self.bytes = bytes;
        true
    }

    /// What it counts, which it counts no more.
    pub(crate) fn take(&mut self) -> Self {
        let none = Self::none(&self.budget);
        std::mem::replace(self, none)
    }

    /// Bytes that are counted as long as they are held.
    pub(crate) fn keep(self, bytes: Vec<u8>) -> Bytes {
        struct Kept {
            bytes: Vec<u8>,
            _share: Share,
        }
        impl AsRef<[u8]> for Kept {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Kept {
            bytes,
            _share: self,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

/// Why a body is not held.
#[derive(Debug)]
pub(crate) enum NotHeld<E> {
    TooLarge,
    /// Others hold what there is.
    Full,
    Broken(E),
}

/// Reads a body of at most `most` bytes; it is counted in `share`, beside what that counts already.
pub(crate) async fn whole<B>(
    mut body: B,
    most: usize,
    share: &mut Share,
) -> Result<BytesMut, NotHeld<B::Error>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let before = share.bytes;
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(NotHeld::Broken)?.into_data() else {
            continue;
        };
        let length = whole.len() + data.len();
        if length > most {
            return Err(NotHeld::TooLarge);
        }
        if !share.resize(before + length) {
            return Err(NotHeld::Full);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn budget(most: usize) -> Arc<Budget> {
        Budget::new(&Limits {
            all_decompressed_bytes: most,
            ..Limits::default()
        })
    }

    #[test]
    fn what_is_given_back_can_be_held_again() {
        let budget = budget(10);
        let (mut one, mut two) = (Share::none(&budget), Share::none(&budget));
        assert!(one.resize(7) && two.resize(3) && !two.resize(4));
        assert!(one.resize(6) && two.resize(4) && !one.resize(7));
        let kept = two.keep(vec![1; 4]);
        assert!(!one.resize(7));
        drop(kept);
        assert!(one.resize(10));
        drop(one);
        assert!(Share::none(&budget).resize(10));
    }

    #[tokio::test]
    async fn a_body_is_counted_beside_what_is_there() {
        let budget = budget(10);
        let body = || Full::new(Bytes::from_static(b"hello"));
        let mut share = Share::none(&budget);
        assert!(share.resize(5));
        assert_eq!(whole(body(), 5, &mut share).await.unwrap(), "hello");
        assert_eq!(share.bytes, 10);
        let mut other = Share::none(&budget);
        let refused = whole(body(), 4, &mut other).await;
        assert!(matches!(refused, Err(NotHeld::TooLarge)));
        let refused = whole(body(), 5, &mut other).await;
        assert!(matches!(refused, Err(NotHeld::Full)));
    }
}
