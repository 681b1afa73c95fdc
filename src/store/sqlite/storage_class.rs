//! Archiving and restoring images. An index that can be pulled has children that can be pulled: it
//! keeps them from being archived, and whatever activates it activates them.

use jiff::Timestamp;
use rusqlite::params;

use super::db::Db;
use super::image_rows::{self, IMAGE_ROW, ImageRepository, ImageRow};
use super::{events, image_deletion, rows};
use crate::StoreResult;
use crate::images::{ImageStatus, LifecycleDecision, StorageClass, StorageClassError};
use crate::repositories::RepositoryId;
use wharfage_domain::names::Digest;

pub(super) fn set(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    class: StorageClass,
    now: Timestamp,
) -> Result<ImageStatus, StorageClassError> {
    let stored =
        image_rows::find_by_digest(db, repository, digest)?.ok_or(StorageClassError::NotFound)?;
    move_to(db, repository, &stored, class, now)
}

pub(super) fn archive(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    decision: &LifecycleDecision,
    now: Timestamp,
) -> Result<(), StorageClassError> {
    image_deletion::check_policy(db, repository, decision)??;
    let stored =
        image_rows::find_by_digest(db, repository, digest)?.ok_or(StorageClassError::NotFound)?;
    image_deletion::check_image(db, repository, &stored, decision, Some(StorageClass::Archive))??;
    move_to(db, repository, &stored, StorageClass::Archive, now).map(drop)
}

/// Moves a referrer to the storage class of its subject, if that changes it and no index prevents
/// it.
pub(super) fn follow(
    db: Db<'_>,
    repository: RepositoryId,
    stored: &ImageRow,
    class: StorageClass,
    now: Timestamp,
) -> StoreResult<bool> {
    match move_to(db, repository, stored, class, now) {
        Ok(_status) => Ok(true),
        Err(StorageClassError::Store(error)) => Err(error),
        Err(_) => Ok(false),
    }
}

fn move_to(
    db: Db<'_>,
    repository: RepositoryId,
    stored: &ImageRow,
    class: StorageClass,
    now: Timestamp,
) -> Result<ImageStatus, StorageClassError> {
    let image_repository = image_rows::repository_of(db, repository)?;
    let (status, activated_at) = match (class, stored.status) {
        (StorageClass::Archive, ImageStatus::Active) => {
            let holders = image_rows::list_active_parents(db, stored.id)?;
            if !holders.is_empty() {
                return Err(StorageClassError::ReferencedBy(holders));
            }
            let sql = "UPDATE manifest SET status = 'ARCHIVED', archived_at = ?2, revision = revision + 1 WHERE id = ?1";
            db.run(sql, [stored.id, rows::millis(now)])?;
            mark_archived(db, stored.id, Some(now))?;
            (ImageStatus::Archived, None)
        }
        (StorageClass::Standard, ImageStatus::Archived) => {
            activate(db, stored.id, now)?;
            restore_children(db, repository, &image_repository, stored.id, now)?;
            (ImageStatus::Active, Some(now))
        }
        (_, status) => return Err(StorageClassError::Unchanged(status)),
    };
    events::record(db, &stored.events(&image_repository).moved(class, activated_at, now))?;
    image_rows::enqueue_follow_up(db, repository, &stored.digest, now)?;
    Ok(status)
}

/// Activates an image.
pub(super) fn activate(db: Db<'_>, manifest: i64, now: Timestamp) -> StoreResult<()> {
    let sql = "UPDATE manifest SET status = 'ACTIVE', activated_at = ?2, revision = revision + 1 WHERE id = ?1";
    db.run(sql, [manifest, rows::millis(now)])?;
    mark_archived(db, manifest, None)
}

/// Sets on an image's tags and edges since when it is archived.
fn mark_archived(db: Db<'_>, manifest: i64, at: Option<Timestamp>) -> StoreResult<()> {
    for sql in [
        "UPDATE manifest_blob SET archived_at = ?2 WHERE manifest_id = ?1",
        "UPDATE manifest_child SET archived_at = ?2 WHERE parent_id = ?1",
        "UPDATE tag SET archived_at = ?2 WHERE manifest_id = ?1",
    ] {
        db.run(sql, params![manifest, at.map(rows::millis)])?;
    }
    Ok(())
}

/// Restores the children of an image that has become active, at any depth. Active manifests have
/// active children, so the search ends at them.
pub(super) fn restore_children(
    db: Db<'_>,
    repository: RepositoryId,
    image_repository: &ImageRepository,
    parent: i64,
    now: Timestamp,
) -> StoreResult<()> {
    let sql = format!(
        "SELECT {IMAGE_ROW} FROM manifest_child e JOIN manifest m ON m.id = e.child_id \
         WHERE e.parent_id = ?1 AND m.status <> 'ACTIVE' ORDER BY m.digest"
    );
    let mut parents = vec![parent];
    while let Some(parent) = parents.pop() {
        for child in db.all(&sql, params![parent], ImageRow::read)? {
            activate(db, child.id, now)?;
            events::record(
                db,
                &child.events(image_repository).moved(StorageClass::Standard, Some(now), now),
            )?;
            image_rows::enqueue_follow_up(db, repository, &child.digest, now)?;
            parents.push(child.id);
        }
    }
    Ok(())
}
