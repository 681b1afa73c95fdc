//! How many part buffers there may be at once, whatever the number of pushes: memory must not grow with them.
//!
//! Slow clients hold buffers for long. So that a few of them cannot shut out everyone, who has waited long enough draws
//! on a reserve; when that is exhausted too, the push is refused for now.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::store::{StoreError, StoreResult};

/// Part buffers in ordinary times, and how many more when those are held for long.
const BUFFERS: usize = 10;
const RESERVE: usize = 22;
/// How long to wait for an ordinary buffer, then for one of the reserve.
const PATIENCE: Duration = Duration::from_secs(5);
const LAST_PATIENCE: Duration = Duration::from_secs(25);

/// Hands out the right to hold a part's bytes in memory.
pub(super) struct Admission {
    buffers: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Self {
        Self { buffers: Arc::new(Semaphore::new(BUFFERS)), reserve: Arc::new(Semaphore::new(RESERVE)) }
    }
}

impl Admission {
    /// Waits for the right, in the order of asking; it ends when the permit is dropped.
    pub(super) async fn admit(&self) -> StoreResult<OwnedSemaphorePermit> {
        for (source, patience) in [(&self.buffers, PATIENCE), (&self.reserve, LAST_PATIENCE)] {
            if let Ok(Ok(permit)) = tokio::time::timeout(patience, Arc::clone(source).acquire_owned()).await {
                return Ok(permit);
            }
        }
        Err(StoreError::Unavailable("too many slow uploads are under way; try again later".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_finds_no_buffer_waits_for_the_next_to_come_free() {
        let admission = Admission::default();
        let mut held = Vec::new();
        for _ in 0..BUFFERS {
            held.push(admission.admit().await.unwrap());
        }
        let mut next = Box::pin(admission.admit());
        assert!(futures::poll!(&mut next).is_pending());
        held.pop();
        let _last = next.await.unwrap();
    }
}
