//! How many bytes parts may have in memory at once, whatever the number of pushes: memory must not grow with them.
//!
//! A push is charged for what has arrived, not for what it may send: slow clients hold little.

use std::time::Duration;

use super::state::PART;
use crate::budget::{Account, Budget, Limits};
use crate::store::{StoreError, StoreResult};

/// What the parts that gather and those on their way to the bucket may have together, in bytes.
const SIZE: usize = 128 * 1024 * 1024;
/// Up to so many bytes are held without asking, so that small blobs never wait for large ones.
const FREE: usize = 256 * 1024;
/// How long a push waits for memory. Meanwhile slow clients are cut off.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Hands out the right to hold parts' bytes in memory.
#[derive(Debug)]
pub(super) struct Admission(Budget);

impl Default for Admission {
    fn default() -> Self {
        // Who pushes is not known here, so all are one owner.
        Self(Budget::new(Limits { size: SIZE, per_owner: SIZE, free: FREE }))
    }
}

impl Admission {
    /// Opens the account of one part; what it holds is given back when it is dropped.
    pub(super) fn open(&self) -> Account {
        self.0.open((), PART as usize)
    }
}

/// Grows a part's account to `bytes` in all, and waits for others to give back theirs.
pub(super) async fn admit(account: &mut Account, bytes: u64) -> StoreResult<()> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    account
        .hold(bytes, TIMEOUT)
        .await
        .map_err(|_| StoreError::Unavailable("too many uploads are under way; try again later".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_pushes_hold_only_what_has_arrived() {
        let admission = Admission::default();
        let mut slow: Vec<_> = (0..256).map(|_| admission.open()).collect();
        assert!(slow.iter_mut().all(|account| account.try_hold(FREE + 1)));
        assert!(admission.open().try_hold(PART as usize));
    }

    #[tokio::test]
    async fn who_finds_no_memory_waits_for_a_part_to_land() {
        let admission = Admission::default();
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
