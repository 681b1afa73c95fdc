//! Deletion of images and tags, and referrers that follow their subjects.

use jiff::Timestamp;
use rusqlite::params;

use super::db::Db;
use super::image_rows::{self, ImageRow};
use super::{events, rows, storage_class};
use crate::StoreResult;
use crate::images::{
    DeleteImageError, ImageStatus, LastTag, LifecycleDecision, ManifestId, Referrers, Stale,
    StorageClass, TagDeleted,
};
use crate::repositories::RepositoryId;
use wharfage_domain::names::{Digest, Tag};

pub(super) fn delete(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    referrers: Referrers,
    now: Timestamp,
) -> Result<Vec<Tag>, DeleteImageError> {
    let stored =
        image_rows::find_by_digest(db, repository, digest)?.ok_or(DeleteImageError::NotFound)?;
    delete_row(db, repository, &stored, referrers, now)
}

pub(super) fn delete_tag(
    db: Db<'_>,
    repository: RepositoryId,
    tag: &Tag,
    expected: Option<&Digest>,
    last: LastTag,
    now: Timestamp,
) -> Result<TagDeleted, DeleteImageError> {
    let stored = image_rows::find_by_tag(db, repository, tag)?.ok_or(DeleteImageError::NotFound)?;
    if expected.is_some_and(|expected| *expected != stored.digest) {
        return Err(DeleteImageError::TagPointsElsewhere(stored.digest));
    }
    let image_deleted =
        last == LastTag::DeletesImage && image_rows::count_tags(db, stored.id)? == 1;
    if image_deleted {
        delete_row(db, repository, &stored, Referrers::Follow, now)?;
    } else {
        db.run(
            "DELETE FROM tag WHERE repository_id = ?1 AND name = ?2",
            params![repository.0, tag.as_str()],
        )?;
        image_rows::revise(db, stored.id)?;
        for event in stored.events(&image_rows::repository_of(db, repository)?).deleted([tag], now)
        {
            events::record(db, &event)?;
        }
    }
    Ok(TagDeleted { digest: stored.digest, image_deleted })
}

pub(super) fn expire(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    decision: &LifecycleDecision,
    now: Timestamp,
) -> Result<(), DeleteImageError> {
    check_policy(db, repository, decision)??;
    let stored =
        image_rows::find_by_digest(db, repository, digest)?.ok_or(DeleteImageError::NotFound)?;
    check_image(db, repository, &stored, decision, None)??;
    delete_row(db, repository, &stored, Referrers::Follow, now).map(drop)
}

pub(super) fn follow_subject(
    db: Db<'_>,
    repository: RepositoryId,
    referrer: &Digest,
    now: Timestamp,
) -> StoreResult<bool> {
    let Some(stored) = image_rows::find_by_digest(db, repository, referrer)? else {
        return Ok(false);
    };
    let Some(subject) = &stored.subject else { return Ok(false) };
    let class =
        match image_rows::find_by_digest(db, repository, subject)?.map(|subject| subject.status) {
            Some(ImageStatus::Archived) => StorageClass::Archive,
            Some(ImageStatus::Active | ImageStatus::Activating) => StorageClass::Standard,
            None => {
                return match delete_row(db, repository, &stored, Referrers::Follow, now) {
                    Ok(_tags) => Ok(true),
                    Err(DeleteImageError::Store(error)) => Err(error),
                    Err(_) => Ok(false),
                };
            }
        };
    storage_class::follow(db, repository, &stored, class, now)
}

/// Checks that the repository still has the policy that decided.
pub(super) fn check_policy(
    db: Db<'_>,
    repository: RepositoryId,
    decision: &LifecycleDecision,
) -> StoreResult<Result<(), Stale>> {
    let sql = "SELECT 1 FROM repository WHERE id = ?1 AND lifecycle_policy = ?2";
    let holds = db.exists(sql, params![repository.0, decision.policy.as_ref()])?;
    Ok(if holds { Ok(()) } else { Err(Stale::Policy) })
}

/// Checks the other conditions of a decision. `class` is the storage class to move the image to, if
/// it is not to be deleted.
pub(super) fn check_image(
    db: Db<'_>,
    repository: RepositoryId,
    stored: &ImageRow,
    decision: &LifecycleDecision,
    class: Option<StorageClass>,
) -> StoreResult<Result<(), Stale>> {
    let LifecycleDecision { policy: _, revision, last_pulled_at, follows_subject, kept } = decision;
    if stored.revision != *revision || stored.last_pulled_at != *last_pulled_at {
        return Ok(Err(Stale::Image));
    }
    if let (true, Some(subject)) = (follows_subject, &stored.subject) {
        let status =
            image_rows::find_by_digest(db, repository, subject)?.map(|subject| subject.status);
        let left = status.is_none() || (class.is_some() && status == Some(ImageStatus::Archived));
        if !left {
            return Ok(Err(Stale::Subject));
        }
    }
    for (ManifestId(id), revision) in kept.iter() {
        let sql = "SELECT 1 FROM manifest WHERE id = ?1 AND revision = ?2";
        if !db.exists(sql, [*id, rows::signed(*revision)?])? {
            return Ok(Err(Stale::Kept));
        }
    }
    Ok(Ok(()))
}

/// Deletes an image's row, unless an index holds it.
pub(super) fn delete_row(
    db: Db<'_>,
    repository: RepositoryId,
    stored: &ImageRow,
    referrers: Referrers,
    now: Timestamp,
) -> Result<Vec<Tag>, DeleteImageError> {
    let holders = image_rows::list_parents(db, stored.id)?;
    if !holders.is_empty() {
        return Err(DeleteImageError::ReferencedBy(holders));
    }
    let tags = image_rows::tags_of(db, stored.id)?;
    // Payload, tags and edges are deleted too, by cascade.
    db.run("DELETE FROM manifest WHERE id = ?1", [stored.id])?;
    for event in stored.events(&image_rows::repository_of(db, repository)?).deleted(&tags, now) {
        events::record(db, &event)?;
    }
    if referrers == Referrers::Follow {
        image_rows::enqueue_follow_up(db, repository, &stored.digest, now)?;
    }
    Ok(tags)
}
