//! A budget of bytes, shared by holders that grow as bytes arrive.
//!
//! Grants follow the banker's algorithm: after each one, all holders can still reach what they need, one after the other.
//! So holders that wait for each other never deadlock, however little is left. No owner has more than a share of it, so
//! that a caller who takes all that it can get leaves something to the others.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, Hash, RandomState};
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

/// The limits on held memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub size: usize,
    /// By the accounts of one owner together.
    pub per_owner: usize,
    /// By each account without being charged.
    pub free: usize,
}

/// A number of bytes that may be held at once. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    /// Makes an owner's key, which nobody can choose.
    owners: RandomState,
    state: Mutex<State>,
    /// Some bytes were given back.
    released: Notify,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    next: u64,
    accounts: BTreeMap<u64, Charge>,
    /// The memory that the accounts of each owner hold together, in bytes.
    owners: HashMap<u64, usize>,
}

/// The memory that an account holds and how far it may grow, both in bytes.
#[derive(Debug, Clone, Copy)]
struct Charge {
    owner: u64,
    held: usize,
    need: usize,
}

impl Charge {
    fn missing(&self) -> usize {
        self.need.saturating_sub(self.held)
    }
}

impl Budget {
    /// Makes a budget.
    pub fn new(limits: Limits) -> Self {
        let (owners, state, released, refused) = Default::default();
        Self(Arc::new(Inner { limits, owners, state, released, refused }))
    }

    /// Opens an account of this owner that is expected to grow to `need` bytes.
    pub fn open(&self, owner: impl Hash, need: usize) -> Account {
        Account {
            budget: Arc::clone(&self.0),
            owner: self.0.owners.hash_one(owner),
            id: None,
            need,
            charged: 0,
        }
    }

    /// Bytes in all.
    pub fn size(&self) -> usize {
        self.0.limits.size
    }

    /// Bytes that are held.
    pub fn used(&self) -> usize {
        self.0.lock().used
    }

    /// Returns how often an account did not get what it asked for.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Returns whether little is left: less than an eighth.
    pub fn is_scarce(&self) -> bool {
        self.used() > self.size() - self.size() / 8
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between the lock and its release panics, so the numbers agree.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sets what an account holds, or forgets it; what it was before.
    fn set(&mut self, id: u64, charge: Option<Charge>) -> Option<Charge> {
        let before = match charge {
            Some(charge) => self.accounts.insert(id, charge),
            None => self.accounts.remove(&id),
        };
        // New bytes are counted before released ones, so that an owner is forgotten only when it
        // holds nothing.
        if let Some(Charge { owner, held, .. }) = charge {
            self.used += held;
            *self.owners.entry(owner).or_default() += held;
        }
        if let Some(Charge { owner, held, .. }) = before {
            self.used -= held;
            if let Entry::Occupied(mut of_owner) = self.owners.entry(owner) {
                *of_owner.get_mut() -= held;
                if *of_owner.get() == 0 {
                    of_owner.remove();
                }
            }
        }
        before
    }

    /// Returns whether all accounts can reach their needs one after the other.
    fn is_safe(&self, limits: Limits) -> bool {
        let mut left = limits.size.saturating_sub(self.used);
        let owners = self
            .owners
            .iter()
            .map(|(owner, held)| (*owner, limits.per_owner.saturating_sub(*held)));
        let mut left_of: HashMap<u64, usize> = owners.collect();
        let mut waiting: Vec<Charge> = self.accounts.values().copied().collect();
        waiting.sort_unstable_by_key(Charge::missing);
        // An account that can end gives back what it holds, so the order among those who can does
        // not matter.
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting.retain(|charge| {
                let left_of_owner = left_of.entry(charge.owner).or_default();
                let ends = charge.missing() <= left.min(*left_of_owner);
                if ends {
                    left += charge.held;
                    *left_of_owner += charge.held;
                }
                !ends
            });
            if waiting.len() == before {
                return false;
            }
        }
        true
    }
}

/// A holder's part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Inner>,
    owner: u64,
    /// The account's key in the budget, once it is charged for something.
    id: Option<u64>,
    need: usize,
    charged: usize,
}

impl Account {
    /// Expects to grow to `need` bytes at least.
    pub fn expect(&mut self, need: usize) {
        self.need = self.need.max(need);
    }

    /// Grows to `bytes` in all if that is possible at once.
    pub fn try_hold(&mut self, bytes: usize) -> bool {
        let limits = self.budget.limits;
        if bytes <= self.charged.max(limits.free) {
            return true;
        }
        let most = limits.size.min(limits.per_owner);
        if bytes > most {
            return false;
        }
        let held = bytes.div_ceil(STEP).saturating_mul(STEP).min(most);
        let mut state = self.budget.lock();
        let of_owner = state.owners.get(&self.owner).copied().unwrap_or_default();
        let more = held - self.charged;
        if state.used + more > limits.size || of_owner + more > limits.per_owner {
            return false;
        }
        let id = self.id.unwrap_or(state.next);
        let charge = Charge { owner: self.owner, held, need: self.need.clamp(held, most) };
        let before = state.set(id, Some(charge));
        if !state.is_safe(limits) {
            state.set(id, before);
            return false;
        }
        if self.id.is_none() {
            state.next += 1;
            self.id = Some(id);
        }
        self.charged = held;
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
        let deadline = Instant::now() + timeout;
        // A request larger than the limit of one owner is refused without waiting.
        while bytes <= budget.limits.size.min(budget.limits.per_owner) {
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
        let held = if bytes <= self.budget.limits.free {
            0
        } else {
            bytes.div_ceil(STEP).saturating_mul(STEP)
        };
        let held = held.min(self.charged);
        self.need = held;
        let Some(id) = self.id else { return };
        let charge = (held > 0).then_some(Charge { owner: self.owner, held, need: held });
        self.budget.lock().set(id, charge);
        self.charged = held;
        if held == 0 {
            self.id = None;
        }
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
    const TIMEOUT: Duration = Duration::from_secs(3600);
    const ANYBODY: &str = "anybody";

    /// A budget that one may have all of.
    fn budget(size: usize, free: usize) -> Budget {
        Budget::new(Limits { size, per_owner: size, free })
    }

    #[test]
    fn what_is_free_is_not_charged() {
        let budget = budget(STEP, 1000);
        let mut accounts: Vec<_> = (0..100).map(|_| budget.open(ANYBODY, 1000)).collect();
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
        let budget = budget(4 * STEP, 0);
        let mut first = budget.open(ANYBODY, 4 * STEP);
        first.hold(3 * STEP, TIMEOUT).await.unwrap();
        let mut second = budget.open(ANYBODY, 2 * STEP);
        assert_eq!(second.hold(2 * STEP, Duration::ZERO).await, Err(Exhausted));
        assert_eq!(budget.refused(), 1);
        {
            let waiting = second.hold(2 * STEP, TIMEOUT);
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
        let budget = budget(STEP, 0);
        let mut account = budget.open(ANYBODY, 0);
        let refused = account.hold(2 * STEP, TIMEOUT);
        tokio::pin!(refused);
        assert!(matches!(futures::poll!(&mut refused), std::task::Poll::Ready(Err(Exhausted))));
    }

    #[test]
    fn the_last_bytes_are_kept_for_who_can_end_with_them() {
        let budget = budget(10 * STEP, 0);
        let mut accounts: Vec<_> = (0..3).map(|_| budget.open(ANYBODY, 6 * STEP)).collect();
        // Three times three would leave one step, with which nobody could end.
        assert!(accounts[0].try_hold(4 * STEP));
        assert!(accounts[1].try_hold(4 * STEP));
        assert!(!accounts[2].try_hold(STEP));
        assert!(!accounts[2].try_hold(2 * STEP));
        assert!(accounts[0].try_hold(6 * STEP));
        accounts.remove(0);
        assert!(accounts[1].try_hold(STEP));
    }

    #[test]
    fn an_owner_leaves_something_to_others() {
        let budget = Budget::new(Limits { size: 8 * STEP, per_owner: 6 * STEP, free: 0 });
        let mut first: Vec<_> = (0..8).map(|_| budget.open("first", STEP)).collect();
        assert_eq!(
            first.iter_mut().filter_map(|account| account.try_hold(STEP).then_some(())).count(),
            6
        );
        let mut second = budget.open("second", 2 * STEP);
        assert!(second.try_hold(2 * STEP), "what the first may not have is left");
        first.truncate(5);
        assert!(budget.open("first", STEP).try_hold(STEP));
        assert!(!budget.open("first", 7 * STEP).try_hold(7 * STEP));
        drop((first, second));
        assert!(budget.0.lock().owners.is_empty());
    }

    #[tokio::test]
    async fn an_owner_waits_for_its_own_alone() {
        let budget = Budget::new(Limits { size: 8 * STEP, per_owner: 4 * STEP, free: 0 });
        let (mut first, mut second) = (budget.open("one", 3 * STEP), budget.open("one", 3 * STEP));
        assert!(first.try_hold(2 * STEP));
        assert!(!second.try_hold(2 * STEP), "then neither of them could end");
        assert!(first.try_hold(3 * STEP) && second.try_hold(STEP));
        let waiting = second.hold(3 * STEP, TIMEOUT);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(first);
        assert_eq!(waiting.await, Ok(()));
    }

    proptest! {
        /// Accounts grow step by step in any order; a refused account tries again later. All of
        /// them reach their needs.
        #[test]
        fn everybody_ends_whatever_the_order(
            needs in prop::collection::vec((1_usize..20, 0..3), 1..12),
            per_owner in 8_usize..=20,
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..400),
        ) {
            let limits = Limits { size: 20 * STEP, per_owner: per_owner * STEP, free: 0 };
            let budget = Budget::new(limits);
            let accounts = needs.iter().map(|(need, owner)| (*need.min(&per_owner), *owner));
            let mut open: Vec<_> = accounts.map(|(need, owner)| (budget.open(owner, need * STEP), 0, need)).collect();
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
                let state = budget.0.lock();
                prop_assert!(state.used <= limits.size);
                prop_assert!(state.owners.values().all(|held| *held <= limits.per_owner));
            }
            prop_assert!(open.is_empty(), "{} accounts never ended", open.len());
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
