//! Readiness: a separate connection, so that the probe waits for no other operation.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::sync::Mutex;

use super::error::store_error;
use super::pool::Liveness;
use crate::{StoreError, StoreResult};

/// The timeout of a check, with a new connection.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Checks that the database answers and takes writes.
pub(super) struct Probe {
    options: PgConnectOptions,
    liveness: Arc<Liveness>,
    /// Reused by the next check; none after a failure.
    connection: Mutex<Option<PgConnection>>,
}

impl Probe {
    pub(super) fn new(options: PgConnectOptions, liveness: Arc<Liveness>) -> Self {
        Self { options, liveness, connection: Mutex::new(None) }
    }

    /// Checks that the database answers within [`TIMEOUT`] and takes writes.
    ///
    /// # Errors
    /// `Unavailable` when it does not.
    pub(super) async fn check(&self) -> StoreResult<()> {
        let timed_out =
            |_| StoreError::Unavailable(format!("no answer within {} s", TIMEOUT.as_secs()));
        tokio::time::timeout(TIMEOUT, self.query()).await.map_err(timed_out)?
    }

    async fn query(&self) -> StoreResult<()> {
        let mut slot = self.connection.lock().await;
        // Taken out for the query, so that a canceled check drops the connection.
        if let Some(kept) = slot.take() {
            if let Ok((kept, read_only)) = is_read_only(kept).await {
                *slot = Some(kept);
                return writable(read_only);
            }
            self.liveness.connection_lost();
        }
        // The kept connection may have died with a server that has since been restarted.
        let fresh = PgConnection::connect_with(&self.options).await.map_err(store_error)?;
        let (fresh, read_only) = is_read_only(fresh).await.map_err(store_error)?;
        *slot = Some(fresh);
        writable(read_only)
    }
}

async fn is_read_only(mut connection: PgConnection) -> sqlx::Result<(PgConnection, bool)> {
    let query = sqlx::query("SELECT current_setting('transaction_read_only') = 'on'")
        .fetch_one(&mut connection);
    let read_only = query.await?.try_get(0)?;
    Ok((connection, read_only))
}

/// Refuses a standby, and a database that its administrator made read-only.
fn writable(read_only: bool) -> StoreResult<()> {
    if read_only {
        Err(StoreError::Unavailable("the database is read-only".into()))
    } else {
        Ok(())
    }
}
