//! Background jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};

use super::PostgresStore;
use super::error::TxResult;
use super::rows::{self, get, millis};
use crate::StoreResult;
use crate::jobs::{
    Job, JobCount, JobEnd, JobFilter, JobState, JobStore, NewJob, Requeue, StoredJob,
};

#[async_trait::async_trait]
impl JobStore for PostgresStore {
    async fn enqueue_job(&self, job: NewJob) -> StoreResult<()> {
        self.run(|| enqueue(&self.pool, &job)).await
    }

    async fn claim_job(
        &self,
        kinds: &[&str],
        now: Timestamp,
        lease: Duration,
    ) -> StoreResult<Option<Job>> {
        self.run(|| claim(&self.pool, kinds, now, lease)).await
    }

    async fn heartbeat_job(&self, id: i64, attempts: u32, lease: Duration) -> StoreResult<bool> {
        self.run(|| heartbeat(&self.pool, id, attempts, lease)).await
    }

    async fn end_job(&self, id: i64, attempts: u32, end: JobEnd) -> StoreResult<()> {
        self.run(|| self::end(&self.pool, id, attempts, &end)).await
    }

    async fn count_jobs(&self, kinds: &[&str]) -> StoreResult<Vec<JobCount>> {
        self.run(|| count(&self.pool, kinds)).await
    }

    async fn list_jobs(
        &self,
        filter: &JobFilter,
        after: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<StoredJob>> {
        self.run(|| list(&self.pool, filter, after, limit)).await
    }

    async fn requeue_jobs(&self, jobs: &Requeue, now: Timestamp) -> StoreResult<u64> {
        self.run(|| requeue(&self.pool, jobs, now)).await
    }
}

pub(super) async fn enqueue(pool: &PgPool, job: &NewJob) -> TxResult<()> {
    let mut connection = pool.acquire().await?;
    enqueue_all(&mut connection, std::slice::from_ref(job)).await
}

/// Enqueues jobs in the transaction of their cause.
pub(super) async fn enqueue_all<E>(tx: &mut PgConnection, jobs: &[NewJob]) -> TxResult<(), E> {
    if jobs.is_empty() {
        return Ok(());
    }
    // A statement may write each row only once, so jobs of the same key coalesce here. The order of
    // the keys prevents deadlocks between transactions that enqueue the same ones.
    let mut merged: BTreeMap<(&str, &str), (&str, Timestamp)> = BTreeMap::new();
    for NewJob { kind, key, payload, run_at } in jobs {
        let due = merged
            .get(&(kind.as_str(), key.as_str()))
            .map_or(*run_at, |(_, due)| (*due).min(*run_at));
        merged.insert((kind, key), (payload, due));
    }
    let kinds: Vec<&str> = merged.keys().map(|(kind, _)| *kind).collect();
    let keys: Vec<&str> = merged.keys().map(|(_, key)| *key).collect();
    let payloads: Vec<&str> = merged.values().map(|(payload, _)| *payload).collect();
    let due: Vec<i64> = merged.values().map(|(_, due)| millis(*due)).collect();
    sqlx::query(
        "INSERT INTO job AS j (kind, key, payload, run_at, state, attempts)
         SELECT kind, key, payload, run_at, 'waiting', 0
         FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[]) AS t (kind, key, payload, run_at)
         ON CONFLICT (kind, key) WHERE state = 'waiting'
         DO UPDATE SET payload = excluded.payload, run_at = least(j.run_at, excluded.run_at)",
    )
    .bind(kinds)
    .bind(keys)
    .bind(payloads)
    .bind(due)
    .execute(tx)
    .await?;
    Ok(())
}

/// Removes the jobs whose kind and key are running.
pub(super) async fn without_running<E>(
    tx: &mut PgConnection,
    jobs: Vec<NewJob>,
) -> TxResult<Vec<NewJob>, E> {
    let running: Vec<(String, String)> = sqlx::query_as(
        "SELECT kind, key FROM job WHERE kind = ANY($1) AND key = ANY($2) AND state = 'running'",
    )
    .bind(jobs.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.key.as_str()).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let running: BTreeSet<(String, String)> = running.into_iter().collect();
    Ok(jobs
        .into_iter()
        .filter(|job| !running.contains(&(job.kind.clone(), job.key.clone())))
        .collect())
}

/// The database's clock at the beginning of the transaction, in milliseconds since the epoch.
macro_rules! clock {
    () => {
        "(extract(epoch FROM now()) * 1000)::bigint"
    };
}

pub(super) async fn claim(
    pool: &PgPool,
    kinds: &[&str],
    now: Timestamp,
    lease: Duration,
) -> TxResult<Option<Job>> {
    // A waiting job stays behind a running one of its key, even if the latter's lease has expired:
    // then that one is claimed again. SKIP LOCKED: does not wait for what another replica is
    // claiming.
    let row = sqlx::query(concat!(
        "UPDATE job SET state = 'running', lease_until = ",
        clock!(),
        " + $3, attempts = attempts + 1
         WHERE id = coalesce(
             (SELECT l.id FROM job l WHERE l.state = 'running' AND l.kind = ANY($1) AND l.lease_until <= ",
        clock!(),
        "     ORDER BY l.lease_until LIMIT 1 FOR UPDATE SKIP LOCKED),
             (SELECT j.id FROM UNNEST($1::text[]) AS k (kind) CROSS JOIN LATERAL (
                  SELECT w.id, w.run_at FROM job w
                  WHERE w.kind = k.kind AND w.state = 'waiting' AND w.run_at <= $2
                    AND NOT EXISTS (
                        SELECT 1 FROM job r WHERE r.kind = w.kind AND r.key = w.key AND r.state = 'running')
                  ORDER BY w.run_at, w.id LIMIT 1 FOR UPDATE SKIP LOCKED) j
              ORDER BY j.run_at, j.id LIMIT 1))
         RETURNING id, kind, key, payload, attempts"
    ))
    .bind(kinds)
    .bind(millis(now))
    .bind(rows::lease(lease))
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Job {
        id: get(&row, "id")?,
        kind: get(&row, "kind")?,
        key: get(&row, "key")?,
        payload: get(&row, "payload")?,
        attempts: attempts(&row)?,
    }))
}

fn attempts(row: &PgRow) -> StoreResult<u32> {
    Ok(u32::try_from(get::<i64>(row, "attempts")?).unwrap_or(u32::MAX))
}

pub(super) async fn heartbeat(
    pool: &PgPool,
    id: i64,
    attempts: u32,
    lease: Duration,
) -> TxResult<bool> {
    let held = sqlx::query(concat!(
        "UPDATE job SET lease_until = ",
        clock!(),
        " + $3 WHERE id = $1 AND attempts = $2 AND state = 'running'"
    ))
    .bind(id)
    .bind(i64::from(attempts))
    .bind(rows::lease(lease))
    .execute(pool)
    .await?;
    Ok(held.rows_affected() > 0)
}

pub(super) async fn end(pool: &PgPool, id: i64, attempts: u32, end: &JobEnd) -> TxResult<()> {
    match end {
        JobEnd::Done => {
            sqlx::query(
                "WITH done AS (
                     DELETE FROM job WHERE id = $1 AND attempts = $2 AND state = 'running' RETURNING kind, key)
                 DELETE FROM job d USING done WHERE d.kind = done.kind AND d.key = done.key AND d.state = 'dead'",
            )
            .bind(id)
            .bind(i64::from(attempts))
            .execute(pool)
            .await?;
        }
        JobEnd::Retry { at, error } => end_retry(pool, id, attempts, *at, error).await?,
        JobEnd::Dead { error } => end_dead(pool, id, attempts, error).await?,
    }
    Ok(())
}

/// Marks a job as dead, and deletes an older dead one of its kind and key.
async fn end_dead(pool: &PgPool, id: i64, attempts: u32, error: &str) -> TxResult<()> {
    let mut tx = pool.begin().await?;
    sqlx::query(
        "DELETE FROM job d USING job r
         WHERE r.id = $1 AND r.attempts = $2 AND r.state = 'running'
           AND d.kind = r.kind AND d.key = r.key AND d.state = 'dead'",
    )
    .bind(id)
    .bind(i64::from(attempts))
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "UPDATE job SET state = 'dead', lease_until = NULL, last_error = $3
         WHERE id = $1 AND attempts = $2 AND state = 'running'",
    )
    .bind(id)
    .bind(i64::from(attempts))
    .bind(without_nul(error))
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

/// Makes a job wait again. If a newer one of its key already waits, the two coalesce into that one,
/// which takes over the number of attempts.
async fn end_retry(
    pool: &PgPool,
    id: i64,
    attempts: u32,
    at: Timestamp,
    error: &str,
) -> TxResult<()> {
    let mut tx = pool.begin().await?;
    let held: Option<(String, String)> =
        sqlx::query_as("SELECT kind, key FROM job WHERE id = $1 AND attempts = $2 AND state = 'running' FOR UPDATE")
            .bind(id)
            .bind(i64::from(attempts))
            .fetch_optional(&mut *tx)
            .await?;
    let Some((kind, key)) = held else { return Ok(()) };
    let newer = sqlx::query(
        "UPDATE job SET run_at = least(run_at, $3), attempts = greatest(attempts, $4)
         WHERE kind = $1 AND key = $2 AND state = 'waiting'",
    )
    .bind(kind)
    .bind(key)
    .bind(millis(at))
    .bind(i64::from(attempts))
    .execute(&mut *tx)
    .await?;
    if newer.rows_affected() > 0 {
        sqlx::query("DELETE FROM job WHERE id = $1").bind(id).execute(&mut *tx).await?;
    } else {
        // If one is enqueued at this moment, the unique index refuses the update and the attempt is
        // retried.
        sqlx::query("UPDATE job SET state = 'waiting', run_at = $2, lease_until = NULL, last_error = $3 WHERE id = $1")
            .bind(id)
            .bind(millis(at))
            .bind(without_nul(error))
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Replaces NULs, which an error may quote and which PostgreSQL's text cannot hold.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

pub(super) async fn count(pool: &PgPool, kinds: &[&str]) -> TxResult<Vec<JobCount>> {
    let found = sqlx::query(
        "SELECT k.kind, 'waiting' AS state, (SELECT count(*) FROM (
                    SELECT 1 FROM job j WHERE j.kind = k.kind AND j.state = 'waiting' LIMIT $2) c) AS jobs
         FROM UNNEST($1::text[]) AS k (kind)
         UNION ALL
         SELECT k.kind, 'running', (SELECT count(*) FROM (
                    SELECT 1 FROM job j WHERE j.kind = k.kind AND j.state = 'running' LIMIT $2) c)
         FROM UNNEST($1::text[]) AS k (kind)
         UNION ALL
         SELECT kind, 'dead', least(count(*), $2) FROM job WHERE state = 'dead' GROUP BY kind",
    )
    .bind(kinds)
    .bind(rows::signed(JobCount::LIMIT)?)
    .fetch_all(pool)
    .await?;
    let count = |row| {
        Ok(JobCount {
            kind: get(row, "kind")?,
            state: get(row, "state")?,
            count: rows::unsigned(row, "jobs")?,
        })
    };
    let counts = found.iter().map(count).collect::<StoreResult<Vec<_>>>()?;
    Ok(counts.into_iter().filter(|count| count.count > 0).collect())
}

pub(super) async fn list(
    pool: &PgPool,
    filter: &JobFilter,
    after: Option<i64>,
    limit: usize,
) -> TxResult<Vec<StoredJob>> {
    let found = sqlx::query(
        "SELECT id, kind, key, state, run_at, attempts, last_error FROM job
         WHERE id > $1 AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR state = $3)
         ORDER BY id LIMIT $4",
    )
    .bind(after.unwrap_or(0))
    .bind(&filter.kind)
    .bind(filter.state.map(JobState::as_str))
    .bind(rows::limit(limit))
    .fetch_all(pool)
    .await?;
    let job = |row| {
        Ok(StoredJob {
            id: get(row, "id")?,
            kind: get(row, "kind")?,
            key: get(row, "key")?,
            state: rows::job_state(get(row, "state")?)?,
            run_at: rows::time(row, "run_at")?,
            attempts: attempts(row)?,
            last_error: get(row, "last_error")?,
        })
    };
    Ok(found.iter().map(job).collect::<StoreResult<_>>()?)
}

pub(super) async fn requeue(pool: &PgPool, jobs: &Requeue, now: Timestamp) -> TxResult<u64> {
    let (id, kind) = match jobs {
        Requeue::One(id) => (Some(*id), None),
        Requeue::Kind(kind) => (None, Some(kind)),
        Requeue::Dead => (None, None),
    };
    let mut tx = pool.begin().await?;
    // A waiting job of the same kind and key takes the place of the dead one. If one is enqueued at
    // this moment, the unique index refuses the second statement and the attempt is retried.
    let replaced = sqlx::query(
        "WITH twin AS (
             SELECT d.id AS dead, w.id AS waiting FROM job d JOIN job w ON w.kind = d.kind AND w.key = d.key
             WHERE d.state = 'dead' AND w.state = 'waiting'
               AND ($1::bigint IS NULL OR d.id = $1) AND ($2::text IS NULL OR d.kind = $2)),
         sooner AS (UPDATE job SET run_at = least(run_at, $3) WHERE id IN (SELECT waiting FROM twin))
         DELETE FROM job WHERE id IN (SELECT dead FROM twin)",
    )
    .bind(id)
    .bind(kind)
    .bind(millis(now))
    .execute(&mut *tx)
    .await?;
    let revived = sqlx::query(
        "UPDATE job SET state = 'waiting', run_at = $3, attempts = 0
         WHERE state = 'dead' AND ($1::bigint IS NULL OR id = $1) AND ($2::text IS NULL OR kind = $2)",
    )
    .bind(id)
    .bind(kind)
    .bind(millis(now))
    .execute(&mut *tx)
    .await?;
    let mut requeued = replaced.rows_affected() + revived.rows_affected();
    if requeued == 0 && id.is_some() {
        let sooner = sqlx::query(
            "UPDATE job SET run_at = least(run_at, $2), attempts = 0 WHERE id = $1 AND state = 'waiting'",
        );
        requeued = sooner.bind(id).bind(millis(now)).execute(&mut *tx).await?.rows_affected();
    }
    tx.commit().await?;
    Ok(requeued)
}
