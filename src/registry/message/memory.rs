//! The memory that request and response bodies may hold, all registries of the process together.
//!
//! It has two shares: one for callers who have proved who they are, one for all others, who cannot take anything from the
//! former, unless they know an access key's id and share the address of its owner. Within a share nobody has more than three quarters. A body's first bytes are free, so that small requests are
//! answered whatever large ones do.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use moka::sync::Cache;
use tokio::sync::Semaphore;

use wharfage_process::budget::{Account, Budget, Exhausted, Limits};

/// The default size in MiB, and the smallest: the largest body of the API has to fit into what one caller may have of the
/// smaller share, and twice the largest that is valid into that of the larger one.
pub const DEFAULT_MIB: usize = 128;
/// The largest body that is read whole, in bytes.
pub(crate) const LARGEST_BODY: usize = 32 * 1024 * 1024;
/// What each body may hold for free, in bytes: most manifests and API calls are smaller.
pub(crate) const FREE: usize = 16 * 1024;
/// How long a body waits for its memory.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);
/// How many things may be read from the store at once whose size is not known before. The largest is a manifest of 4 MiB.
const READS: usize = 16;
/// How many callers are remembered to have proved who they are, and for how long.
const KNOWN_CALLERS: u64 = 4096;
const KNOWN_FOR: Duration = Duration::from_secs(15 * 60);

/// Who holds a body's memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// Who has proved by a token or a signature to hold this access key, now or a moment ago, at this address.
    Verified(IpAddr, Arc<str>),
    /// A client at this address that has not proved it.
    Unverified(IpAddr),
}

/// The process's memory for bodies.
#[derive(Debug)]
pub(crate) struct Memory {
    verified: Budget,
    unverified: Budget,
    reads: Semaphore,
    known: Cache<Caller, ()>,
}

static PROCESS: OnceLock<Memory> = OnceLock::new();

/// The process's memory for bodies; of the default size unless [`set_size`] came first.
pub(crate) fn process() -> &'static Memory {
    PROCESS.get_or_init(|| Memory::new(DEFAULT_MIB * 1024 * 1024))
}

/// Sets the size in bytes. Too late once a body was read: then it returns false and changes nothing.
pub fn set_size(bytes: usize) -> bool {
    PROCESS.set(Memory::new(bytes)).is_ok()
}

impl Memory {
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

    /// Opens an account of this caller that is expected to grow to `need` bytes.
    pub(crate) fn open(&self, caller: &Caller, need: usize) -> Account {
        match caller {
            Caller::Verified(..) => self.verified.open(caller, need),
            Caller::Unverified(_) => self.unverified.open(caller, need),
        }
    }

    /// The shares, by their names in the metrics.
    pub(crate) fn shares(&self) -> [(&'static str, &Budget); 2] {
        [("verified", &self.verified), ("unverified", &self.unverified)]
    }

    /// Whether little is left of what verified callers may hold.
    pub(crate) fn is_scarce(&self) -> bool {
        self.verified.is_scarce()
    }

    /// Notes that a caller has proved who it is.
    pub(crate) fn remember(&self, verified: &Caller) {
        self.known.insert(verified.clone(), ());
    }

    /// What a request is as long as its signature is not checked: verified when its address and access key have been a
    /// moment ago.
    pub(crate) fn claimed(&self, peer: IpAddr, access_key_id: &Arc<str>) -> Caller {
        let claimed = Caller::Verified(peer, Arc::clone(access_key_id));
        if self.known.contains_key(&claimed) { claimed } else { Caller::Unverified(peer) }
    }

    /// Reads something whose size is known only then, and grows `account` from `held` bytes by `size` of it. When there is
    /// no memory for it, it is dropped, and read again once there is.
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

/// Bytes that hold their memory until the last reference to them is dropped: when the socket has taken them.
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

    fn memory() -> Memory {
        Memory::new(DEFAULT_MIB * MIB)
    }

    #[test]
    fn others_take_nothing_from_verified_callers() {
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
    fn a_verified_caller_leaves_something_to_another() {
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
        assert!(memory.open(&verified(THERE, "AKIA"), 8 * MIB).try_hold(8 * MIB), "another address");
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
    fn an_answer_holds_its_memory_until_it_is_gone() {
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
    async fn what_finds_no_memory_is_dropped_and_read_again() {
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
