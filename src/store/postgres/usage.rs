//! Usage: totals per scope, and the changes that have not been folded into them yet.

use sqlx::{PgExecutor, PgPool};

use super::PostgresStore;
use super::error::TxResult;
use super::rows;
use crate::StoreResult;
use crate::repositories::RepositoryId;
use crate::usage::{UsageStore, repository_scope};

#[async_trait::async_trait]
impl UsageStore for PostgresStore {
    async fn repository_usage(&self, id: RepositoryId) -> StoreResult<(u64, u64)> {
        let scope = repository_scope(id);
        self.run(|| find(&self.pool, &scope)).await
    }

    async fn fold_usage(&self, limit: usize) -> StoreResult<u64> {
        self.run(|| fold(&self.pool, limit)).await
    }
}

/// Returns the items and bytes of a scope.
pub(super) async fn find<E>(executor: impl PgExecutor<'_>, scope: &str) -> TxResult<(u64, u64), E> {
    let row = sqlx::query(
        "SELECT greatest(coalesce(sum(items), 0), 0)::bigint AS items,
                greatest(coalesce(sum(bytes), 0), 0)::bigint AS bytes
         FROM (SELECT items, bytes FROM usage WHERE scope = $1
               UNION ALL SELECT items, bytes FROM usage_delta WHERE scope = $1) u",
    )
    .bind(scope)
    .fetch_one(executor)
    .await?;
    Ok((rows::unsigned(&row, "items")?, rows::unsigned(&row, "bytes")?))
}

pub(super) async fn fold(pool: &PgPool, limit: usize) -> TxResult<u64> {
    // SKIP LOCKED: concurrent replicas share the deltas. The order of the scopes prevents
    // deadlocks.
    let folded: i64 = sqlx::query_scalar(
        "WITH taken AS (
             DELETE FROM usage_delta WHERE id = ANY (ARRAY(
                 SELECT id FROM usage_delta ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED))
             RETURNING scope, items, bytes),
         folded AS (
             INSERT INTO usage AS u (scope, items, bytes)
             SELECT scope, sum(items), sum(bytes) FROM taken GROUP BY scope ORDER BY scope
             ON CONFLICT (scope) DO UPDATE SET items = u.items + excluded.items, bytes = u.bytes + excluded.bytes)
         SELECT count(*) FROM taken",
    )
    .bind(rows::limit(limit))
    .fetch_one(pool)
    .await?;
    Ok(rows::count(folded))
}
