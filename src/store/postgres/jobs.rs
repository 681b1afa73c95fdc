//! Jobs and events.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{PgConnection, PgExecutor, PgPool};

use super::failure::Attempt;
use super::rows::{self, get, millis, parse, parsed};
use crate::names::AccountId;
use crate::store::StoreError;
use crate::store::jobs::{Event, Job, JobCount, JobEnd, NewJob};

/// Enqueues jobs inside the transaction of their cause.
pub(super) async fn enqueue<E>(tx: &mut PgConnection, jobs: &[NewJob]) -> Attempt<(), E> {
    if jobs.is_empty() {
        return Ok(());
    }
    // One statement may write each row once, so what coalesces among these does so here; the order keeps two
    // transactions that enqueue the same keys from waiting for each other.
    let mut merged: BTreeMap<(&str, &str), (&str, Timestamp)> = BTreeMap::new();
    for NewJob { kind, key, payload, run_at } in jobs {
        let due = merged.get(&(kind.as_str(), key.as_str())).map_or(*run_at, |(_, due)| (*due).min(*run_at));
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

pub(super) async fn enqueue_one(pool: &PgPool, job: &NewJob) -> Attempt<()> {
    let mut connection = pool.acquire().await?;
    enqueue(&mut connection, std::slice::from_ref(job)).await
}

pub(super) async fn claim(pool: &PgPool, kinds: &[&str], now: Timestamp, lease: Duration) -> Attempt<Option<Job>> {
    let lease_until = millis(now).saturating_add(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX));
    // A waiting job stays behind one of its key that runs, also when that one's lease has run out: then it is the older
    // one's turn again. SKIP LOCKED: what another replica is claiming is not waited for.
    let row = sqlx::query(
        "UPDATE job SET state = 'running', lease_until = $3, attempts = attempts + 1
         WHERE id = (
             SELECT j.id FROM job j
             WHERE j.kind = ANY($1) AND j.run_at <= $2 AND j.state IN ('waiting', 'running')
               AND CASE j.state
                   WHEN 'running' THEN j.lease_until <= $2
                   ELSE NOT EXISTS (
                       SELECT 1 FROM job r WHERE r.kind = j.kind AND r.key = j.key AND r.state = 'running')
                   END
             ORDER BY j.run_at, j.id LIMIT 1 FOR UPDATE SKIP LOCKED)
         RETURNING id, kind, key, payload, attempts",
    )
    .bind(kinds)
    .bind(millis(now))
    .bind(lease_until)
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Job {
        id: get(&row, "id")?,
        kind: get(&row, "kind")?,
        key: get(&row, "key")?,
        payload: get(&row, "payload")?,
        attempts: u32::try_from(get::<i64>(&row, "attempts")?).unwrap_or(u32::MAX),
    }))
}

pub(super) async fn heartbeat(pool: &PgPool, id: i64, attempts: u32, lease_until: Timestamp) -> Attempt<bool> {
    let held = sqlx::query("UPDATE job SET lease_until = $3 WHERE id = $1 AND attempts = $2 AND state = 'running'")
        .bind(id)
        .bind(i64::from(attempts))
        .bind(millis(lease_until))
        .execute(pool)
        .await?;
    Ok(held.rows_affected() > 0)
}

pub(super) async fn end(pool: &PgPool, id: i64, attempts: u32, end: &JobEnd) -> Attempt<()> {
    match end {
        JobEnd::Done => {
            sqlx::query("DELETE FROM job WHERE id = $1 AND attempts = $2 AND state = 'running'")
                .bind(id)
                .bind(i64::from(attempts))
                .execute(pool)
                .await?;
        }
        JobEnd::Retry { at, error } => retry(pool, id, attempts, *at, error).await?,
        JobEnd::Dead { error } => {
            sqlx::query(
                "UPDATE job SET state = 'dead', lease_until = NULL, last_error = $3
                 WHERE id = $1 AND attempts = $2 AND state = 'running'",
            )
            .bind(id)
            .bind(i64::from(attempts))
            .bind(without_nul(error))
            .execute(pool)
            .await?;
        }
    }
    Ok(())
}

/// Lets a job wait again. If a newer one of its key waits already, the two coalesce into that one, which takes over how
/// often it was tried.
async fn retry(pool: &PgPool, id: i64, attempts: u32, at: Timestamp, error: &str) -> Attempt<()> {
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
        // When one is enqueued at this very moment, the unique index refuses this and the attempt is repeated.
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

/// An error's text may quote anything; PostgreSQL's text holds no NUL.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

pub(super) async fn counts(pool: &PgPool) -> Attempt<Vec<JobCount>> {
    let found = sqlx::query("SELECT kind, state, count(*) AS jobs FROM job GROUP BY kind, state ORDER BY kind, state")
        .fetch_all(pool)
        .await?;
    let count =
        |row| Ok(JobCount { kind: get(row, "kind")?, state: get(row, "state")?, count: rows::unsigned(row, "jobs")? });
    found.iter().map(count).collect()
}

/// Keeps events, inside the transaction of their cause or alone.
pub(super) async fn record<E>(executor: impl PgExecutor<'_>, events: &[Event]) -> Attempt<(), E> {
    sqlx::query(
        "INSERT INTO event (at, account_id, repository, kind, detail)
         SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[])",
    )
    .bind(events.iter().map(|event| millis(event.at)).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.account.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.repository.as_ref().map(AsRef::as_ref)).collect::<Vec<Option<&str>>>())
    .bind(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.detail.as_str()).collect::<Vec<_>>())
    .execute(executor)
    .await?;
    Ok(())
}

pub(super) async fn events(pool: &PgPool, account: &AccountId, limit: usize) -> Attempt<Vec<Event>> {
    let found = sqlx::query("SELECT * FROM event WHERE account_id = $1 ORDER BY id DESC LIMIT $2")
        .bind(account.as_str())
        .bind(rows::limit(limit))
        .fetch_all(pool)
        .await?;
    let event = |row| {
        let repository: Option<&str> = get(row, "repository")?;
        Ok(Event {
            at: rows::time(row, "at")?,
            account: parsed(row, "account_id")?,
            repository: repository.map(parse).transpose()?,
            kind: get(row, "kind")?,
            detail: get(row, "detail")?,
        })
    };
    Ok(found.iter().map(event).collect::<Result<_, StoreError>>()?)
}
