//! Lifecycle policy previews.

use jiff::Timestamp;
use rusqlite::params;

use super::db::{Db, text};
use super::{jobs, repositories};
use crate::names::Tag;
use crate::store::jobs::NewJob;
use crate::store::lifecycle::{Preview, PreviewResult, PreviewState};
use crate::store::repositories::RepositoryId;
use crate::store::{StoreResult, rows};

pub(super) fn start(
    db: Db<'_>,
    repository: RepositoryId,
    policy: &str,
    now: Timestamp,
    job: &NewJob,
) -> StoreResult<bool> {
    let sql = "SELECT 1 FROM lifecycle_preview WHERE repository_id = ?1 AND state = 'IN_PROGRESS'";
    if !repositories::exists(db, repository)? || db.exists(sql, [repository.0])? {
        return Ok(false);
    }
    // Its results go with the last preview.
    db.run("DELETE FROM lifecycle_preview WHERE repository_id = ?1", [repository.0])?;
    let sql = "INSERT INTO lifecycle_preview (repository_id, policy, started_at, state) \
               VALUES (?1, ?2, ?3, 'IN_PROGRESS')";
    db.run(sql, params![repository.0, policy, rows::millis(now)])?;
    jobs::enqueue(db, job)?;
    Ok(true)
}

pub(super) fn latest(db: Db<'_>, repository: RepositoryId) -> StoreResult<Option<Preview>> {
    let sql = "SELECT p.policy, p.started_at, p.state, p.completed_at, p.summary FROM lifecycle_preview p \
               JOIN repository r ON r.id = p.repository_id AND r.deleted_at IS NULL WHERE p.repository_id = ?1";
    db.first(sql, [repository.0], |row| {
        Ok(Preview {
            policy: row.get(0)?,
            started_at: rows::time(row.get(1)?)?,
            state: rows::preview_state(text(row, 2)?, row.get(3)?, row.get(4)?)?,
        })
    })
}

pub(super) fn finish(
    db: Db<'_>,
    repository: RepositoryId,
    started_at: Timestamp,
    state: &PreviewState,
    results: &[PreviewResult],
) -> StoreResult<()> {
    let (state, completed_at, summary) = rows::preview_columns(state);
    let sql = "UPDATE lifecycle_preview SET state = ?3, completed_at = ?4, summary = ?5 \
               WHERE repository_id = ?1 AND started_at = ?2 AND state = 'IN_PROGRESS'";
    let values = params![repository.0, rows::millis(started_at), state, completed_at, summary];
    if db.run(sql, values)? == 0 {
        return Ok(());
    }
    for (position, result) in (0_i64..).zip(results) {
        let PreviewResult { digest, tags, pushed_at, action, rule_priority, status } = result;
        let sql = "INSERT INTO lifecycle_preview_result (repository_id, position, digest, tags, pushed_at, action, \
                   rule_priority, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let values = params![
            repository.0,
            position,
            digest.as_str(),
            rows::json(tags)?,
            rows::millis(*pushed_at),
            action,
            rule_priority,
            status.as_str()
        ];
        db.run(sql, values)?;
    }
    Ok(())
}

pub(super) fn results(
    db: Db<'_>,
    repository: RepositoryId,
    after: Option<u64>,
    limit: usize,
) -> StoreResult<Vec<(u64, PreviewResult)>> {
    let sql = "SELECT position, digest, tags, pushed_at, action, rule_priority, status FROM lifecycle_preview_result \
               WHERE repository_id = ?1 AND position > ?2 ORDER BY position LIMIT ?3";
    let after = after.map_or(Ok(-1), rows::signed)?;
    db.all(sql, [repository.0, after, rows::limit(limit)], |row| {
        let result = PreviewResult {
            digest: rows::parse(text(row, 1)?)?,
            tags: rows::from_json::<Vec<Tag>>(text(row, 2)?)?,
            pushed_at: rows::time(row.get(3)?)?,
            action: row.get(4)?,
            rule_priority: row.get(5)?,
            status: rows::status(text(row, 6)?)?,
        };
        Ok((rows::unsigned(row.get(0)?)?, result))
    })
}
