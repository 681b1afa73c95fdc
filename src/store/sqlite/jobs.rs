//! Jobs and events.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::{Db, text, text_or_null};
use crate::names::{AccountId, RepositoryName};
use crate::store::jobs::{Event, Job, JobCount, JobEnd, JobFilter, JobState, NewJob, Requeue, StoredJob};
use crate::store::{StoreResult, rows};

pub(super) fn enqueue(db: Db<'_>, job: &NewJob) -> StoreResult<()> {
    let NewJob { kind, key, payload, run_at } = job;
    let sql = "INSERT INTO job (kind, key, state, run_at, attempts, payload) VALUES (?1, ?2, 'waiting', ?3, 0, ?4) \
               ON CONFLICT (kind, key) WHERE state = 'waiting' \
               DO UPDATE SET payload = excluded.payload, run_at = min(run_at, excluded.run_at)";
    db.run(sql, params![kind, key, rows::millis(*run_at), payload]).map(drop)
}

/// The job of these kinds (a JSON array) to be claimed next, if there is one. One that lost its holder comes first, so that no
/// two of a key run at once. Each kind is looked up by itself: a long queue of one does not slow another.
pub(super) fn next(db: Db<'_>, kinds: &str, now: Timestamp, clock: Timestamp) -> StoreResult<Option<i64>> {
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

pub(super) fn claim(
    db: Db<'_>,
    kinds: &str,
    now: Timestamp,
    clock: Timestamp,
    lease: Duration,
) -> StoreResult<Option<Job>> {
    let Some(id) = next(db, kinds, now, clock)? else {
        return Ok(None);
    };
    let sql = "UPDATE job SET state = 'running', lease_until = ?2, attempts = attempts + 1 WHERE id = ?1 \
               RETURNING id, kind, key, payload, attempts";
    db.first(sql, [id, lease_end(clock, lease)], |row| {
        Ok(Job { id: row.get(0)?, kind: row.get(1)?, key: row.get(2)?, payload: row.get(3)?, attempts: row.get(4)? })
    })
}

/// Ends the leases of processes before this one: they are gone, as the database is open in one at a time.
pub(super) fn release_all(db: Db<'_>) -> StoreResult<()> {
    db.run("UPDATE job SET lease_until = 0 WHERE state = 'running' AND lease_until > 0", []).map(drop)
}

/// The end of a lease that begins now, in milliseconds.
fn lease_end(clock: Timestamp, lease: Duration) -> i64 {
    rows::millis(clock).saturating_add(rows::lease(lease))
}

pub(super) fn heartbeat(db: Db<'_>, id: i64, attempts: u32, clock: Timestamp, lease: Duration) -> StoreResult<bool> {
    let sql = "UPDATE job SET lease_until = ?3 WHERE id = ?1 AND attempts = ?2 AND state = 'running'";
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
            let sql = "UPDATE job SET state = 'dead', lease_until = NULL, last_error = ?2 WHERE id = ?1";
            db.run(sql, params![id, error]).map(drop)
        }
        (JobEnd::Retry { at, error }, None) => {
            let sql =
                "UPDATE job SET state = 'waiting', lease_until = NULL, run_at = ?2, last_error = ?3 WHERE id = ?1";
            db.run(sql, params![id, rows::millis(*at), error]).map(drop)
        }
        // The newer one does the work of both; it keeps count of the attempts, on which the next delay depends.
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

pub(super) fn counts(db: Db<'_>, kinds: &str) -> StoreResult<Vec<JobCount>> {
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

pub(super) fn list(db: Db<'_>, filter: &JobFilter, after: Option<i64>, limit: usize) -> StoreResult<Vec<StoredJob>> {
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
    let revived = format!("UPDATE job SET state = 'waiting', run_at = ?3, attempts = 0 WHERE {chosen}");
    let revived = db.run(&revived, params![id, kind, now])?;
    let sooner = "UPDATE job SET run_at = min(run_at, ?2), attempts = 0 WHERE id = ?1 AND state = 'waiting'";
    let sooner = if id.is_some() && replaced + revived == 0 { db.run(sooner, params![id, now])? } else { 0 };
    Ok((replaced + revived + sooner) as u64)
}

pub(super) fn record(db: Db<'_>, event: &Event) -> StoreResult<()> {
    let Event { at, account, repository, kind, detail } = event;
    let sql = "INSERT INTO event (at, account_id, repository, kind, detail) VALUES (?1, ?2, ?3, ?4, ?5)";
    let repository = repository.as_ref().map(RepositoryName::as_str);
    db.run(sql, params![rows::millis(*at), account.as_str(), repository, kind, detail]).map(drop)
}

pub(super) fn prune_events(db: Db<'_>, before: Timestamp, keep: u64, limit: usize) -> StoreResult<u64> {
    let sql = "DELETE FROM event WHERE id IN ( \
                 SELECT id FROM (SELECT id, at FROM event ORDER BY id LIMIT ?3) \
                 WHERE at < ?1 OR id <= (SELECT max(id) FROM event) - ?2)";
    let gone = db.run(sql, params![rows::millis(before), rows::signed(keep)?, rows::limit(limit)])?;
    Ok(gone as u64)
}

pub(super) fn events(db: Db<'_>, account: &AccountId, limit: usize) -> StoreResult<Vec<Event>> {
    let sql = "SELECT at, account_id, repository, kind, detail FROM event WHERE account_id = ?1 \
               ORDER BY id DESC LIMIT ?2";
    db.all(sql, params![account.as_str(), rows::limit(limit)], event)
}

fn event(row: &Row<'_>) -> StoreResult<Event> {
    Ok(Event {
        at: rows::time(row.get(0)?)?,
        account: rows::parse(text(row, 1)?)?,
        repository: text_or_null(row, 2)?.map(rows::parse).transpose()?,
        kind: row.get(3)?,
        detail: row.get(4)?,
    })
}
