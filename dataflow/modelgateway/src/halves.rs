//! Work on many at once, of which one may spoil it for all.
use tokio::time::Instant;

/// Attempts them together; where that fails, each half by itself, and so on: one that spoils it is found in few steps, and
/// the others are done. After `until` nothing is halved any more: it is not for one of them then. Returns those that
/// failed.
pub(crate) async fn by_halves<T: Clone, E, Attempted: Future<Output = Result<(), E>>>(
    items: Vec<T>,
    until: Instant,
    attempt: impl Fn(Vec<T>) -> Attempted,
) -> Vec<(Vec<T>, E)> {
    let (mut waiting, mut failed) = (vec![items], Vec::new());
    while let Some(mut items) = waiting.pop() {
        match attempt(items.clone()).await {
            Ok(()) => {}
            Err(_) if items.len() > 1 && Instant::now() < until => {
                waiting.push(items.split_off(items.len() / 2));
                waiting.push(items);
            }
            Err(error) => failed.push((items, error)),
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use super::*;

    #[tokio::test]
    async fn two_of_many_are_found_in_few_steps() {
        let (attempts, done) = (Cell::new(0), Cell::new(0));
        let attempt = |items: Vec<u32>| {
            attempts.set(attempts.get() + 1);
            let bad = items.iter().find(|item| [7, 400].contains(*item)).copied();
            if bad.is_none() {
                done.set(done.get() + items.len());
            }
            async move { bad.map_or(Ok(()), Err) }
        };
        let later = Instant::now() + Duration::from_secs(3600);
        let mut failed = by_halves((0..500).collect(), later, attempt).await;
        failed.sort();
        assert_eq!(failed, [(vec![7], 7), (vec![400], 400)]);
        assert_eq!(done.get(), 498);
        assert!(attempts.get() < 40, "{}", attempts.get());

        attempts.set(0);
        let all: Vec<u32> = (0..500).collect();
        let failed = by_halves(all.clone(), Instant::now(), attempt).await;
        assert_eq!((failed, attempts.get()), (vec![(all, 7)], 1));
    }
}
