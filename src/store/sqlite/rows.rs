//! SQLite's columns as values. `store::rows`, which both databases share, knows what they mean.

use std::fmt::Display;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::Row;

pub(super) use crate::rows::{
    annotations, annotations_of, encryption, from_json, job_state, json, key_columns,
    key_reference, lease, limit, millis, parse, preview_columns, preview_state, signed, status,
    stored_time, tag_mutability, time, unsigned,
};
use crate::{StoreError, StoreResult};

/// Reads a column's text, without a copy.
pub(super) fn text<'r>(row: &'r Row<'_>, column: usize) -> StoreResult<&'r str> {
    text_or_null(row, column)?
        .ok_or_else(|| StoreError::Inconsistent(format!("column {column} of a row has no value")))
}

/// Reads a column's text, or `None` for NULL.
pub(super) fn text_or_null<'r>(row: &'r Row<'_>, column: usize) -> StoreResult<Option<&'r str>> {
    let inconsistent =
        |error| StoreError::Inconsistent(format!("column {column} of a row is no text: {error}"));
    row.get_ref(column)?.as_str_or_null().map_err(inconsistent)
}

/// Reads and parses a text column.
pub(super) fn parsed<T: FromStr<Err: Display>>(row: &Row<'_>, column: usize) -> StoreResult<T> {
    parse(text(row, column)?)
}

/// Reads a time, or `None` for NULL.
pub(super) fn optional_time(row: &Row<'_>, column: usize) -> StoreResult<Option<Timestamp>> {
    row.get::<_, Option<i64>>(column)?.map(time).transpose()
}

/// Reads and parses a text column, or `None` for NULL.
pub(super) fn optional_parsed<T: FromStr<Err: Display>>(
    row: &Row<'_>,
    column: usize,
) -> StoreResult<Option<T>> {
    text_or_null(row, column)?.map(parse).transpose()
}
