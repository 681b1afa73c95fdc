//! The readers: read-only connections of two kinds. A lookup takes microseconds on pages in memory,
//! less than a change of threads, so it runs on the caller's thread. A page of a listing may take
//! milliseconds, so it runs on a blocking thread and on separate connections, where it delays no
//! lookup.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::db::Db;
use crate::StoreError;

/// The connections of one kind. Each thread tries its own one first, so that threads do not contend
/// while there are enough.
#[derive(Debug)]
struct ReadConnections(Box<[Mutex<Connection>]>);

impl ReadConnections {
    fn checkout(&self) -> MutexGuard<'_, Connection> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        let own = OWN.with(|own| *own);
        let connection = |turn: usize| &self.0[(own + turn) % self.0.len()];
        for turn in 0..self.0.len() {
            match connection(turn).try_lock() {
                Ok(guard) => return guard,
                // A read that panicked left nothing half done: statements and snapshots end on
                // drop.
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        connection(0).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a read whose statements all see the same snapshot.
    fn snapshot<T, E: From<StoreError>>(
        &self,
        read: impl FnOnce(Db<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = self.checkout();
        // The drop rolls back, which ends a read transaction as well.
        let _snapshot = connection.unchecked_transaction().map_err(StoreError::from)?;
        read(Db(&connection))
    }
}

/// The readers of a database.
#[derive(Debug)]
pub(super) struct Readers {
    lookups: ReadConnections,
    pages: Arc<ReadConnections>,
    /// One permit for each connection for pages, so that waiting for one blocks no thread.
    permits: Semaphore,
}

impl Readers {
    /// Creates readers on these connections, at least one of each kind.
    pub(super) fn new(lookups: Vec<Connection>, pages: Vec<Connection>) -> Self {
        let permits = Semaphore::new(pages.len());
        let connections =
            |of: Vec<Connection>| ReadConnections(of.into_iter().map(Mutex::new).collect());
        Self { lookups: connections(lookups), pages: Arc::new(connections(pages)), permits }
    }

    /// Runs a lookup on the caller's thread: one statement, or several that may see different
    /// states.
    pub(super) fn read<T, E>(&self, read: impl FnOnce(Db<'_>) -> Result<T, E>) -> Result<T, E> {
        read(Db(&self.lookups.checkout()))
    }

    /// Runs a longer read on a blocking thread. All its statements see the same snapshot.
    pub(super) async fn page<T, E>(
        &self,
        read: impl FnOnce(Db<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let failed = |error: String| StoreError::Backend(error.into());
        let _permit = self.permits.acquire().await.map_err(|error| failed(error.to_string()))?;
        let pages = Arc::clone(&self.pages);
        let read = tokio::task::spawn_blocking(move || pages.snapshot(read));
        read.await.map_err(|error| failed(format!("a read ended early: {error}")))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreResult;

    fn readers() -> Readers {
        let connection = || Connection::open_in_memory().unwrap();
        Readers::new(vec![connection()], vec![connection()])
    }

    #[tokio::test]
    async fn a_slow_page_delays_neither_lookups_nor_async_threads() {
        let readers = Arc::new(readers());
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (started, has_started) = tokio::sync::oneshot::channel();
        let slow = Arc::clone(&readers);
        // The runtime has this one thread: if the page blocked it, the page would never be
        // released.
        let page = tokio::spawn(async move {
            let read = move |_: Db<'_>| {
                let _ = started.send(());
                StoreResult::Ok(held.recv().is_ok())
            };
            slow.page(read).await
        });
        has_started.await.unwrap();
        let found = readers.read(|db| db.exists("SELECT 1", []));
        assert!(found.unwrap());
        release.send(()).unwrap();
        assert!(page.await.unwrap().unwrap());
    }
}
