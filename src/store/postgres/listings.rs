//! Lists of images and tags: each a keyset page in one statement, so that a page is one moment's view.

use sqlx::PgPool;

use super::failure::Attempt;
use super::rows::{self, get, image_columns, parse, parsed};
use crate::names::{Digest, Reference, Tag};
use crate::store::StoreResult;
use crate::store::images::{
    Image, ImageFilter, ImageIdentifier, ImageStatus, ReferrerFilter, TagStatusFilter, TaggedImage,
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
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT t.name FROM tag t JOIN manifest m ON m.id = t.manifest_id
         WHERE t.repository_id = $1 AND t.name > $2 AND length(t.name) <= $4 AND m.status <> 'ARCHIVED'
         ORDER BY t.name LIMIT $3",
    )
    .bind(repository.0)
    .bind(rows::after(after))
    .bind(rows::limit(limit))
    .bind(rows::limit(Tag::MAX_OCI))
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
          WHERE m.id IN (SELECT id FROM manifest WHERE repository_id = $1 AND digest = ANY($2)
                         UNION SELECT manifest_id FROM tag WHERE repository_id = $1 AND name = ANY($3))"
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

pub(super) async fn list_images(
    pool: &PgPool,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&Digest>,
    limit: usize,
) -> Attempt<Vec<TaggedImage>> {
    let found = sqlx::query(concat!(
        "SELECT ",
        image_columns!(),
        ", ",
        tags_column!(),
        " FROM manifest m
          WHERE m.repository_id = $1 AND m.digest > $2 AND ($3::text IS NULL OR m.status = $3)
            AND ($4::boolean IS NULL OR $4 = EXISTS (SELECT 1 FROM tag t WHERE t.manifest_id = m.id))
          ORDER BY m.digest LIMIT $5"
    ))
    .bind(repository.0)
    .bind(after.map_or("", Digest::as_str))
    .bind(filter.status.map(ImageStatus::as_str))
    .bind(tagged(filter))
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
    // The row comparison alone would not be an index condition on the digest; both together are.
    let found = sqlx::query(
        "SELECT m.digest, t.name FROM manifest m LEFT JOIN tag t ON t.manifest_id = m.id
         WHERE m.repository_id = $1 AND m.digest >= $2 AND (m.digest > $2 OR coalesce(t.name, '') > $3)
           AND ($4::text IS NULL OR m.status = $4) AND ($5::boolean IS NULL OR $5 = (t.name IS NOT NULL))
         ORDER BY m.digest, t.name LIMIT $6",
    )
    .bind(repository.0)
    .bind(after.map_or("", |after| after.digest.as_str()))
    .bind(after.and_then(|after| after.tag.as_ref()).map_or("", Tag::as_str))
    .bind(filter.status.map(ImageStatus::as_str))
    .bind(tagged(filter))
    .bind(rows::limit(limit))
    .fetch_all(pool)
    .await?;
    let identifier = |row| {
        let tag: Option<&str> = get(row, "name")?;
        Ok(ImageIdentifier { digest: parsed(row, "digest")?, tag: tag.map(parse).transpose()? })
    };
    Ok(found.iter().map(identifier).collect::<StoreResult<_>>()?)
}

/// Whether images have to have a tag; `None` where that does not matter.
fn tagged(filter: ImageFilter) -> Option<bool> {
    match filter.tag_status {
        TagStatusFilter::Any => None,
        TagStatusFilter::Tagged => Some(true),
        TagStatusFilter::Untagged => Some(false),
    }
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
    // PostgreSQL refuses a text with a NUL, and no artifact type that is stored has one.
    let types: Vec<&str> =
        filter.artifact_types.iter().map(String::as_str).filter(|kind| !kind.contains('\0')).collect();
    if types.is_empty() && !filter.artifact_types.is_empty() {
        return Ok(Vec::new());
    }
    let found = sqlx::query(concat!(
        "SELECT ",
        image_columns!(),
        " FROM manifest m
          WHERE m.repository_id = $1 AND m.subject = $2 AND m.digest > $3 AND ($4::text IS NULL OR m.status = $4)
            AND ($5::text[] = '{}' OR coalesce(m.artifact_type, m.config_media_type) = ANY($5))
          ORDER BY m.digest LIMIT $6"
    ))
    .bind(repository.0)
    .bind(subject.as_str())
    .bind(after.map_or("", Digest::as_str))
    .bind(filter.status.map(ImageStatus::as_str))
    .bind(types)
    .bind(rows::limit(limit))
    .fetch_all(pool)
    .await?;
    Ok(found.iter().map(rows::image).collect::<StoreResult<_>>()?)
}
