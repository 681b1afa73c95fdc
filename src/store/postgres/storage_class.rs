//! Archiving and restoring images. An index that can be pulled has children that can be pulled: it
//! keeps them from being archived, and whatever activates it activates them.

use jiff::Timestamp;
use sqlx::{PgConnection, PgPool};

use super::error::{TxError, TxResult};
use super::image_rows::{self, ImageRow, image_row_columns};
use super::rows::millis;
use super::{events, image_deletion, jobs};
use crate::StoreResult;
use crate::images::{ImageStatus, LifecycleDecision, StorageClass, StorageClassError};
use crate::jobs::NewJob;
use crate::repositories::RepositoryId;
use wharfage_domain::names::Digest;

pub(super) async fn set(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    class: StorageClass,
    now: Timestamp,
) -> TxResult<ImageStatus, StorageClassError> {
    let mut tx = pool.begin().await?;
    let image = lock(&mut tx, repository, digest).await?;
    let status = move_to(&mut tx, repository, &image, class, now).await?;
    tx.commit().await?;
    Ok(status)
}

pub(super) async fn archive(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    decision: &LifecycleDecision,
    now: Timestamp,
) -> TxResult<(), StorageClassError> {
    let mut tx = pool.begin().await?;
    image_deletion::check_policy(&mut tx, repository, decision).await?;
    let image = lock(&mut tx, repository, digest).await?;
    image_deletion::check_image(&mut tx, repository, &image, decision, Some(StorageClass::Archive))
        .await?;
    move_to(&mut tx, repository, &image, StorageClass::Archive, now).await?;
    tx.commit().await?;
    Ok(())
}

async fn lock(
    tx: &mut PgConnection,
    repository: RepositoryId,
    digest: &Digest,
) -> TxResult<ImageRow, StorageClassError> {
    let locked = image_rows::lock_with_tags(tx, repository, digest).await?;
    locked.map(|(image, _tags)| image).ok_or(TxError::Refused(StorageClassError::NotFound))
}

/// Moves a locked referrer to the storage class of its subject, if that changes it and no index
/// prevents it.
pub(super) async fn follow<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    image: &ImageRow,
    class: StorageClass,
    now: Timestamp,
) -> TxResult<bool, E> {
    match move_to(tx, repository, image, class, now).await {
        Ok(_status) => Ok(true),
        // A refusal comes before the first write.
        Err(TxError::Refused(_)) => Ok(false),
        Err(TxError::Store(error)) => Err(TxError::Store(error)),
        Err(TxError::Database(error)) => Err(TxError::Database(error)),
        Err(TxError::Raced) => Err(TxError::Raced),
    }
}

async fn move_to(
    tx: &mut PgConnection,
    repository: RepositoryId,
    image: &ImageRow,
    class: StorageClass,
    now: Timestamp,
) -> TxResult<ImageStatus, StorageClassError> {
    let (status, activated_at, mut jobs) = match (class, image.status) {
        (StorageClass::Archive, ImageStatus::Active) => {
            let parents = image_rows::list_active_parents(tx, image.id).await?;
            if !parents.is_empty() {
                return Err(TxError::Refused(StorageClassError::ReferencedBy(parents)));
            }
            sqlx::query(
                "WITH blobs AS (UPDATE manifest_blob SET archived_at = $2 WHERE manifest_id = $1),
                      children AS (UPDATE manifest_child SET archived_at = $2 WHERE parent_id = $1),
                      tags AS (UPDATE tag SET archived_at = $2 WHERE manifest_id = $1)
                 UPDATE manifest SET status = 'ARCHIVED', archived_at = $2, revision = revision + 1 WHERE id = $1",
            )
            .bind(image.id.0)
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
            (ImageStatus::Archived, None, Vec::new())
        }
        (StorageClass::Standard, ImageStatus::Archived) => {
            activate(tx, &[image.id.0], now).await?;
            let children = list_children(tx, &[image.id.0]).await?;
            (ImageStatus::Active, Some(now), restore_children(tx, repository, children, now).await?)
        }
        (_, status) => return Err(TxError::Refused(StorageClassError::Unchanged(status))),
    };
    events::record_all(&mut *tx, &[image.events().moved(class, activated_at, now)]).await?;
    jobs.extend(image_rows::follow_up_jobs(tx, repository, &[&image.digest], now).await?);
    jobs::enqueue_all(tx, &jobs).await?;
    Ok(status)
}

/// Activates locked images.
pub(super) async fn activate<E>(
    tx: &mut PgConnection,
    ids: &[i64],
    now: Timestamp,
) -> TxResult<(), E> {
    sqlx::query(
        "WITH blobs AS (UPDATE manifest_blob SET archived_at = NULL WHERE manifest_id = ANY($1)),
              children AS (UPDATE manifest_child SET archived_at = NULL WHERE parent_id = ANY($1)),
              tags AS (UPDATE tag SET archived_at = NULL WHERE manifest_id = ANY($1))
         UPDATE manifest SET status = 'ACTIVE', activated_at = $2, revision = revision + 1 WHERE id = ANY($1)",
    )
    .bind(ids)
    .bind(millis(now))
    .execute(tx)
    .await?;
    Ok(())
}

async fn list_children<E>(tx: &mut PgConnection, parents: &[i64]) -> TxResult<Vec<i64>, E> {
    let children = sqlx::query_scalar(
        "SELECT DISTINCT child_id FROM manifest_child WHERE parent_id = ANY($1)",
    );
    Ok(children.bind(parents).fetch_all(tx).await?)
}

/// Restores those of the images that are archived, with their children at any depth, and returns
/// the follow-up jobs. Active manifests have active children, so the search ends at them.
pub(super) async fn restore_children<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    mut images: Vec<i64>,
    now: Timestamp,
) -> TxResult<Vec<NewJob>, E> {
    let mut jobs = Vec::new();
    while !images.is_empty() {
        // The status is only certain under the lock, which an archival takes too.
        let rows = sqlx::query(concat!(
            "SELECT ",
            image_row_columns!(),
            " FROM manifest m JOIN repository r ON r.id = m.repository_id
              WHERE m.id = ANY($1) ORDER BY m.digest FOR NO KEY UPDATE OF m",
        ))
        .bind(&images)
        .fetch_all(&mut *tx)
        .await?;
        let mut archived =
            rows.iter().map(ImageRow::read).collect::<StoreResult<Vec<ImageRow>>>()?;
        archived.retain(|image| image.status != ImageStatus::Active);
        if archived.is_empty() {
            break;
        }
        let ids: Vec<i64> = archived.iter().map(|image| image.id.0).collect();
        activate(tx, &ids, now).await?;
        let events: Vec<_> = archived
            .iter()
            .map(|image| image.events().moved(StorageClass::Standard, Some(now), now))
            .collect();
        events::record_all(&mut *tx, &events).await?;
        let digests: Vec<&Digest> = archived.iter().map(|image| &image.digest).collect();
        jobs.extend(image_rows::follow_up_jobs(tx, repository, &digests, now).await?);
        images = list_children(tx, &ids).await?;
    }
    Ok(jobs)
}
