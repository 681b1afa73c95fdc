//! Jobs and events.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::{Db, text, text_or_null};
use crate::names::{AccountId, RepositoryName};
use crate::store::jobs::{Event, Job, JobCount, JobEnd, NewJob};
use crate::store::{StoreResult, rows};

/// Events that are kept; older ones go, so that a busy registry's table does not grow for ever.
const EVENTS_KEPT: i64 = 100_000;
/// Old events go in bunches of so many.
const EVENTS_PRUNED: i64 = 1_000;

pub(super) fn enqueue(db: Db<'_>, job: &NewJob) -> StoreResult<()> {
    let NewJob { kind, key, payload, run_at } = job;
    let sql = "INSERT INTO job (kind, key, state, run_at, attempts, payload) VALUES (?1, ?2, 'waiting', ?3, 0, ?4) \
               ON CONFLICT (kind, key) WHERE state = 'waiting' \
               DO UPDATE SET payload = excluded.payload, run_at = min(run_at, excluded.run_at)";
    db.run(sql, params![kind, key, rows::millis(*run_at), payload]).map(drop)
}

/// The job of these kinds (a JSON array) that is to be claimed next. One that lost its holder comes before its like that
/// wait, so that no two of a key run at once. Each kind is looked up by itself: a long queue of one does not slow another.
pub(super) fn next(db: Db<'_>, kinds: &str, now: Timestamp) -> StoreResult<Option<i64>> {
    db.first(NEXT, params![kinds, rows::millis(now)], |row| Ok(row.get(0)?))
}

const NEXT: &str = "SELECT j.id FROM json_each(?1) k JOIN job j ON j.id IN ( \
                      (SELECT w.id FROM job w WHERE w.kind = k.value AND w.state = 'waiting' AND w.run_at <= ?2 \
                       AND NOT EXISTS (SELECT 1 FROM job r \
                                       WHERE r.kind = w.kind AND r.key = w.key AND r.state = 'running') \
                       ORDER BY w.run_at, w.id LIMIT 1), \
                      (SELECT r.id FROM job r WHERE r.kind = k.value AND r.state = 'running' \
                       AND r.lease_until <= ?2 ORDER BY r.run_at, r.id LIMIT 1)) \
                    ORDER BY j.run_at, j.id LIMIT 1";

pub(super) fn claim(db: Db<'_>, kinds: &str, now: Timestamp, lease: Duration) -> StoreResult<Option<Job>> {
    let Some(id) = next(db, kinds, now)? else {
        return Ok(None);
    };
    let lease = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    let sql = "UPDATE job SET state = 'running', lease_until = ?2, attempts = attempts + 1 WHERE id = ?1 \
               RETURNING id, kind, key, payload, attempts";
    db.first(sql, [id, rows::millis(now).saturating_add(lease)], |row| {
        Ok(Job { id: row.get(0)?, kind: row.get(1)?, key: row.get(2)?, payload: row.get(3)?, attempts: row.get(4)? })
    })
}

pub(super) fn heartbeat(db: Db<'_>, id: i64, attempts: u32, lease_until: Timestamp) -> StoreResult<bool> {
    let sql = "UPDATE job SET lease_until = ?3 WHERE id = ?1 AND attempts = ?2 AND state = 'running'";
    Ok(db.run(sql, params![id, attempts, rows::millis(lease_until)])? > 0)
}

pub(super) fn end(db: Db<'_>, id: i64, attempts: u32, end: &JobEnd) -> StoreResult<()> {
    let sql = "SELECT (SELECT w.id FROM job w WHERE w.kind = r.kind AND w.key = r.key AND w.state = 'waiting') \
               FROM job r WHERE r.id = ?1 AND r.attempts = ?2 AND r.state = 'running'";
    let held: Option<Option<i64>> = db.first(sql, params![id, attempts], |row| Ok(row.get(0)?))?;
    let Some(behind) = held else {
        return Ok(());
    };
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

pub(super) fn counts(db: Db<'_>) -> StoreResult<Vec<JobCount>> {
    db.all("SELECT kind, state, count(*) FROM job GROUP BY kind, state ORDER BY kind, state", [], |row| {
        Ok(JobCount { kind: row.get(0)?, state: row.get(1)?, count: rows::unsigned(row.get(2)?)? })
    })
}

pub(super) fn record(db: Db<'_>, event: &Event) -> StoreResult<()> {
    let Event { at, account, repository, kind, detail } = event;
    let sql = "INSERT INTO event (at, account_id, repository, kind, detail) VALUES (?1, ?2, ?3, ?4, ?5)";
    let repository = repository.as_ref().map(RepositoryName::as_str);
    let id = db.insert(sql, params![rows::millis(*at), account.as_str(), repository, kind, detail])?;
    if id % EVENTS_PRUNED == 0 {
        db.run("DELETE FROM event WHERE id <= ?1", [id - EVENTS_KEPT])?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_events_go_as_new_ones_come() {
        let connection = super::super::in_memory();
        let event = Event {
            at: Timestamp::UNIX_EPOCH,
            account: "123456789012".parse().unwrap(),
            repository: None,
            kind: "ECR Image Action".into(),
            detail: "{}".into(),
        };
        for id in [1, EVENTS_PRUNED, EVENTS_PRUNED + 1, EVENTS_KEPT + EVENTS_PRUNED - 1] {
            let sql = "INSERT INTO event (id, at, account_id, kind, detail) VALUES (?1, 0, '123456789012', '', '{}')";
            connection.execute(sql, [id]).unwrap();
        }
        record(Db(&connection), &event).unwrap();
        let ids = Db(&connection).all("SELECT id FROM event ORDER BY id", [], |row| Ok(row.get::<_, i64>(0)?)).unwrap();
        assert_eq!(ids, [1, EVENTS_KEPT - 1, EVENTS_KEPT].map(|id| id + EVENTS_PRUNED));
    }
}
