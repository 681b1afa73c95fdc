//! The readers: a few read-only connections, used on the caller's own thread. A read is microseconds of work on pages in
//! memory, less than a change of threads would cost.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rusqlite::Connection;

use super::db::Db;
use crate::store::StoreError;

/// The connections. Each thread has one that it tries first, so that threads do not meet as long as there are enough.
#[derive(Debug)]
pub(super) struct Readers {
    connections: Box<[Mutex<Connection>]>,
}

impl Readers {
    /// Readers on these connections, of which there is at least one.
    pub(super) fn new(connections: impl IntoIterator<Item = Connection>) -> Self {
        Self { connections: connections.into_iter().map(Mutex::new).collect() }
    }

    /// Runs a read of one statement, or of several that need not agree.
    pub(super) fn read<T, E>(&self, read: impl FnOnce(Db<'_>) -> Result<T, E>) -> Result<T, E> {
        read(Db(&self.checkout()))
    }

    /// Runs a read whose statements all see the same state.
    pub(super) fn snapshot<T, E: From<StoreError>>(&self, read: impl FnOnce(Db<'_>) -> Result<T, E>) -> Result<T, E> {
        let connection = self.checkout();
        // Rolls back when dropped, which ends a read just as well.
        let _snapshot = connection.unchecked_transaction().map_err(StoreError::from)?;
        read(Db(&connection))
    }

    fn checkout(&self) -> MutexGuard<'_, Connection> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        let own = OWN.with(|own| *own);
        let connection = |turn: usize| &self.connections[(own + turn) % self.connections.len()];
        for turn in 0..self.connections.len() {
            match connection(turn).try_lock() {
                Ok(guard) => return guard,
                // A read that panicked has left nothing half done: statements and snapshots end when they are dropped.
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        connection(0).lock().unwrap_or_else(PoisonError::into_inner)
    }
}
