//! What scopes hold. Triggers keep a row for each: there is one writer, so nobody waits for it.

use super::db::Db;
use crate::store::{StoreResult, rows};

/// The items and bytes of a scope.
pub(super) fn of(db: Db<'_>, scope: &str) -> StoreResult<(u64, u64)> {
    let sql = "SELECT items, bytes FROM usage WHERE scope = ?1";
    let usage = db.first(sql, [scope], |row| Ok((rows::unsigned(row.get(0)?)?, rows::unsigned(row.get(1)?)?)))?;
    Ok(usage.unwrap_or_default())
}
