//! What can go wrong in an attempt at an operation, and which attempts are worth repeating.
//!
//! Messages that leave this room name the SQL state and the server's words; they never hold the URL or its password.

use sqlx::error::DatabaseError;

use crate::store::StoreError;

/// One attempt's result: an operation is a function that makes one attempt, in one transaction.
pub(super) type Attempt<T, E = StoreError> = Result<T, Failure<E>>;

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure<E> {
    /// The operation's own answer: nothing was written.
    Refused(E),
    /// A row did not parse.
    Store(StoreError),
    /// The database reported it.
    Database(sqlx::Error),
    /// Another transaction changed what this one had read: the next attempt sees the new state.
    Raced,
}

impl<E> From<sqlx::Error> for Failure<E> {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl<E> From<StoreError> for Failure<E> {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<E> Failure<E> {
    /// Whether the same attempt may succeed at once, nothing having been written.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Raced => true,
            // serialization_failure, deadlock_detected: the transaction was rolled back whole. A key that another
            // transaction inserted or removed under our feet is seen by the next attempt.
            Self::Database(error) => {
                matches!(sql_state(error).as_deref(), Some("40001" | "40P01" | "23503" | "23505"))
            }
            Self::Refused(_) | Self::Store(_) => false,
        }
    }

    /// Whether the connection broke, or its server ends.
    pub(super) fn is_connection(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) => true,
            Self::Database(error) => matches!(sql_state(error).as_deref(), Some("57P01" | "57P02" | "57P03")),
            Self::Refused(_) | Self::Store(_) | Self::Raced => false,
        }
    }

    /// Whether the database refused it because a row that it refers to, or that refers to it, is (not) there.
    pub(super) fn is_foreign_key(&self) -> bool {
        matches!(self, Self::Database(error)
            if error.as_database_error().is_some_and(DatabaseError::is_foreign_key_violation))
    }
}

impl<E: From<StoreError>> Failure<E> {
    /// The contract's error.
    pub(super) fn into_error(self) -> E {
        match self {
            Self::Refused(error) => error,
            Self::Store(error) => error.into(),
            Self::Database(error) => store_error(error).into(),
            Self::Raced => {
                StoreError::Unavailable("too many transactions change the same rows at once".to_owned()).into()
            }
        }
    }
}

fn sql_state(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(DatabaseError::code).map(std::borrow::Cow::into_owned)
}

/// What a database error means to the store's callers.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    use sqlx::Error as E;
    match &error {
        E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolClosed | E::WorkerCrashed | E::BeginFailed => {
            StoreError::Unavailable(error.to_string())
        }
        E::PoolTimedOut => {
            StoreError::Unavailable("no connection to PostgreSQL was free or could be made in time".into())
        }
        E::RowNotFound | E::ColumnNotFound(_) | E::ColumnDecode { .. } | E::Decode(_) => {
            StoreError::Inconsistent(error.to_string())
        }
        E::Database(report) => match report.code().as_deref() {
            Some(state) if passes_with_time(state) => {
                StoreError::Unavailable(format!("PostgreSQL says {state}: {}", report.message()))
            }
            _ => StoreError::Backend(Box::new(error)),
        },
        _ => StoreError::Backend(Box::new(error)),
    }
}

/// SQL states that say "not now": the connection or its authentication (08, 28), resources (53), a server that starts,
/// stops, cancels or times out (57), a lock that was not free (55P03), a server that became a standby (25006) and
/// conflicts that repeating did not solve (40).
fn passes_with_time(state: &str) -> bool {
    ["08", "28", "40", "53", "57"].iter().any(|class| state.starts_with(class)) || matches!(state, "55P03" | "25006")
}
