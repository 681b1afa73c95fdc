//! The connection pool: how its connections are set up, and which of them are pinged before use, so
//! that a dead connection fails no request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use sqlx::pool::PoolConnectionMetadata;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{Connection, Executor, PgPool};

use super::PostgresOptions;

/// The longest time that a connection may have been idle and still be used without a ping: a pull
/// is one round trip.
const TRUSTED_IDLE: Duration = Duration::from_secs(5);
/// The timeout of a ping on a suspect connection, after which it is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens a pool, without connecting.
pub(super) fn open(
    connect_options: PgConnectOptions,
    options: &PostgresOptions,
    liveness: &Arc<Liveness>,
) -> PgPool {
    let settings = session_settings(options.statement_timeout);
    let acquired = Arc::clone(liveness);
    PgPoolOptions::new()
        .max_connections(options.max_connections)
        .acquire_timeout(options.acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(move |connection, idle| {
            let suspect = idle.idle_for > TRUSTED_IDLE || acquired.is_suspect(idle.idle_for);
            Box::pin(async move {
                if suspect {
                    ping(connection).await?;
                }
                Ok(true)
            })
        })
        .after_release(after_release(Arc::clone(liveness)))
        .after_connect(move |connection, _| {
            let settings = sqlx::AssertSqlSafe(settings.clone());
            Box::pin(async move { connection.execute(sqlx::raw_sql(settings)).await.map(|_| ()) })
        })
        .connect_lazy_with(connect_options)
}

/// Returns the settings of every connection. A transaction that a dead replica left open must not
/// keep its locks. JIT is off because compiling a plan takes longer than any statement here.
fn session_settings(statement_timeout: Duration) -> String {
    let millis = statement_timeout.as_millis();
    format!(
        "SET default_transaction_isolation = 'read committed'; SET statement_timeout = {millis}; \
         SET idle_in_transaction_session_timeout = {millis}; SET jit = off"
    )
}

/// Evidence that connections of a pool may be dead.
#[derive(Default)]
pub(super) struct Liveness {
    /// An operation was abandoned since the last connection that answered: see [`after_release`].
    abandoned: AtomicBool,
    /// When a connection was last found dead. Connections that were idle then may be dead too.
    lost: Mutex<Option<Instant>>,
}

impl Liveness {
    /// Records that an operation is abandoned, whose connection may wait for a silent server.
    pub(super) fn operation_abandoned(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Records that a connection was found dead.
    pub(super) fn connection_lost(&self) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns true if a connection with this idle time was idle when another was found dead.
    fn is_suspect(&self, idle_for: Duration) -> bool {
        let lost = *self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.is_some_and(|at| idle_for >= at.elapsed())
    }
}

/// Pings the server, with [`PING_TIMEOUT`].
async fn ping(connection: &mut PgConnection) -> sqlx::Result<()> {
    let timed_out = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(PING_TIMEOUT, connection.ping()).await.map_err(timed_out)?
}

/// Closes a released connection whose server is silent. The pool itself waits for the answer to an
/// abandoned statement without a limit, and one of its connections would be lost for as long. Pings
/// only after an operation was abandoned: otherwise the pool's own check suffices.
fn after_release(
    liveness: Arc<Liveness>,
) -> impl for<'c> Fn(&'c mut PgConnection, PoolConnectionMetadata) -> BoxFuture<'c, sqlx::Result<bool>>
+ Send
+ Sync
+ 'static {
    move |connection, _| {
        let liveness = Arc::clone(&liveness);
        Box::pin(async move {
            if liveness.abandoned.load(Ordering::Acquire) {
                ping(connection).await?;
                liveness.abandoned.store(false, Ordering::Release);
            }
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_idle_when_another_was_found_dead_is_suspect() {
        let liveness = Liveness::default();
        assert!(!liveness.is_suspect(Duration::from_secs(3600)), "no connection was found dead");
        liveness.connection_lost();
        assert!(liveness.is_suspect(Duration::from_secs(3600)));
        assert!(!liveness.is_suspect(Duration::ZERO), "used since");
    }
}
