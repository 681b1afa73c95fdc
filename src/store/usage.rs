//! What limits are about: how many images a repository has, how many repositories a registry. Shared by both databases. Pure.

use super::repositories::RepositoryId;
use crate::names::AccountId;

/// How far below a limit a count is taken to be right though transactions that have not ended yet are not in it. Nearer to the
/// limit they are counted one after the other. More of them than this at once would exceed the limit unseen.
pub(super) const MARGIN: u64 = 1_000;

/// The scope that counts a repository's images and their bytes.
pub(super) fn of_repository(repository: RepositoryId) -> String {
    format!("repository/{}", repository.0)
}

/// The scope that counts a registry's repositories.
pub(super) fn of_registry(account: &AccountId) -> String {
    format!("registry/{}", account.as_str())
}
