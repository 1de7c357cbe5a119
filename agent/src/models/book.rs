//! The newest order of each model.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// The newest order of the scheduler for one model.
struct Orders {
    sequence: u64,
    is_load: bool,
    cancel: CancellationToken,
}

/// The newest orders by model: an older one that comes late is dropped.
#[derive(Default)]
pub struct OrderBook(Mutex<HashMap<String, Orders>>);

impl OrderBook {
    /// Takes note of an order and cancels the work on an older one. `None` when a newer one is known.
    pub fn accept(
        &self,
        internal: &str,
        sequence: u64,
        is_load: bool,
    ) -> Option<CancellationToken> {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = orders.get(internal) {
            if known.sequence > sequence {
                return None;
            }
            known.cancel.cancel();
        }
        let cancel = CancellationToken::new();
        orders.insert(
            internal.to_owned(),
            Orders {
                sequence,
                is_load,
                cancel: cancel.clone(),
            },
        );
        Some(cancel)
    }

    /// Takes over from the order that is being followed, if that is an older load; its work goes on.
    pub fn join(&self, internal: &str, sequence: u64) -> Option<CancellationToken> {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = orders.get_mut(internal)?;
        if !known.is_load || known.sequence > sequence || known.cancel.is_cancelled() {
            return None;
        }
        known.sequence = sequence;
        Some(known.cancel.clone())
    }

    /// Forgets a model whose newest order this is.
    pub fn done(&self, internal: &str, sequence: u64) {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if orders
            .get(internal)
            .is_some_and(|known| known.sequence == sequence)
        {
            orders.remove(internal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_orders_cancel_older_ones() {
        let book = OrderBook::default();
        let first = book.accept("a_1", 1, true).expect("the first");
        let third = book.accept("a_1", 3, true).expect("newer");
        assert!(first.is_cancelled() && !third.is_cancelled());
        assert!(book.accept("a_1", 2, true).is_none(), "late");
        book.done("a_1", 1);
        assert!(book.accept("a_1", 2, true).is_none(), "still known");
        book.done("a_1", 3);
        assert!(book.accept("a_1", 2, true).is_some());
    }

    #[test]
    fn a_load_is_joined_and_an_unload_is_not() {
        let book = OrderBook::default();
        assert!(book.join("a_1", 1).is_none(), "nothing to join");
        let load = book.accept("a_1", 2, true).expect("the first");
        assert!(book.join("a_1", 1).is_none(), "late");
        let joined = book.join("a_1", 3).expect("the same load");
        assert!(!load.is_cancelled());
        book.accept("a_1", 4, false).expect("newer");
        assert!(load.is_cancelled() && joined.is_cancelled());
        assert!(book.join("a_1", 5).is_none(), "an unload");
    }
}
