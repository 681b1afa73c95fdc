//! Repositories and their resource tags.

use rusqlite::{Row, params};

use super::db::{Db, text};
use super::{jobs, usage};
use crate::names::{AccountId, RepositoryName};
use crate::store::StoreResult;
use crate::store::jobs::{EvaluateLifecycle, JobPayload as _, LifecycleTurn, NewJob};
use crate::store::repositories::{
    CreateRepositoryError, Encryption, NewRepository, Repository, RepositoryChange, RepositoryId, ResourceTag,
    TagMutability, TagResourceError,
};
use crate::store::rows;
use crate::store::usage::{of_registry, of_repository};

const COLUMNS: &str = "id, account_id, name, created_at, tag_mutability, exclusions, scan_on_push, encryption_type, \
                       kms_key, policy, lifecycle_policy, lifecycle_evaluated_at, version, policy_version";

fn repository(row: &Row<'_>) -> StoreResult<Repository> {
    Ok(Repository {
        id: RepositoryId(row.get(0)?),
        account: rows::parse(text(row, 1)?)?,
        name: rows::parse(text(row, 2)?)?,
        created_at: rows::time(row.get(3)?)?,
        tag_mutability: rows::tag_mutability(text(row, 4)?, text(row, 5)?)?,
        scan_on_push: row.get(6)?,
        encryption: Encryption { kind: row.get(7)?, kms_key: row.get(8)? },
        policy: row.get(9)?,
        lifecycle_policy: row.get(10)?,
        lifecycle_evaluated_at: row.get::<_, Option<i64>>(11)?.map(rows::time).transpose()?,
        version: rows::unsigned(row.get(12)?)?,
        policy_version: rows::unsigned(row.get(13)?)?,
    })
}

pub(super) fn create(db: Db<'_>, new: &NewRepository, max: u64) -> Result<Repository, CreateRepositoryError> {
    let NewRepository { account, name, created_at, tag_mutability, scan_on_push, encryption, tags } = new;
    if exists_by_name(db, account, name)? {
        return Err(CreateRepositoryError::AlreadyExists);
    }
    if usage::of(db, &of_registry(account))?.0 >= max {
        return Err(CreateRepositoryError::LimitExceeded(max));
    }
    let sql = "INSERT INTO repository (account_id, name, created_at, tag_mutability, exclusions, scan_on_push, \
               encryption_type, kms_key) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let id = db.insert(
        sql,
        params![
            account.as_str(),
            name.as_str(),
            rows::millis(*created_at),
            tag_mutability.mode.as_str(),
            rows::json(&tag_mutability.exclusions)?,
            scan_on_push,
            encryption.kind,
            encryption.kms_key
        ],
    )?;
    for ResourceTag { key, value } in tags {
        let sql = "INSERT INTO resource_tag (repository_id, key, value) VALUES (?1, ?2, ?3)";
        db.run(sql, params![id, key, value])?;
    }
    Ok(Repository {
        id: RepositoryId(id),
        account: account.clone(),
        name: name.clone(),
        created_at: rows::stored_time(*created_at)?,
        tag_mutability: tag_mutability.clone(),
        scan_on_push: *scan_on_push,
        encryption: encryption.clone(),
        policy: None,
        lifecycle_policy: None,
        lifecycle_evaluated_at: None,
        version: 1,
        policy_version: 1,
    })
}

pub(super) fn by_name(db: Db<'_>, account: &AccountId, name: &RepositoryName) -> StoreResult<Option<Repository>> {
    let sql = format!("SELECT {COLUMNS} FROM repository WHERE account_id = ?1 AND name = ?2");
    db.first(&sql, [account.as_str(), name.as_str()], repository)
}

pub(super) fn exists_by_name(db: Db<'_>, account: &AccountId, name: &RepositoryName) -> StoreResult<bool> {
    let sql = "SELECT 1 FROM repository WHERE account_id = ?1 AND name = ?2";
    db.exists(sql, [account.as_str(), name.as_str()])
}

pub(super) fn by_id(db: Db<'_>, id: RepositoryId) -> StoreResult<Option<Repository>> {
    let sql = format!("SELECT {COLUMNS} FROM repository WHERE id = ?1 AND deleted_at IS NULL");
    db.first(&sql, [id.0], repository)
}

pub(super) fn exists(db: Db<'_>, id: RepositoryId) -> StoreResult<bool> {
    db.exists("SELECT 1 FROM repository WHERE id = ?1 AND deleted_at IS NULL", [id.0])
}

pub(super) fn list(db: Db<'_>, account: &AccountId, after: Option<&str>, limit: usize) -> StoreResult<Vec<Repository>> {
    let sql = format!("SELECT {COLUMNS} FROM repository WHERE account_id = ?1 AND name > ?2 ORDER BY name LIMIT ?3");
    db.all(&sql, params![account.as_str(), after.unwrap_or_default(), rows::limit(limit)], repository)
}

pub(super) fn schedule_lifecycle(db: Db<'_>, turn: &LifecycleTurn) -> StoreResult<usize> {
    let LifecycleTurn { now, again: (from, to), limit } = turn;
    let sql = "SELECT id FROM repository WHERE lifecycle_due_at <= ?1 ORDER BY lifecycle_due_at, id LIMIT ?2";
    let due = db.all(sql, [rows::millis(*now), rows::limit(*limit)], |row| Ok(row.get::<_, i64>(0)?))?;
    let (from, span) = (rows::millis(*from), rows::millis(*to).saturating_sub(rows::millis(*from)).max(0));
    for id in &due {
        let sql = "UPDATE repository SET lifecycle_due_at = ?2 + abs(random() % (?3 + 1)) WHERE id = ?1";
        db.run(sql, [*id, from, span])?;
        let job = EvaluateLifecycle { repository: RepositoryId(*id) }.job(*now);
        let runs = "SELECT 1 FROM job WHERE kind = ?1 AND key = ?2 AND state = 'running'";
        if !db.exists(runs, [&job.kind, &job.key])? {
            jobs::enqueue(db, &job)?;
        }
    }
    Ok(due.len())
}

pub(super) fn change(db: Db<'_>, id: RepositoryId, change: &RepositoryChange, jobs: &[NewJob]) -> StoreResult<bool> {
    let id = id.0;
    let changed = match change {
        RepositoryChange::TagMutability(TagMutability { mode, exclusions }) => db.run(
            "UPDATE repository SET version = version + 1, tag_mutability = ?2, exclusions = ?3 \
             WHERE id = ?1 AND deleted_at IS NULL",
            params![id, mode.as_str(), rows::json(exclusions)?],
        )?,
        RepositoryChange::ScanOnPush(scan_on_push) => {
            let sql = "UPDATE repository SET version = version + 1, scan_on_push = ?2 \
                       WHERE id = ?1 AND deleted_at IS NULL";
            db.run(sql, params![id, scan_on_push])?
        }
        RepositoryChange::Policy(policy) => {
            let sql = "UPDATE repository SET version = version + 1, policy_version = policy_version + 1, policy = ?2 \
                       WHERE id = ?1 AND deleted_at IS NULL";
            db.run(sql, params![id, policy])?
        }
        RepositoryChange::LifecyclePolicy(policy) => db.run(
            // Due since the epoch: before all others.
            "UPDATE repository SET version = version + 1, lifecycle_policy = ?2, lifecycle_evaluated_at = NULL, \
             lifecycle_due_at = iif(?2 IS NULL, NULL, 0) WHERE id = ?1 AND deleted_at IS NULL",
            params![id, policy],
        )?,
        RepositoryChange::LifecycleEvaluated { at, due_at } => db.run(
            "UPDATE repository SET version = version + 1, lifecycle_evaluated_at = ?2, \
             lifecycle_due_at = iif(lifecycle_policy IS NULL, NULL, max(lifecycle_due_at, ?3)) \
             WHERE id = ?1 AND deleted_at IS NULL",
            [id, rows::millis(*at), rows::millis(*due_at)],
        )?,
    };
    if changed == 0 {
        return Ok(false);
    }
    for job in jobs {
        jobs::enqueue(db, job)?;
    }
    Ok(true)
}

pub(super) fn usage(db: Db<'_>, id: RepositoryId) -> StoreResult<(u64, u64)> {
    usage::of(db, &of_repository(id))
}

pub(super) fn resource_tags(db: Db<'_>, id: RepositoryId) -> StoreResult<Vec<ResourceTag>> {
    let sql = "SELECT key, value FROM resource_tag WHERE repository_id = ?1 ORDER BY key";
    db.all(sql, [id.0], |row| Ok(ResourceTag { key: row.get(0)?, value: row.get(1)? }))
}

pub(super) fn tag_resource(
    db: Db<'_>,
    id: RepositoryId,
    tags: &[ResourceTag],
    max: usize,
) -> Result<(), TagResourceError> {
    if !exists(db, id)? {
        return Err(TagResourceError::NotFound);
    }
    for ResourceTag { key, value } in tags {
        let sql = "INSERT INTO resource_tag (repository_id, key, value) VALUES (?1, ?2, ?3) \
                   ON CONFLICT DO UPDATE SET value = excluded.value";
        db.run(sql, params![id.0, key, value])?;
    }
    if resource_tags(db, id)?.len() > max {
        return Err(TagResourceError::TooMany(max));
    }
    Ok(touch(db, id)?)
}

/// Marks a repository as changed, for what changes about it in other tables.
fn touch(db: Db<'_>, id: RepositoryId) -> StoreResult<()> {
    db.run("UPDATE repository SET version = version + 1 WHERE id = ?1", [id.0]).map(drop)
}

pub(super) fn untag_resource(db: Db<'_>, id: RepositoryId, keys: &[String]) -> StoreResult<()> {
    for key in keys {
        db.run("DELETE FROM resource_tag WHERE repository_id = ?1 AND key = ?2", params![id.0, key])?;
    }
    touch(db, id)
}
