//! The database's file: its lock, its folder, and how connections to it are opened.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::lock::ProcessLock;
use crate::{StoreError, StoreResult};

/// Settings of every connection. With the write-ahead log, NORMAL would lose acknowledged commits
/// in a power cut, so FULL. Each connection's page cache is small because the operating system
/// caches the file too.
const SETTINGS: &str = "PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; \
                        PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;";
/// Settings of the writer: 8 MiB of cache. The log is copied back at 16 MiB, so that a burst of
/// pushes is not interrupted often.
pub(super) const WRITER_SETTINGS: &str =
    "PRAGMA cache_size = -8192; PRAGMA wal_autocheckpoint = 4096;";
/// Settings of the readers: 2 MiB of cache each.
pub(super) const READER_SETTINGS: &str = "PRAGMA cache_size = -2048; PRAGMA query_only = ON;";
/// Capacity of a connection's cache of prepared statements: more than there are.
const STATEMENTS: usize = 128;

/// Opens a connection with [`SETTINGS`] and `settings`.
pub(super) fn connect(path: &Path, flags: OpenFlags, settings: &str) -> StoreResult<Connection> {
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.execute_batch(SETTINGS)?;
        connection.execute_batch(settings)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(connection)
    };
    open().map_err(|error| {
        let error = StoreError::from(error);
        StoreError::Backend(
            format!("the database {} cannot be opened: {error}", path.display()).into(),
        )
    })
}

/// Takes the lock that keeps out a second process. Two writers would only wait for each other, and
/// two job runners would each assume to be the only one.
pub(super) fn lock(path: &Path) -> StoreResult<ProcessLock> {
    let database = format!("the database {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| {
            StoreError::Unavailable(format!("{database}: its folder cannot be made: {error}"))
        })?;
    }
    let mut lock = PathBuf::from(path).into_os_string();
    lock.push(".lock");
    ProcessLock::take(&PathBuf::from(lock), &database, "wharfage")
}

/// Returns the folder of the database.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the file's name as durable as its contents.
pub(super) fn sync_folder(path: &Path) -> StoreResult<()> {
    let folder = folder_of(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| {
        StoreError::Unavailable(format!(
            "the folder {} cannot be synced: {error}",
            folder.display()
        ))
    })
}
