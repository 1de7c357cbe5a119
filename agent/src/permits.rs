//! A bound on work at a time that hung work cannot exhaust.
use std::future::Future;
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// After this time, work goes on without its permit, so that others get their turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lets a number of jobs run at a time, not counting those that take long.
pub struct Permits {
    free: Semaphore,
    patience: Duration,
}

impl Permits {
    pub fn new(count: usize) -> Self {
        Self::patient(count, PATIENCE)
    }

    fn patient(count: usize, patience: Duration) -> Self {
        Self {
            free: Semaphore::new(count.max(1)),
            patience,
        }
    }

    /// Runs a job when it is its turn.
    pub async fn run<T>(&self, job: impl Future<Output = T>) -> T {
        // The semaphore is never closed; without a permit the job simply runs.
        let permit = self.free.acquire().await;
        self.run_with(permit, job).await
    }

    /// The same, if its turn comes before something has ended; what was begun runs to its end.
    pub async fn run_unless<T>(
        &self,
        ended: impl Future<Output = ()>,
        job: impl Future<Output = T>,
    ) -> Option<T> {
        let permit = tokio::select! {
            biased;
            () = ended => return None,
            permit = self.free.acquire() => permit,
        };
        Some(self.run_with(permit, job).await)
    }

    async fn run_with<T>(
        &self,
        permit: Result<SemaphorePermit<'_>, AcquireError>,
        job: impl Future<Output = T>,
    ) -> T {
        let mut job = std::pin::pin!(job);
        match tokio::time::timeout(self.patience, &mut job).await {
            Ok(done) => done,
            Err(_) => {
                drop(permit);
                job.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hung_jobs_do_not_starve_others() {
        let permits = std::sync::Arc::new(Permits::patient(2, Duration::from_millis(5)));
        for _ in 0..5 {
            let permits = permits.clone();
            tokio::spawn(async move { permits.run(std::future::pending::<()>()).await });
        }
        tokio::task::yield_now().await;
        let done = tokio::time::timeout(Duration::from_secs(10), permits.run(async { 7 })).await;
        assert_eq!(done, Ok(7));
    }

    #[tokio::test]
    async fn who_is_not_wanted_any_more_leaves_the_line() {
        let permits = Permits::new(1);
        let _taken = permits.free.acquire().await.unwrap();
        assert_eq!(permits.run_unless(async {}, async { 7 }).await, None);
    }
}
