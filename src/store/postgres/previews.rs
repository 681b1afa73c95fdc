//! Lifecycle policy previews.

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};

use super::error::{TxError, TxResult};
use super::rows::{self, from_json, get, json, millis, parsed, signed};
use super::{PostgresStore, jobs};
use crate::jobs::NewJob;
use crate::previews::{Preview, PreviewResult, PreviewRun, PreviewState, PreviewStore};
use crate::repositories::RepositoryId;
use crate::{StoreError, StoreResult};
use wharfage_domain::names::Digest;

#[async_trait::async_trait]
impl PreviewStore for PostgresStore {
    async fn start_preview(
        &self,
        repository: RepositoryId,
        policy: &str,
        now: Timestamp,
        job: NewJob,
    ) -> StoreResult<bool> {
        self.run(|| start(&self.pool, repository, policy, now, &job)).await
    }

    async fn find_preview(&self, repository: RepositoryId) -> StoreResult<Option<Preview>> {
        self.run(|| find(&self.pool, repository)).await
    }

    async fn add_preview_results(
        &self,
        run: PreviewRun,
        position: u64,
        results: Vec<PreviewResult>,
    ) -> StoreResult<bool> {
        self.run(|| add_results(&self.pool, run, position, &results)).await
    }

    async fn finish_preview(&self, run: PreviewRun, state: PreviewState) -> StoreResult<()> {
        self.run(|| finish(&self.pool, run, &state)).await
    }

    async fn list_preview_results(
        &self,
        repository: RepositoryId,
        tagged: Option<bool>,
        after: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, PreviewResult)>> {
        self.run(|| list_results(&self.pool, repository, tagged, after, limit)).await
    }

    async fn find_preview_results(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<(u64, PreviewResult)>> {
        self.run(|| find_results(&self.pool, repository, digests)).await
    }

    async fn prune_preview_results(&self, run: PreviewRun, limit: usize) -> StoreResult<bool> {
        self.run(|| prune_results(&self.pool, run, limit)).await
    }
}

pub(super) async fn start(
    pool: &PgPool,
    repository: RepositoryId,
    policy: &str,
    now: Timestamp,
    job: &NewJob,
) -> TxResult<bool> {
    let mut tx = pool.begin().await?;
    let started = sqlx::query(
        "INSERT INTO lifecycle_preview AS p (repository_id, policy, started_at, state)
         SELECT r.id, $2, $3, 'IN_PROGRESS' FROM repository r
         WHERE r.id = $1 AND r.deleted_at IS NULL FOR KEY SHARE
         ON CONFLICT (repository_id) DO UPDATE
         SET policy = excluded.policy, started_at = excluded.started_at, state = excluded.state,
             completed_at = NULL, summary = NULL, run = NULL
         WHERE p.state <> 'IN_PROGRESS'",
    )
    .bind(repository.0)
    .bind(policy)
    .bind(millis(now))
    .execute(&mut *tx)
    .await
    .map_err(TxError::from);
    match started {
        Ok(started) if started.rows_affected() > 0 => {}
        Ok(_) => return Ok(false),
        // The repository was deleted.
        Err(failure) if failure.is_foreign_key() => return Ok(false),
        Err(failure) => return Err(failure),
    }
    // From now on the results of the last preview belong to none. They are pruned when this one has
    // ended.
    jobs::enqueue_all(&mut tx, std::slice::from_ref(job)).await?;
    tx.commit().await?;
    Ok(true)
}

pub(super) async fn find(pool: &PgPool, repository: RepositoryId) -> TxResult<Option<Preview>> {
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
        state: rows::preview_state(
            get(&row, "state")?,
            get(&row, "completed_at")?,
            get(&row, "summary")?,
        )?,
    }))
}

pub(super) async fn add_results(
    pool: &PgPool,
    run: PreviewRun,
    position: u64,
    results: &[PreviewResult],
) -> TxResult<bool> {
    let PreviewRun { repository, started_at, number } = run;
    let mut tx = pool.begin().await?;
    // Prevents the end of the preview until the results are inserted.
    let in_progress = sqlx::query(
        "SELECT 1 FROM lifecycle_preview p JOIN repository r ON r.id = p.repository_id AND r.deleted_at IS NULL
         WHERE p.repository_id = $1 AND p.started_at = $2 AND p.state = 'IN_PROGRESS' FOR SHARE OF p",
    )
    .bind(repository.0)
    .bind(millis(started_at))
    .fetch_optional(&mut *tx)
    .await?;
    if in_progress.is_none() {
        return Ok(false);
    }
    let mut columns = ResultColumns::default();
    for (position, result) in (position..).zip(results) {
        columns.push(position, result)?;
    }
    sqlx::query(
        "INSERT INTO lifecycle_preview_result
             (repository_id, run, position, digest, tags, tagged, pushed_at, action, rule_priority, status)
         SELECT $1, $2, t.* FROM UNNEST($3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[],
                                        $9::bigint[], $10::text[]) AS t",
    )
    .bind(repository.0)
    .bind(number)
    .bind(columns.positions)
    .bind(columns.digests)
    .bind(columns.tags)
    .bind(columns.tagged)
    .bind(columns.pushed_at)
    .bind(columns.actions)
    .bind(columns.rule_priorities)
    .bind(columns.statuses)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(true)
}

/// Results by column, so that one statement inserts any number of them.
#[derive(Default)]
struct ResultColumns<'a> {
    positions: Vec<i64>,
    digests: Vec<&'a str>,
    tags: Vec<String>,
    tagged: Vec<i64>,
    pushed_at: Vec<i64>,
    actions: Vec<&'a str>,
    rule_priorities: Vec<i64>,
    statuses: Vec<&'static str>,
}

impl<'a> ResultColumns<'a> {
    fn push(&mut self, position: u64, result: &'a PreviewResult) -> StoreResult<()> {
        let PreviewResult { digest, tags, pushed_at, action, rule_priority, status } = result;
        self.positions.push(signed(position)?);
        self.digests.push(digest.as_str());
        self.tags.push(json(tags)?);
        self.tagged.push(i64::from(!tags.is_empty()));
        self.pushed_at.push(millis(*pushed_at));
        self.actions.push(action);
        self.rule_priorities.push(i64::from(*rule_priority));
        self.statuses.push(status.as_str());
        Ok(())
    }
}

pub(super) async fn finish(pool: &PgPool, run: PreviewRun, state: &PreviewState) -> TxResult<()> {
    let PreviewRun { repository, started_at, number } = run;
    let (state, completed_at, summary) = rows::preview_columns(state);
    sqlx::query(
        "UPDATE lifecycle_preview SET state = $3, completed_at = $4, summary = $5, run = $6
         WHERE repository_id = $1 AND started_at = $2 AND state = 'IN_PROGRESS'",
    )
    .bind(repository.0)
    .bind(millis(started_at))
    .bind(state)
    .bind(completed_at)
    .bind(summary)
    .bind(number)
    .execute(pool)
    .await?;
    Ok(())
}

fn result(row: &PgRow) -> StoreResult<(u64, PreviewResult)> {
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
}

/// Selects the results of the preview of the repository `$1`, if it has ended.
macro_rules! results_of_run {
    () => {
        "SELECT * FROM lifecycle_preview_result
         WHERE repository_id = $1 AND run = (SELECT run FROM lifecycle_preview WHERE repository_id = $1)"
    };
}

pub(super) async fn list_results(
    pool: &PgPool,
    repository: RepositoryId,
    tagged: Option<bool>,
    after: Option<u64>,
    limit: usize,
) -> TxResult<Vec<(u64, PreviewResult)>> {
    let query = match tagged {
        None => {
            sqlx::query(concat!(results_of_run!(), " AND position > $2 ORDER BY position LIMIT $3"))
        }
        Some(_) => sqlx::query(concat!(
            results_of_run!(),
            " AND tagged = $4 AND position > $2 ORDER BY position LIMIT $3"
        )),
    };
    let query =
        query.bind(repository.0).bind(after.map_or(Ok(-1), signed)?).bind(rows::limit(limit));
    let query = if let Some(tagged) = tagged { query.bind(i64::from(tagged)) } else { query };
    Ok(query.fetch_all(pool).await?.iter().map(result).collect::<StoreResult<_>>()?)
}

pub(super) async fn find_results(
    pool: &PgPool,
    repository: RepositoryId,
    digests: &[Digest],
) -> TxResult<Vec<(u64, PreviewResult)>> {
    // A run has at most one result per image.
    let found = sqlx::query(
        "SELECT p.*
         FROM lifecycle_preview v
         CROSS JOIN UNNEST($2::text[]) AS d (digest)
         CROSS JOIN LATERAL (
             SELECT * FROM lifecycle_preview_result
             WHERE repository_id = v.repository_id AND run = v.run AND digest = d.digest LIMIT 1) p
         WHERE v.repository_id = $1",
    )
    .bind(repository.0)
    .bind(digests.iter().map(Digest::as_str).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    let mut results =
        found.iter().map(result).collect::<StoreResult<Vec<(u64, PreviewResult)>>>()?;
    results.sort_unstable_by_key(|(position, _)| *position);
    results.dedup_by_key(|(position, _)| *position);
    Ok(results)
}

pub(super) async fn prune_results(pool: &PgPool, run: PreviewRun, limit: usize) -> TxResult<bool> {
    let PreviewRun { repository, started_at: _, number } = run;
    let mut tx = pool.begin().await?;
    // Prevents the start of another preview until the transaction ends.
    let latest = sqlx::query(
        "SELECT 1 FROM lifecycle_preview WHERE repository_id = $1 AND run = $2 FOR SHARE",
    );
    if latest.bind(repository.0).bind(number).fetch_optional(&mut *tx).await?.is_none() {
        return Ok(true);
    }
    let deleted = delete_results(&mut tx, repository, Some(number), limit).await?;
    tx.commit().await?;
    Ok(deleted == 0)
}

/// Deletes results of one run other than `kept`, and returns how many.
pub(super) async fn delete_results(
    tx: &mut PgConnection,
    repository: RepositoryId,
    kept: Option<i64>,
    limit: usize,
) -> TxResult<u64> {
    for other in [
        "SELECT run FROM lifecycle_preview_result WHERE repository_id = $1 AND run < $2 ORDER BY run LIMIT 1",
        "SELECT run FROM lifecycle_preview_result WHERE repository_id = $1 AND run > $2 ORDER BY run LIMIT 1",
    ] {
        let found = sqlx::query_scalar(other).bind(repository.0).bind(kept.unwrap_or(-1));
        let Some(run) = found.fetch_optional(&mut *tx).await? else { continue };
        let run: i64 = run;
        let deleted = sqlx::query(
            "DELETE FROM lifecycle_preview_result WHERE repository_id = $1 AND run = $2 AND position = ANY (ARRAY(
                 SELECT position FROM lifecycle_preview_result WHERE repository_id = $1 AND run = $2
                 ORDER BY position LIMIT $3))",
        )
        .bind(repository.0)
        .bind(run)
        .bind(rows::limit(limit))
        .execute(tx)
        .await?;
        return Ok(deleted.rows_affected());
    }
    Ok(0)
}
