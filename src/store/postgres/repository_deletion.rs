//! Deletion of a repository: it disappears at once, and a job deletes its rows in batches.

use jiff::Timestamp;
use sqlx::{PgConnection, PgPool};

use super::error::{TxError, TxResult};
use super::rows::{self, millis};
use super::{jobs, previews, uploads};
use crate::jobs::{DeleteRepository, JobPayload as _};
use crate::repositories::{DeleteRepositoryError, RepositoryId};
use crate::usage::repository_scope;

pub(super) async fn delete(
    pool: &PgPool,
    id: RepositoryId,
    force: bool,
    now: Timestamp,
) -> TxResult<(), DeleteRepositoryError> {
    let mut tx = pool.begin().await?;
    // Transactions that add something to the repository hold FOR KEY SHARE, which conflicts with
    // this lock.
    let found =
        sqlx::query("SELECT 1 FROM repository WHERE id = $1 AND deleted_at IS NULL FOR UPDATE")
            .bind(id.0);
    if found.fetch_optional(&mut *tx).await?.is_none() {
        return Err(TxError::Refused(DeleteRepositoryError::NotFound));
    }
    if !force {
        let images: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM manifest WHERE repository_id = $1)")
                .bind(id.0)
                .fetch_one(&mut *tx)
                .await?;
        if images {
            return Err(TxError::Refused(DeleteRepositoryError::NotEmpty));
        }
    }
    sqlx::query(
        "UPDATE repository SET deleted_at = $2, account_id = '', name = id::text, policy = NULL, lifecycle_policy = NULL,
                lifecycle_due_at = NULL WHERE id = $1",
    )
    .bind(id.0)
    .bind(millis(now))
    .execute(&mut *tx)
    .await?;
    jobs::enqueue_all(&mut tx, &[DeleteRepository { repository: id }.job(now)]).await?;
    tx.commit().await?;
    Ok(())
}

pub(super) async fn empty(
    pool: &PgPool,
    id: RepositoryId,
    limit: usize,
    now: Timestamp,
) -> TxResult<bool> {
    let mut tx = pool.begin().await?;
    let marked =
        sqlx::query("SELECT 1 FROM repository WHERE id = $1 AND deleted_at IS NOT NULL FOR UPDATE")
            .bind(id.0);
    if marked.fetch_optional(&mut *tx).await?.is_none() {
        return Ok(true);
    }
    let did = uploads::cancel_all(&mut tx, id, limit, now).await? > 0
        || delete_images(&mut tx, id, limit).await?
        || delete_rest(&mut tx, id, limit).await?;
    if !did {
        for (sql, of) in [
            ("DELETE FROM usage_delta WHERE scope = $1", repository_scope(id)),
            ("DELETE FROM usage WHERE scope = $1", repository_scope(id)),
        ] {
            sqlx::query(sql).bind(of).execute(&mut *tx).await?;
        }
        sqlx::query("DELETE FROM repository WHERE id = $1").bind(id.0).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(!did)
}

/// Deletes images with their tags and edges, even if indexes hold them: the repository is invisible
/// already.
async fn delete_images(tx: &mut PgConnection, id: RepositoryId, limit: usize) -> TxResult<bool> {
    let images: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM manifest WHERE repository_id = $1 ORDER BY digest LIMIT $2 FOR UPDATE",
    )
    .bind(id.0)
    .bind(rows::limit(limit))
    .fetch_all(&mut *tx)
    .await?;
    for sql in [
        "DELETE FROM manifest_child WHERE parent_id = ANY($1)",
        "DELETE FROM manifest_child WHERE child_id = ANY($1)",
        "DELETE FROM tag WHERE manifest_id = ANY($1)",
        "DELETE FROM manifest WHERE id = ANY($1)",
    ] {
        sqlx::query(sql).bind(&images).execute(&mut *tx).await?;
    }
    Ok(!images.is_empty())
}

/// Deletes preview results, then links. The blobs await the collector.
async fn delete_rest(tx: &mut PgConnection, id: RepositoryId, limit: usize) -> TxResult<bool> {
    if previews::delete_results(&mut *tx, id, None, limit).await? > 0 {
        return Ok(true);
    }
    let links = sqlx::query(
        "DELETE FROM repository_blob WHERE id = ANY (ARRAY(
             SELECT id FROM repository_blob WHERE repository_id = $1 ORDER BY digest LIMIT $2))",
    );
    Ok(links.bind(id.0).bind(rows::limit(limit)).execute(tx).await?.rows_affected() > 0)
}
