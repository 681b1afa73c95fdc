//! Background jobs.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::SqliteStore;
use super::db::Db;
use super::rows::{self, text};
use crate::StoreResult;
use crate::jobs::{
    Job, JobCount, JobEnd, JobFilter, JobState, JobStore, NewJob, Requeue, StoredJob,
};

#[async_trait::async_trait]
impl JobStore for SqliteStore {
    async fn enqueue_job(&self, job: NewJob) -> StoreResult<()> {
        self.writer.write(move |db| enqueue(db, &job)).await
    }

    async fn claim_job(
        &self,
        kinds: &[&str],
        now: Timestamp,
        lease: Duration,
    ) -> StoreResult<Option<Job>> {
        let kinds = rows::json(kinds)?;
        // Workers ask often and usually find nothing, so a read comes first. One process has the
        // database, so its clock is the database's.
        if self.readers.read(|db| find_next(db, &kinds, now, Timestamp::now()))?.is_none() {
            return Ok(None);
        }
        self.writer.write(move |db| claim(db, &kinds, now, Timestamp::now(), lease)).await
    }

    async fn heartbeat_job(&self, id: i64, attempts: u32, lease: Duration) -> StoreResult<bool> {
        self.writer.write(move |db| heartbeat(db, id, attempts, Timestamp::now(), lease)).await
    }

    async fn end_job(&self, id: i64, attempts: u32, end: JobEnd) -> StoreResult<()> {
        self.writer.write(move |db| self::end(db, id, attempts, &end)).await
    }

    async fn count_jobs(&self, kinds: &[&str]) -> StoreResult<Vec<JobCount>> {
        let kinds = rows::json(kinds)?;
        self.readers.page(move |db| count(db, &kinds)).await
    }

    async fn list_jobs(
        &self,
        filter: &JobFilter,
        after: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<StoredJob>> {
        let filter = filter.clone();
        self.readers.page(move |db| list(db, &filter, after, limit)).await
    }

    async fn requeue_jobs(&self, jobs: &Requeue, now: Timestamp) -> StoreResult<u64> {
        let chosen = jobs.clone();
        self.writer.write(move |db| requeue(db, &chosen, now)).await
    }
}

pub(super) fn enqueue(db: Db<'_>, job: &NewJob) -> StoreResult<()> {
    let NewJob { kind, key, payload, run_at } = job;
    let sql = "INSERT INTO job (kind, key, state, run_at, attempts, payload) VALUES (?1, ?2, 'waiting', ?3, 0, ?4) \
               ON CONFLICT (kind, key) WHERE state = 'waiting' \
               DO UPDATE SET payload = excluded.payload, run_at = min(run_at, excluded.run_at)";
    db.run(sql, params![kind, key, rows::millis(*run_at), payload]).map(drop)
}

pub(super) fn claim(
    db: Db<'_>,
    kinds: &str,
    now: Timestamp,
    clock: Timestamp,
    lease: Duration,
) -> StoreResult<Option<Job>> {
    let Some(id) = find_next(db, kinds, now, clock)? else {
        return Ok(None);
    };
    let sql = "UPDATE job SET state = 'running', lease_until = ?2, attempts = attempts + 1 WHERE id = ?1 \
               RETURNING id, kind, key, payload, attempts";
    db.first(sql, [id, lease_end(clock, lease)], |row| {
        Ok(Job {
            id: row.get(0)?,
            kind: row.get(1)?,
            key: row.get(2)?,
            payload: row.get(3)?,
            attempts: row.get(4)?,
        })
    })
}

/// Finds the job of these kinds (a JSON array) to be claimed next. One whose lease has expired
/// comes first, so that no two of a key run at once. Each kind has its own lookup, so that a long
/// queue of one does not slow another.
pub(super) fn find_next(
    db: Db<'_>,
    kinds: &str,
    now: Timestamp,
    clock: Timestamp,
) -> StoreResult<Option<i64>> {
    let lost = "SELECT id FROM job WHERE state = 'running' AND lease_until <= ?2 \
                AND +kind IN (SELECT value FROM json_each(?1)) ORDER BY lease_until LIMIT 1";
    if let Some(id) = db.first(lost, params![kinds, rows::millis(clock)], |row| Ok(row.get(0)?))? {
        return Ok(Some(id));
    }
    let waiting = "SELECT j.id FROM json_each(?1) k CROSS JOIN job j ON j.id = \
                     (SELECT w.id FROM job w WHERE w.kind = k.value AND w.state = 'waiting' AND w.run_at <= ?2 \
                      AND NOT EXISTS (SELECT 1 FROM job r \
                                      WHERE r.kind = w.kind AND r.key = w.key AND r.state = 'running') \
                      ORDER BY w.run_at, w.id LIMIT 1) \
                   ORDER BY j.run_at, j.id LIMIT 1";
    db.first(waiting, params![kinds, rows::millis(now)], |row| Ok(row.get(0)?))
}

/// Returns the end of a lease that begins now, in milliseconds.
fn lease_end(clock: Timestamp, lease: Duration) -> i64 {
    rows::millis(clock).saturating_add(rows::lease(lease))
}

/// Expires the leases of previous processes. They have ended, because one process at a time has the
/// database open.
pub(super) fn release_all(db: Db<'_>) -> StoreResult<()> {
    db.run("UPDATE job SET lease_until = 0 WHERE state = 'running' AND lease_until > 0", [])
        .map(drop)
}

pub(super) fn heartbeat(
    db: Db<'_>,
    id: i64,
    attempts: u32,
    clock: Timestamp,
    lease: Duration,
) -> StoreResult<bool> {
    let sql =
        "UPDATE job SET lease_until = ?3 WHERE id = ?1 AND attempts = ?2 AND state = 'running'";
    Ok(db.run(sql, params![id, attempts, lease_end(clock, lease)])? > 0)
}

pub(super) fn end(db: Db<'_>, id: i64, attempts: u32, end: &JobEnd) -> StoreResult<()> {
    let sql = "SELECT (SELECT w.id FROM job w WHERE w.kind = r.kind AND w.key = r.key AND w.state = 'waiting'), \
                      (SELECT d.id FROM job d WHERE d.kind = r.kind AND d.key = r.key AND d.state = 'dead') \
               FROM job r WHERE r.id = ?1 AND r.attempts = ?2 AND r.state = 'running'";
    let others = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let held: Option<(Option<i64>, Option<i64>)> = db.first(sql, params![id, attempts], others)?;
    let Some((behind, dead)) = held else {
        return Ok(());
    };
    if let (JobEnd::Done | JobEnd::Dead { .. }, Some(dead)) = (end, dead) {
        delete(db, dead)?;
    }
    match (end, behind) {
        (JobEnd::Done, _) => delete(db, id),
        (JobEnd::Dead { error }, _) => {
            let sql =
                "UPDATE job SET state = 'dead', lease_until = NULL, last_error = ?2 WHERE id = ?1";
            db.run(sql, params![id, error]).map(drop)
        }
        (JobEnd::Retry { at, error }, None) => {
            let sql = "UPDATE job SET state = 'waiting', lease_until = NULL, run_at = ?2, last_error = ?3 WHERE id = ?1";
            db.run(sql, params![id, rows::millis(*at), error]).map(drop)
        }
        // The waiting job does the work of both. It takes over the number of attempts, which
        // determines the next delay.
        (JobEnd::Retry { at, error }, Some(behind)) => {
            delete(db, id)?;
            let sql = "UPDATE job SET run_at = min(run_at, ?2), last_error = ?3, attempts = max(attempts, ?4) \
                       WHERE id = ?1";
            db.run(sql, params![behind, rows::millis(*at), error, attempts]).map(drop)
        }
    }
}

fn delete(db: Db<'_>, id: i64) -> StoreResult<()> {
    db.run("DELETE FROM job WHERE id = ?1", [id]).map(drop)
}

pub(super) fn count(db: Db<'_>, kinds: &str) -> StoreResult<Vec<JobCount>> {
    let sql = "SELECT k.value, 'waiting', (SELECT count(*) FROM \
                 (SELECT 1 FROM job j WHERE j.kind = k.value AND j.state = 'waiting' LIMIT ?2)) FROM json_each(?1) k \
               UNION ALL \
               SELECT k.value, 'running', (SELECT count(*) FROM \
                 (SELECT 1 FROM job j WHERE j.kind = k.value AND j.state = 'running' LIMIT ?2)) FROM json_each(?1) k \
               UNION ALL \
               SELECT kind, 'dead', min(count(*), ?2) FROM job WHERE state = 'dead' GROUP BY kind";
    let counts = db.all(sql, params![kinds, rows::signed(JobCount::LIMIT)?], |row| {
        Ok(JobCount { kind: row.get(0)?, state: row.get(1)?, count: rows::unsigned(row.get(2)?)? })
    })?;
    Ok(counts.into_iter().filter(|count| count.count > 0).collect())
}

pub(super) fn list(
    db: Db<'_>,
    filter: &JobFilter,
    after: Option<i64>,
    limit: usize,
) -> StoreResult<Vec<StoredJob>> {
    let sql = "SELECT id, kind, key, state, run_at, attempts, last_error FROM job \
               WHERE id > ?1 AND (?2 IS NULL OR kind = ?2) AND (?3 IS NULL OR state = ?3) ORDER BY id LIMIT ?4";
    let state = filter.state.map(JobState::as_str);
    db.all(sql, params![after.unwrap_or(0), filter.kind, state, rows::limit(limit)], |row| {
        Ok(StoredJob {
            id: row.get(0)?,
            kind: row.get(1)?,
            key: row.get(2)?,
            state: rows::job_state(text(row, 3)?)?,
            run_at: rows::time(row.get(4)?)?,
            attempts: row.get(5)?,
            last_error: row.get(6)?,
        })
    })
}

pub(super) fn requeue(db: Db<'_>, jobs: &Requeue, now: Timestamp) -> StoreResult<u64> {
    let (id, kind) = match jobs {
        Requeue::One(id) => (Some(*id), None),
        Requeue::Kind(kind) => (None, Some(kind)),
        Requeue::Dead => (None, None),
    };
    let now = rows::millis(now);
    let chosen = "state = 'dead' AND (?1 IS NULL OR id = ?1) AND (?2 IS NULL OR kind = ?2)";
    let twins = format!(
        "UPDATE job SET run_at = min(run_at, ?3) WHERE state = 'waiting' \
         AND (kind, key) IN (SELECT kind, key FROM job WHERE {chosen})"
    );
    db.run(&twins, params![id, kind, now])?;
    let replaced = format!(
        "DELETE FROM job WHERE {chosen} AND EXISTS (SELECT 1 FROM job w \
                                                    WHERE w.kind = job.kind AND w.key = job.key AND w.state = 'waiting')"
    );
    let replaced = db.run(&replaced, params![id, kind])?;
    let revived =
        format!("UPDATE job SET state = 'waiting', run_at = ?3, attempts = 0 WHERE {chosen}");
    let revived = db.run(&revived, params![id, kind, now])?;
    let sooner =
        "UPDATE job SET run_at = min(run_at, ?2), attempts = 0 WHERE id = ?1 AND state = 'waiting'";
    let sooner =
        if id.is_some() && replaced + revived == 0 { db.run(sooner, params![id, now])? } else { 0 };
    Ok((replaced + revived + sooner) as u64)
}
