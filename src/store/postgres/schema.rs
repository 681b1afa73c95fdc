//! The schema's versions, applied in order at start, under an advisory lock.
//!
//! (A new migration takes effect when this file is compiled again: touch it.)

use sqlx::PgConnection;
use sqlx::migrate::{MigrateError, Migrator};

use super::error::store_error;
use crate::{StoreError, StoreResult};

static MIGRATIONS: Migrator = sqlx::migrate!("postgres/migrations");

/// Brings the schema to this version. The lock belongs to the session: after an error it is held until
/// the connection ends.
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

/// Refuses a schema of another version.
pub(super) async fn check(connection: &mut PgConnection) -> StoreResult<()> {
    let version: Result<Option<i64>, _> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await;
    let known = MIGRATIONS.iter().map(|migration| migration.version).max();
    match version {
        Ok(version) if version == known => Ok(()),
        Ok(version) => Err(refused(format!(
            "the database's schema has version {}, this Wharfage knows {}: use the Wharfage that serves it",
            version.unwrap_or(0),
            known.unwrap_or(0)
        ))),
        // There is no such table.
        Err(sqlx::Error::Database(report)) if report.code().as_deref() == Some("42P01") => {
            Err(refused("the database holds no registry: give the one that a registry serves from".to_owned()))
        }
        Err(error) => Err(store_error(error)),
    }
}

fn refused(reason: String) -> StoreError {
    StoreError::Backend(reason.into())
}
