//! A connection as the queries use it: every statement is prepared once and cached, and every error
//! is a [`StoreError`].

use rusqlite::{CachedStatement, Connection, ErrorCode, Params, Row};

use crate::{StoreError, StoreResult};

/// A connection, which is in a transaction if it writes.
#[derive(Clone, Copy)]
pub(super) struct Db<'c>(pub(super) &'c Connection);

impl<'c> Db<'c> {
    /// Prepares a statement. Every statement is prepared here and its text traced, so that tests
    /// see all of them.
    fn prepare(self, sql: &str) -> StoreResult<CachedStatement<'c>> {
        tracing::trace!(target: "wharfage::sqlite", statement = sql, "prepare");
        Ok(self.0.prepare_cached(sql)?)
    }

    /// Runs a statement and returns the number of changed rows.
    pub(super) fn run(self, sql: &str, params: impl Params) -> StoreResult<usize> {
        Ok(self.prepare(sql)?.execute(params)?)
    }

    /// Inserts a row and returns its row id.
    pub(super) fn insert(self, sql: &str, params: impl Params) -> StoreResult<i64> {
        Ok(self.prepare(sql)?.insert(params)?)
    }

    /// Reads the first row, if there is one.
    pub(super) fn first<T>(
        self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Option<T>> {
        let mut statement = self.prepare(sql)?;
        statement.query(params)?.next()?.map(read).transpose()
    }

    /// Returns true if there is a row.
    pub(super) fn exists(self, sql: &str, params: impl Params) -> StoreResult<bool> {
        Ok(self.prepare(sql)?.exists(params)?)
    }

    /// Reads every row; the statement has to limit them.
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

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error;
        match &error {
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..) => Self::Inconsistent(error.to_string()),
            Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                    Self::Inconsistent(error.to_string())
                }
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
