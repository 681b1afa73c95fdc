//! PostgreSQL's rows as the domain's values; what a column means is `store::rows`' matter, which both databases share.

use std::fmt::Display;
use std::str::FromStr;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row, Type};

use super::failure::store_error;
use crate::store::StoreResult;
use crate::store::images::{Image, ImageStatus, ManifestId, TaggedImage};
use crate::store::repositories::{Encryption, Repository, RepositoryId, TagMutability};
use crate::store::rows as shared;
pub(super) use crate::store::rows::{
    annotations, encryption, from_json, job_state, json, key_columns, key_reference, lease, limit, millis, parse,
    preview_columns, preview_state, signed,
};

/// The columns that [`repository`] reads, of the table or alias `r`.
macro_rules! repository_columns {
    () => {
        "r.id, r.account_id, r.name, r.created_at, r.tag_mutability, r.exclusions, r.scan_on_push, r.encryption_type, \
         r.kms_key, r.policy, r.lifecycle_policy, r.lifecycle_evaluated_at, r.version, r.policy_version"
    };
}
/// The columns that [`image`] reads, of the table or alias `m`. Annotations are read for lists of referrers only.
macro_rules! image_columns {
    () => {
        image_columns!("NULL::text")
    };
    ($annotations:literal) => {
        concat!(
            "m.id, m.digest, m.media_type, m.status, m.payload_size, m.image_size, m.pushed_at, m.last_pulled_at, \
             m.archived_at, m.activated_at, m.artifact_type, m.config_media_type, m.subject, m.revision, ",
            $annotations,
            " AS annotations"
        )
    };
}
/// Selects the ids of the rows that the repository `$1` has in a table for the digests `$2`, each looked up by itself: the planner
/// takes the two columns for independent, and of a large repository and a digest that all repositories have it expects so
/// many rows that it would read the whole table.
macro_rules! ids_by_digest {
    ($table:literal) => {
        concat!(
            "SELECT k.id FROM UNNEST($2::text[]) AS d (digest) CROSS JOIN LATERAL (SELECT id FROM ",
            $table,
            " WHERE repository_id = $1 AND digest = d.digest LIMIT 1) k"
        )
    };
}
pub(super) use {ids_by_digest, image_columns, repository_columns};

/// One column.
pub(super) fn get<'r, T: Decode<'r, Postgres> + Type<Postgres>>(row: &'r PgRow, column: &str) -> StoreResult<T> {
    row.try_get(column).map_err(store_error)
}

/// A text column as what it means.
pub(super) fn parsed<T: FromStr<Err: Display>>(row: &PgRow, column: &str) -> StoreResult<T> {
    parse(get(row, column)?)
}

/// A time.
pub(super) fn time(row: &PgRow, column: &str) -> StoreResult<Timestamp> {
    shared::time(get(row, column)?)
}

/// A time that may be missing.
pub(super) fn optional_time(row: &PgRow, column: &str) -> StoreResult<Option<Timestamp>> {
    get::<Option<i64>>(row, column)?.map(shared::time).transpose()
}

/// A count or size.
pub(super) fn unsigned(row: &PgRow, column: &str) -> StoreResult<u64> {
    shared::unsigned(get(row, column)?)
}

/// A status column.
pub(super) fn status(row: &PgRow) -> StoreResult<ImageStatus> {
    shared::status(get(row, "status")?)
}

/// A count, to be compared with a limit.
pub(super) fn count(value: i64) -> u64 {
    value.unsigned_abs()
}

/// Where a page begins. PostgreSQL refuses a text with a NUL; no key holds one, so what is greater than the text is just
/// what is greater than the part before it.
pub(super) fn after(text: Option<&str>) -> &str {
    text.map_or("", |text| text.split('\0').next().unwrap_or(""))
}

/// A repository's row.
pub(super) fn repository(row: &PgRow) -> StoreResult<Repository> {
    Ok(Repository {
        id: RepositoryId(get(row, "id")?),
        account: parsed(row, "account_id")?,
        name: parsed(row, "name")?,
        created_at: time(row, "created_at")?,
        tag_mutability: tag_mutability(row)?,
        scan_on_push: get(row, "scan_on_push")?,
        encryption: Encryption { kind: get(row, "encryption_type")?, kms_key: get(row, "kms_key")? },
        policy: get(row, "policy")?,
        lifecycle_policy: get(row, "lifecycle_policy")?,
        lifecycle_evaluated_at: optional_time(row, "lifecycle_evaluated_at")?,
        version: unsigned(row, "version")?,
        policy_version: unsigned(row, "policy_version")?,
    })
}

/// A repository's columns `tag_mutability` and `exclusions`.
pub(super) fn tag_mutability(row: &PgRow) -> StoreResult<TagMutability> {
    shared::tag_mutability(get(row, "tag_mutability")?, get(row, "exclusions")?)
}

/// An image's row.
pub(super) fn image(row: &PgRow) -> StoreResult<Image> {
    let subject: Option<&str> = get(row, "subject")?;
    Ok(Image {
        id: ManifestId(get(row, "id")?),
        digest: parsed(row, "digest")?,
        media_type: get(row, "media_type")?,
        artifact_type: get(row, "artifact_type")?,
        config_media_type: get(row, "config_media_type")?,
        payload_size: unsigned(row, "payload_size")?,
        image_size: unsigned(row, "image_size")?,
        subject: subject.map(parse).transpose()?,
        annotations: shared::annotations_of(get(row, "annotations")?)?,
        pushed_at: time(row, "pushed_at")?,
        last_pulled_at: optional_time(row, "last_pulled_at")?,
        status: status(row)?,
        archived_at: optional_time(row, "archived_at")?,
        activated_at: optional_time(row, "activated_at")?,
        revision: unsigned(row, "revision")?,
    })
}

/// An image's row with the array column `tags`.
pub(super) fn tagged_image(row: &PgRow) -> StoreResult<TaggedImage> {
    let tags: Vec<String> = get(row, "tags")?;
    Ok(TaggedImage { image: image(row)?, tags: tags.iter().map(|tag| parse(tag)).collect::<StoreResult<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_where_the_text_before_a_nul_ends() {
        assert_eq!(after(None), "");
        assert_eq!(after(Some("v1")), "v1");
        assert_eq!(after(Some("v1\0z")), "v1");
        assert_eq!(after(Some("\0")), "");
    }
}
