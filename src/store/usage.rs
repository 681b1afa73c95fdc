//! Usage: how many images a repository has and how many repositories a registry has. Limits compare
//! with it.

use super::StoreResult;
use super::repositories::RepositoryId;
use wharfage_domain::names::AccountId;

/// Counts what limits compare with.
#[async_trait::async_trait]
pub trait UsageStore: Send + Sync {
    /// Returns the number of images of a repository, and the sum of their `imageSizeInBytes`.
    async fn repository_usage(&self, id: RepositoryId) -> StoreResult<(u64, u64)>;
    /// Folds at most `limit` changes of usage, the oldest first, into the totals, and returns how
    /// many. Without it, reading the usage would take longer with every change. Returns 0 where the
    /// database counts in place.
    async fn fold_usage(&self, limit: usize) -> StoreResult<u64>;
}

/// The distance below a limit at which a count is good enough although it misses transactions that
/// have not ended. Closer to the limit, transactions are counted one after another. Only more than
/// this many at the same time could exceed the limit unnoticed.
pub(super) const EXACT_COUNT_MARGIN: u64 = 1_000;

/// The key under which a repository's images and their bytes are counted.
pub(super) fn repository_scope(repository: RepositoryId) -> String {
    format!("repository/{}", repository.0)
}

/// The key under which a registry's repositories are counted.
pub(super) fn registry_scope(account: &AccountId) -> String {
    format!("registry/{}", account.as_str())
}
