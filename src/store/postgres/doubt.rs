//! Which pooled connections are asked for an answer before they are used, so that one that is dead costs no request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use sqlx::Connection;
use sqlx::pool::PoolConnectionMetadata;
use sqlx::postgres::PgConnection;

/// How long a connection that is doubted may take to answer before it is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known against the connections of a pool.
#[derive(Default)]
pub(super) struct Doubt {
    /// Whether an operation was given up on since the last connection that answered: see [`after_release`].
    abandoned: AtomicBool,
    /// When a connection was last found dead: those that were idle then may be dead, too.
    lost: Mutex<Option<Instant>>,
}

impl Doubt {
    /// Says that an operation is given up on, whose connection may wait for a server that is silent.
    pub(super) fn abandoned(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Says that a connection was found dead.
    pub(super) fn lost(&self) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection that has been idle for so long was idle when another was found dead.
    pub(super) fn reaches(&self, idle_for: Duration) -> bool {
        let lost = *self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.is_some_and(|at| idle_for >= at.elapsed())
    }
}

/// Asks the server for an answer, in time.
pub(super) async fn ping(connection: &mut PgConnection) -> sqlx::Result<()> {
    let silent = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(PING_TIMEOUT, connection.ping()).await.map_err(silent)?
}

/// Closes a released connection whose server is silent. The pool itself waits for the answer to an abandoned statement
/// without a limit, and the place of the connection would be lost as long. Answers are only asked for after an operation was
/// given up on: otherwise the pool's own question is enough.
pub(super) fn after_release(
    doubt: Arc<Doubt>,
) -> impl for<'c> Fn(&'c mut PgConnection, PoolConnectionMetadata) -> BoxFuture<'c, sqlx::Result<bool>> + Send + Sync + 'static
{
    move |connection, _| {
        let doubt = Arc::clone(&doubt);
        Box::pin(async move {
            if doubt.abandoned.load(Ordering::Acquire) {
                ping(connection).await?;
                doubt.abandoned.store(false, Ordering::Release);
            }
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_idle_when_another_was_found_dead_is_doubted() {
        let doubt = Doubt::default();
        assert!(!doubt.reaches(Duration::from_secs(3600)), "nothing was found dead");
        doubt.lost();
        assert!(doubt.reaches(Duration::from_secs(3600)));
        assert!(!doubt.reaches(Duration::ZERO), "made or used since");
    }
}
