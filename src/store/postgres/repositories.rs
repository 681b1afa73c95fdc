//! Repositories and their resource tags.

use std::collections::BTreeMap;

use sqlx::{PgConnection, PgPool};

use super::failure::{Attempt, Failure};
use super::rows::{self, get, json, millis, repository_columns};
use super::{jobs, usage};
use crate::names::{AccountId, RepositoryName};
use crate::store::jobs::{EvaluateLifecycle, JobPayload as _, LifecycleTurn, NewJob};
use crate::store::repositories::{
    CreateRepositoryError, NewRepository, Repository, RepositoryChange, RepositoryId, ResourceTag, TagResourceError,
};
use crate::store::usage::{MARGIN, of_registry, of_repository};

pub(super) async fn create(pool: &PgPool, new: &NewRepository, max: u64) -> Attempt<Repository, CreateRepositoryError> {
    let NewRepository { account, name, created_at, tag_mutability, scan_on_push, encryption, tags } = new;
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
    let Some(row) = inserted else { return Err(Failure::Refused(CreateRepositoryError::AlreadyExists)) };
    let repository = rows::repository(&row)?;
    check_quota(&mut tx, account, max).await?;
    write_tags(&mut tx, repository.id, tags).await?;
    tx.commit().await?;
    Ok(repository)
}

/// Counts the registry's repositories, the new one included; near the limit one after the other, so that two replicas cannot both
/// take the last place.
async fn check_quota(tx: &mut PgConnection, account: &AccountId, max: u64) -> Attempt<(), CreateRepositoryError> {
    let scope = of_registry(account);
    if usage::of(&mut *tx, &scope).await?.0.saturating_add(MARGIN) <= max {
        return Ok(());
    }
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('repositories of ' || $1, 0))")
        .bind(account.as_str())
        .execute(&mut *tx)
        .await?;
    if usage::of(&mut *tx, &scope).await?.0 <= max {
        return Ok(());
    }
    Err(Failure::Refused(CreateRepositoryError::LimitExceeded(max)))
}

pub(super) async fn by_name(pool: &PgPool, account: &AccountId, name: &RepositoryName) -> Attempt<Option<Repository>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        repository_columns!(),
        " FROM repository r WHERE r.account_id = $1 AND r.name = $2"
    ))
    .bind(account.as_str())
    .bind(name.as_str())
    .fetch_optional(pool)
    .await?;
    Ok(row.as_ref().map(rows::repository).transpose()?)
}

pub(super) async fn by_id(pool: &PgPool, id: RepositoryId) -> Attempt<Option<Repository>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        repository_columns!(),
        " FROM repository r WHERE r.id = $1 AND r.deleted_at IS NULL"
    ))
    .bind(id.0)
    .fetch_optional(pool)
    .await?;
    Ok(row.as_ref().map(rows::repository).transpose()?)
}

pub(super) async fn page(
    pool: &PgPool,
    account: &AccountId,
    after: Option<&str>,
    limit: usize,
) -> Attempt<Vec<Repository>> {
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
    Ok(found.iter().map(rows::repository).collect::<Result<_, _>>()?)
}

pub(super) async fn schedule_lifecycle(pool: &PgPool, turn: &LifecycleTurn) -> Attempt<usize> {
    let LifecycleTurn { now, again: (from, to), limit } = turn;
    let mut tx = pool.begin().await?;
    // SKIP LOCKED: replicas that look at once share what is due, and none takes what another took.
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
    let new_jobs: Vec<NewJob> =
        due.iter().map(|id| EvaluateLifecycle { repository: RepositoryId(*id) }.job(*now)).collect();
    let new_jobs = jobs::without_running(&mut tx, new_jobs).await?;
    jobs::enqueue(&mut tx, &new_jobs).await?;
    tx.commit().await?;
    Ok(due.len())
}

pub(super) async fn change(
    pool: &PgPool,
    id: RepositoryId,
    change: &RepositoryChange,
    new_jobs: &[NewJob],
) -> Attempt<bool> {
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
            // Due since the epoch: before all others.
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
        jobs::enqueue(&mut tx, new_jobs).await?;
    }
    tx.commit().await?;
    Ok(changed)
}

pub(super) async fn usage(pool: &PgPool, id: RepositoryId) -> Attempt<(u64, u64)> {
    usage::of(pool, &of_repository(id)).await
}

pub(super) async fn resource_tags(pool: &PgPool, id: RepositoryId) -> Attempt<Vec<ResourceTag>> {
    let found = sqlx::query("SELECT key, value FROM resource_tag WHERE repository_id = $1 ORDER BY key")
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
) -> Attempt<(), TagResourceError> {
    let mut tx = pool.begin().await?;
    // The lock makes the count below right.
    let found =
        sqlx::query("SELECT 1 FROM repository WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE").bind(id.0);
    if found.fetch_optional(&mut *tx).await?.is_none() {
        return Err(Failure::Refused(TagResourceError::NotFound));
    }
    write_tags(&mut tx, id, tags).await?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM resource_tag WHERE repository_id = $1")
        .bind(id.0)
        .fetch_one(&mut *tx)
        .await?;
    if count > rows::limit(max) {
        return Err(Failure::Refused(TagResourceError::TooMany(max)));
    }
    touch(&mut tx, id).await?;
    tx.commit().await?;
    Ok(())
}

/// Marks a repository as changed, for what changes about it in other tables.
async fn touch<E>(tx: &mut sqlx::PgConnection, id: RepositoryId) -> Attempt<(), E> {
    sqlx::query("UPDATE repository SET version = version + 1 WHERE id = $1").bind(id.0).execute(tx).await?;
    Ok(())
}

pub(super) async fn untag_resource(pool: &PgPool, id: RepositoryId, keys: &[String]) -> Attempt<()> {
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

async fn write_tags<E>(tx: &mut PgConnection, id: RepositoryId, tags: &[ResourceTag]) -> Attempt<(), E> {
    // Of a key that comes twice the last value counts: a statement may not write one row twice.
    let tags: BTreeMap<&str, &str> = tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str())).collect();
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
