//! The schema's versions: applied at start, in order, under an advisory lock.

use sqlx::PgConnection;
use sqlx::migrate::{MigrateError, Migrator};

use super::failure::store_error;
use crate::store::{StoreError, StoreResult};

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/postgres/migrations");

/// Brings the schema to this version's. The lock is the session's: an error leaves it to the connection's end.
pub(super) async fn migrate(connection: &mut PgConnection) -> StoreResult<()> {
    MIGRATIONS.run_direct(None, connection, false).await.map_err(|error| match error {
        MigrateError::Execute(error) => store_error(error),
        MigrateError::VersionMissing(version) => refused(format!(
            "the database's schema has version {version}, this Wharfage knows versions up to {}: run the newer Wharfage \
             again, or restore the database from before its upgrade",
            MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
        )),
        MigrateError::VersionMismatch(version) => refused(format!(
            "version {version} of the database's schema is not the one that this Wharfage has under that number: it may \
             have been made by an unreleased version; use another database"
        )),
        MigrateError::Dirty(version) => refused(format!(
            "version {version} of the database's schema was applied in part: restore the database from before it"
        )),
        other => StoreError::Backend(Box::new(other)),
    })
}

fn refused(why: String) -> StoreError {
    StoreError::Backend(why.into())
}
