//! Errors of a transaction, and which of them are retried.
//!
//! Messages contain the SQL state and the server's message, never the URL or its password.

use sqlx::error::DatabaseError;

use crate::StoreError;

/// The result of one attempt at an operation, in one transaction.
pub(super) type TxResult<T, E = StoreError> = Result<T, TxError<E>>;

/// The error of one attempt.
#[derive(Debug)]
pub(super) enum TxError<E> {
    /// The operation's own error. Nothing was written.
    Refused(E),
    /// A row did not parse.
    Store(StoreError),
    /// The database reported an error.
    Database(sqlx::Error),
    /// Another transaction changed what this one had read. The next attempt sees the new state.
    Raced,
}

impl<E> From<sqlx::Error> for TxError<E> {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl<E> From<StoreError> for TxError<E> {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<E> TxError<E> {
    /// Returns true if nothing was written and another attempt may succeed at once.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Raced => true,
            // serialization_failure, deadlock_detected: the whole transaction was rolled back. A
            // key that another transaction inserted or removed in between is visible to the next
            // attempt.
            Self::Database(error) => {
                matches!(sql_state(error).as_deref(), Some("40001" | "40P01" | "23503" | "23505"))
            }
            Self::Refused(_) | Self::Store(_) => false,
        }
    }

    /// Returns true if the connection broke, or if its server shuts down.
    pub(super) fn is_connection(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) => {
                true
            }
            Self::Database(error) => {
                matches!(sql_state(error).as_deref(), Some("57P01" | "57P02" | "57P03"))
            }
            Self::Refused(_) | Self::Store(_) | Self::Raced => false,
        }
    }

    /// Returns true if a foreign key was violated: a referenced row is missing, or a row is still
    /// referenced.
    pub(super) fn is_foreign_key(&self) -> bool {
        matches!(self, Self::Database(error)
            if error.as_database_error().is_some_and(DatabaseError::is_foreign_key_violation))
    }
}

impl<E: From<StoreError>> TxError<E> {
    /// Converts to the error of the contract.
    pub(super) fn into_store_error(self) -> E {
        match self {
            Self::Refused(error) => error,
            Self::Store(error) => error.into(),
            Self::Database(error) => store_error(error).into(),
            Self::Raced => StoreError::Unavailable(
                "too many transactions change the same rows at once".to_owned(),
            )
            .into(),
        }
    }
}

fn sql_state(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(DatabaseError::code).map(std::borrow::Cow::into_owned)
}

/// Converts a database error.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    use sqlx::Error as E;
    match &error {
        E::Io(_)
        | E::Tls(_)
        | E::Protocol(_)
        | E::PoolClosed
        | E::WorkerCrashed
        | E::BeginFailed => StoreError::Unavailable(error.to_string()),
        E::PoolTimedOut => StoreError::Unavailable(
            "no connection to PostgreSQL was free or could be made in time".into(),
        ),
        E::RowNotFound | E::ColumnNotFound(_) | E::ColumnDecode { .. } | E::Decode(_) => {
            StoreError::Inconsistent(error.to_string())
        }
        E::Database(report) => match report.code().as_deref() {
            Some(state) if is_transient(state) => {
                StoreError::Unavailable(format!("PostgreSQL says {state}: {}", report.message()))
            }
            _ => StoreError::Backend(Box::new(error)),
        },
        _ => StoreError::Backend(Box::new(error)),
    }
}

/// Returns true for SQL states that may pass: the connection or its authentication (08, 28),
/// resources (53), a server that starts, stops, cancels or times out (57), a lock that was not free
/// (55P03), a server that became a standby (25006), and conflicts that retries did not resolve
/// (40).
fn is_transient(state: &str) -> bool {
    ["08", "28", "40", "53", "57"].iter().any(|class| state.starts_with(class))
        || matches!(state, "55P03" | "25006")
}
