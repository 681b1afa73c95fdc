//! The schema's versions, applied in order at start.

use std::path::Path;

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

use crate::{StoreError, StoreResult};

/// The schema's versions. A released version is never edited: a change is a new one.
const MIGRATIONS: &[M<'_>] = &[
    M::up(include_str!("migrations/0001_initial.sql")),
    M::up(include_str!("migrations/0002_registry.sql")),
    M::up(include_str!("migrations/0003_images.sql")).foreign_key_check(),
    M::up(include_str!("migrations/0004_upload_claims.sql")),
    M::up(include_str!("migrations/0005_jobs.sql")),
    M::up(include_str!("migrations/0015_pages.sql")),
    M::up(include_str!("migrations/0016_archived.sql")),
    M::up(include_str!("migrations/0017_preview_results.sql")),
    M::up(include_str!("migrations/0018_protocol_state.sql")),
];

/// Brings the schema to this version.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> StoreResult<()> {
    let version = version(connection)?;
    let known = MIGRATIONS.len() as i64;
    if version > known {
        return Err(StoreError::Unavailable(format!(
            "the database {} was written by a newer version of this program: its schema is {version}, this program \
             knows {known}; start the newer version again, or restore a backup",
            path.display()
        )));
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Rebuilding a table drops the old one, which would delete all rows that refer to it.
    connection.pragma_update(None, "foreign_keys", false)?;
    let migrated = Migrations::from_slice(MIGRATIONS).to_latest(connection);
    connection.pragma_update(None, "foreign_keys", true)?;
    migrated.map_err(|error| StoreError::Backend(Box::new(error)))
}

/// Refuses a schema of another version.
pub(super) fn check(connection: &Connection, path: &Path) -> StoreResult<()> {
    let version = version(connection)?;
    let known = MIGRATIONS.len() as i64;
    if version == known {
        return Ok(());
    }
    Err(StoreError::Unavailable(format!(
        "the database {} has schema {version}, this program knows {known}: use the program that serves it",
        path.display()
    )))
}

fn version(connection: &Connection) -> StoreResult<i64> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Creates an empty database for tests of single statements.
#[cfg(test)]
pub(super) fn in_memory() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate(&mut connection, Path::new(":memory:")).unwrap();
    connection
}
