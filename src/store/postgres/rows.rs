//! PostgreSQL's columns as values. `store::rows`, which both databases share, knows what they mean.

use std::fmt::Display;
use std::str::FromStr;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row, Type};

use super::error::store_error;
use crate::StoreResult;
use crate::images::ImageStatus;
use crate::repositories::TagMutability;
use crate::rows as shared;
pub(super) use crate::rows::{
    annotations, annotations_of, encryption, from_json, job_state, json, key_columns,
    key_reference, lease, limit, millis, parse, preview_columns, preview_state, signed,
};

/// Selects the ids of the rows that the repository `$1` has in a table for the digests `$2`, with a
/// lookup for each. The planner assumes that the two columns are independent. For a large
/// repository and a digest that all repositories have it expects so many rows that it would read
/// the whole table.
macro_rules! ids_by_digest {
    ($table:literal) => {
        concat!(
            "SELECT k.id FROM UNNEST($2::text[]) AS d (digest) CROSS JOIN LATERAL (SELECT id FROM ",
            $table,
            " WHERE repository_id = $1 AND digest = d.digest LIMIT 1) k"
        )
    };
}
pub(super) use ids_by_digest;

/// Reads a column.
pub(super) fn get<'r, T: Decode<'r, Postgres> + Type<Postgres>>(
    row: &'r PgRow,
    column: &str,
) -> StoreResult<T> {
    row.try_get(column).map_err(store_error)
}

/// Reads and parses a text column.
pub(super) fn parsed<T: FromStr<Err: Display>>(row: &PgRow, column: &str) -> StoreResult<T> {
    parse(get(row, column)?)
}

/// Reads a time.
pub(super) fn time(row: &PgRow, column: &str) -> StoreResult<Timestamp> {
    shared::time(get(row, column)?)
}

/// Reads a time, or `None` for NULL.
pub(super) fn optional_time(row: &PgRow, column: &str) -> StoreResult<Option<Timestamp>> {
    get::<Option<i64>>(row, column)?.map(shared::time).transpose()
}

/// Reads a count or size.
pub(super) fn unsigned(row: &PgRow, column: &str) -> StoreResult<u64> {
    shared::unsigned(get(row, column)?)
}

/// Reads the column `status`.
pub(super) fn status(row: &PgRow) -> StoreResult<ImageStatus> {
    shared::status(get(row, "status")?)
}

/// Converts a count, for a comparison with a limit.
pub(super) fn count(value: i64) -> u64 {
    value.unsigned_abs()
}

/// Converts the key after which a page begins. PostgreSQL refuses text with a NUL. No key holds
/// one, so the same keys are greater than the part before it.
pub(super) fn after(text: Option<&str>) -> &str {
    text.map_or("", |text| text.split('\0').next().unwrap_or(""))
}

/// Reads a repository's columns `tag_mutability` and `exclusions`.
pub(super) fn tag_mutability(row: &PgRow) -> StoreResult<TagMutability> {
    shared::tag_mutability(get(row, "tag_mutability")?, get(row, "exclusions")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_after_the_text_before_a_nul() {
        assert_eq!(after(None), "");
        assert_eq!(after(Some("v1")), "v1");
        assert_eq!(after(Some("v1\0z")), "v1");
        assert_eq!(after(Some("\0")), "");
    }
}
