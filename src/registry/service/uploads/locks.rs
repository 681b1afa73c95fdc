//! Locks of the upload sessions that this process serves, so that requests to one session run one
//! after the other without polling the store.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

/// The locked sessions of this process.
#[derive(Debug, Default)]
pub(crate) struct SessionLocks {
    locked: Mutex<HashSet<Uuid>>,
    released: Notify,
}

impl SessionLocks {
    /// Waits until no other request of this process uses the session.
    pub(super) async fn lock(self: &Arc<Self>, id: Uuid) -> SessionLock {
        loop {
            let released = self.released.notified();
            if self.ids().insert(id) {
                return SessionLock { locks: Arc::clone(self), id };
            }
            released.await;
        }
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, HashSet<Uuid>> {
        // A set of ids is never half changed, so a panic elsewhere does no harm.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lock of one session, released when dropped.
#[derive(Debug)]
pub(super) struct SessionLock {
    locks: Arc<SessionLocks>,
    id: Uuid,
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        self.locks.ids().remove(&self.id);
        self.locks.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_to_one_session_run_one_after_the_other() {
        let locks = Arc::new(SessionLocks::default());
        let id = Uuid::new_v4();
        let first = locks.lock(id).await;
        let waiting = tokio::spawn({
            let locks = Arc::clone(&locks);
            async move { drop(locks.lock(id).await) }
        });
        drop(locks.lock(Uuid::new_v4()).await);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }
}
