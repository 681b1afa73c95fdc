//! Lifecycle policy previews.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::Db;
use super::rows::{self, parsed, text};
use super::{SqliteStore, jobs, repositories};
use crate::StoreResult;
use crate::jobs::NewJob;
use crate::previews::{Preview, PreviewResult, PreviewRun, PreviewState, PreviewStore};
use crate::repositories::RepositoryId;
use wharfage_domain::names::{Digest, Tag};

#[async_trait::async_trait]
impl PreviewStore for SqliteStore {
    async fn start_preview(
        &self,
        repository: RepositoryId,
        policy: &str,
        now: Timestamp,
        job: NewJob,
    ) -> StoreResult<bool> {
        let policy = policy.to_owned();
        self.writer.write(move |db| start(db, repository, &policy, now, &job)).await
    }

    async fn find_preview(&self, repository: RepositoryId) -> StoreResult<Option<Preview>> {
        self.readers.read(|db| find(db, repository))
    }

    async fn add_preview_results(
        &self,
        run: PreviewRun,
        position: u64,
        results: Vec<PreviewResult>,
    ) -> StoreResult<bool> {
        self.writer.write(move |db| add_results(db, run, position, &results)).await
    }

    async fn finish_preview(&self, run: PreviewRun, state: PreviewState) -> StoreResult<()> {
        self.writer.write(move |db| finish(db, run, &state)).await
    }

    async fn list_preview_results(
        &self,
        repository: RepositoryId,
        tagged: Option<bool>,
        after: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, PreviewResult)>> {
        self.readers.page(move |db| list_results(db, repository, tagged, after, limit)).await
    }

    async fn find_preview_results(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<(u64, PreviewResult)>> {
        let digests = digests.to_vec();
        self.readers.page(move |db| find_results(db, repository, &digests)).await
    }

    async fn prune_preview_results(&self, run: PreviewRun, limit: usize) -> StoreResult<bool> {
        self.writer.write(move |db| prune_results(db, run, limit)).await
    }
}

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
    // From now on the results of the last preview belong to none. They are pruned when this one has
    // ended.
    let sql = "INSERT INTO lifecycle_preview (repository_id, policy, started_at, state) \
               VALUES (?1, ?2, ?3, 'IN_PROGRESS') \
               ON CONFLICT DO UPDATE SET policy = excluded.policy, started_at = excluded.started_at, \
                   state = excluded.state, completed_at = NULL, summary = NULL, run = NULL";
    db.run(sql, params![repository.0, policy, rows::millis(now)])?;
    jobs::enqueue(db, job)?;
    Ok(true)
}

pub(super) fn find(db: Db<'_>, repository: RepositoryId) -> StoreResult<Option<Preview>> {
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

pub(super) fn add_results(
    db: Db<'_>,
    run: PreviewRun,
    position: u64,
    results: &[PreviewResult],
) -> StoreResult<bool> {
    let PreviewRun { repository, started_at, number } = run;
    let sql = "SELECT 1 FROM lifecycle_preview p JOIN repository r ON r.id = p.repository_id AND r.deleted_at IS NULL \
               WHERE p.repository_id = ?1 AND p.started_at = ?2 AND p.state = 'IN_PROGRESS'";
    if !db.exists(sql, [repository.0, rows::millis(started_at)])? {
        return Ok(false);
    }
    for (position, result) in (rows::signed(position)?..).zip(results) {
        let PreviewResult { digest, tags, pushed_at, action, rule_priority, status } = result;
        let sql = "INSERT INTO lifecycle_preview_result (repository_id, run, position, digest, tags, tagged, pushed_at, \
                   action, rule_priority, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let values = params![
            repository.0,
            number,
            position,
            digest.as_str(),
            rows::json(tags)?,
            !tags.is_empty(),
            rows::millis(*pushed_at),
            action,
            rule_priority,
            status.as_str()
        ];
        db.run(sql, values)?;
    }
    Ok(true)
}

pub(super) fn finish(db: Db<'_>, run: PreviewRun, state: &PreviewState) -> StoreResult<()> {
    let PreviewRun { repository, started_at, number } = run;
    let (state, completed_at, summary) = rows::preview_columns(state);
    let sql = "UPDATE lifecycle_preview SET state = ?3, completed_at = ?4, summary = ?5, run = ?6 \
               WHERE repository_id = ?1 AND started_at = ?2 AND state = 'IN_PROGRESS'";
    let values =
        params![repository.0, rows::millis(started_at), state, completed_at, summary, number];
    db.run(sql, values).map(drop)
}

/// The columns of [`result`].
const COLUMNS: &str = "position, digest, tags, pushed_at, action, rule_priority, status";

fn result(row: &Row<'_>) -> StoreResult<(u64, PreviewResult)> {
    let result = PreviewResult {
        digest: parsed(row, 1)?,
        tags: rows::from_json::<Vec<Tag>>(text(row, 2)?)?,
        pushed_at: rows::time(row.get(3)?)?,
        action: row.get(4)?,
        rule_priority: row.get(5)?,
        status: rows::status(text(row, 6)?)?,
    };
    Ok((rows::unsigned(row.get(0)?)?, result))
}

/// Finds the run whose results are the preview's, if the preview has ended.
fn find_run(db: Db<'_>, repository: RepositoryId) -> StoreResult<Option<i64>> {
    let sql = "SELECT run FROM lifecycle_preview WHERE repository_id = ?1";
    Ok(db.first(sql, [repository.0], |row| Ok(row.get(0)?))?.flatten())
}

pub(super) fn list_results(
    db: Db<'_>,
    repository: RepositoryId,
    tagged: Option<bool>,
    after: Option<u64>,
    limit: usize,
) -> StoreResult<Vec<(u64, PreviewResult)>> {
    let Some(run) = find_run(db, repository)? else { return Ok(Vec::new()) };
    let (after, limit) = (after.map_or(Ok(-1), rows::signed)?, rows::limit(limit));
    // In a table without row ids the planner prefers the primary key, by which it would read all
    // results.
    let (index, which) = match tagged {
        Some(_) => ("INDEXED BY lifecycle_preview_result_by_tagged", "AND tagged = ?5"),
        None => ("", ""),
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM lifecycle_preview_result {index} \
         WHERE repository_id = ?1 AND run = ?2 {which} AND position > ?3 ORDER BY position LIMIT ?4"
    );
    match tagged {
        None => db.all(&sql, params![repository.0, run, after, limit], result),
        Some(tagged) => db.all(&sql, params![repository.0, run, after, limit, tagged], result),
    }
}

pub(super) fn find_results(
    db: Db<'_>,
    repository: RepositoryId,
    digests: &[Digest],
) -> StoreResult<Vec<(u64, PreviewResult)>> {
    let Some(run) = find_run(db, repository)? else { return Ok(Vec::new()) };
    let sql = format!(
        "SELECT {COLUMNS} FROM lifecycle_preview_result INDEXED BY lifecycle_preview_result_by_digest \
         WHERE repository_id = ?1 AND run = ?2 AND digest = ?3"
    );
    let mut results = Vec::new();
    for digest in digests.iter().collect::<BTreeSet<_>>() {
        results.extend(db.all(&sql, params![repository.0, run, digest.as_str()], result)?);
    }
    results.sort_unstable_by_key(|(position, _)| *position);
    Ok(results)
}

pub(super) fn prune_results(db: Db<'_>, run: PreviewRun, limit: usize) -> StoreResult<bool> {
    let PreviewRun { repository, started_at: _, number } = run;
    Ok(find_run(db, repository)? != Some(number)
        || delete_results(db, repository, Some(number), limit)? == 0)
}

/// Deletes results of one run other than `kept`, and returns how many.
pub(super) fn delete_results(
    db: Db<'_>,
    repository: RepositoryId,
    kept: Option<i64>,
    limit: usize,
) -> StoreResult<usize> {
    let kept = kept.unwrap_or(-1);
    for other in [
        "SELECT run FROM lifecycle_preview_result WHERE repository_id = ?1 AND run < ?2 ORDER BY run LIMIT 1",
        "SELECT run FROM lifecycle_preview_result WHERE repository_id = ?1 AND run > ?2 ORDER BY run LIMIT 1",
    ] {
        let found: Option<i64> = db.first(other, [repository.0, kept], |row| Ok(row.get(0)?))?;
        let Some(run) = found else { continue };
        let sql = "DELETE FROM lifecycle_preview_result WHERE repository_id = ?1 AND run = ?2 AND position IN \
                     (SELECT position FROM lifecycle_preview_result WHERE repository_id = ?1 AND run = ?2 \
                      ORDER BY position LIMIT ?3)";
        return db.run(sql, [repository.0, run, rows::limit(limit)]);
    }
    Ok(0)
}
