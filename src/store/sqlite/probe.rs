//! Readiness: a separate connection, so that the probe waits for no other operation.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;

use super::db::Db;
use crate::disk::Disk;
use crate::{StoreError, StoreResult};

/// Checks that the database can be read.
#[derive(Debug)]
pub(super) struct Probe {
    connection: Arc<Mutex<Connection>>,
    disk: Arc<Disk>,
}

impl Probe {
    pub(super) fn new(connection: Connection, disk: Arc<Disk>) -> Self {
        Self { connection: Arc::new(Mutex::new(connection)), disk }
    }

    /// Reads from the database's file, and adjusts the disk's reserve.
    pub(super) async fn read(&self) -> StoreResult<()> {
        let (connection, disk) = (Arc::clone(&self.connection), Arc::clone(&self.disk));
        let read = move || -> StoreResult<()> {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            // A statement without a table would not touch the file.
            Db(&connection).exists("SELECT 1 FROM sqlite_schema", [])?;
            disk.adjust_reserve();
            Ok(())
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| StoreError::Backend(Box::new(error)))?
    }
}
