//! Waiting for a condition, with a deadline.
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const POLL: Duration = Duration::from_millis(30);

/// Tries until it succeeds; after `seconds` the last failure is the result.
pub fn eventually<T>(seconds: u64, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("not within {seconds} s"));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// The same for an asynchronous attempt.
pub async fn eventually_async<T>(
    seconds: u64,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("not within {seconds} s"));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
