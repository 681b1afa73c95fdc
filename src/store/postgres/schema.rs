//! The schema's versions, applied in order at start, under an advisory lock.

use std::sync::LazyLock;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{PgConnection, SqlSafeStr as _};

use super::error::store_error;
use crate::{StoreError, StoreResult};

/// The migrations: the name and the statements of each file in `migrations/`.
// Not by `sqlx::migrate!`: that macro has the compiler build sqlx and its TLS library once more,
// for itself.
const FILES: [(&str, &str); 10] = [
    ("0001_initial.sql", include_str!("migrations/0001_initial.sql")),
    ("0002_registry.sql", include_str!("migrations/0002_registry.sql")),
    ("0003_images.sql", include_str!("migrations/0003_images.sql")),
    ("0004_upload_claims.sql", include_str!("migrations/0004_upload_claims.sql")),
    ("0005_jobs.sql", include_str!("migrations/0005_jobs.sql")),
    ("0015_pages.sql", include_str!("migrations/0015_pages.sql")),
    ("0016_archived.sql", include_str!("migrations/0016_archived.sql")),
    ("0017_preview_results.sql", include_str!("migrations/0017_preview_results.sql")),
    ("0018_protocol_state.sql", include_str!("migrations/0018_protocol_state.sql")),
    ("0020_compatibility.sql", include_str!("migrations/0020_compatibility.sql")),
];

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = Migrator::with_migrations(
        FILES.iter().map(|(name, statements)| migration(name, statements)).collect(),
    );
    // Newer versions are accepted or refused by what the schema says of itself.
    migrator.set_ignore_missing(true);
    migrator
});

/// The migration in the file `VERSION_DESCRIPTION.sql`.
fn migration(name: &'static str, statements: &'static str) -> Migration {
    let parts = name.strip_suffix(".sql").and_then(|name| name.split_once('_'));
    let (version, description) = parts.expect("the names of FILES are as the test wants them");
    let version = version.parse().expect("the names of FILES are as the test wants them");
    Migration::new(
        version,
        description.replace('_', " ").into(),
        MigrationType::Simple,
        statements.into_sql_str(),
        false,
    )
}

/// Brings the schema to this version, or accepts a newer one that programs of this version can work
/// with. The lock belongs to the session: after an error it is held until the connection ends.
pub(super) async fn migrate(connection: &mut PgConnection) -> StoreResult<()> {
    MIGRATIONS.run_direct(None, &mut *connection, false).await.map_err(|error| match error {
        MigrateError::Execute(error) => store_error(error),
        MigrateError::VersionMismatch(version) => refused(format!(
            "version {version} of the database's schema is not the one that this Wharfage has under that number: it may \
             have been made by an unreleased version; use another database"
        )),
        MigrateError::Dirty(version) => refused(format!(
            "version {version} of the database's schema was applied in part: restore the database from before it"
        )),
        other => StoreError::Backend(Box::new(other)),
    })?;
    require_compatible(connection).await
}

/// Returns the version that this program knows.
fn known() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Refuses a newer schema that programs of this version cannot work with.
async fn require_compatible(connection: &mut PgConnection) -> StoreResult<()> {
    let read = sqlx::query_as(
        "SELECT (SELECT max(version) FROM _sqlx_migrations), (SELECT max(oldest) FROM schema_compatibility)",
    );
    let (version, oldest): (Option<i64>, Option<i64>) =
        read.fetch_one(connection).await.map_err(store_error)?;
    let (version, known) = (version.unwrap_or(0), known());
    if version <= known || oldest.is_some_and(|oldest| oldest <= known) {
        return Ok(());
    }
    Err(refused(format!(
        "the database's schema has version {version}, this Wharfage knows versions up to {known}, and the schema cannot be \
         used with it: run the newer Wharfage again, or restore the database from before its upgrade"
    )))
}

/// Refuses a schema of an older version, and a newer one that this program cannot work with.
pub(super) async fn check(connection: &mut PgConnection) -> StoreResult<()> {
    let version: Result<Option<i64>, _> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&mut *connection)
            .await;
    let known = known();
    match version {
        Ok(Some(version)) if version >= known => require_compatible(connection).await,
        Ok(version) => Err(refused(format!(
            "the database's schema has version {}, this Wharfage knows {known}: use the Wharfage that serves it",
            version.unwrap_or(0),
        ))),
        // There is no such table.
        Err(sqlx::Error::Database(report)) if report.code().as_deref() == Some("42P01") => {
            Err(refused(
                "the database holds no registry: give the one that a registry serves from"
                    .to_owned(),
            ))
        }
        Err(error) => Err(store_error(error)),
    }
}

fn refused(reason: String) -> StoreError {
    StoreError::Backend(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_in_the_folder_is_a_migration() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/postgres/migrations");
        let files = std::fs::read_dir(folder)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<_> = files.collect();
        files.sort();
        assert_eq!(files, FILES.map(|(name, _)| name));
        let versions = MIGRATIONS.iter().map(|it| it.version).collect::<Vec<_>>();
        let numbers = files.iter().map(|it| it[..4].parse::<i64>().unwrap()).collect::<Vec<_>>();
        assert_eq!(versions, numbers);
    }
}
