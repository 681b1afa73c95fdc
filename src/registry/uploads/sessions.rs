//! The sessions that this process serves, so that requests to one come one after the other without asking the store.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

/// The sessions that requests of this process are about.
#[derive(Debug, Default)]
pub struct Sessions {
    open: Mutex<HashSet<Uuid>>,
    released: Notify,
}

impl Sessions {
    /// Waits until no other request of this process is about the session.
    pub(super) async fn turn(self: &Arc<Self>, id: Uuid) -> Turn {
        loop {
            let released = self.released.notified();
            if self.lock().insert(id) {
                return Turn { sessions: Arc::clone(self), id };
            }
            released.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Uuid>> {
        // A set of ids cannot be half changed, so a panic elsewhere leaves nothing to fear in it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to be about a session, given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    sessions: Arc<Sessions>,
    id: Uuid,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
        self.sessions.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_to_one_session_come_one_after_the_other() {
        let sessions = Arc::new(Sessions::default());
        let id = Uuid::new_v4();
        let first = sessions.turn(id).await;
        let waiting = tokio::spawn({
            let sessions = Arc::clone(&sessions);
            async move { drop(sessions.turn(id).await) }
        });
        drop(sessions.turn(Uuid::new_v4()).await);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }
}
