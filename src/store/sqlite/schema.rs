//! The schema's versions, applied in order at start.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};
use rusqlite_migration::{M, Migrations};

use super::copy;
use crate::{StoreError, StoreResult};

/// The schema's versions. A released version is never edited: a change is a new one. A version that the previous program
/// cannot work with says so in `schema_compatibility`.
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
    M::up(include_str!("migrations/0020_compatibility.sql")),
];

/// Brings the schema to this version. Copies the database before, if it has another version. Accepts a newer schema that
/// programs of this version can work with.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> StoreResult<()> {
    let version = version(connection)?;
    let known = MIGRATIONS.len() as i64;
    if version >= known {
        require_compatible(connection, path, version)?;
        return Ok(connection.pragma_update(None, "journal_mode", "WAL")?);
    }
    if version > 0 {
        copy::before_migration(connection, path, version)?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Rebuilding a table drops the old one, which would delete all rows that refer to it.
    connection.pragma_update(None, "foreign_keys", false)?;
    let migrated = Migrations::from_slice(MIGRATIONS).to_latest(connection);
    connection.pragma_update(None, "foreign_keys", true)?;
    migrated.map_err(|error| StoreError::Backend(Box::new(error)))
}

/// Refuses a schema of an older version, and a newer one that this program cannot work with.
pub(super) fn check(connection: &Connection, path: &Path) -> StoreResult<()> {
    let version = version(connection)?;
    let known = MIGRATIONS.len() as i64;
    if version >= known {
        return require_compatible(connection, path, version);
    }
    Err(StoreError::Unavailable(format!(
        "the database {} has schema {version}, this program knows {known}: use the program that serves it",
        path.display()
    )))
}

/// Refuses a newer schema that programs of this version cannot work with.
fn require_compatible(connection: &Connection, path: &Path, version: i64) -> StoreResult<()> {
    let known = MIGRATIONS.len() as i64;
    if version == known || oldest_program(connection)?.is_some_and(|oldest| oldest <= known) {
        return Ok(());
    }
    Err(StoreError::Unavailable(format!(
        "the database {} was written by a newer version of this program: its schema is {version}, this program knows \
         {known}; start the newer version again, or restore the copy {}",
        path.display(),
        copy::path_of(path, known).display(),
    )))
}

/// Returns the oldest schema version whose programs can work with this database, if it says so.
fn oldest_program(connection: &Connection) -> StoreResult<Option<i64>> {
    const IS_THERE: &str = "SELECT 1 FROM sqlite_schema WHERE name = 'schema_compatibility'";
    if connection.query_row(IS_THERE, [], |_| Ok(())).optional()?.is_none() {
        return Ok(None);
    }
    let oldest = "SELECT max(oldest) FROM schema_compatibility";
    Ok(connection.query_row(oldest, [], |row| row.get(0))?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_in_the_folder_is_a_migration() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/sqlite/migrations");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), MIGRATIONS.len());
    }
}
