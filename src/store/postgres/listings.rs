//! Lists of images and tags: each a keyset page in one statement, so that a page is one moment's view.

use std::collections::BTreeSet;

use sqlx::PgPool;

use super::failure::Attempt;
use super::rows::{self, get, ids_by_digest, image_columns, parse, parsed};
use crate::names::{Digest, Reference, Tag};
use crate::store::StoreResult;
use crate::store::images::{
    Image, ImageFilter, ImageIdentifier, ImageRange, ImageStatus, ReferrerFilter, TaggedImage, statuses,
};
use crate::store::repositories::RepositoryId;

/// An image's tags as one array column.
macro_rules! tags_column {
    () => {
        "ARRAY(SELECT t.name FROM tag t WHERE t.manifest_id = m.id ORDER BY t.name) AS tags"
    };
}

pub(super) async fn tags(
    pool: &PgPool,
    repository: RepositoryId,
    after: Option<&str>,
    limit: usize,
) -> Attempt<Vec<Tag>> {
    // The index `tag_listed` holds these and no others, so the text says what its text says.
    let sql = format!(
        "SELECT name FROM tag WHERE repository_id = $1 AND name > $2 AND archived_at IS NULL AND length(name) <= {}
         ORDER BY name LIMIT $3",
        Tag::MAX_OCI
    );
    let names: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(repository.0)
        .bind(rows::after(after))
        .bind(rows::limit(limit))
        .fetch_all(pool)
        .await?;
    Ok(names.iter().map(|name| parse(name)).collect::<StoreResult<_>>()?)
}

pub(super) async fn images(
    pool: &PgPool,
    repository: RepositoryId,
    references: &[Reference],
) -> Attempt<Vec<Option<TaggedImage>>> {
    let (mut digests, mut tags) = (Vec::new(), Vec::new());
    for reference in references {
        match reference {
            Reference::Digest(digest) => digests.push(digest.as_str()),
            Reference::Tag(tag) => tags.push(tag.as_str()),
        }
    }
    let found = sqlx::query(concat!(
        "SELECT ",
        image_columns!(),
        ", ",
        tags_column!(),
        " FROM manifest m
          WHERE m.id = ANY (ARRAY(
              ",
        ids_by_digest!("manifest"),
        " UNION SELECT manifest_id FROM tag WHERE repository_id = $1 AND name = ANY($3)))"
    ))
    .bind(repository.0)
    .bind(digests)
    .bind(tags)
    .fetch_all(pool)
    .await?;
    let found = found.iter().map(rows::tagged_image).collect::<StoreResult<Vec<TaggedImage>>>()?;
    let named = |reference: &Reference| {
        let is_named = |image: &&TaggedImage| match reference {
            Reference::Digest(digest) => image.image.digest == *digest,
            Reference::Tag(tag) => image.tags.binary_search(tag).is_ok(),
        };
        found.iter().find(is_named).cloned()
    };
    Ok(references.iter().map(named).collect())
}

/// The query of a filter's images whose digests are `from` ($2) or greater, or greater only, in the order of their digests, at
/// most $3. Each range of the filter is one of the index.
fn page(filter: ImageFilter, comparison: &str, columns: &str) -> String {
    let query = |condition: &str| {
        format!(
            "SELECT {columns} FROM manifest m WHERE m.repository_id = $1 {condition} AND m.digest {comparison} $2
             ORDER BY m.digest LIMIT $3"
        )
    };
    let range = |ImageRange { status, tagged }: &ImageRange| {
        let (status, tagged) = (status.as_str(), u8::from(*tagged));
        let condition = format!("AND m.status = '{status}' AND least(m.tag_count, 1) = {tagged}");
        format!("({})", query(&condition))
    };
    match filter.ranges().as_slice() {
        [] => query(""),
        ranges => {
            let ranges: Vec<String> = ranges.iter().map(range).collect();
            format!("SELECT * FROM ({}) r ORDER BY digest LIMIT $3", ranges.join(" UNION ALL "))
        }
    }
}

pub(super) async fn list_images(
    pool: &PgPool,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&Digest>,
    limit: usize,
) -> Attempt<Vec<TaggedImage>> {
    let sql =
        format!("SELECT m.*, {} FROM ({}) m ORDER BY m.digest", tags_column!(), page(filter, ">", image_columns!()));
    let found = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(repository.0)
        .bind(after.map_or("", Digest::as_str))
        .bind(rows::limit(limit))
        .fetch_all(pool)
        .await?;
    Ok(found.iter().map(rows::tagged_image).collect::<StoreResult<_>>()?)
}

pub(super) async fn list_image_ids(
    pool: &PgPool,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&ImageIdentifier>,
    limit: usize,
) -> Attempt<Vec<ImageIdentifier>> {
    // Each image but the first has an entry, so one more than the page are enough. Of those, only as many are looked at as fill
    // the page with their tags.
    let sql = format!(
        "SELECT p.digest, t.name
         FROM (SELECT m.*, sum(CASE WHEN m.digest = $2 THEN 0 ELSE greatest(m.tag_count, 1) END)
                           OVER (ORDER BY m.digest ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
               FROM ({}) m) p
         LEFT JOIN LATERAL (
             SELECT t.name FROM tag t WHERE t.manifest_id = p.id AND t.name > CASE WHEN p.digest = $2 THEN $4 ELSE '' END
             ORDER BY t.name LIMIT $3) t ON true
         WHERE coalesce(p.before, 0) < $3 AND (p.digest > $2 OR t.name IS NOT NULL)
         ORDER BY p.digest, t.name LIMIT $5",
        page(filter, ">=", "m.id, m.digest, m.tag_count")
    );
    let found = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(repository.0)
        .bind(after.map_or("", |after| after.digest.as_str()))
        .bind(rows::limit(limit).saturating_add(1))
        .bind(after.and_then(|after| after.tag.as_ref()).map_or("", Tag::as_str))
        .bind(rows::limit(limit))
        .fetch_all(pool)
        .await?;
    let identifier = |row| {
        let tag: Option<&str> = get(row, "name")?;
        Ok(ImageIdentifier { digest: parsed(row, "digest")?, tag: tag.map(parse).transpose()? })
    };
    Ok(found.iter().map(identifier).collect::<StoreResult<_>>()?)
}

pub(super) async fn index_edges(
    pool: &PgPool,
    repository: RepositoryId,
    after: Option<&(Digest, Digest)>,
    limit: usize,
) -> Attempt<Vec<(Digest, Digest)>> {
    let (parent, child) = after.map_or(("", ""), |(parent, child)| (parent.as_str(), child.as_str()));
    let found: Vec<(String, String)> = sqlx::query_as(
        "SELECT p.digest, c.digest
         FROM manifest p JOIN manifest_child e ON e.parent_id = p.id JOIN manifest c ON c.id = e.child_id
         WHERE p.repository_id = $1 AND p.digest >= $2 AND (p.digest > $2 OR c.digest > $3)
         ORDER BY p.digest, c.digest LIMIT $4",
    )
    .bind(repository.0)
    .bind(parent)
    .bind(child)
    .bind(rows::limit(limit))
    .fetch_all(pool)
    .await?;
    let edge = |(parent, child): &(String, String)| Ok((parse(parent)?, parse(child)?));
    Ok(found.iter().map(edge).collect::<StoreResult<_>>()?)
}

pub(super) async fn referrers(
    pool: &PgPool,
    repository: RepositoryId,
    subject: &Digest,
    filter: &ReferrerFilter,
    after: Option<&Digest>,
    limit: usize,
) -> Attempt<Vec<Image>> {
    // PostgreSQL refuses a text with a NUL, and no artifact type that is stored has one. Each type counts once.
    let types: BTreeSet<&str> =
        filter.artifact_types.iter().map(String::as_str).filter(|kind| !kind.contains('\0')).collect();
    let of_any_type = filter.artifact_types.is_empty();
    let query = |status: &ImageStatus| {
        let (kinds, of_type) = if of_any_type {
            ("", "")
        } else {
            (
                "UNNEST($5::text[]) AS k (kind) CROSS JOIN LATERAL",
                "AND coalesce(m.artifact_type, m.config_media_type) = k.kind",
            )
        };
        format!(
            "(SELECT r.* FROM {kinds} (
                  SELECT {} FROM manifest m
                  WHERE m.repository_id = $1 AND m.subject = $2 AND m.status = '{}' {of_type} AND m.digest > $3
                  ORDER BY m.digest LIMIT $4) r)",
            image_columns!("m.annotations"),
            status.as_str()
        )
    };
    let queries: Vec<String> = statuses(filter.status).iter().map(query).collect();
    let sql = format!("SELECT * FROM ({}) r ORDER BY digest LIMIT $4", queries.join(" UNION ALL "));
    let query = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(repository.0)
        .bind(subject.as_str())
        .bind(after.map_or("", Digest::as_str))
        .bind(rows::limit(limit));
    let query = if of_any_type { query } else { query.bind(types.into_iter().collect::<Vec<_>>()) };
    let found = query.fetch_all(pool).await?;
    Ok(found.iter().map(rows::image).collect::<StoreResult<_>>()?)
}
