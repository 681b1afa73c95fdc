//! The memory that request and response bodies may hold, all registries of the process together.
//!
//! It has two shares: one for callers who have proved who they are, one for all others, who cannot take anything from the
//! former. A body's first bytes are free, so that small requests are answered whatever large ones do.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use moka::sync::Cache;
use tokio::sync::Semaphore;

use crate::budget::{Account, Budget, Exhausted};

/// The default size in MiB.
pub const DEFAULT_MIB: usize = 128;
/// The smallest size in MiB: the largest body has to fit into the smaller share, and twice of it into the other.
pub const MINIMUM_MIB: usize = 104;
/// The largest body that is read whole, in bytes.
pub const LARGEST_BODY: usize = 32 * 1024 * 1024;
const _: () = {
    let (verified, unverified) = shares(MINIMUM_MIB * 1024 * 1024);
    assert!(2 * LARGEST_BODY <= verified && LARGEST_BODY <= unverified);
};
/// What each body may hold for free, in bytes: most manifests and API calls are smaller.
pub const FREE: usize = 16 * 1024;
/// How long a body waits for its memory.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// How many things may be read from the store at once whose size is not known before. The largest is a manifest of 4 MiB.
const READS: usize = 16;
/// How many callers are remembered to have proved who they are, and for how long.
const KNOWN_CALLERS: u64 = 4096;
const KNOWN_FOR: Duration = Duration::from_secs(15 * 60);

/// Whose share a body's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A token or a signature has proved who it is, or did so a moment ago.
    Verified,
    /// It is not known yet.
    Unverified,
}

impl Caller {
    /// The share's name in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Unverified => "unverified",
        }
    }
}

/// The process's memory for bodies.
#[derive(Debug)]
pub struct Memory {
    verified: Budget,
    unverified: Budget,
    reads: Semaphore,
    known: Cache<(IpAddr, Arc<str>), ()>,
}

static PROCESS: OnceLock<Memory> = OnceLock::new();

/// The process's memory for bodies; of the default size unless [`set_size`] came first.
pub fn process() -> &'static Memory {
    PROCESS.get_or_init(|| Memory::new(DEFAULT_MIB * 1024 * 1024))
}

/// Sets the size in bytes. Too late once a body was read: then it returns false and changes nothing.
pub fn set_size(bytes: usize) -> bool {
    PROCESS.set(Memory::new(bytes)).is_ok()
}

/// The shares of verified and of other callers.
const fn shares(bytes: usize) -> (usize, usize) {
    let unverified = bytes / 8 * 3;
    (bytes - unverified, unverified)
}

impl Memory {
    fn new(bytes: usize) -> Self {
        let (verified, unverified) = shares(bytes);
        Self {
            verified: Budget::new(verified, FREE),
            unverified: Budget::new(unverified, FREE),
            reads: Semaphore::new(READS),
            known: Cache::builder().max_capacity(KNOWN_CALLERS).time_to_live(KNOWN_FOR).build(),
        }
    }

    /// The share of such callers.
    pub fn share(&self, caller: Caller) -> &Budget {
        match caller {
            Caller::Verified => &self.verified,
            Caller::Unverified => &self.unverified,
        }
    }

    /// Whether little is left of what verified callers may hold.
    pub fn is_scarce(&self) -> bool {
        self.verified.is_scarce()
    }

    /// Notes that a caller at this address has proved to hold the access key.
    pub fn remember(&self, peer: IpAddr, access_key_id: &Arc<str>) {
        self.known.insert((peer, Arc::clone(access_key_id)), ());
    }

    /// What a request is as long as its signature is not checked: verified when its address and access key have been a
    /// moment ago.
    pub fn caller(&self, peer: IpAddr, access_key_id: &Arc<str>) -> Caller {
        let known = self.known.contains_key(&(peer, Arc::clone(access_key_id)));
        if known { Caller::Verified } else { Caller::Unverified }
    }

    /// Reads something whose size is known only then, and grows `account` from `held` bytes by `size` of it. When there is
    /// no memory for it, it is dropped, and read again once there is.
    ///
    /// # Errors
    /// Those of `read`, or [`Exhausted`].
    pub async fn read<'a, T, E: From<Exhausted>>(
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
pub fn held(bytes: Bytes, mut account: Account) -> Bytes {
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

    #[test]
    fn others_take_nothing_from_verified_callers() {
        let memory = Memory::new(MINIMUM_MIB * MIB);
        let mut unverified = memory.share(Caller::Unverified).open(0);
        assert!(unverified.try_hold(39 * MIB));
        assert!(!memory.share(Caller::Unverified).open(0).try_hold(FREE + 1));
        assert!(memory.share(Caller::Verified).open(0).try_hold(65 * MIB));
    }

    #[test]
    fn a_caller_is_known_by_its_address_and_key() {
        let memory = Memory::new(MINIMUM_MIB * MIB);
        let (here, there): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let key: Arc<str> = "AKIA".into();
        memory.remember(here, &key);
        assert_eq!(memory.caller(here, &key), Caller::Verified);
        assert_eq!(memory.caller(there, &key), Caller::Unverified);
        assert_eq!(memory.caller(here, &"OTHER".into()), Caller::Unverified);
    }

    #[test]
    fn an_answer_holds_its_memory_until_it_is_gone() {
        let memory = Memory::new(MINIMUM_MIB * MIB);
        let budget = memory.share(Caller::Verified);
        let mut account = budget.open(2 * MIB);
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
        let memory = Memory::new(MINIMUM_MIB * MIB);
        let mut other = memory.share(Caller::Verified).open(0);
        assert!(other.try_hold(65 * MIB));
        let mut account = memory.share(Caller::Verified).open(0);
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
