//! Readiness: a connection of its own, so that the question queues behind nobody's work.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Row};
use tokio::sync::Mutex;

use super::doubt::Doubt;
use super::failure::store_error;
use crate::store::{StoreError, StoreResult};

/// How long the answer may take, a new connection included.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the database whether it answers and takes writes.
pub(super) struct Probe {
    options: PgConnectOptions,
    doubt: Arc<Doubt>,
    /// Kept from one question to the next; none after a failure.
    connection: Mutex<Option<PgConnection>>,
}

impl Probe {
    pub(super) fn new(options: PgConnectOptions, doubt: Arc<Doubt>) -> Self {
        Self { options, doubt, connection: Mutex::new(None) }
    }

    /// Whether the database answers within [`TIMEOUT`] and takes writes.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't.
    pub(super) async fn ready(&self) -> StoreResult<()> {
        let silent = |_| StoreError::Unavailable(format!("no answer within {} s", TIMEOUT.as_secs()));
        tokio::time::timeout(TIMEOUT, self.ask()).await.map_err(silent)?
    }

    async fn ask(&self) -> StoreResult<()> {
        let mut place = self.connection.lock().await;
        // Taken out meanwhile: a question that is given up half-way takes the connection along.
        if let Some(kept) = place.take() {
            if let Ok((kept, read_only)) = read_only(kept).await {
                *place = Some(kept);
                return verdict(read_only);
            }
            self.doubt.lost();
        }
        // The one that was kept may have ended with a server that is back since.
        let fresh = PgConnection::connect_with(&self.options).await.map_err(store_error)?;
        let (fresh, read_only) = read_only(fresh).await.map_err(store_error)?;
        *place = Some(fresh);
        verdict(read_only)
    }
}

async fn read_only(mut connection: PgConnection) -> sqlx::Result<(PgConnection, bool)> {
    let asked = sqlx::query("SELECT current_setting('transaction_read_only') = 'on'").fetch_one(&mut connection);
    let read_only = asked.await?.try_get(0)?;
    Ok((connection, read_only))
}

/// A standby, or a database that its administrator made read-only.
fn verdict(read_only: bool) -> StoreResult<()> {
    if read_only { Err(StoreError::Unavailable("the database is read-only".into())) } else { Ok(()) }
}
