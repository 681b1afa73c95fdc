//! Deleting, archiving and restoring images, and when they were pulled.
//!
//! Whoever deletes or archives a manifest first locks its row as a deletion does: a push of an index that holds it, which
//! has the row's FOR KEY SHARE, comes wholly before or wholly after.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};

use super::failure::{Attempt, Failure};
use super::jobs;
use super::rows::{self, get, millis, parse, parsed};
use crate::names::{AccountId, Digest, RepositoryName, Tag};
use crate::store::StoreResult;
use crate::store::events::ImageSubject;
use crate::store::images::{
    DeleteImageError, ImageStatus, LastTag, ManifestId, StorageClass, StorageClassError, TagDeleted,
};
use crate::store::repositories::RepositoryId;

/// A locked image, with what its events say.
struct Locked {
    id: ManifestId,
    status: ImageStatus,
    account: AccountId,
    repository: RepositoryName,
    digest: Digest,
    media_type: String,
    artifact_media_type: Option<String>,
    is_referrer: bool,
}

impl Locked {
    fn read(row: &PgRow) -> StoreResult<Self> {
        Ok(Self {
            id: ManifestId(get(row, "id")?),
            status: rows::status(row)?,
            account: parsed(row, "account_id")?,
            repository: parsed(row, "name")?,
            digest: parsed(row, "digest")?,
            media_type: get(row, "media_type")?,
            artifact_media_type: get(row, "artifact_media_type")?,
            is_referrer: get(row, "is_referrer")?,
        })
    }

    fn subject(&self) -> ImageSubject<'_> {
        ImageSubject {
            account: &self.account,
            repository: &self.repository,
            digest: &self.digest,
            media_type: &self.media_type,
            artifact_media_type: self.artifact_media_type.as_deref(),
            is_referrer: self.is_referrer,
        }
    }
}

async fn lock<E>(tx: &mut PgConnection, repository: RepositoryId, digest: &Digest) -> Attempt<Option<Locked>, E> {
    let row = sqlx::query(
        "SELECT m.id, m.status, m.digest, m.media_type, m.subject IS NOT NULL AS is_referrer, r.account_id, r.name,
                coalesce(m.artifact_type, m.config_media_type) AS artifact_media_type
         FROM manifest m JOIN repository r ON r.id = m.repository_id
         WHERE m.repository_id = $1 AND m.digest = $2 FOR UPDATE OF m",
    )
    .bind(repository.0)
    .bind(digest.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(row.as_ref().map(Locked::read).transpose()?)
}

/// The indexes that hold an image, in the order of their digests; only those that are active, if asked so.
async fn parents<E>(tx: &mut PgConnection, id: ManifestId, active_only: bool) -> Attempt<Vec<Digest>, E> {
    let digests: Vec<String> = sqlx::query_scalar(
        "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id
         WHERE e.child_id = $1 AND (NOT $2 OR p.status = 'ACTIVE') ORDER BY p.digest",
    )
    .bind(id.0)
    .bind(active_only)
    .fetch_all(tx)
    .await?;
    Ok(digests.iter().map(|digest| parse(digest)).collect::<StoreResult<_>>()?)
}

/// Whether this is the repository's lifecycle policy, which it stays until the transaction's end.
async fn hold_policy<E>(tx: &mut PgConnection, repository: RepositoryId, policy: &str) -> Attempt<bool, E> {
    let held = sqlx::query("SELECT 1 FROM repository WHERE id = $1 AND lifecycle_policy = $2 FOR SHARE");
    Ok(held.bind(repository.0).bind(policy).fetch_optional(tx).await?.is_some())
}

pub(super) async fn delete(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    now: Timestamp,
) -> Attempt<Vec<Tag>, DeleteImageError> {
    let mut tx = pool.begin().await?;
    let tags = delete_in(&mut tx, repository, digest, None, now).await?;
    tx.commit().await?;
    Ok(tags)
}

pub(super) async fn expire(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    policy: &str,
    tags: &[Tag],
    now: Timestamp,
) -> Attempt<(), DeleteImageError> {
    let mut tx = pool.begin().await?;
    if !hold_policy(&mut tx, repository, policy).await? {
        return Err(Failure::Refused(DeleteImageError::PolicyChanged));
    }
    delete_in(&mut tx, repository, digest, Some(tags), now).await?;
    tx.commit().await?;
    Ok(())
}

async fn delete_in(
    tx: &mut PgConnection,
    repository: RepositoryId,
    digest: &Digest,
    expected: Option<&[Tag]>,
    now: Timestamp,
) -> Attempt<Vec<Tag>, DeleteImageError> {
    let image = lock(tx, repository, digest).await?.ok_or(Failure::Refused(DeleteImageError::NotFound))?;
    let tags: Vec<String> = sqlx::query_scalar(
        "WITH gone AS (DELETE FROM tag WHERE manifest_id = $1 RETURNING name) TABLE gone ORDER BY 1",
    )
    .bind(image.id.0)
    .fetch_all(&mut *tx)
    .await?;
    let tags = tags.iter().map(|tag| parse(tag)).collect::<StoreResult<Vec<Tag>>>()?;
    if expected.is_some_and(|expected| expected != tags) {
        return Err(Failure::Refused(DeleteImageError::TagsChanged));
    }
    delete_row(tx, &image).await?;
    jobs::record(tx, &image.subject().deleted(&tags, now)).await?;
    Ok(tags)
}

/// Deletes a locked image, whose tags have gone, unless an index holds it.
async fn delete_row(tx: &mut PgConnection, image: &Locked) -> Attempt<(), DeleteImageError> {
    let parents = parents(tx, image.id, false).await?;
    if !parents.is_empty() {
        return Err(Failure::Refused(DeleteImageError::ReferencedBy(parents)));
    }
    sqlx::query("DELETE FROM manifest WHERE id = $1").bind(image.id.0).execute(tx).await?;
    Ok(())
}

pub(super) async fn delete_tag(
    pool: &PgPool,
    repository: RepositoryId,
    tag: &Tag,
    expected: Option<&Digest>,
    last: LastTag,
    now: Timestamp,
) -> Attempt<TagDeleted, DeleteImageError> {
    let mut tx = pool.begin().await?;
    // The image's lock comes before the tag's, as in a push; so where the tag points has to be looked at first.
    let digest: Option<String> = sqlx::query_scalar(
        "SELECT m.digest FROM tag t JOIN manifest m ON m.id = t.manifest_id WHERE t.repository_id = $1 AND t.name = $2",
    )
    .bind(repository.0)
    .bind(tag.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let digest: Digest = parse(&digest.ok_or(Failure::Refused(DeleteImageError::NotFound))?)?;
    if expected.is_some_and(|expected| *expected != digest) {
        return Err(Failure::Refused(DeleteImageError::TagPointsElsewhere(digest)));
    }
    let image = lock(&mut tx, repository, &digest).await?.ok_or(Failure::Raced)?;
    let gone = sqlx::query("DELETE FROM tag WHERE repository_id = $1 AND name = $2 AND manifest_id = $3")
        .bind(repository.0)
        .bind(tag.as_str())
        .bind(image.id.0)
        .execute(&mut *tx)
        .await?;
    if gone.rows_affected() == 0 {
        return Err(Failure::Raced);
    }
    let image_deleted = last == LastTag::DeletesImage && !has_tags(&mut tx, image.id).await?;
    if image_deleted {
        delete_row(&mut tx, &image).await?;
    }
    jobs::record(&mut *tx, &image.subject().deleted([tag], now)).await?;
    tx.commit().await?;
    Ok(TagDeleted { digest, image_deleted })
}

async fn has_tags(tx: &mut PgConnection, id: ManifestId) -> Attempt<bool, DeleteImageError> {
    let any = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tag WHERE manifest_id = $1)");
    Ok(any.bind(id.0).fetch_one(tx).await?)
}

pub(super) async fn set_storage_class(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    class: StorageClass,
    now: Timestamp,
) -> Attempt<ImageStatus, StorageClassError> {
    let mut tx = pool.begin().await?;
    let status = set_storage_class_in(&mut tx, repository, digest, class, now).await?;
    tx.commit().await?;
    Ok(status)
}

pub(super) async fn archive(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    policy: &str,
    now: Timestamp,
) -> Attempt<(), StorageClassError> {
    let mut tx = pool.begin().await?;
    if !hold_policy(&mut tx, repository, policy).await? {
        return Err(Failure::Refused(StorageClassError::PolicyChanged));
    }
    set_storage_class_in(&mut tx, repository, digest, StorageClass::Archive, now).await?;
    tx.commit().await?;
    Ok(())
}

async fn set_storage_class_in(
    tx: &mut PgConnection,
    repository: RepositoryId,
    digest: &Digest,
    class: StorageClass,
    now: Timestamp,
) -> Attempt<ImageStatus, StorageClassError> {
    let image = lock(tx, repository, digest).await?.ok_or(Failure::Refused(StorageClassError::NotFound))?;
    let archived = image.status == ImageStatus::Archived;
    if archived == (class == StorageClass::Archive) {
        return Err(Failure::Refused(StorageClassError::Unchanged(image.status)));
    }
    let (update, status, activated_at) = match class {
        StorageClass::Archive => {
            let parents = parents(tx, image.id, true).await?;
            if !parents.is_empty() {
                return Err(Failure::Refused(StorageClassError::ReferencedBy(parents)));
            }
            ("UPDATE manifest SET status = 'ARCHIVED', archived_at = $2 WHERE id = $1", ImageStatus::Archived, None)
        }
        StorageClass::Standard => {
            ("UPDATE manifest SET status = 'ACTIVE', activated_at = $2 WHERE id = $1", ImageStatus::Active, Some(now))
        }
    };
    sqlx::query(update).bind(image.id.0).bind(millis(now)).execute(&mut *tx).await?;
    jobs::record(tx, &[image.subject().moved(class, activated_at, now)]).await?;
    Ok(status)
}

pub(super) async fn record_pulls(pool: &PgPool, pulls: &[(ManifestId, Timestamp)]) -> Attempt<()> {
    let mut latest: BTreeMap<i64, i64> = BTreeMap::new();
    for (id, at) in pulls {
        let at = millis(*at);
        latest.entry(id.0).and_modify(|last| *last = at.max(*last)).or_insert(at);
    }
    // The rows are locked in the order of their ids, so that replicas that pull the same images do not deadlock.
    sqlx::query(
        "WITH pull AS (SELECT * FROM UNNEST($1::bigint[], $2::bigint[]) AS t (id, at)),
              locked AS (SELECT m.id FROM manifest m WHERE m.id = ANY($1) ORDER BY m.id FOR NO KEY UPDATE)
         UPDATE manifest m SET last_pulled_at = pull.at FROM pull JOIN locked ON locked.id = pull.id
         WHERE m.id = pull.id AND (m.last_pulled_at IS NULL OR m.last_pulled_at < pull.at)",
    )
    .bind(latest.keys().copied().collect::<Vec<_>>())
    .bind(latest.values().copied().collect::<Vec<_>>())
    .execute(pool)
    .await?;
    Ok(())
}
