//! Deletion of images and tags, and referrers that follow their subjects.

use jiff::Timestamp;
use sqlx::{PgConnection, PgPool};

use super::error::{TxError, TxResult};
use super::image_rows::{self, ImageRow, image_row_columns};
use super::rows::signed;
use super::{events, jobs, storage_class};
use crate::StoreResult;
use crate::images::{
    DeleteImageError, ImageStatus, LastTag, LifecycleDecision, ManifestId, Referrers, Stale,
    StorageClass, TagDeleted,
};
use crate::repositories::RepositoryId;
use wharfage_domain::names::{Digest, Tag};

pub(super) async fn delete(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    referrers: Referrers,
    now: Timestamp,
) -> TxResult<Vec<Tag>, DeleteImageError> {
    let mut tx = pool.begin().await?;
    let (image, tags) = image_rows::lock_with_tags(&mut tx, repository, digest)
        .await?
        .ok_or(TxError::Refused(DeleteImageError::NotFound))?;
    delete_row(&mut tx, repository, &image, &tags, referrers, now).await?;
    tx.commit().await?;
    Ok(tags)
}

pub(super) async fn delete_tag(
    pool: &PgPool,
    repository: RepositoryId,
    tag: &Tag,
    expected: Option<&Digest>,
    last: LastTag,
    now: Timestamp,
) -> TxResult<TagDeleted, DeleteImageError> {
    let mut tx = pool.begin().await?;
    let manifest: Option<i64> = sqlx::query_scalar(
        "SELECT manifest_id FROM tag WHERE repository_id = $1 AND name = $2 FOR UPDATE",
    )
    .bind(repository.0)
    .bind(tag.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let manifest = manifest.ok_or(TxError::Refused(DeleteImageError::NotFound))?;
    let row = sqlx::query(concat!(
        "SELECT ",
        image_row_columns!(),
        " FROM manifest m JOIN repository r ON r.id = m.repository_id AND r.deleted_at IS NULL
          WHERE m.id = $1 FOR UPDATE OF m",
    ))
    .bind(manifest)
    .fetch_optional(&mut *tx)
    .await?;
    let row = row.ok_or(TxError::Refused(DeleteImageError::NotFound))?;
    let image = ImageRow::read(&row)?;
    if expected.is_some_and(|expected| *expected != image.digest) {
        return Err(TxError::Refused(DeleteImageError::TagPointsElsewhere(image.digest)));
    }
    let image_deleted =
        last == LastTag::DeletesImage && !has_other_tags(&mut tx, image.id, tag).await?;
    if image_deleted {
        delete_row(&mut tx, repository, &image, std::slice::from_ref(tag), Referrers::Follow, now)
            .await?;
    } else {
        sqlx::query("DELETE FROM tag WHERE repository_id = $1 AND name = $2")
            .bind(repository.0)
            .bind(tag.as_str())
            .execute(&mut *tx)
            .await?;
        image_rows::revise(&mut tx, &[image.id.0]).await?;
        events::record_all(&mut *tx, &image.events().deleted([tag], now)).await?;
    }
    tx.commit().await?;
    Ok(TagDeleted { digest: image.digest, image_deleted })
}

async fn has_other_tags(
    tx: &mut PgConnection,
    id: ManifestId,
    tag: &Tag,
) -> TxResult<bool, DeleteImageError> {
    let any = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM tag WHERE manifest_id = $1 AND name <> $2)",
    );
    Ok(any.bind(id.0).bind(tag.as_str()).fetch_one(tx).await?)
}

pub(super) async fn expire(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    decision: &LifecycleDecision,
    now: Timestamp,
) -> TxResult<(), DeleteImageError> {
    let mut tx = pool.begin().await?;
    check_policy(&mut tx, repository, decision).await?;
    let (image, tags) = image_rows::lock_with_tags(&mut tx, repository, digest)
        .await?
        .ok_or(TxError::Refused(DeleteImageError::NotFound))?;
    check_image(&mut tx, repository, &image, decision, None).await?;
    delete_row(&mut tx, repository, &image, &tags, Referrers::Follow, now).await?;
    tx.commit().await?;
    Ok(())
}

pub(super) async fn follow_subject(
    pool: &PgPool,
    repository: RepositoryId,
    referrer: &Digest,
    now: Timestamp,
) -> TxResult<bool> {
    match follow(pool, repository, referrer, now).await {
        Ok(changed) => Ok(changed),
        Err(TxError::Refused(DeleteImageError::Store(error))) => Err(TxError::Refused(error)),
        Err(TxError::Refused(_)) => Ok(false),
        Err(TxError::Store(error)) => Err(TxError::Store(error)),
        Err(TxError::Database(error)) => Err(TxError::Database(error)),
        Err(TxError::Raced) => Err(TxError::Raced),
    }
}

async fn follow(
    pool: &PgPool,
    repository: RepositoryId,
    referrer: &Digest,
    now: Timestamp,
) -> TxResult<bool, DeleteImageError> {
    let mut tx = pool.begin().await?;
    let (image, tags) = image_rows::lock_with_tags(&mut tx, repository, referrer)
        .await?
        .ok_or(TxError::Refused(DeleteImageError::NotFound))?;
    let Some(subject) = &image.subject else { return Ok(false) };
    let changed = match image_rows::lock_status(&mut tx, repository, subject).await? {
        None => {
            delete_row(&mut tx, repository, &image, &tags, Referrers::Follow, now).await?;
            true
        }
        Some(ImageStatus::Archived) => {
            storage_class::follow(&mut tx, repository, &image, StorageClass::Archive, now).await?
        }
        Some(ImageStatus::Active | ImageStatus::Activating) => {
            storage_class::follow(&mut tx, repository, &image, StorageClass::Standard, now).await?
        }
    };
    tx.commit().await?;
    Ok(changed)
}

/// Checks that the repository still has the policy that decided, and locks it until the transaction
/// ends.
pub(super) async fn check_policy<E: From<Stale>>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    decision: &LifecycleDecision,
) -> TxResult<(), E> {
    let held =
        sqlx::query("SELECT 1 FROM repository WHERE id = $1 AND lifecycle_policy = $2 FOR SHARE");
    let held = held.bind(repository.0).bind(decision.policy.as_ref()).fetch_optional(tx).await?;
    held.map(drop).ok_or(TxError::Refused(Stale::Policy.into()))
}

/// Checks the other conditions of a decision about a locked image. `class` is the storage class to
/// move the image to, if it is not to be deleted.
pub(super) async fn check_image<E: From<Stale>>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    image: &ImageRow,
    decision: &LifecycleDecision,
    class: Option<StorageClass>,
) -> TxResult<(), E> {
    let LifecycleDecision { policy: _, revision, last_pulled_at, follows_subject, kept } = decision;
    let stale = |what: Stale| Err(TxError::Refused(what.into()));
    if image.revision != *revision || image.last_pulled_at != *last_pulled_at {
        return stale(Stale::Image);
    }
    if let (true, Some(subject)) = (follows_subject, &image.subject) {
        let status = image_rows::lock_status(tx, repository, subject).await?;
        let left = status.is_none() || (class.is_some() && status == Some(ImageStatus::Archived));
        if !left {
            return stale(Stale::Subject);
        }
    }
    if kept.is_empty() {
        return Ok(());
    }
    let (ids, revisions): (Vec<i64>, Vec<u64>) =
        kept.iter().map(|(ManifestId(id), revision)| (*id, *revision)).unzip();
    let revisions = revisions.into_iter().map(signed).collect::<StoreResult<Vec<i64>>>()?;
    let all: bool = sqlx::query_scalar(
        "SELECT NOT EXISTS (
             SELECT 1 FROM UNNEST($1::bigint[], $2::bigint[]) AS k (id, revision)
             WHERE NOT EXISTS (SELECT 1 FROM manifest m WHERE m.id = k.id AND m.revision = k.revision OFFSET 0))",
    )
    .bind(ids)
    .bind(revisions)
    .fetch_one(tx)
    .await?;
    if all { Ok(()) } else { stale(Stale::Kept) }
}

/// Deletes a locked image's row with its locked tags, unless an index holds it.
async fn delete_row(
    tx: &mut PgConnection,
    repository: RepositoryId,
    image: &ImageRow,
    tags: &[Tag],
    referrers: Referrers,
    now: Timestamp,
) -> TxResult<(), DeleteImageError> {
    let parents = image_rows::list_parents(tx, image.id).await?;
    if !parents.is_empty() {
        return Err(TxError::Refused(DeleteImageError::ReferencedBy(parents)));
    }
    // Payload, tags and edges are deleted too, by cascade.
    sqlx::query("DELETE FROM manifest WHERE id = $1").bind(image.id.0).execute(&mut *tx).await?;
    events::record_all(&mut *tx, &image.events().deleted(tags, now)).await?;
    if referrers == Referrers::Follow {
        let jobs = image_rows::follow_up_jobs(tx, repository, &[&image.digest], now).await?;
        jobs::enqueue_all(tx, &jobs).await?;
    }
    Ok(())
}
