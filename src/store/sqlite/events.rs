//! Events.

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::SqliteStore;
use super::db::Db;
use super::rows::{self, optional_parsed, parsed};
use crate::StoreResult;
use crate::events::{Event, EventStore};
use wharfage_domain::names::{AccountId, RepositoryName};

#[async_trait::async_trait]
impl EventStore for SqliteStore {
    async fn record_event(&self, event: Event) -> StoreResult<()> {
        self.writer.write(move |db| record(db, &event)).await
    }

    async fn list_events(&self, account: &AccountId, limit: usize) -> StoreResult<Vec<Event>> {
        let account = account.clone();
        self.readers.page(move |db| list(db, &account, limit)).await
    }

    async fn prune_events(&self, before: Timestamp, keep: u64, limit: usize) -> StoreResult<u64> {
        self.writer.write(move |db| prune(db, before, keep, limit)).await
    }
}

pub(super) fn record(db: Db<'_>, event: &Event) -> StoreResult<()> {
    let Event { at, account, repository, kind, detail } = event;
    let sql =
        "INSERT INTO event (at, account_id, repository, kind, detail) VALUES (?1, ?2, ?3, ?4, ?5)";
    let repository = repository.as_ref().map(RepositoryName::as_str);
    db.run(sql, params![rows::millis(*at), account.as_str(), repository, kind, detail]).map(drop)
}

pub(super) fn list(db: Db<'_>, account: &AccountId, limit: usize) -> StoreResult<Vec<Event>> {
    let sql = "SELECT at, account_id, repository, kind, detail FROM event WHERE account_id = ?1 \
               ORDER BY id DESC LIMIT ?2";
    db.all(sql, params![account.as_str(), rows::limit(limit)], event)
}

fn event(row: &Row<'_>) -> StoreResult<Event> {
    Ok(Event {
        at: rows::time(row.get(0)?)?,
        account: parsed(row, 1)?,
        repository: optional_parsed(row, 2)?,
        kind: row.get(3)?,
        detail: row.get(4)?,
    })
}

pub(super) fn prune(db: Db<'_>, before: Timestamp, keep: u64, limit: usize) -> StoreResult<u64> {
    let sql = "DELETE FROM event WHERE id IN ( \
                 SELECT id FROM (SELECT id, at FROM event ORDER BY id LIMIT ?3) \
                 WHERE at < ?1 OR id <= (SELECT max(id) FROM event) - ?2)";
    let gone =
        db.run(sql, params![rows::millis(before), rows::signed(keep)?, rows::limit(limit)])?;
    Ok(gone as u64)
}
