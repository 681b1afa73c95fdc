//! A limit on the bytes of parts in memory, so that memory does not grow with the number of pushes.
//!
//! A push is charged for the bytes that have arrived, not for a whole part: slow clients hold
//! little.

use std::time::Duration;

use super::state::PART;
use crate::{StoreError, StoreResult};
use wharfage_process::budget::{Account, Budget, Limits};

/// Limit in bytes for all parts that are being filled or sent.
const SIZE: usize = 128 * 1024 * 1024;
/// Bytes per part that are not charged, so that small blobs never wait for large ones.
const FREE: usize = 256 * 1024;
/// The time that a push waits for memory. Within that time slow clients are disconnected.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The memory budget of parts.
#[derive(Debug)]
pub(super) struct PartMemory(Budget);

impl Default for PartMemory {
    fn default() -> Self {
        // The client is not known here, so all pushes share one owner.
        Self(Budget::new(Limits { size: SIZE, per_owner: SIZE, free: FREE }))
    }
}

impl PartMemory {
    /// Opens the account of one part; its drop returns what it holds.
    pub(super) fn open(&self) -> Account {
        self.0.open((), PART as usize)
    }
}

/// Grows a part's account to `bytes` in total, and waits while others hold too much.
pub(super) async fn admit(account: &mut Account, bytes: u64) -> StoreResult<()> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    account.hold(bytes, TIMEOUT).await.map_err(|_| {
        StoreError::Unavailable("too many uploads are under way; try again later".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_pushes_hold_only_what_has_arrived() {
        let admission = PartMemory::default();
        let mut slow: Vec<_> = (0..256).map(|_| admission.open()).collect();
        assert!(slow.iter_mut().all(|account| account.try_hold(FREE + 1)));
        assert!(admission.open().try_hold(PART as usize));
    }

    #[tokio::test]
    async fn a_push_without_memory_waits_for_a_finished_part() {
        let admission = PartMemory::default();
        let mut held: Vec<_> = (0..SIZE / PART as usize).map(|_| admission.open()).collect();
        for account in &mut held {
            admit(account, PART).await.unwrap();
        }
        let mut next = admission.open();
        let waiting = admit(&mut next, PART);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        held.pop();
        waiting.await.unwrap();
    }
}
