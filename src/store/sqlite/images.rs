//! Images: lists of them and of their tags, as keyset pages, and when they were pulled.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::Db;
use super::image_rows::tags_of;
use super::rows::{self, optional_parsed, optional_time, parsed, text, text_or_null};
use super::{SqliteStore, image_batches, image_deletion, storage_class};
use crate::StoreResult;
use crate::images::{
    DeleteImageError, Image, ImageDeleted, ImageDeletion, ImageFilter, ImageIdentifier, ImageRange,
    ImageStatus, ImageStore, LastTag, LifecycleDecision, ManifestId, ReferrerFilter, Referrers,
    StorageClass, StorageClassError, TagDeleted, TaggedImage, statuses,
};
use crate::repositories::RepositoryId;
use wharfage_domain::names::{Digest, Reference, Tag};

#[async_trait::async_trait]
impl ImageStore for SqliteStore {
    async fn find_images(
        &self,
        repository: RepositoryId,
        references: &[Reference],
    ) -> StoreResult<Vec<Option<TaggedImage>>> {
        let references = references.to_vec();
        self.readers.page(move |db| find(db, repository, &references)).await
    }

    async fn list_images(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<TaggedImage>> {
        let after = after.cloned();
        self.readers.page(move |db| list(db, repository, filter, after.as_ref(), limit)).await
    }

    async fn list_image_ids(
        &self,
        repository: RepositoryId,
        filter: ImageFilter,
        after: Option<&ImageIdentifier>,
        limit: usize,
    ) -> StoreResult<Vec<ImageIdentifier>> {
        let after = after.cloned();
        self.readers.page(move |db| list_ids(db, repository, filter, after.as_ref(), limit)).await
    }

    async fn list_tags(
        &self,
        repository: RepositoryId,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<Tag>> {
        let after = after.map(str::to_owned);
        self.readers.page(move |db| list_tags(db, repository, after.as_deref(), limit)).await
    }

    async fn list_index_edges(
        &self,
        repository: RepositoryId,
        after: Option<&(Digest, Digest)>,
        limit: usize,
    ) -> StoreResult<Vec<(Digest, Digest)>> {
        let after = after.cloned();
        self.readers.page(move |db| list_index_edges(db, repository, after.as_ref(), limit)).await
    }

    async fn list_referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        filter: &ReferrerFilter,
        after: Option<&Digest>,
        limit: usize,
    ) -> StoreResult<Vec<Image>> {
        let (subject, filter, after) = (subject.clone(), filter.clone(), after.cloned());
        self.readers
            .page(move |db| {
                list_referrers(db, repository, &subject, &filter, after.as_ref(), limit)
            })
            .await
    }

    async fn delete_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        referrers: Referrers,
        now: Timestamp,
    ) -> Result<Vec<Tag>, DeleteImageError> {
        let digest = digest.clone();
        self.writer
            .write(move |db| image_deletion::delete(db, repository, &digest, referrers, now))
            .await
    }

    async fn delete_tag(
        &self,
        repository: RepositoryId,
        tag: &Tag,
        expected: Option<&Digest>,
        last: LastTag,
        now: Timestamp,
    ) -> Result<TagDeleted, DeleteImageError> {
        let (tag, expected) = (tag.clone(), expected.cloned());
        self.writer
            .write(move |db| {
                image_deletion::delete_tag(db, repository, &tag, expected.as_ref(), last, now)
            })
            .await
    }

    async fn delete_images(
        &self,
        repository: RepositoryId,
        deletions: &[ImageDeletion],
        now: Timestamp,
    ) -> StoreResult<Vec<Result<ImageDeleted, DeleteImageError>>> {
        let deletions = deletions.to_vec();
        self.writer
            .write(move |db| image_batches::delete_all(db, repository, &deletions, now))
            .await
    }

    async fn expire_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), DeleteImageError> {
        let digest = digest.clone();
        self.writer
            .write(move |db| image_deletion::expire(db, repository, &digest, &decision, now))
            .await
    }

    async fn set_storage_class(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        class: StorageClass,
        now: Timestamp,
    ) -> Result<ImageStatus, StorageClassError> {
        let digest = digest.clone();
        self.writer.write(move |db| storage_class::set(db, repository, &digest, class, now)).await
    }

    async fn archive_image(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        decision: LifecycleDecision,
        now: Timestamp,
    ) -> Result<(), StorageClassError> {
        let digest = digest.clone();
        self.writer
            .write(move |db| storage_class::archive(db, repository, &digest, &decision, now))
            .await
    }

    async fn follow_subject(
        &self,
        repository: RepositoryId,
        referrer: &Digest,
        now: Timestamp,
    ) -> StoreResult<bool> {
        let referrer = referrer.clone();
        self.writer
            .write(move |db| image_deletion::follow_subject(db, repository, &referrer, now))
            .await
    }

    async fn record_pulls(&self, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()> {
        let pulls = pulls.to_vec();
        self.writer.write(move |db| record_pulls(db, &pulls)).await
    }
}

/// The columns that [`image`] reads.
const COLUMNS: &str = "m.id, m.digest, m.media_type, m.artifact_type, m.config_media_type, m.payload_size, \
                     m.image_size, m.subject, m.pushed_at, m.last_pulled_at, m.status, m.archived_at, \
                     m.activated_at, m.revision";

fn image(row: &Row<'_>) -> StoreResult<Image> {
    Ok(Image {
        id: ManifestId(row.get(0)?),
        digest: parsed(row, 1)?,
        media_type: row.get(2)?,
        artifact_type: row.get(3)?,
        config_media_type: row.get(4)?,
        payload_size: rows::unsigned(row.get(5)?)?,
        image_size: rows::unsigned(row.get(6)?)?,
        subject: optional_parsed(row, 7)?,
        annotations: BTreeMap::new(),
        pushed_at: rows::time(row.get(8)?)?,
        last_pulled_at: optional_time(row, 9)?,
        status: rows::status(text(row, 10)?)?,
        archived_at: optional_time(row, 11)?,
        activated_at: optional_time(row, 12)?,
        revision: rows::unsigned(row.get(13)?)?,
    })
}

/// Reads an image with its annotations, the column after [`COLUMNS`], which only lists of referrers
/// need.
fn referrer(row: &Row<'_>) -> StoreResult<Image> {
    Ok(Image { annotations: rows::annotations_of(text_or_null(row, 14)?)?, ..image(row)? })
}

pub(super) fn find(
    db: Db<'_>,
    repository: RepositoryId,
    references: &[Reference],
) -> StoreResult<Vec<Option<TaggedImage>>> {
    let by_tag = format!(
        "SELECT {COLUMNS} FROM tag t JOIN manifest m ON m.id = t.manifest_id WHERE t.repository_id = ?1 AND t.name = ?2"
    );
    let by_digest =
        format!("SELECT {COLUMNS} FROM manifest m WHERE m.repository_id = ?1 AND m.digest = ?2");
    let find = |reference: &Reference| {
        let (sql, name) = match reference {
            Reference::Tag(tag) => (&by_tag, tag.as_str()),
            Reference::Digest(digest) => (&by_digest, digest.as_str()),
        };
        let found = db.first(sql, params![repository.0, name], image)?;
        found.map(|image| with_tags(db, image)).transpose()
    };
    references.iter().map(find).collect()
}

fn with_tags(db: Db<'_>, image: Image) -> StoreResult<TaggedImage> {
    let tags = tags_of(db, image.id.0)?;
    Ok(TaggedImage { image, tags })
}

pub(super) fn list(
    db: Db<'_>,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&Digest>,
    limit: usize,
) -> StoreResult<Vec<TaggedImage>> {
    let by_id = format!("SELECT {COLUMNS} FROM manifest m WHERE m.id = ?1");
    let mut images = Vec::new();
    for ListedImage { id, digest, tag_count } in
        list_page(db, repository, filter, after.map_or("", Digest::as_str), limit + 1)?
    {
        if after == Some(&digest) || images.len() == limit {
            continue;
        }
        let tags = if tag_count == 0 { Vec::new() } else { tags_of(db, id)? };
        let image = db.first(&by_id, [id], image)?;
        images.extend(image.map(|image| TaggedImage { image, tags }));
    }
    Ok(images)
}

pub(super) fn list_ids(
    db: Db<'_>,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&ImageIdentifier>,
    limit: usize,
) -> StoreResult<Vec<ImageIdentifier>> {
    let from = after.map_or("", |after| after.digest.as_str());
    let mut entries = Vec::new();
    // Each image but the first has an entry, so `limit + 1` images fill the page.
    for ListedImage { id, digest, tag_count } in list_page(db, repository, filter, from, limit + 1)?
    {
        if entries.len() == limit {
            break;
        }
        let begun = after.filter(|after| after.digest == digest);
        if tag_count == 0 {
            // The entry without a tag is the only one of its image.
            entries.extend(begun.is_none().then_some(ImageIdentifier { digest, tag: None }));
            continue;
        }
        let last = begun.and_then(|after| after.tag.as_ref()).map_or("", Tag::as_str);
        let sql =
            "SELECT name FROM tag WHERE manifest_id = ?1 AND name > ?2 ORDER BY name LIMIT ?3";
        let names = db.all(sql, params![id, last, rows::limit(limit - entries.len())], |row| {
            parsed(row, 0)
        })?;
        entries.extend(
            names.into_iter().map(|tag| ImageIdentifier { digest: digest.clone(), tag: Some(tag) }),
        );
    }
    Ok(entries)
}

/// An image on a page of a listing.
struct ListedImage {
    id: i64,
    digest: Digest,
    tag_count: i64,
}

/// Lists the images of a filter whose digests are `from` or greater, in the order of their digests.
/// Each range of the filter is one range of the index; the ranges are merged here.
fn list_page(
    db: Db<'_>,
    repository: RepositoryId,
    filter: ImageFilter,
    from: &str,
    limit: usize,
) -> StoreResult<Vec<ListedImage>> {
    let listed = |row: &Row<'_>| {
        Ok(ListedImage { id: row.get(0)?, digest: parsed(row, 1)?, tag_count: row.get(2)? })
    };
    let ranges = filter.ranges();
    if ranges.is_empty() {
        let sql = "SELECT id, digest, tag_count FROM manifest \
                   WHERE repository_id = ?1 AND digest >= ?2 ORDER BY digest LIMIT ?3";
        return db.all(sql, params![repository.0, from, rows::limit(limit)], listed);
    }
    let mut page = Vec::new();
    for ImageRange { status, tagged } in ranges {
        let sql = "SELECT id, digest, tag_count FROM manifest \
                   WHERE repository_id = ?1 AND status = ?4 AND min(tag_count, 1) = ?5 AND digest >= ?2 \
                   ORDER BY digest LIMIT ?3";
        let values =
            params![repository.0, from, rows::limit(limit), status.as_str(), i64::from(tagged)];
        page.extend(db.all(sql, values, listed)?);
    }
    page.sort_unstable_by(|one, other| one.digest.cmp(&other.digest));
    page.truncate(limit);
    Ok(page)
}

pub(super) fn list_tags(
    db: Db<'_>,
    repository: RepositoryId,
    after: Option<&str>,
    limit: usize,
) -> StoreResult<Vec<Tag>> {
    // The condition is literally that of the partial index `tag_listed`, so that the planner uses
    // it.
    let sql = format!(
        "SELECT name FROM tag WHERE repository_id = ?1 AND name > ?2 AND archived_at IS NULL AND length(name) <= {} \
         ORDER BY name LIMIT ?3",
        Tag::MAX_OCI
    );
    db.all(&sql, params![repository.0, after.unwrap_or_default(), rows::limit(limit)], |row| {
        parsed(row, 0)
    })
}

pub(super) fn list_index_edges(
    db: Db<'_>,
    repository: RepositoryId,
    after: Option<&(Digest, Digest)>,
    limit: usize,
) -> StoreResult<Vec<(Digest, Digest)>> {
    let (parent, child) =
        after.map_or(("", ""), |(parent, child)| (parent.as_str(), child.as_str()));
    let sql = "SELECT p.digest, c.digest FROM manifest p JOIN manifest_child e ON e.parent_id = p.id \
               JOIN manifest c ON c.id = e.child_id \
               WHERE p.repository_id = ?1 AND p.digest >= ?2 AND (p.digest > ?2 OR c.digest > ?3) \
               ORDER BY p.digest, c.digest LIMIT ?4";
    let values = params![repository.0, parent, child, rows::limit(limit)];
    db.all(sql, values, |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))
}

pub(super) fn list_referrers(
    db: Db<'_>,
    repository: RepositoryId,
    subject: &Digest,
    filter: &ReferrerFilter,
    after: Option<&Digest>,
    limit: usize,
) -> StoreResult<Vec<Image>> {
    let of_any_type = format!(
        "SELECT {COLUMNS}, m.annotations FROM manifest m WHERE m.repository_id = ?1 AND m.subject = ?2 AND m.status = ?3 \
         AND m.digest > ?4 ORDER BY m.digest LIMIT ?5"
    );
    let of_type = format!(
        "SELECT {COLUMNS}, m.annotations FROM manifest m WHERE m.repository_id = ?1 AND m.subject = ?2 AND m.status = ?3 \
         AND coalesce(m.artifact_type, m.config_media_type) = ?6 AND m.digest > ?4 ORDER BY m.digest LIMIT ?5"
    );
    // Removes duplicate types.
    let types: BTreeSet<&str> = filter.artifact_types.iter().map(String::as_str).collect();
    let (subject, after, limited) =
        (subject.as_str(), after.map_or("", Digest::as_str), rows::limit(limit));
    let mut page = Vec::new();
    for status in statuses(filter.status) {
        let status = status.as_str();
        if types.is_empty() {
            page.extend(db.all(
                &of_any_type,
                params![repository.0, subject, status, after, limited],
                referrer,
            )?);
        }
        for kind in &types {
            page.extend(db.all(
                &of_type,
                params![repository.0, subject, status, after, limited, kind],
                referrer,
            )?);
        }
    }
    page.sort_unstable_by(|one, other| one.digest.cmp(&other.digest));
    page.truncate(limit);
    Ok(page)
}

pub(super) fn record_pulls(db: Db<'_>, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()> {
    let sql = "UPDATE manifest SET last_pulled_at = ?2 \
               WHERE id = ?1 AND (last_pulled_at IS NULL OR last_pulled_at < ?2)";
    for (manifest, at) in pulls {
        db.run(sql, [manifest.0, rows::millis(*at)])?;
    }
    Ok(())
}
