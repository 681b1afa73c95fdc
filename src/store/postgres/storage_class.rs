//! Archiving and restoring images. An index that can be pulled has children that can be pulled: it keeps them from being
//! archived, and what makes it active makes them active.

use jiff::Timestamp;
use sqlx::{PgConnection, PgPool};

use super::failure::{Attempt, Failure};
use super::images::{self, Locked, locked_columns};
use super::jobs;
use super::rows::millis;
use crate::names::Digest;
use crate::store::StoreResult;
use crate::store::images::{ImageStatus, LifecycleDecision, StorageClass, StorageClassError};
use crate::store::jobs::NewJob;
use crate::store::repositories::RepositoryId;

pub(super) async fn set(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    class: StorageClass,
    now: Timestamp,
) -> Attempt<ImageStatus, StorageClassError> {
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
) -> Attempt<(), StorageClassError> {
    let mut tx = pool.begin().await?;
    images::check_policy(&mut tx, repository, decision).await?;
    let image = lock(&mut tx, repository, digest).await?;
    images::check_image(&mut tx, repository, &image, decision, Some(StorageClass::Archive)).await?;
    move_to(&mut tx, repository, &image, StorageClass::Archive, now).await?;
    tx.commit().await?;
    Ok(())
}

async fn lock(tx: &mut PgConnection, repository: RepositoryId, digest: &Digest) -> Attempt<Locked, StorageClassError> {
    let locked = images::lock_with_tags(tx, repository, digest).await?;
    locked.map(|(image, _tags)| image).ok_or(Failure::Refused(StorageClassError::NotFound))
}

/// Moves a locked referrer to where its subject is, if it can and is not there.
pub(super) async fn follow<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    image: &Locked,
    class: StorageClass,
    now: Timestamp,
) -> Attempt<bool, E> {
    match move_to(tx, repository, image, class, now).await {
        Ok(_status) => Ok(true),
        // It refuses before it writes.
        Err(Failure::Refused(_)) => Ok(false),
        Err(Failure::Store(error)) => Err(Failure::Store(error)),
        Err(Failure::Database(error)) => Err(Failure::Database(error)),
        Err(Failure::Raced) => Err(Failure::Raced),
    }
}

async fn move_to(
    tx: &mut PgConnection,
    repository: RepositoryId,
    image: &Locked,
    class: StorageClass,
    now: Timestamp,
) -> Attempt<ImageStatus, StorageClassError> {
    let (status, activated_at, mut jobs) = match (class, image.status) {
        (StorageClass::Archive, ImageStatus::Active) => {
            let parents = images::active_parents(tx, image.id).await?;
            if !parents.is_empty() {
                return Err(Failure::Refused(StorageClassError::ReferencedBy(parents)));
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
            let children = children(tx, &[image.id.0]).await?;
            (ImageStatus::Active, Some(now), restore(tx, repository, children, now).await?)
        }
        (_, status) => return Err(Failure::Refused(StorageClassError::Unchanged(status))),
    };
    jobs::record(&mut *tx, &[image.image().moved(class, activated_at, now)]).await?;
    jobs.extend(images::follow_ups(tx, repository, &[&image.digest], now).await?);
    jobs::enqueue(tx, &jobs).await?;
    Ok(status)
}

/// Makes locked images active.
pub(super) async fn activate<E>(tx: &mut PgConnection, ids: &[i64], now: Timestamp) -> Attempt<(), E> {
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

async fn children<E>(tx: &mut PgConnection, parents: &[i64]) -> Attempt<Vec<i64>, E> {
    let children = sqlx::query_scalar("SELECT DISTINCT child_id FROM manifest_child WHERE parent_id = ANY($1)");
    Ok(children.bind(parents).fetch_all(tx).await?)
}

/// Restores those of these images that are archived, with what they hold, and returns the jobs that follow from it. What is
/// active has active children, so only what is restored is looked into.
pub(super) async fn restore<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    mut images: Vec<i64>,
    now: Timestamp,
) -> Attempt<Vec<NewJob>, E> {
    let mut jobs = Vec::new();
    while !images.is_empty() {
        // Whether they are archived is known only once they are locked: who archives one has locked it.
        let rows = sqlx::query(concat!(
            "SELECT ",
            locked_columns!(),
            " FROM manifest m JOIN repository r ON r.id = m.repository_id
              WHERE m.id = ANY($1) ORDER BY m.digest FOR NO KEY UPDATE OF m",
        ))
        .bind(&images)
        .fetch_all(&mut *tx)
        .await?;
        let mut archived = rows.iter().map(Locked::read).collect::<StoreResult<Vec<Locked>>>()?;
        archived.retain(|image| image.status != ImageStatus::Active);
        if archived.is_empty() {
            break;
        }
        let ids: Vec<i64> = archived.iter().map(|image| image.id.0).collect();
        activate(tx, &ids, now).await?;
        let events: Vec<_> =
            archived.iter().map(|image| image.image().moved(StorageClass::Standard, Some(now), now)).collect();
        jobs::record(&mut *tx, &events).await?;
        let digests: Vec<&Digest> = archived.iter().map(|image| &image.digest).collect();
        jobs.extend(images::follow_ups(tx, repository, &digests, now).await?);
        images = children(tx, &ids).await?;
    }
    Ok(jobs)
}
