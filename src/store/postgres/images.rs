//! Images: lists of them and of their tags, as keyset pages, and when they were pulled. A page is
//! one statement, so that it shows one state.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use sqlx::PgPool;
use sqlx::postgres::PgRow;

use super::error::TxResult;
use super::rows::{self, get, ids_by_digest, millis, parse, parsed};
use super::{PostgresStore, image_batches, image_deletion, storage_class};
use crate::StoreResult;
use crate::images::{
    DeleteImageError, Image, ImageDeleted, ImageDeletion, ImageFilter, ImageIdentifier, ImageRange,
    ImageStatus, ImageStore, LastTag, LifecycleDecision, ManifestId, ReferrerFilter, Referrers,
    StorageClass, StorageClassError, TagDeleted, TaggedImage, statuses,
};
use crate::repositories::RepositoryId;
use wharfage_domain::names::{Digest, Reference, Tag};

#[async_trait::async_trait]
impl ImageStore for PostgresStore {
    async fn find_images(
        &self,
        repository: RepositoryId,
        references: &[Reference],
    ) -> StoreResult<Vec<Option<TaggedImage>>> {
        self.run(|| find(&self.pool, repository, references)).await
    }

    async fn list_images(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<TaggedImage>> {
        self.run(|| list(&self.pool, repository, filter, after, limit)).await
    }

    async fn list_image_ids(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&ImageIdentifier>,
        limit: usize,
    ) -> StoreResult<Vec<ImageIdentifier>> {
        self.run(|| list_ids(&self.pool, repository, filter, after, limit)).await
    }

    async fn list_tags(
        &self,
        repository: RepositoryId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Tag>> {
        self.run(|| list_tags(&self.pool, repository, after, limit)).await
    }

    async fn list_index_edges(
        &self,
        repository: RepositoryId,
        after: Option<&(Digest, Digest)>,
        limit: usize,
    ) -> StoreResult<Vec<(Digest, Digest)>> {
        self.run(|| list_index_edges(&self.pool, repository, after, limit)).await
    }

    async fn list_referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        filter: &ReferrerFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<Image>> {
        self.run(|| list_referrers(&self.pool, repository, subject, filter, after, limit)).await
    }

    async fn delete_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        referrers: Referrers,
        now: Timestamp,
    ) -> Result<Vec<Tag>, DeleteImageError> {
        self.run(|| image_deletion::delete(&self.pool, repository, digest, referrers, now)).await
    }

    async fn delete_tag(
        &self,
        repository: RepositoryId,
        tag: &Tag,
        expected: Option<&Digest>,
        last: LastTag,
        now: Timestamp,
    ) -> Result<TagDeleted, DeleteImageError> {
        self.run(|| image_deletion::delete_tag(&self.pool, repository, tag, expected, last, now))
            .await
    }

    async fn delete_images(
        &self,
        repository: RepositoryId,
        deletions: &[ImageDeletion],
        now: Timestamp,
    ) -> StoreResult<Vec<Result<ImageDeleted, DeleteImageError>>> {
        self.run(|| image_batches::delete_all(&self.pool, repository, deletions, now)).await
    }

    async fn expire_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), DeleteImageError> {
        self.run(|| image_deletion::expire(&self.pool, repository, digest, &decision, now)).await
    }

    async fn set_storage_class(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        class: StorageClass,
        now: Timestamp,
    ) -> Result<ImageStatus, StorageClassError> {
        self.run(|| storage_class::set(&self.pool, repository, digest, class, now)).await
    }

    async fn archive_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), StorageClassError> {
        self.run(|| storage_class::archive(&self.pool, repository, digest, &decision, now)).await
    }

    async fn follow_subject(
        &self,
        repository: RepositoryId,
        referrer: &Digest,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.run(|| image_deletion::follow_subject(&self.pool, repository, referrer, now)).await
    }

    async fn record_pulls(&self, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()> {
        self.run(|| record_pulls(&self.pool, pulls)).await
    }
}

/// The columns that [`image`] reads, of the table or alias `m`. Only lists of referrers read
/// annotations.
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

/// An image's tags as one array column.
macro_rules! tags_column {
    () => {
        "ARRAY(SELECT t.name FROM tag t WHERE t.manifest_id = m.id ORDER BY t.name) AS tags"
    };
}

/// Reads an image's row.
fn image(row: &PgRow) -> StoreResult<Image> {
    let subject: Option<&str> = get(row, "subject")?;
    Ok(Image {
        id: ManifestId(get(row, "id")?),
        digest: parsed(row, "digest")?,
        media_type: get(row, "media_type")?,
        artifact_type: get(row, "artifact_type")?,
        config_media_type: get(row, "config_media_type")?,
        payload_size: rows::unsigned(row, "payload_size")?,
        image_size: rows::unsigned(row, "image_size")?,
        subject: subject.map(parse).transpose()?,
        annotations: rows::annotations_of(get(row, "annotations")?)?,
        pushed_at: rows::time(row, "pushed_at")?,
        last_pulled_at: rows::optional_time(row, "last_pulled_at")?,
        status: rows::status(row)?,
        archived_at: rows::optional_time(row, "archived_at")?,
        activated_at: rows::optional_time(row, "activated_at")?,
        revision: rows::unsigned(row, "revision")?,
    })
}

/// Reads an image's row with the array column `tags`.
fn tagged_image(row: &PgRow) -> StoreResult<TaggedImage> {
    let tags: Vec<String> = get(row, "tags")?;
    Ok(TaggedImage {
        image: image(row)?,
        tags: tags.iter().map(|tag| parse(tag)).collect::<StoreResult<_>>()?,
    })
}

pub(super) async fn find(
    pool: &PgPool,
    repository: RepositoryId,
    references: &[Reference],
) -> TxResult<Vec<Option<TaggedImage>>> {
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
    let found = found.iter().map(tagged_image).collect::<StoreResult<Vec<TaggedImage>>>()?;
    let named = |reference: &Reference| {
        let is_named = |image: &&TaggedImage| match reference {
            Reference::Digest(digest) => image.image.digest == *digest,
            Reference::Tag(tag) => image.tags.binary_search(tag).is_ok(),
        };
        found.iter().find(is_named).cloned()
    };
    Ok(references.iter().map(named).collect())
}

pub(super) async fn list(
    pool: &PgPool,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&Digest>,
    limit: usize,
) -> TxResult<Vec<TaggedImage>> {
    let sql = format!(
        "SELECT m.*, {} FROM ({}) m ORDER BY m.digest",
        tags_column!(),
        page_sql(filter, ">", image_columns!())
    );
    let found = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(repository.0)
        .bind(after.map_or("", Digest::as_str))
        .bind(rows::limit(limit))
        .fetch_all(pool)
        .await?;
    Ok(found.iter().map(tagged_image).collect::<StoreResult<_>>()?)
}

pub(super) async fn list_ids(
    pool: &PgPool,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&ImageIdentifier>,
    limit: usize,
) -> TxResult<Vec<ImageIdentifier>> {
    // Each image but the first has an entry, so `limit + 1` images fill the page. Tags are read
    // only of as many images as fill it.
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
        page_sql(filter, ">=", "m.id, m.digest, m.tag_count")
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

/// Returns the query of a filter's images whose digests compare with $2 as `comparison` says, in
/// the order of their digests, at most $3. Each range of the filter is one range of the index.
fn page_sql(filter: ImageFilter, comparison: &str, columns: &str) -> String {
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

pub(super) async fn list_tags(
    pool: &PgPool,
    repository: RepositoryId,
    after: Option<&str>,
    limit: usize,
) -> TxResult<Vec<Tag>> {
    // The condition is literally that of the partial index `tag_listed`, so that the planner uses
    // it.
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

pub(super) async fn list_index_edges(
    pool: &PgPool,
    repository: RepositoryId,
    after: Option<&(Digest, Digest)>,
    limit: usize,
) -> TxResult<Vec<(Digest, Digest)>> {
    let (parent, child) =
        after.map_or(("", ""), |(parent, child)| (parent.as_str(), child.as_str()));
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

pub(super) async fn list_referrers(
    pool: &PgPool,
    repository: RepositoryId,
    subject: &Digest,
    filter: &ReferrerFilter,
    after: Option<&Digest>,
    limit: usize,
) -> TxResult<Vec<Image>> {
    // PostgreSQL refuses text with a NUL, and no stored artifact type has one. Removes duplicate
    // types.
    let types: BTreeSet<&str> = filter
        .artifact_types
        .iter()
        .map(String::as_str)
        .filter(|kind| !kind.contains('\0'))
        .collect();
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
    Ok(found.iter().map(image).collect::<StoreResult<_>>()?)
}

pub(super) async fn record_pulls(pool: &PgPool, pulls: &[(ManifestId, Timestamp)]) -> TxResult<()> {
    let mut latest: BTreeMap<i64, i64> = BTreeMap::new();
    for (id, at) in pulls {
        let at = millis(*at);
        latest.entry(id.0).and_modify(|last| *last = at.max(*last)).or_insert(at);
    }
    // All transactions lock manifests in the order of digests, so that replicas that pull the same
    // images do not deadlock.
    sqlx::query(
        "WITH pull AS (SELECT * FROM UNNEST($1::bigint[], $2::bigint[]) AS t (id, at)),
              locked AS (SELECT m.id FROM manifest m WHERE m.id = ANY($1) ORDER BY m.digest FOR NO KEY UPDATE)
         UPDATE manifest m SET last_pulled_at = pull.at FROM pull JOIN locked ON locked.id = pull.id
         WHERE m.id = pull.id AND (m.last_pulled_at IS NULL OR m.last_pulled_at < pull.at)",
    )
    .bind(latest.keys().copied().collect::<Vec<_>>())
    .bind(latest.values().copied().collect::<Vec<_>>())
    .execute(pool)
    .await?;
    Ok(())
}
