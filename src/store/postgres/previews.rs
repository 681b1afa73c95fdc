//! Lifecycle previews.

use jiff::Timestamp;
use sqlx::{PgConnection, PgPool};

use super::failure::{Attempt, Failure};
use super::jobs;
use super::rows::{self, from_json, get, json, millis, parsed, signed};
use crate::store::jobs::NewJob;
use crate::store::lifecycle::{Preview, PreviewResult, PreviewState};
use crate::store::repositories::RepositoryId;
use crate::store::{StoreError, StoreResult};

pub(super) async fn start(
    pool: &PgPool,
    repository: RepositoryId,
    policy: &str,
    now: Timestamp,
    job: &NewJob,
) -> Attempt<bool> {
    let mut tx = pool.begin().await?;
    let started = sqlx::query(
        "INSERT INTO lifecycle_preview AS p (repository_id, policy, started_at, state)
         SELECT r.id, $2, $3, 'IN_PROGRESS' FROM repository r
         WHERE r.id = $1 AND r.deleted_at IS NULL FOR KEY SHARE
         ON CONFLICT (repository_id) DO UPDATE
         SET policy = excluded.policy, started_at = excluded.started_at, state = excluded.state,
             completed_at = NULL, summary = NULL
         WHERE p.state <> 'IN_PROGRESS'",
    )
    .bind(repository.0)
    .bind(policy)
    .bind(millis(now))
    .execute(&mut *tx)
    .await
    .map_err(Failure::from);
    match started {
        Ok(started) if started.rows_affected() > 0 => {}
        Ok(_) => return Ok(false),
        // The repository has gone, and nothing is to be previewed.
        Err(failure) if failure.is_foreign_key() => return Ok(false),
        Err(failure) => return Err(failure),
    }
    delete_results(&mut tx, repository).await?;
    jobs::enqueue(&mut tx, std::slice::from_ref(job)).await?;
    tx.commit().await?;
    Ok(true)
}

async fn delete_results(tx: &mut PgConnection, repository: RepositoryId) -> Attempt<()> {
    sqlx::query("DELETE FROM lifecycle_preview_result WHERE repository_id = $1").bind(repository.0).execute(tx).await?;
    Ok(())
}

pub(super) async fn latest(pool: &PgPool, repository: RepositoryId) -> Attempt<Option<Preview>> {
    let row = sqlx::query(
        "SELECT p.* FROM lifecycle_preview p JOIN repository r ON r.id = p.repository_id AND r.deleted_at IS NULL
         WHERE p.repository_id = $1",
    )
    .bind(repository.0)
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Preview {
        policy: get(&row, "policy")?,
        started_at: rows::time(&row, "started_at")?,
        state: rows::preview_state(get(&row, "state")?, get(&row, "completed_at")?, get(&row, "summary")?)?,
    }))
}

pub(super) async fn finish(
    pool: &PgPool,
    repository: RepositoryId,
    started_at: Timestamp,
    state: &PreviewState,
    results: &[PreviewResult],
) -> Attempt<()> {
    let (state, completed_at, summary) = rows::preview_columns(state);
    let mut tx = pool.begin().await?;
    let finished = sqlx::query(
        "UPDATE lifecycle_preview SET state = $3, completed_at = $4, summary = $5
         WHERE repository_id = $1 AND started_at = $2 AND state = 'IN_PROGRESS'",
    )
    .bind(repository.0)
    .bind(millis(started_at))
    .bind(state)
    .bind(completed_at)
    .bind(summary)
    .execute(&mut *tx)
    .await?;
    if finished.rows_affected() == 0 {
        return Ok(());
    }
    delete_results(&mut tx, repository).await?;
    let mut columns = Columns::default();
    for (position, result) in results.iter().enumerate() {
        columns.push(position as u64, result)?;
    }
    sqlx::query(
        "INSERT INTO lifecycle_preview_result
             (repository_id, position, digest, tags, pushed_at, action, rule_priority, status)
         SELECT $1, t.* FROM UNNEST($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[],
                                    $8::text[]) AS t",
    )
    .bind(repository.0)
    .bind(columns.positions)
    .bind(columns.digests)
    .bind(columns.tags)
    .bind(columns.pushed_at)
    .bind(columns.actions)
    .bind(columns.rule_priorities)
    .bind(columns.statuses)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

/// Results column by column: however many there are, one statement writes them.
#[derive(Default)]
struct Columns<'a> {
    positions: Vec<i64>,
    digests: Vec<&'a str>,
    tags: Vec<String>,
    pushed_at: Vec<i64>,
    actions: Vec<&'a str>,
    rule_priorities: Vec<i64>,
    statuses: Vec<&'static str>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, position: u64, result: &'a PreviewResult) -> StoreResult<()> {
        let PreviewResult { digest, tags, pushed_at, action, rule_priority, status } = result;
        self.positions.push(signed(position)?);
        self.digests.push(digest.as_str());
        self.tags.push(json(tags)?);
        self.pushed_at.push(millis(*pushed_at));
        self.actions.push(action);
        self.rule_priorities.push(i64::from(*rule_priority));
        self.statuses.push(status.as_str());
        Ok(())
    }
}

pub(super) async fn results(
    pool: &PgPool,
    repository: RepositoryId,
    after: Option<u64>,
    limit: usize,
) -> Attempt<Vec<(u64, PreviewResult)>> {
    let found = sqlx::query(
        "SELECT * FROM lifecycle_preview_result WHERE repository_id = $1 AND position > $2 ORDER BY position LIMIT $3",
    )
    .bind(repository.0)
    .bind(after.map_or(Ok(-1), signed)?)
    .bind(rows::limit(limit))
    .fetch_all(pool)
    .await?;
    let result = |row| {
        let priority: i64 = get(row, "rule_priority")?;
        let result = PreviewResult {
            digest: parsed(row, "digest")?,
            tags: from_json(get(row, "tags")?)?,
            pushed_at: rows::time(row, "pushed_at")?,
            action: get(row, "action")?,
            rule_priority: u32::try_from(priority)
                .map_err(|_| StoreError::Inconsistent(format!("{priority} is no rule priority")))?,
            status: rows::status(row)?,
        };
        Ok((rows::unsigned(row, "position")?, result))
    };
    Ok(found.iter().map(result).collect::<StoreResult<_>>()?)
}
