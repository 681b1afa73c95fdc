//! The readers: read-only connections of two sorts. A look-up is microseconds of work on pages in memory, less than a change of
//! threads would cost, and runs on the caller's own thread. A page of a listing may take milliseconds and runs on a thread that
//! may block, on connections of its own: it never keeps a look-up waiting.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::db::Db;
use crate::store::StoreError;

/// The connections of one sort. Each thread has one that it tries first, so that threads do not meet as long as there are enough.
#[derive(Debug)]
struct Connections(Box<[Mutex<Connection>]>);

impl Connections {
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
                // A read that panicked has left nothing half done: statements and snapshots end when they are dropped.
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        connection(0).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a read whose statements all see the same state.
    fn snapshot<T, E: From<StoreError>>(&self, read: impl FnOnce(Db<'_>) -> Result<T, E>) -> Result<T, E> {
        let connection = self.checkout();
        // Rolls back when dropped, which ends a read just as well.
        let _snapshot = connection.unchecked_transaction().map_err(StoreError::from)?;
        read(Db(&connection))
    }
}

/// The readers of a database.
#[derive(Debug)]
pub(super) struct Readers {
    lookups: Connections,
    pages: Arc<Connections>,
    /// As many as there are connections for pages: who waits for one blocks no thread.
    places: Semaphore,
}

impl Readers {
    /// Readers on these connections; there is at least one of each sort.
    pub(super) fn new(lookups: Vec<Connection>, pages: Vec<Connection>) -> Self {
        let places = Semaphore::new(pages.len());
        let connections = |of: Vec<Connection>| Connections(of.into_iter().map(Mutex::new).collect());
        Self { lookups: connections(lookups), pages: Arc::new(connections(pages)), places }
    }

    /// Looks something up: one statement, or several that need not agree.
    pub(super) fn read<T, E>(&self, read: impl FnOnce(Db<'_>) -> Result<T, E>) -> Result<T, E> {
        read(Db(&self.lookups.checkout()))
    }

    /// Reads what may take long, away from the threads that answer requests. All of it sees the same state.
    pub(super) async fn page<T, E>(&self, read: impl FnOnce(Db<'_>) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let failed = |error: String| StoreError::Backend(error.into());
        let _place = self.places.acquire().await.map_err(|error| failed(error.to_string()))?;
        let pages = Arc::clone(&self.pages);
        let read = tokio::task::spawn_blocking(move || pages.snapshot(read));
        read.await.map_err(|error| failed(format!("a read ended early: {error}")))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreResult;

    fn readers() -> Readers {
        let connection = || Connection::open_in_memory().unwrap();
        Readers::new(vec![connection()], vec![connection()])
    }

    #[tokio::test]
    async fn a_page_that_takes_long_keeps_neither_look_ups_nor_the_threads_of_requests_waiting() {
        let readers = Arc::new(readers());
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (started, has_started) = tokio::sync::oneshot::channel();
        let slow = Arc::clone(&readers);
        // The runtime has this one thread: what blocked it would never be released.
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
