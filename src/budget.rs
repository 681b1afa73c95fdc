//! A budget of bytes, shared by holders that grow as bytes arrive.
//!
//! Grants follow the banker's algorithm: after each one, all holders can still reach what they need, one after the other.
//! So holders that wait for each other never deadlock, however little is left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Bytes are charged in steps of this size, so that small growth costs no lock.
const STEP: usize = 64 * 1024;

/// The budget has not enough bytes left, and did not get them in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memory for request and response bodies is in use")]
pub struct Exhausted;

/// A number of bytes that may be held at once. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bytes in all.
    size: usize,
    /// Bytes that each account holds without being charged.
    free: usize,
    state: Mutex<State>,
    /// Some bytes were given back.
    released: Notify,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    next: u64,
    /// What each account holds and how far it may grow, both in bytes.
    accounts: BTreeMap<u64, (usize, usize)>,
}

impl Budget {
    /// Makes a budget of `size` bytes. The first `free` bytes of each account are not charged.
    pub fn new(size: usize, free: usize) -> Self {
        let (state, released, refused) = Default::default();
        Self(Arc::new(Inner { size, free, state, released, refused }))
    }

    /// Opens an account that is expected to grow to `need` bytes.
    pub fn open(&self, need: usize) -> Account {
        Account { budget: Arc::clone(&self.0), id: None, need, charged: 0 }
    }

    /// Bytes in all.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// Bytes that are held.
    pub fn used(&self) -> usize {
        self.0.lock().used
    }

    /// How often an account did not get what it asked for.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Whether little is left: less than an eighth.
    pub fn is_scarce(&self) -> bool {
        self.used() > self.0.size - self.0.size / 8
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between the lock and its release panics, so the numbers agree.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether all accounts can reach their needs one after the other.
    fn is_safe(&self, size: usize) -> bool {
        let mut left = size.saturating_sub(self.used);
        let mut accounts: Vec<_> =
            self.accounts.values().map(|(held, need)| (need.saturating_sub(*held), *held)).collect();
        if accounts.iter().all(|(missing, _)| *missing <= left) {
            return true;
        }
        accounts.sort_unstable();
        for (missing, held) in accounts {
            if missing > left {
                return false;
            }
            left += held;
        }
        true
    }
}

/// A holder's part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Inner>,
    /// The account's key in the budget, once it is charged for something.
    id: Option<u64>,
    need: usize,
    charged: usize,
}

impl Account {
    /// Grows to `bytes` in all if that is possible at once.
    pub fn try_hold(&mut self, bytes: usize) -> bool {
        let Inner { size, free, .. } = *self.budget;
        if bytes <= self.charged.max(free) {
            return true;
        }
        let wanted = bytes.div_ceil(STEP).saturating_mul(STEP).min(size.max(bytes));
        let mut state = self.budget.lock();
        if wanted > size || state.used - self.charged + wanted > size {
            return false;
        }
        let id = self.id.unwrap_or(state.next);
        let before = state.accounts.insert(id, (wanted, self.need.clamp(wanted, size)));
        state.used = state.used - self.charged + wanted;
        if !state.is_safe(size) {
            state.used = state.used - wanted + self.charged;
            match before {
                Some(before) => state.accounts.insert(id, before),
                None => state.accounts.remove(&id),
            };
            return false;
        }
        if self.id.is_none() {
            state.next += 1;
            self.id = Some(id);
        }
        self.charged = wanted;
        true
    }

    /// Grows to `bytes` in all, and waits up to `timeout` until that is possible.
    ///
    /// # Errors
    /// [`Exhausted`]; the account keeps what it had.
    pub async fn hold(&mut self, bytes: usize, timeout: Duration) -> Result<(), Exhausted> {
        if self.try_hold(bytes) {
            return Ok(());
        }
        let budget = Arc::clone(&self.budget);
        // What is larger than the whole budget is not waited for.
        let deadline = Instant::now() + if bytes <= budget.size { timeout } else { Duration::ZERO };
        loop {
            let released = budget.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if self.try_hold(bytes) {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, released).await.is_err() {
                break;
            }
        }
        budget.refused.fetch_add(1, Ordering::Relaxed);
        Err(Exhausted)
    }

    /// Shrinks to `bytes`, and expects to grow no more.
    pub fn settle(&mut self, bytes: usize) {
        let wanted = if bytes <= self.budget.free { 0 } else { bytes.div_ceil(STEP).saturating_mul(STEP) };
        let wanted = wanted.min(self.charged);
        self.need = wanted;
        let Some(id) = self.id else { return };
        let mut state = self.budget.lock();
        state.used -= self.charged - wanted;
        self.charged = wanted;
        if wanted == 0 {
            self.id = None;
            state.accounts.remove(&id);
        } else {
            state.accounts.insert(id, (wanted, wanted));
        }
        drop(state);
        self.budget.released.notify_waiters();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Longer than any test takes.
    const WAIT: Duration = Duration::from_secs(3600);

    #[test]
    fn what_is_free_is_not_charged() {
        let budget = Budget::new(STEP, 1000);
        let mut accounts: Vec<_> = (0..100).map(|_| budget.open(1000)).collect();
        assert!(accounts.iter_mut().all(|account| account.try_hold(1000)));
        assert_eq!(budget.used(), 0);
        assert!(accounts[0].try_hold(1001));
        assert_eq!(budget.used(), STEP);
        assert!(!accounts[1].try_hold(1001));
        accounts.remove(0);
        assert!(accounts[1].try_hold(1001));
    }

    #[tokio::test]
    async fn an_account_waits_for_what_another_gives_back() {
        let budget = Budget::new(4 * STEP, 0);
        let mut first = budget.open(4 * STEP);
        first.hold(3 * STEP, WAIT).await.unwrap();
        let mut second = budget.open(2 * STEP);
        assert_eq!(second.hold(2 * STEP, Duration::ZERO).await, Err(Exhausted));
        assert_eq!(budget.refused(), 1);
        {
            let waiting = second.hold(2 * STEP, WAIT);
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
            first.settle(STEP);
            assert_eq!(waiting.await, Ok(()));
        }
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn more_than_there_is_is_refused_without_waiting() {
        let budget = Budget::new(STEP, 0);
        let mut account = budget.open(0);
        let refused = account.hold(2 * STEP, WAIT);
        tokio::pin!(refused);
        assert!(matches!(futures::poll!(&mut refused), std::task::Poll::Ready(Err(Exhausted))));
    }

    #[test]
    fn the_last_bytes_are_kept_for_who_can_end_with_them() {
        let budget = Budget::new(10 * STEP, 0);
        let mut accounts: Vec<_> = (0..3).map(|_| budget.open(6 * STEP)).collect();
        // Three times three would leave one step, with which nobody could end.
        assert!(accounts[0].try_hold(4 * STEP));
        assert!(accounts[1].try_hold(4 * STEP));
        assert!(!accounts[2].try_hold(STEP));
        assert!(!accounts[2].try_hold(2 * STEP));
        assert!(accounts[0].try_hold(6 * STEP));
        accounts.remove(0);
        assert!(accounts[1].try_hold(STEP));
    }

    proptest! {
        /// Accounts grow step by step in any order; whoever is refused tries again later. All of them reach their needs.
        #[test]
        fn everybody_ends_whatever_the_order(
            needs in prop::collection::vec(1_usize..20, 1..12),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..400),
        ) {
            let budget = Budget::new(20 * STEP, 0);
            let mut open: Vec<_> = needs.iter().map(|need| (budget.open(need * STEP), 0, *need)).collect();
            let rest = 0..4_000;
            let picks: Vec<usize> = order.iter().map(|pick| pick.index(1_000)).chain(rest).collect();
            for pick in picks {
                if open.is_empty() {
                    break;
                }
                let at = pick % open.len();
                let (account, held, need) = &mut open[at];
                if account.try_hold((*held + 1) * STEP) {
                    *held += 1;
                }
                if held == need {
                    open.swap_remove(at);
                }
                prop_assert!(budget.used() <= budget.size());
            }
            prop_assert!(open.is_empty(), "{} accounts never ended", open.len());
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
