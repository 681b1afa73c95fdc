//! Repositories and their resource tags.

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::Db;
use super::rows::{self, optional_time, parsed, text};
use super::{SqliteStore, jobs, repository_deletion, usage};
use crate::StoreResult;
use crate::jobs::{EvaluateLifecycle, JobPayload as _, NewJob};
use crate::repositories::{
    CreateRepositoryError, DeleteRepositoryError, Encryption, LifecycleSchedule, NewRepository,
    Repository, RepositoryChange, RepositoryId, RepositoryStore, ResourceTag, TagMutability,
    TagResourceError,
};
use crate::usage::registry_scope;
use wharfage_domain::names::{AccountId, RepositoryName};

#[async_trait::async_trait]
impl RepositoryStore for SqliteStore {
    async fn create_repository(
        &self,
        new: NewRepository,
        max: u64,
    ) -> Result<Repository, CreateRepositoryError> {
        self.grow(0, move |db| create(db, &new, max)).await
    }

    async fn find_repository(
        &self,
        account: &AccountId,
        name: &RepositoryName,
    ) -> StoreResult<Option<Repository>> {
        self.readers.read(|db| find(db, account, name))
    }

    async fn find_repository_by_id(&self, id: RepositoryId) -> StoreResult<Option<Repository>> {
        self.readers.read(|db| find_by_id(db, id))
    }

    async fn list_repositories(
        &self,
        account: &AccountId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Repository>> {
        let (account, after) = (account.clone(), after.map(str::to_owned));
        self.readers.page(move |db| list(db, &account, after.as_deref(), limit)).await
    }

    async fn change_repository(
        &self,
        id: RepositoryId,
        change: RepositoryChange,
        jobs: Vec<NewJob>,
    ) -> StoreResult<bool> {
        self.writer.write(move |db| self::change(db, id, &change, &jobs)).await
    }

    async fn delete_repository(
        &self,
        id: RepositoryId,
        force: bool,
        now: Timestamp,
    ) -> Result<(), DeleteRepositoryError> {
        self.writer.write(move |db| repository_deletion::delete(db, id, force, now)).await
    }

    async fn empty_repository(
        &self,
        id: RepositoryId,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.writer.write(move |db| repository_deletion::empty(db, id, limit, now)).await
    }

    async fn schedule_lifecycle(&self, turn: LifecycleSchedule) -> StoreResult<usize> {
        self.writer.write(move |db| schedule_lifecycle(db, &turn)).await
    }

    async fn list_resource_tags(&self, id: RepositoryId) -> StoreResult<Vec<ResourceTag>> {
        self.readers.read(|db| list_resource_tags(db, id))
    }

    async fn tag_resource(
        &self,
        id: RepositoryId,
        tags: Vec<ResourceTag>,
        max: usize,
    ) -> Result<(), TagResourceError> {
        self.writer.write(move |db| tag_resource(db, id, &tags, max)).await
    }

    async fn untag_resource(&self, id: RepositoryId, keys: &[String]) -> StoreResult<()> {
        let keys = keys.to_vec();
        self.writer.write(move |db| untag_resource(db, id, &keys)).await
    }
}

const COLUMNS: &str = "id, account_id, name, created_at, tag_mutability, exclusions, scan_on_push, encryption_type, \
                       kms_key, policy, lifecycle_policy, lifecycle_evaluated_at, version, policy_version";

fn repository(row: &Row<'_>) -> StoreResult<Repository> {
    Ok(Repository {
        id: RepositoryId(row.get(0)?),
        account: parsed(row, 1)?,
        name: parsed(row, 2)?,
        created_at: rows::time(row.get(3)?)?,
        tag_mutability: rows::tag_mutability(text(row, 4)?, text(row, 5)?)?,
        scan_on_push: row.get(6)?,
        encryption: Encryption { kind: row.get(7)?, kms_key: row.get(8)? },
        policy: row.get(9)?,
        lifecycle_policy: row.get(10)?,
        lifecycle_evaluated_at: optional_time(row, 11)?,
        version: rows::unsigned(row.get(12)?)?,
        policy_version: rows::unsigned(row.get(13)?)?,
    })
}

pub(super) fn create(
    db: Db<'_>,
    new: &NewRepository,
    max: u64,
) -> Result<Repository, CreateRepositoryError> {
    let NewRepository { account, name, created_at, tag_mutability, scan_on_push, encryption, tags } =
        new;
    if exists_by_name(db, account, name)? {
        return Err(CreateRepositoryError::AlreadyExists);
    }
    if usage::find(db, &registry_scope(account))?.0 >= max {
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

pub(super) fn find(
    db: Db<'_>,
    account: &AccountId,
    name: &RepositoryName,
) -> StoreResult<Option<Repository>> {
    let sql = format!("SELECT {COLUMNS} FROM repository WHERE account_id = ?1 AND name = ?2");
    db.first(&sql, [account.as_str(), name.as_str()], repository)
}

pub(super) fn find_by_id(db: Db<'_>, id: RepositoryId) -> StoreResult<Option<Repository>> {
    let sql = format!("SELECT {COLUMNS} FROM repository WHERE id = ?1 AND deleted_at IS NULL");
    db.first(&sql, [id.0], repository)
}

pub(super) fn exists(db: Db<'_>, id: RepositoryId) -> StoreResult<bool> {
    db.exists("SELECT 1 FROM repository WHERE id = ?1 AND deleted_at IS NULL", [id.0])
}

pub(super) fn exists_by_name(
    db: Db<'_>,
    account: &AccountId,
    name: &RepositoryName,
) -> StoreResult<bool> {
    let sql = "SELECT 1 FROM repository WHERE account_id = ?1 AND name = ?2";
    db.exists(sql, [account.as_str(), name.as_str()])
}

pub(super) fn list(
    db: Db<'_>,
    account: &AccountId,
    after: Option<&str>,
    limit: usize,
) -> StoreResult<Vec<Repository>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM repository WHERE account_id = ?1 AND name > ?2 ORDER BY name LIMIT ?3"
    );
    db.all(
        &sql,
        params![account.as_str(), after.unwrap_or_default(), rows::limit(limit)],
        repository,
    )
}

pub(super) fn change(
    db: Db<'_>,
    id: RepositoryId,
    change: &RepositoryChange,
    jobs: &[NewJob],
) -> StoreResult<bool> {
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
            // Due since the epoch, so before all others.
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

pub(super) fn schedule_lifecycle(db: Db<'_>, schedule: &LifecycleSchedule) -> StoreResult<usize> {
    let LifecycleSchedule { now, next_due: (from, to), limit } = schedule;
    let sql = "SELECT id FROM repository WHERE lifecycle_due_at <= ?1 ORDER BY lifecycle_due_at, id LIMIT ?2";
    let due =
        db.all(sql, [rows::millis(*now), rows::limit(*limit)], |row| Ok(row.get::<_, i64>(0)?))?;
    let (from, span) =
        (rows::millis(*from), rows::millis(*to).saturating_sub(rows::millis(*from)).max(0));
    for id in &due {
        let sql =
            "UPDATE repository SET lifecycle_due_at = ?2 + abs(random() % (?3 + 1)) WHERE id = ?1";
        db.run(sql, [*id, from, span])?;
        let job = EvaluateLifecycle { repository: RepositoryId(*id) }.job(*now);
        let runs = "SELECT 1 FROM job WHERE kind = ?1 AND key = ?2 AND state = 'running'";
        if !db.exists(runs, [&job.kind, &job.key])? {
            jobs::enqueue(db, &job)?;
        }
    }
    Ok(due.len())
}

pub(super) fn list_resource_tags(db: Db<'_>, id: RepositoryId) -> StoreResult<Vec<ResourceTag>> {
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
    if list_resource_tags(db, id)?.len() > max {
        return Err(TagResourceError::TooMany(max));
    }
    Ok(touch(db, id)?)
}

pub(super) fn untag_resource(db: Db<'_>, id: RepositoryId, keys: &[String]) -> StoreResult<()> {
    for key in keys {
        db.run(
            "DELETE FROM resource_tag WHERE repository_id = ?1 AND key = ?2",
            params![id.0, key],
        )?;
    }
    touch(db, id)
}

/// Increases a repository's version, for a change in another table.
fn touch(db: Db<'_>, id: RepositoryId) -> StoreResult<()> {
    db.run("UPDATE repository SET version = version + 1 WHERE id = ?1", [id.0]).map(drop)
}
