//! Repositories and their resource tags.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::PgPool;

use super::failure::{Attempt, Failure};
use super::rows::{self, get, json, millis, repository_columns};
use super::{jobs, uploads};
use crate::names::{AccountId, RepositoryName};
use crate::store::jobs::NewJob;
use crate::store::repositories::{
    CreateRepositoryError, DeleteRepositoryError, NewRepository, Repository, RepositoryChange, RepositoryId,
    ResourceTag, TagResourceError,
};

pub(super) async fn create(pool: &PgPool, new: &NewRepository, max: u64) -> Attempt<Repository, CreateRepositoryError> {
    let NewRepository { account, name, created_at, tag_mutability, scan_on_push, encryption, tags } = new;
    let mut tx = pool.begin().await?;
    // One creation in a registry at a time, so that two replicas cannot both take the last place.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('repositories of ' || $1, 0))")
        .bind(account.as_str())
        .execute(&mut *tx)
        .await?;
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
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM repository WHERE account_id = $1")
        .bind(account.as_str())
        .fetch_one(&mut *tx)
        .await?;
    if rows::count(count) > max {
        return Err(Failure::Refused(CreateRepositoryError::LimitExceeded(max)));
    }
    write_tags(&mut tx, repository.id, tags).await?;
    tx.commit().await?;
    Ok(repository)
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
    let row = sqlx::query(concat!("SELECT ", repository_columns!(), " FROM repository r WHERE r.id = $1"))
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

pub(super) async fn due_for_lifecycle(pool: &PgPool, before: Timestamp, limit: usize) -> Attempt<Vec<Repository>> {
    let found = sqlx::query(concat!(
        "SELECT ",
        repository_columns!(),
        " FROM repository r
          WHERE r.lifecycle_policy IS NOT NULL
            AND (r.lifecycle_evaluated_at IS NULL OR r.lifecycle_evaluated_at < $1)
          ORDER BY r.id LIMIT $2"
    ))
    .bind(millis(before))
    .bind(rows::limit(limit))
    .fetch_all(pool)
    .await?;
    Ok(found.iter().map(rows::repository).collect::<Result<_, _>>()?)
}

pub(super) async fn change(
    pool: &PgPool,
    id: RepositoryId,
    change: &RepositoryChange,
    new_jobs: &[NewJob],
) -> Attempt<bool> {
    let mut tx = pool.begin().await?;
    let update = match change {
        RepositoryChange::TagMutability(value) => {
            let sql = "UPDATE repository SET version = version + 1, tag_mutability = $2, exclusions = $3 WHERE id = $1";
            sqlx::query(sql).bind(id.0).bind(value.mode.as_str()).bind(json(&value.exclusions)?)
        }
        RepositoryChange::ScanOnPush(value) => {
            let sql = "UPDATE repository SET version = version + 1, scan_on_push = $2 WHERE id = $1";
            sqlx::query(sql).bind(id.0).bind(value)
        }
        RepositoryChange::Policy(value) => {
            let sql = "UPDATE repository SET version = version + 1, policy_version = policy_version + 1, policy = $2
                       WHERE id = $1";
            sqlx::query(sql).bind(id.0).bind(value)
        }
        RepositoryChange::LifecyclePolicy(value) => {
            let sql =
                "UPDATE repository SET version = version + 1, lifecycle_policy = $2, lifecycle_evaluated_at = NULL
                       WHERE id = $1";
            sqlx::query(sql).bind(id.0).bind(value)
        }
        RepositoryChange::LifecycleEvaluated(at) => {
            let sql = "UPDATE repository SET version = version + 1, lifecycle_evaluated_at = $2 WHERE id = $1";
            sqlx::query(sql).bind(id.0).bind(millis(*at))
        }
    };
    let changed = update.execute(&mut *tx).await?.rows_affected() > 0;
    if changed {
        jobs::enqueue(&mut tx, new_jobs).await?;
    }
    tx.commit().await?;
    Ok(changed)
}

pub(super) async fn delete(
    pool: &PgPool,
    id: RepositoryId,
    force: bool,
    now: Timestamp,
) -> Attempt<(), DeleteRepositoryError> {
    let mut tx = pool.begin().await?;
    // Whatever puts something into the repository holds FOR KEY SHARE: this waits for it, and it for this.
    let found = sqlx::query("SELECT 1 FROM repository WHERE id = $1 FOR UPDATE").bind(id.0).fetch_optional(&mut *tx);
    if found.await?.is_none() {
        return Err(Failure::Refused(DeleteRepositoryError::NotFound));
    }
    if !force {
        let images: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM manifest WHERE repository_id = $1)")
            .bind(id.0)
            .fetch_one(&mut *tx)
            .await?;
        if images {
            return Err(Failure::Refused(DeleteRepositoryError::NotEmpty));
        }
    }
    uploads::discard_all(&mut tx, id, now).await?;
    // From the edges to what they hold, since RESTRICT looks at each row at once.
    for statement in [
        "DELETE FROM manifest_child WHERE parent_id IN (SELECT id FROM manifest WHERE repository_id = $1)",
        "DELETE FROM manifest WHERE repository_id = $1",
        "DELETE FROM repository_blob WHERE repository_id = $1",
        "DELETE FROM repository WHERE id = $1",
    ] {
        sqlx::query(statement).bind(id.0).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

pub(super) async fn usage(pool: &PgPool, id: RepositoryId) -> Attempt<(u64, u64)> {
    let row = sqlx::query(
        "SELECT count(*) AS images, coalesce(sum(image_size), 0)::bigint AS bytes FROM manifest WHERE repository_id = $1",
    )
    .bind(id.0)
    .fetch_one(pool)
    .await?;
    Ok((rows::unsigned(&row, "images")?, rows::unsigned(&row, "bytes")?))
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
    let found = sqlx::query("SELECT 1 FROM repository WHERE id = $1 FOR NO KEY UPDATE").bind(id.0);
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

async fn write_tags<E>(tx: &mut sqlx::PgConnection, id: RepositoryId, tags: &[ResourceTag]) -> Attempt<(), E> {
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
