//! A connection as the queries see it: every statement is prepared once and kept, every error is the store's.

use rusqlite::{CachedStatement, Connection, ErrorCode, Params, Row};

use crate::store::{StoreError, StoreResult};

/// A connection, in a transaction where it writes.
#[derive(Clone, Copy)]
pub(super) struct Db<'c>(pub(super) &'c Connection);

impl<'c> Db<'c> {
    /// The one place where statements are prepared; their texts are traced, so that tests see every one.
    fn prepare(self, sql: &str) -> StoreResult<CachedStatement<'c>> {
        tracing::trace!(target: "wharfage::sqlite", statement = sql, "prepare");
        Ok(self.0.prepare_cached(sql)?)
    }

    /// Runs a statement and tells how many rows it touched.
    pub(super) fn run(self, sql: &str, params: impl Params) -> StoreResult<usize> {
        Ok(self.prepare(sql)?.execute(params)?)
    }

    /// Inserts a row and returns its row id.
    pub(super) fn insert(self, sql: &str, params: impl Params) -> StoreResult<i64> {
        Ok(self.prepare(sql)?.insert(params)?)
    }

    /// The first row, if there is one.
    pub(super) fn first<T>(
        self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Option<T>> {
        let mut statement = self.prepare(sql)?;
        statement.query(params)?.next()?.map(read).transpose()
    }

    /// Whether there is a row.
    pub(super) fn exists(self, sql: &str, params: impl Params) -> StoreResult<bool> {
        Ok(self.prepare(sql)?.exists(params)?)
    }

    /// Every row; the caller has put a bound on them.
    pub(super) fn all<T>(
        self,
        sql: &str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Vec<T>> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(params)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(read(row)?);
        }
        Ok(all)
    }
}

/// A column's text, without a copy.
pub(super) fn text<'r>(row: &'r Row<'_>, column: usize) -> StoreResult<&'r str> {
    text_or_null(row, column)?.ok_or_else(|| StoreError::Inconsistent(format!("column {column} of a row has no value")))
}

/// A column's text, or `None` for NULL.
pub(super) fn text_or_null<'r>(row: &'r Row<'_>, column: usize) -> StoreResult<Option<&'r str>> {
    let inconsistent = |error| StoreError::Inconsistent(format!("column {column} of a row is no text: {error}"));
    row.get_ref(column)?.as_str_or_null().map_err(inconsistent)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error;
        match &error {
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..) => Self::Inconsistent(error.to_string()),
            Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Inconsistent(error.to_string()),
                ErrorCode::DiskFull => Self::Full(error.to_string()),
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly => Self::Unavailable(error.to_string()),
                _ => Self::Backend(Box::new(error)),
            },
            _ => Self::Backend(Box::new(error)),
        }
    }
}
