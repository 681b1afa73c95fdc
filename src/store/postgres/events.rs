//! Events.

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgExecutor, PgPool};

use super::PostgresStore;
use super::error::TxResult;
use super::rows::{self, get, millis, parse, parsed};
use crate::StoreResult;
use crate::events::{Event, EventStore};
use wharfage_domain::names::AccountId;

#[async_trait::async_trait]
impl EventStore for PostgresStore {
    async fn record_event(&self, event: Event) -> StoreResult<()> {
        self.run(|| record(&self.pool, &event)).await
    }

    async fn list_events(&self, account: &AccountId, limit: usize) -> StoreResult<Vec<Event>> {
        self.run(|| list(&self.pool, account, limit)).await
    }

    async fn prune_events(&self, before: Timestamp, keep: u64, limit: usize) -> StoreResult<u64> {
        self.run(|| prune(&self.pool, before, keep, limit)).await
    }
}

pub(super) async fn record(pool: &PgPool, event: &Event) -> TxResult<()> {
    record_all(pool, std::slice::from_ref(event)).await
}

/// Records events, in the transaction of their cause or alone.
pub(super) async fn record_all<E>(
    executor: impl PgExecutor<'_>,
    events: &[Event],
) -> TxResult<(), E> {
    sqlx::query(
        "INSERT INTO event (at, account_id, repository, kind, detail)
         SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[])",
    )
    .bind(events.iter().map(|event| millis(event.at)).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.account.as_str()).collect::<Vec<_>>())
    .bind(
        events
            .iter()
            .map(|event| event.repository.as_ref().map(AsRef::as_ref))
            .collect::<Vec<Option<&str>>>(),
    )
    .bind(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.detail.as_str()).collect::<Vec<_>>())
    .execute(executor)
    .await?;
    Ok(())
}

pub(super) async fn list(pool: &PgPool, account: &AccountId, limit: usize) -> TxResult<Vec<Event>> {
    let found = sqlx::query("SELECT * FROM event WHERE account_id = $1 ORDER BY id DESC LIMIT $2")
        .bind(account.as_str())
        .bind(rows::limit(limit))
        .fetch_all(pool)
        .await?;
    Ok(found.iter().map(event).collect::<StoreResult<_>>()?)
}

fn event(row: &PgRow) -> StoreResult<Event> {
    let repository: Option<&str> = get(row, "repository")?;
    Ok(Event {
        at: rows::time(row, "at")?,
        account: parsed(row, "account_id")?,
        repository: repository.map(parse).transpose()?,
        kind: get(row, "kind")?,
        detail: get(row, "detail")?,
    })
}

pub(super) async fn prune(
    pool: &PgPool,
    before: Timestamp,
    keep: u64,
    limit: usize,
) -> TxResult<u64> {
    let gone = sqlx::query(
        "DELETE FROM event WHERE id IN (
             SELECT id FROM (SELECT id, at FROM event ORDER BY id LIMIT $3) oldest
             WHERE at < $1 OR id <= (SELECT max(id) FROM event) - $2)",
    )
    .bind(millis(before))
    .bind(rows::signed(keep)?)
    .bind(rows::limit(limit))
    .execute(pool)
    .await?;
    Ok(gone.rows_affected())
}
