//! Usage: totals per scope, kept by triggers. With one writer, no transaction waits for their rows.

use super::SqliteStore;
use super::db::Db;
use super::rows;
use crate::StoreResult;
use crate::repositories::RepositoryId;
use crate::usage::{UsageStore, repository_scope};

#[async_trait::async_trait]
impl UsageStore for SqliteStore {
    async fn repository_usage(&self, id: RepositoryId) -> StoreResult<(u64, u64)> {
        self.readers.read(|db| find(db, &repository_scope(id)))
    }

    async fn fold_usage(&self, _limit: usize) -> StoreResult<u64> {
        // The triggers of the one writer count in place.
        Ok(0)
    }
}

/// Returns the items and bytes of a scope.
pub(super) fn find(db: Db<'_>, scope: &str) -> StoreResult<(u64, u64)> {
    let sql = "SELECT items, bytes FROM usage WHERE scope = ?1";
    let usage = db.first(sql, [scope], |row| {
        Ok((rows::unsigned(row.get(0)?)?, rows::unsigned(row.get(1)?)?))
    })?;
    Ok(usage.unwrap_or_default())
}
