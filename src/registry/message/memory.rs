//! The memory budget of request and response bodies, shared by all registries of the process.
//!
//! It has two shares: one for verified callers and one for all others. Unverified callers cannot
//! use the first share, unless they know an access key's id and have the address of its owner. One
//! caller gets at most three quarters of a share. The first bytes of a body are free, so that small
//! requests are served while large ones use the budget.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use moka::sync::Cache;
use tokio::sync::Semaphore;

use wharfage_process::budget::{Account, Budget, Exhausted, Limits};

/// The default size in MiB, and the smallest: the largest body of the API must fit into one
/// caller's part of the smaller share, and twice the largest valid body into that of the larger
/// share.
pub const DEFAULT_MIB: usize = 128;
/// The largest body that is read whole, in bytes.
pub(crate) const LARGEST_BODY: usize = 32 * 1024 * 1024;
/// The free bytes of each body: most manifests and API calls are smaller.
pub(crate) const FREE: usize = 16 * 1024;
/// The time that a body waits for its memory.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);
/// The number of concurrent reads from the store of unknown size. The largest is a manifest of 4
/// MiB.
const READS: usize = 16;
/// The number of verified callers that are remembered, and for how long.
const KNOWN_CALLERS: u64 = 4096;
const KNOWN_FOR: Duration = Duration::from_secs(15 * 60);

/// The owner of a body's memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// A caller that has proved this access key by a token or signature, now or a moment ago, at
    /// this address.
    Verified(IpAddr, Arc<str>),
    /// An unverified client at this address.
    Unverified(IpAddr),
}

/// The memory budget of a process.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    verified: Budget,
    unverified: Budget,
    reads: Semaphore,
    known: Cache<Caller, ()>,
}

static PROCESS: OnceLock<MemoryBudget> = OnceLock::new();

/// Returns the process's memory budget, of the default size unless [`set_size`] was called before.
pub(crate) fn process() -> &'static MemoryBudget {
    PROCESS.get_or_init(|| MemoryBudget::new(DEFAULT_MIB * 1024 * 1024))
}

/// Sets the size in bytes. Returns false and changes nothing after a body was read.
pub fn set_size(bytes: usize) -> bool {
    PROCESS.set(MemoryBudget::new(bytes)).is_ok()
}

impl MemoryBudget {
    fn new(bytes: usize) -> Self {
        let share = |size: usize| Budget::new(Limits { size, per_owner: size / 4 * 3, free: FREE });
        let unverified = bytes / 8 * 3;
        Self {
            verified: share(bytes - unverified),
            unverified: share(unverified),
            reads: Semaphore::new(READS),
            known: Cache::builder().max_capacity(KNOWN_CALLERS).time_to_live(KNOWN_FOR).build(),
        }
    }

    /// Opens an account of this caller, which is expected to grow to `need` bytes.
    pub(crate) fn open(&self, caller: &Caller, need: usize) -> Account {
        match caller {
            Caller::Verified(..) => self.verified.open(caller, need),
            Caller::Unverified(_) => self.unverified.open(caller, need),
        }
    }

    /// Returns the shares with their names in the metrics.
    pub(crate) fn shares(&self) -> [(&'static str, &Budget); 2] {
        [("verified", &self.verified), ("unverified", &self.unverified)]
    }

    /// Returns whether little of the verified share is left.
    pub(crate) fn is_scarce(&self) -> bool {
        self.verified.is_scarce()
    }

    /// Remembers a verified caller.
    pub(crate) fn remember(&self, verified: &Caller) {
        self.known.insert(verified.clone(), ());
    }

    /// Returns the caller of a request before its signature is checked: verified when the same
    /// address and access key were verified a moment ago.
    pub(crate) fn claimed(&self, peer: IpAddr, access_key_id: &Arc<str>) -> Caller {
        let claimed = Caller::Verified(peer, Arc::clone(access_key_id));
        if self.known.contains_key(&claimed) { claimed } else { Caller::Unverified(peer) }
    }

    /// Reads something of unknown size, and grows `account` from `held` bytes by its `size`.
    /// Without enough memory, the result is dropped and read again when there is memory.
    ///
    /// # Errors
    /// Those of `read`, or [`Exhausted`].
    pub(crate) async fn read<'a, T, E: From<Exhausted>>(
        &self,
        account: &mut Account,
        held: usize,
        read: impl Fn() -> BoxFuture<'a, Result<T, E>>,
        size: impl Fn(&T) -> usize,
    ) -> Result<T, E> {
        loop {
            // The semaphore is never closed.
            let reading = self.reads.acquire().await;
            let found = read().await?;
            let bytes = held + size(&found);
            if account.try_hold(bytes) {
                return Ok(found);
            }
            drop((found, reading));
            account.hold(bytes, TIMEOUT).await?;
        }
    }
}

/// Returns bytes that hold their memory until the last reference is dropped, when the socket has
/// taken them.
pub(crate) fn held(bytes: Bytes, mut account: Account) -> Bytes {
    struct Held {
        bytes: Bytes,
        _account: Account,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    account.settle(bytes.len());
    if bytes.len() <= FREE { bytes } else { Bytes::from_owner(Held { bytes, _account: account }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn verified(peer: IpAddr, key: &str) -> Caller {
        Caller::Verified(peer, key.into())
    }

    fn memory() -> MemoryBudget {
        MemoryBudget::new(DEFAULT_MIB * MIB)
    }

    #[test]
    fn unverified_callers_use_no_verified_memory() {
        let memory = memory();
        let taken = [HERE, THERE].map(|peer| {
            let mut unverified = memory.open(&Caller::Unverified(peer), 0);
            let mib = (1..).take_while(|mib| unverified.try_hold(mib * MIB)).last();
            (mib, unverified)
        });
        assert_eq!(
            taken.each_ref().map(|(mib, _)| *mib),
            [Some(36), Some(12)],
            "the largest body fits, and leaves something to another"
        );
        assert!(memory.open(&verified(HERE, "AKIA"), 0).try_hold(60 * MIB));
    }

    #[test]
    fn the_largest_part_of_a_layer_fits() {
        let memory = memory();
        let body = 20 * MIB / 3 * 4 + 1024;
        let mut account = memory.open(&verified(HERE, "AKIA"), 2 * body);
        assert!(account.try_hold(body) && account.try_hold(2 * body));
    }

    #[test]
    fn one_caller_cannot_use_a_whole_share() {
        let memory = memory();
        let mut accounts = Vec::new();
        loop {
            let mut account = memory.open(&verified(HERE, "AKIA"), 4 * MIB);
            if !account.try_hold(4 * MIB) {
                break;
            }
            accounts.push(account);
        }
        assert_eq!(accounts.len(), 15);
        assert!(memory.open(&verified(HERE, "OTHER"), 8 * MIB).try_hold(8 * MIB), "another key");
        assert!(
            memory.open(&verified(THERE, "AKIA"), 8 * MIB).try_hold(8 * MIB),
            "another address"
        );
    }

    #[test]
    fn a_caller_is_known_by_its_address_and_key() {
        let (memory, key): (_, Arc<str>) = (memory(), "AKIA".into());
        memory.remember(&verified(HERE, "AKIA"));
        assert_eq!(memory.claimed(HERE, &key), verified(HERE, "AKIA"));
        assert_eq!(memory.claimed(THERE, &key), Caller::Unverified(THERE));
        assert_eq!(memory.claimed(HERE, &"OTHER".into()), Caller::Unverified(HERE));
    }

    #[test]
    fn a_response_holds_its_memory_until_it_is_dropped() {
        let memory = memory();
        let budget = &memory.verified;
        let mut account = memory.open(&verified(HERE, "AKIA"), 2 * MIB);
        assert!(account.try_hold(2 * MIB));
        let answer = held(Bytes::from(vec![0; MIB]), account);
        assert_eq!(budget.used(), MIB);
        let rest = answer.slice(MIB - 1..);
        drop(answer);
        assert_eq!(budget.used(), MIB);
        drop(rest);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_read_without_memory_is_repeated() {
        let memory = memory();
        let caller = verified(HERE, "AKIA");
        let mut other = memory.open(&caller, 0);
        assert!(other.try_hold(60 * MIB));
        let mut account = memory.open(&caller, 0);
        let reads = std::sync::atomic::AtomicUsize::new(0);
        let read = || -> BoxFuture<'_, Result<Vec<u8>, Exhausted>> {
            reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Box::pin(async { Ok(vec![0; MIB]) })
        };
        {
            let reading = memory.read(&mut account, 0, read, Vec::len);
            tokio::pin!(reading);
            assert!(futures::poll!(&mut reading).is_pending());
            drop(other);
            assert_eq!(reading.await.unwrap().len(), MIB);
        }
        assert_eq!(reads.into_inner(), 2);
    }
}
