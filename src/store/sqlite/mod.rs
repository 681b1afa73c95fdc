//! The metadata contract on SQLite, in one file: one writer that groups commits, and readers on the
//! callers' threads.
//!
//! This file opens the database. Each module below implements one resource's trait, with its
//! queries as plain functions over a connection; `postgres` has the same modules and functions.
//! Beside them: `file` (paths, lock, connections), `schema`, `copy`, `writer`, `readers`, `probe`, and `db`
//! and `rows` (statements and columns).

mod copy;
mod db;
mod events;
mod file;
mod image_batches;
mod image_deletion;
mod image_rows;
mod images;
mod jobs;
mod layers;
mod manifests;
mod previews;
mod probe;
mod readers;
mod registries;
mod repositories;
mod repository_deletion;
mod rows;
mod schema;
mod storage_class;
mod uploads;
mod usage;
mod writer;

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use self::db::Db;
use self::file::{READER_SETTINGS, WRITER_SETTINGS, connect, folder_of};
use self::probe::Probe;
use self::readers::Readers;
use self::writer::Writer;
use super::disk::Disk;
use super::lock::ProcessLock;
use super::{Metadata, StoreError, StoreResult};

/// The metadata in an SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    // The order matters: the writer's connection closes last, which empties the log, and then the
    // lock is released.
    readers: Readers,
    probe: Probe,
    writer: Writer,
    disk: Arc<Disk>,
    _lock: Option<ProcessLock>,
}

impl SqliteStore {
    /// Opens the database at `path`, and brings its schema up to date. Creates the database and its
    /// folder if they do not exist.
    ///
    /// # Errors
    /// When another process has it open, when a newer version of this program wrote it that this one
    /// cannot work with, when there is no space to copy it before its schema changes, or when SQLite
    /// fails.
    pub fn open(path: &Path) -> StoreResult<Self> {
        let lock = file::lock(path)?;
        // Adjusts the reserve before the database is opened, which takes some space. So the store
        // starts on a full disk and serves what it has.
        let disk = Disk::with_reserve(folder_of(path));
        let mut connection = connect(path, OpenFlags::default(), WRITER_SETTINGS)?;
        schema::migrate(&mut connection, path)?;
        let db = Db(&connection);
        if let Err(error) = uploads::release_all(db).and_then(|()| jobs::release_all(db)) {
            // The claims expire by themselves.
            tracing::warn!(%error, "cannot release the claims of the previous process; they expire after a while");
        }
        file::sync_folder(path)?;
        Self::start(path, connection, Some(lock), disk)
    }

    /// Opens a database that another process may have open, for a few short transactions and not
    /// for serving. SQLite's own locks order the transactions of the two processes. Creates
    /// nothing, and requires the schema of this version.
    ///
    /// # Errors
    /// When the database does not exist, when its schema is of another version, or when SQLite
    /// fails.
    pub fn open_beside(path: &Path) -> StoreResult<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI;
        let connection = connect(path, flags, WRITER_SETTINGS)?;
        schema::check(&connection, path)?;
        Self::start(path, connection, None, Disk::new(folder_of(path)))
    }

    fn start(
        path: &Path,
        connection: Connection,
        lock: Option<ProcessLock>,
        disk: Disk,
    ) -> StoreResult<Self> {
        let disk = Arc::new(disk);
        let reserve = Arc::clone(&disk);
        let writer = Writer::start(connection, move || reserve.adjust_reserve())?;
        // One reader for each core, on which a request's thread runs, and one more; as many for
        // pages.
        let readers =
            std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8)) + 1;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI;
        let reader = |_| connect(path, flags, READER_SETTINGS);
        let connections = || (0..readers).map(reader).collect::<StoreResult<Vec<Connection>>>();
        let probe = Probe::new(reader(0)?, Arc::clone(&disk));
        Ok(Self {
            readers: Readers::new(connections()?, connections()?),
            probe,
            writer,
            disk,
            _lock: lock,
        })
    }

    /// Returns the disk that holds the database, with its reserve.
    pub fn disk(&self) -> Arc<Disk> {
        Arc::clone(&self.disk)
    }

    /// Runs an operation that takes `bytes` or more of space, unless the disk is too full; see
    /// [`Disk::admit`].
    async fn grow<T, E>(
        &self,
        bytes: usize,
        operation: impl FnOnce(Db<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.disk.admit(bytes as u64)?;
        self.writer.write(operation).await
    }
}

#[async_trait::async_trait]
impl Metadata for SqliteStore {
    async fn ready(&self) -> StoreResult<()> {
        self.probe.read().await?;
        // A database that takes no writes is not ready; a busy one is.
        self.writer.check().await?;
        self.disk.admit(0)
    }
}
