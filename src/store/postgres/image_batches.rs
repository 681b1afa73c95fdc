//! Deletion of many images and tags in one transaction: a few statements read and lock them, the
//! deletions are decided without I/O as if one came after another, and a few statements write them.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use sqlx::{PgConnection, PgPool};

use super::error::{TxError, TxResult};
use super::image_rows::{self, ImageRow, image_row_columns};
use super::rows::{self, get, ids_by_digest, parse, parsed};
use super::{events, jobs};
use crate::StoreResult;
use crate::events::Event;
use crate::images::{DeleteImageError, ImageDeleted, ImageDeletion, MAX_NAMED_PARENTS};
use crate::repositories::RepositoryId;
use wharfage_domain::names::{Digest, Tag};

pub(super) async fn delete_all(
    pool: &PgPool,
    repository: RepositoryId,
    deletions: &[ImageDeletion],
    now: Timestamp,
) -> TxResult<Vec<Result<ImageDeleted, DeleteImageError>>> {
    let mut tx = pool.begin().await?;
    let batch = lock(&mut tx, repository, deletions).await?;
    let mut decided = BatchDeletion::new(batch, now);
    let results = deletions.iter().map(|deletion| decided.delete(deletion)).collect();
    decided.write(&mut tx, repository).await?;
    tx.commit().await?;
    Ok(results)
}

/// The images of a batch, locked with the tags that may be deleted.
struct LockedBatch {
    images: HashMap<i64, ImageRow>,
    by_digest: HashMap<Digest, i64>,
    by_tag: HashMap<Tag, i64>,
    /// All tags of each tagged image.
    tags: HashMap<i64, BTreeSet<Tag>>,
    /// Indexes that hold each image: as many as a refusal names, and as many more as the batch may
    /// delete.
    parents: HashMap<i64, Vec<(i64, Digest)>>,
}

/// Locks tags in the order of their names, then images in the order of their digests, as all
/// transactions do.
async fn lock(
    tx: &mut PgConnection,
    repository: RepositoryId,
    deletions: &[ImageDeletion],
) -> TxResult<LockedBatch> {
    let (mut digests, mut names) = (Vec::new(), Vec::new());
    for deletion in deletions {
        match deletion {
            ImageDeletion::Image(digest) => digests.push(digest.as_str()),
            ImageDeletion::Tag { tag, .. } => names.push(tag.as_str()),
        }
    }
    let locked: Vec<(String, i64)> = sqlx::query_as(concat!(
        "SELECT name, manifest_id FROM tag
         WHERE repository_id = $1 AND name = ANY (ARRAY(
             SELECT t.name FROM (",
        ids_by_digest!("manifest"),
        ") k JOIN tag t ON t.manifest_id = k.id
             UNION SELECT UNNEST($3::text[])))
         ORDER BY name FOR UPDATE",
    ))
    .bind(repository.0)
    .bind(&digests)
    .bind(&names)
    .fetch_all(&mut *tx)
    .await?;
    let rows = sqlx::query(concat!(
        "SELECT ",
        image_row_columns!(),
        " FROM manifest m JOIN repository r ON r.id = m.repository_id AND r.deleted_at IS NULL
          WHERE m.id = ANY (ARRAY(
              ",
        ids_by_digest!("manifest"),
        " UNION SELECT UNNEST($3::bigint[])))
          ORDER BY m.digest FOR UPDATE OF m",
    ))
    .bind(repository.0)
    .bind(&digests)
    .bind(locked.iter().map(|(_, id)| *id).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await?;
    let images = rows.iter().map(ImageRow::read).collect::<StoreResult<Vec<ImageRow>>>()?;
    let ids: Vec<i64> = images.iter().map(|image| image.id.0).collect();
    let mut batch = LockedBatch {
        by_digest: images.iter().map(|image| (image.digest.clone(), image.id.0)).collect(),
        by_tag: locked
            .iter()
            .map(|(name, id)| Ok((parse(name)?, *id)))
            .collect::<StoreResult<_>>()?,
        images: images.into_iter().map(|image| (image.id.0, image)).collect(),
        tags: HashMap::new(),
        parents: list_parents(tx, &ids, MAX_NAMED_PARENTS + deletions.len()).await?,
    };
    let tags: Vec<(i64, String)> =
        sqlx::query_as("SELECT manifest_id, name FROM tag WHERE manifest_id = ANY($1)")
            .bind(&ids)
            .fetch_all(tx)
            .await?;
    let of_image = |deletion: &ImageDeletion| match deletion {
        ImageDeletion::Image(digest) => batch.by_digest.get(digest).copied(),
        ImageDeletion::Tag { .. } => None,
    };
    let deleted: HashSet<i64> = deletions.iter().filter_map(of_image).collect();
    for (id, name) in tags {
        let tag = parse(&name)?;
        if deleted.contains(&id) && batch.by_tag.get(&tag) != Some(&id) {
            // The image got the tag before it was locked. The next attempt locks that tag too.
            return Err(TxError::Raced);
        }
        batch.tags.entry(id).or_default().insert(tag);
    }
    Ok(batch)
}

async fn list_parents(
    tx: &mut PgConnection,
    ids: &[i64],
    limit: usize,
) -> TxResult<HashMap<i64, Vec<(i64, Digest)>>> {
    let found = sqlx::query(
        "SELECT c.id AS child, e.parent_id, p.digest
         FROM UNNEST($1::bigint[]) AS c (id) CROSS JOIN LATERAL (
             SELECT parent_id FROM manifest_child WHERE child_id = c.id
             ORDER BY archived_at NULLS FIRST, parent_id LIMIT $2) e
         JOIN manifest p ON p.id = e.parent_id",
    )
    .bind(ids)
    .bind(rows::limit(limit))
    .fetch_all(tx)
    .await?;
    let mut parents: HashMap<i64, Vec<(i64, Digest)>> = HashMap::new();
    for row in &found {
        parents
            .entry(get(row, "child")?)
            .or_default()
            .push((get(row, "parent_id")?, parsed(row, "digest")?));
    }
    Ok(parents)
}

/// The decided deletions, to be written.
struct BatchDeletion {
    batch: LockedBatch,
    now: Timestamp,
    /// Images to delete.
    gone: Vec<i64>,
    /// Tags to delete whose images are kept.
    untagged: Vec<Tag>,
    revised: Vec<i64>,
    events: Vec<Event>,
}

impl BatchDeletion {
    fn new(batch: LockedBatch, now: Timestamp) -> Self {
        Self {
            batch,
            now,
            gone: Vec::new(),
            untagged: Vec::new(),
            revised: Vec::new(),
            events: Vec::new(),
        }
    }

    fn delete(&mut self, deletion: &ImageDeletion) -> Result<ImageDeleted, DeleteImageError> {
        match deletion {
            ImageDeletion::Image(digest) => {
                let id =
                    self.batch.by_digest.get(digest).copied().ok_or(DeleteImageError::NotFound)?;
                self.delete_image(id)
            }
            ImageDeletion::Tag { tag, expected } => {
                let id = self.batch.by_tag.get(tag).copied().ok_or(DeleteImageError::NotFound)?;
                self.delete_tag(id, tag, expected.as_ref())
            }
        }
    }

    fn delete_image(&mut self, id: i64) -> Result<ImageDeleted, DeleteImageError> {
        let image = self.batch.images.get(&id).filter(|_| !self.gone.contains(&id));
        let image = image.ok_or(DeleteImageError::NotFound)?;
        let parents = self.batch.parents.get(&id).into_iter().flatten();
        let held =
            parents.filter(|(parent, _)| !self.gone.contains(parent)).take(MAX_NAMED_PARENTS);
        let held: Vec<Digest> = held.map(|(_, digest)| digest.clone()).collect();
        if !held.is_empty() {
            return Err(DeleteImageError::ReferencedBy(held));
        }
        let tags: Vec<Tag> = self.batch.tags.remove(&id).unwrap_or_default().into_iter().collect();
        self.events.extend(image.events().deleted(&tags, self.now));
        self.gone.push(id);
        Ok(ImageDeleted { digest: image.digest.clone(), tags, image_deleted: true })
    }

    fn delete_tag(
        &mut self,
        id: i64,
        tag: &Tag,
        expected: Option<&Digest>,
    ) -> Result<ImageDeleted, DeleteImageError> {
        let tags = self
            .batch
            .tags
            .get_mut(&id)
            .filter(|tags| tags.contains(tag))
            .ok_or(DeleteImageError::NotFound)?;
        let image = self.batch.images.get(&id).ok_or(DeleteImageError::NotFound)?;
        if expected.is_some_and(|expected| *expected != image.digest) {
            return Err(DeleteImageError::TagPointsElsewhere(image.digest.clone()));
        }
        if tags.len() == 1 {
            return self.delete_image(id);
        }
        tags.remove(tag);
        self.events.extend(image.events().deleted([tag], self.now));
        self.untagged.push(tag.clone());
        self.revised.push(id);
        Ok(ImageDeleted {
            digest: image.digest.clone(),
            tags: vec![tag.clone()],
            image_deleted: false,
        })
    }

    async fn write(self, tx: &mut PgConnection, repository: RepositoryId) -> TxResult<()> {
        let Self { batch, now, gone, untagged, revised, events } = self;
        if !untagged.is_empty() {
            sqlx::query("DELETE FROM tag WHERE repository_id = $1 AND name = ANY($2)")
                .bind(repository.0)
                .bind(untagged.iter().map(Tag::as_str).collect::<Vec<_>>())
                .execute(&mut *tx)
                .await?;
            image_rows::revise(tx, &revised).await?;
        }
        if !gone.is_empty() {
            for sql in [
                "DELETE FROM tag WHERE manifest_id = ANY($1)",
                // First, because an index and its children may be deleted together.
                "DELETE FROM manifest_child WHERE parent_id = ANY($1)",
                // Payloads and edges to blobs are deleted too, by cascade.
                "DELETE FROM manifest WHERE id = ANY($1)",
            ] {
                sqlx::query(sql).bind(&gone).execute(&mut *tx).await?;
            }
        }
        if !events.is_empty() {
            events::record_all(&mut *tx, &events).await?;
        }
        let subjects: Vec<&Digest> =
            gone.iter().filter_map(|id| batch.images.get(id)).map(|image| &image.digest).collect();
        let jobs = image_rows::follow_up_jobs(tx, repository, &subjects, now).await?;
        jobs::enqueue_all(tx, &jobs).await
    }
}
