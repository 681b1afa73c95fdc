//! The metadata contract on PostgreSQL, for a registry of several replicas.
//!
//! This file connects. Each module below implements one resource's trait; `sqlite` has the same
//! modules and functions. A function makes one attempt in one transaction at READ COMMITTED, with
//! the locks that its result depends on; `migrations/0003_images.sql` lists the order in which they
//! are taken. An attempt that conflicts with another transaction is retried a few times. Nothing
//! here reads a clock or knows a protocol. Beside the resources: `url`, `pool`, `schema`, `probe`,
//! `error` and `rows`.

mod error;
mod events;
mod image_batches;
mod image_deletion;
mod image_rows;
mod images;
mod jobs;
mod layers;
mod manifests;
mod pool;
mod previews;
mod probe;
mod registries;
mod repositories;
mod repository_deletion;
mod rows;
mod schema;
mod storage_class;
mod uploads;
mod url;
mod usage;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use sqlx::{Connection, PgPool};

use self::error::{TxError, TxResult, store_error};
use self::pool::Liveness;
use self::probe::Probe;
use super::{Metadata, StoreError, StoreResult};

/// The options by which a [`PostgresStore`] uses its database.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Maximum number of connections of this replica.
    pub max_connections: u32,
    /// The timeout for a connection: a free one of the pool, or a new one.
    pub acquire_timeout: Duration,
    /// The timeout of the server for one statement, lock waits included.
    pub statement_timeout: Duration,
    /// The timeout of an operation in total, retries and network included.
    pub deadline: Duration,
    /// Brings the schema to this version. If false, the schema must be of this version: for tools
    /// that run beside the server.
    pub migrate: bool,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            max_connections: 16,
            acquire_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(8),
            deadline: Duration::from_secs(10),
            migrate: true,
        }
    }
}

/// The metadata in PostgreSQL (15 or newer).
pub struct PostgresStore {
    pool: PgPool,
    deadline: Duration,
    /// Host and database, for messages: neither user nor password.
    address: String,
    probe: Probe,
    liveness: Arc<Liveness>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("address", &self.address).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects, and brings the schema to this version. Of several replicas that start at once, one
    /// migrates and the others wait.
    ///
    /// `url` is `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with libpq's parameters such as
    /// `sslmode=verify-full` and `sslrootcert=FILE`. Behind a pooler that shares connections
    /// between transactions it needs `statement-cache-capacity=0`. Missing values are taken from
    /// the `PG…` variables of the environment.
    ///
    /// # Errors
    /// `Unavailable` when the database does not answer or refuses the user. `Backend` when the URL
    /// does not parse, or when the schema is newer than this version or was changed by hand. No
    /// error contains the password.
    // Boxed, so that this crate compiles it: an `async fn` is compiled with the crate that awaits
    // it.
    pub fn connect(url: &str, options: PostgresOptions) -> BoxFuture<'_, StoreResult<Self>> {
        async move {
            let connect_options = url::parse(url)?;
            let address = url::address(&connect_options);
            let with_address = |error| with_address(&address, error);
            let timed_out = |error: tokio::time::error::Elapsed| {
                StoreError::Unavailable(format!("PostgreSQL at {address} did not answer: {error}"))
            };

            // A separate connection: a migration may exceed the statement timeout of the pool's
            // connections.
            let connecting = sqlx::PgConnection::connect_with(&connect_options);
            let mut connection = tokio::time::timeout(options.acquire_timeout, connecting)
                .await
                .map_err(timed_out)?
                .map_err(store_error)
                .map_err(with_address)?;
            if options.migrate {
                schema::migrate(&mut connection).await.map_err(with_address)?;
            } else {
                schema::check(&mut connection).await.map_err(with_address)?;
            }
            // An error here is that of a connection that is not used again.
            let _ = connection.close().await;

            let liveness = Arc::new(Liveness::default());
            let probe = Probe::new(connect_options.clone(), Arc::clone(&liveness));
            let pool = pool::open(connect_options, &options, &liveness);
            let store = Self {
                pool,
                deadline: options.deadline,
                address: address.clone(),
                probe,
                liveness,
            };
            store
                .run(|| async { Ok(sqlx::query("SELECT 1").execute(&store.pool).await.map(drop)?) })
                .await
                .map_err(with_address)?;
            Ok(store)
        }
        .boxed()
    }

    /// Closes every connection, after running operations have ended.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Makes attempts within the deadline, until one does not conflict with another transaction.
    async fn run<T, E, A>(&self, attempt: impl FnMut() -> A) -> Result<T, E>
    where
        A: Future<Output = TxResult<T, E>>,
        E: From<StoreError>,
    {
        let attempts = attempt.retry(
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(2))
                .with_max_delay(Duration::from_millis(500))
                .with_jitter()
                .with_max_times(12),
        );
        let mut attempts = std::pin::pin!(attempts.when(TxError::is_retryable).into_future());
        match tokio::time::timeout(self.deadline, &mut attempts).await {
            Ok(outcome) => outcome.map_err(|error| {
                if error.is_connection() {
                    self.liveness.connection_lost();
                }
                error.into_store_error()
            }),
            Err(_) => {
                // Before the attempt is dropped, which releases its connection.
                self.liveness.operation_abandoned();
                let after = self.deadline.as_secs();
                Err(StoreError::Unavailable(format!(
                    "PostgreSQL at {} did not answer within {after} s",
                    self.address
                ))
                .into())
            }
        }
    }
}

fn with_address(address: &str, error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(reason) => {
            StoreError::Unavailable(format!("PostgreSQL at {address}: {reason}"))
        }
        other => other,
    }
}

#[async_trait::async_trait]
impl Metadata for PostgresStore {
    async fn ready(&self) -> StoreResult<()> {
        self.probe.check().await.map_err(|error| with_address(&self.address, error))
    }
}
