//! Repositories and their resource tags.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};

use super::error::{TxError, TxResult};
use super::rows::{self, get, json, millis, parsed};
use super::{PostgresStore, jobs, repository_deletion, usage};
use crate::StoreResult;
use crate::jobs::{EvaluateLifecycle, JobPayload as _, NewJob};
use crate::repositories::{
    CreateRepositoryError, DeleteRepositoryError, Encryption, LifecycleSchedule, NewRepository,
    Repository, RepositoryChange, RepositoryId, RepositoryStore, ResourceTag, TagResourceError,
};
use crate::usage::{EXACT_COUNT_MARGIN, registry_scope};
use wharfage_domain::names::{AccountId, RepositoryName};

#[async_trait::async_trait]
impl RepositoryStore for PostgresStore {
    async fn create_repository(
        &self,
        new: NewRepository,
        max: u64,
    ) -> Result<Repository, CreateRepositoryError> {
        self.run(|| create(&self.pool, &new, max)).await
    }

    async fn find_repository(
        &self,
        account: &AccountId,
        name: &RepositoryName,
    ) -> StoreResult<Option<Repository>> {
        self.run(|| find(&self.pool, account, name)).await
    }

    async fn find_repository_by_id(&self, id: RepositoryId) -> StoreResult<Option<Repository>> {
        self.run(|| find_by_id(&self.pool, id)).await
    }

    async fn list_repositories(
        &self,
        account: &AccountId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Repository>> {
        self.run(|| list(&self.pool, account, after, limit)).await
    }

    async fn change_repository(
        &self,
        id: RepositoryId,
        change: RepositoryChange,
        jobs: Vec<NewJob>,
    ) -> StoreResult<bool> {
        self.run(|| self::change(&self.pool, id, &change, &jobs)).await
    }

    async fn delete_repository(
        &self,
        id: RepositoryId,
        force: bool,
        now: Timestamp,
    ) -> Result<(), DeleteRepositoryError> {
        self.run(|| repository_deletion::delete(&self.pool, id, force, now)).await
    }

    async fn empty_repository(
        &self,
        id: RepositoryId,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.run(|| repository_deletion::empty(&self.pool, id, limit, now)).await
    }

    async fn schedule_lifecycle(&self, turn: LifecycleSchedule) -> StoreResult<usize> {
        self.run(|| schedule_lifecycle(&self.pool, &turn)).await
    }

    async fn list_resource_tags(&self, id: RepositoryId) -> StoreResult<Vec<ResourceTag>> {
        self.run(|| list_resource_tags(&self.pool, id)).await
    }

    async fn tag_resource(
        &self,
        id: RepositoryId,
        tags: Vec<ResourceTag>,
        max: usize,
    ) -> Result<(), TagResourceError> {
        self.run(|| tag_resource(&self.pool, id, &tags, max)).await
    }

    async fn untag_resource(&self, id: RepositoryId, keys: &[String]) -> StoreResult<()> {
        self.run(|| untag_resource(&self.pool, id, keys)).await
    }
}

/// The columns that [`repository`] reads, of the table or alias `r`.
macro_rules! repository_columns {
    () => {
        "r.id, r.account_id, r.name, r.created_at, r.tag_mutability, r.exclusions, r.scan_on_push, r.encryption_type, \
         r.kms_key, r.policy, r.lifecycle_policy, r.lifecycle_evaluated_at, r.version, r.policy_version"
    };
}

/// Reads a repository's row.
fn repository(row: &PgRow) -> StoreResult<Repository> {
    Ok(Repository {
        id: RepositoryId(get(row, "id")?),
        account: parsed(row, "account_id")?,
        name: parsed(row, "name")?,
        created_at: rows::time(row, "created_at")?,
        tag_mutability: rows::tag_mutability(row)?,
        scan_on_push: get(row, "scan_on_push")?,
        encryption: Encryption {
            kind: get(row, "encryption_type")?,
            kms_key: get(row, "kms_key")?,
        },
        policy: get(row, "policy")?,
        lifecycle_policy: get(row, "lifecycle_policy")?,
        lifecycle_evaluated_at: rows::optional_time(row, "lifecycle_evaluated_at")?,
        version: rows::unsigned(row, "version")?,
        policy_version: rows::unsigned(row, "policy_version")?,
    })
}

pub(super) async fn create(
    pool: &PgPool,
    new: &NewRepository,
    max: u64,
) -> TxResult<Repository, CreateRepositoryError> {
    let NewRepository { account, name, created_at, tag_mutability, scan_on_push, encryption, tags } =
        new;
    let mut tx = pool.begin().await?;
    let inserted = sqlx::query(concat!(
        "INSERT INTO repository AS r (account_id, name, created_at, tag_mutability, exclusions, scan_on_push, \
                                      encryption_type, kms_key)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (account_id, name, kind) DO NOTHING RETURNING ",
        repository_columns!()
    ))
    .bind(account.as_str())
    .bind(name.as_str())
    .bind(millis(*created_at))
    .bind(tag_mutability.mode.as_str())
    .bind(json(&tag_mutability.exclusions)?)
    .bind(scan_on_push)
    .bind(&encryption.kind)
    .bind(&encryption.kms_key)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = inserted else {
        return Err(TxError::Refused(CreateRepositoryError::AlreadyExists));
    };
    let repository = repository(&row)?;
    check_quota(&mut tx, account, max).await?;
    write_tags(&mut tx, repository.id, tags).await?;
    tx.commit().await?;
    Ok(repository)
}

/// Checks the number of repositories, the new one included. Near the limit a lock orders the
/// transactions, so that two replicas cannot both create the last one.
async fn check_quota(
    tx: &mut PgConnection,
    account: &AccountId,
    max: u64,
) -> TxResult<(), CreateRepositoryError> {
    let scope = registry_scope(account);
    if usage::find(&mut *tx, &scope).await?.0.saturating_add(EXACT_COUNT_MARGIN) <= max {
        return Ok(());
    }
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('repositories of ' || $1, 0))")
        .bind(account.as_str())
        .execute(&mut *tx)
        .await?;
    if usage::find(&mut *tx, &scope).await?.0 <= max {
        return Ok(());
    }
    Err(TxError::Refused(CreateRepositoryError::LimitExceeded(max)))
}

pub(super) async fn find(
    pool: &PgPool,
    account: &AccountId,
    name: &RepositoryName,
) -> TxResult<Option<Repository>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        repository_columns!(),
        " FROM repository r WHERE r.account_id = $1 AND r.name = $2"
    ))
    .bind(account.as_str())
    .bind(name.as_str())
    .fetch_optional(pool)
    .await?;
    Ok(row.as_ref().map(repository).transpose()?)
}

pub(super) async fn find_by_id(pool: &PgPool, id: RepositoryId) -> TxResult<Option<Repository>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        repository_columns!(),
        " FROM repository r WHERE r.id = $1 AND r.deleted_at IS NULL"
    ))
    .bind(id.0)
    .fetch_optional(pool)
    .await?;
    Ok(row.as_ref().map(repository).transpose()?)
}

pub(super) async fn list(
    pool: &PgPool,
    account: &AccountId,
    after: Option<&str>,
    limit: usize,
) -> TxResult<Vec<Repository>> {
    let found = sqlx::query(concat!(
        "SELECT ",
        repository_columns!(),
        " FROM repository r WHERE r.account_id = $1 AND r.name > $2 ORDER BY r.name LIMIT $3"
    ))
    .bind(account.as_str())
    .bind(rows::after(after))
    .bind(rows::limit(limit))
    .fetch_all(pool)
    .await?;
    Ok(found.iter().map(repository).collect::<Result<_, _>>()?)
}

pub(super) async fn change(
    pool: &PgPool,
    id: RepositoryId,
    change: &RepositoryChange,
    new_jobs: &[NewJob],
) -> TxResult<bool> {
    let mut tx = pool.begin().await?;
    let update = match change {
        RepositoryChange::TagMutability(value) => sqlx::query(
            "UPDATE repository SET version = version + 1, tag_mutability = $2, exclusions = $3
                 WHERE id = $1 AND deleted_at IS NULL",
        )
        .bind(id.0)
        .bind(value.mode.as_str())
        .bind(json(&value.exclusions)?),
        RepositoryChange::ScanOnPush(value) => sqlx::query(
            "UPDATE repository SET version = version + 1, scan_on_push = $2
                 WHERE id = $1 AND deleted_at IS NULL",
        )
        .bind(id.0)
        .bind(value),
        RepositoryChange::Policy(value) => sqlx::query(
            "UPDATE repository SET version = version + 1, policy_version = policy_version + 1, policy = $2
                 WHERE id = $1 AND deleted_at IS NULL",
        )
        .bind(id.0)
        .bind(value),
        RepositoryChange::LifecyclePolicy(value) => {
            // Due since the epoch, so before all others.
            sqlx::query(
                "UPDATE repository SET version = version + 1, lifecycle_policy = $2, lifecycle_evaluated_at = NULL,
                        lifecycle_due_at = CASE WHEN $2::text IS NULL THEN NULL ELSE 0 END
                 WHERE id = $1 AND deleted_at IS NULL",
            )
            .bind(id.0)
            .bind(value)
        }
        RepositoryChange::LifecycleEvaluated { at, due_at } => sqlx::query(
            "UPDATE repository SET version = version + 1, lifecycle_evaluated_at = $2,
                    lifecycle_due_at = CASE WHEN lifecycle_policy IS NULL THEN NULL
                                            ELSE greatest(lifecycle_due_at, $3) END
             WHERE id = $1 AND deleted_at IS NULL",
        )
        .bind(id.0)
        .bind(millis(*at))
        .bind(millis(*due_at)),
    };
    let changed = update.execute(&mut *tx).await?.rows_affected() > 0;
    if changed {
        jobs::enqueue_all(&mut tx, new_jobs).await?;
    }
    tx.commit().await?;
    Ok(changed)
}

pub(super) async fn schedule_lifecycle(
    pool: &PgPool,
    schedule: &LifecycleSchedule,
) -> TxResult<usize> {
    let LifecycleSchedule { now, next_due: (from, to), limit } = schedule;
    let mut tx = pool.begin().await?;
    // SKIP LOCKED: concurrent replicas share the due policies, and none takes what another took.
    let due: Vec<i64> = sqlx::query_scalar(
        "WITH due AS (
             SELECT id FROM repository WHERE lifecycle_due_at <= $1 ORDER BY lifecycle_due_at, id LIMIT $2
             FOR NO KEY UPDATE SKIP LOCKED)
         UPDATE repository r SET lifecycle_due_at = $3 + floor(random() * ($4 + 1))::bigint
         FROM due WHERE r.id = due.id RETURNING r.id",
    )
    .bind(millis(*now))
    .bind(rows::limit(*limit))
    .bind(millis(*from))
    .bind(millis(*to).saturating_sub(millis(*from)).max(0))
    .fetch_all(&mut *tx)
    .await?;
    let new_jobs: Vec<NewJob> = due
        .iter()
        .map(|id| EvaluateLifecycle { repository: RepositoryId(*id) }.job(*now))
        .collect();
    let new_jobs = jobs::without_running(&mut tx, new_jobs).await?;
    jobs::enqueue_all(&mut tx, &new_jobs).await?;
    tx.commit().await?;
    Ok(due.len())
}

pub(super) async fn list_resource_tags(
    pool: &PgPool,
    id: RepositoryId,
) -> TxResult<Vec<ResourceTag>> {
    let found =
        sqlx::query("SELECT key, value FROM resource_tag WHERE repository_id = $1 ORDER BY key")
            .bind(id.0)
            .fetch_all(pool)
            .await?;
    let tag = |row| Ok(ResourceTag { key: get(row, "key")?, value: get(row, "value")? });
    found.iter().map(tag).collect()
}

pub(super) async fn tag_resource(
    pool: &PgPool,
    id: RepositoryId,
    tags: &[ResourceTag],
    max: usize,
) -> TxResult<(), TagResourceError> {
    let mut tx = pool.begin().await?;
    // The lock keeps the count below exact.
    let found = sqlx::query(
        "SELECT 1 FROM repository WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE",
    )
    .bind(id.0);
    if found.fetch_optional(&mut *tx).await?.is_none() {
        return Err(TxError::Refused(TagResourceError::NotFound));
    }
    write_tags(&mut tx, id, tags).await?;
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM resource_tag WHERE repository_id = $1")
            .bind(id.0)
            .fetch_one(&mut *tx)
            .await?;
    if count > rows::limit(max) {
        return Err(TxError::Refused(TagResourceError::TooMany(max)));
    }
    touch(&mut tx, id).await?;
    tx.commit().await?;
    Ok(())
}

pub(super) async fn untag_resource(
    pool: &PgPool,
    id: RepositoryId,
    keys: &[String],
) -> TxResult<()> {
    let mut tx = pool.begin().await?;
    touch(&mut tx, id).await?;
    sqlx::query("DELETE FROM resource_tag WHERE repository_id = $1 AND key = ANY($2)")
        .bind(id.0)
        .bind(keys)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

async fn write_tags<E>(
    tx: &mut PgConnection,
    id: RepositoryId,
    tags: &[ResourceTag],
) -> TxResult<(), E> {
    // The last value of a duplicate key counts: a statement may not write one row twice.
    let tags: BTreeMap<&str, &str> =
        tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str())).collect();
    if tags.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO resource_tag (repository_id, key, value)
         SELECT $1, key, value FROM UNNEST($2::text[], $3::text[]) AS t (key, value)
         ON CONFLICT (repository_id, key) DO UPDATE SET value = excluded.value",
    )
    .bind(id.0)
    .bind(tags.keys().copied().collect::<Vec<_>>())
    .bind(tags.values().copied().collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Increases a repository's version, for a change in another table.
async fn touch<E>(tx: &mut PgConnection, id: RepositoryId) -> TxResult<(), E> {
    sqlx::query("UPDATE repository SET version = version + 1 WHERE id = $1")
        .bind(id.0)
        .execute(tx)
        .await?;
    Ok(())
}
