//! Deleting images, and when they were pulled.

use jiff::Timestamp;
use rusqlite::params;

use super::db::Db;
use super::manifests::{self, Stored};
use super::{jobs, listings};
use crate::names::{Digest, Tag};
use crate::store::images::{
    DeleteImageError, ImageDeleted, ImageDeletion, ImageStatus, LastTag, LifecycleDecision, ManifestId, Referrers,
    Stale, StorageClass, TagDeleted,
};
use crate::store::repositories::RepositoryId;
use crate::store::{StoreResult, rows};

pub(super) fn delete(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    referrers: Referrers,
    now: Timestamp,
) -> Result<Vec<Tag>, DeleteImageError> {
    let stored = manifests::by_digest(db, repository, digest)?.ok_or(DeleteImageError::NotFound)?;
    remove(db, repository, &stored, referrers, now)
}

pub(super) fn expire(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    decision: &LifecycleDecision,
    now: Timestamp,
) -> Result<(), DeleteImageError> {
    check_policy(db, repository, decision)??;
    let stored = manifests::by_digest(db, repository, digest)?.ok_or(DeleteImageError::NotFound)?;
    check_image(db, repository, &stored, decision, None)??;
    remove(db, repository, &stored, Referrers::Follow, now).map(drop)
}

/// Whether the repository has the policy that the decision is the policy's.
pub(super) fn check_policy(
    db: Db<'_>,
    repository: RepositoryId,
    decision: &LifecycleDecision,
) -> StoreResult<Result<(), Stale>> {
    let sql = "SELECT 1 FROM repository WHERE id = ?1 AND lifecycle_policy = ?2";
    let holds = db.exists(sql, params![repository.0, decision.policy.as_ref()])?;
    Ok(if holds { Ok(()) } else { Err(Stale::Policy) })
}

/// Whether the rest of what a decision rests on holds. `class` is where the image is to go, if it is not to be deleted.
pub(super) fn check_image(
    db: Db<'_>,
    repository: RepositoryId,
    stored: &Stored,
    decision: &LifecycleDecision,
    class: Option<StorageClass>,
) -> StoreResult<Result<(), Stale>> {
    let LifecycleDecision { policy: _, revision, last_pulled_at, follows_subject, kept } = decision;
    if stored.revision != *revision || stored.last_pulled_at != *last_pulled_at {
        return Ok(Err(Stale::Image));
    }
    if let (true, Some(subject)) = (follows_subject, &stored.subject) {
        let status = manifests::by_digest(db, repository, subject)?.map(|subject| subject.status);
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

/// Removes an image that is there.
pub(super) fn remove(
    db: Db<'_>,
    repository: RepositoryId,
    stored: &Stored,
    referrers: Referrers,
    now: Timestamp,
) -> Result<Vec<Tag>, DeleteImageError> {
    let holders = manifests::holders(db, stored.id)?;
    if !holders.is_empty() {
        return Err(DeleteImageError::ReferencedBy(holders));
    }
    let tags = listings::tags_of(db, ManifestId(stored.id))?;
    // Payload, tags and edges go with it.
    db.run("DELETE FROM manifest WHERE id = ?1", [stored.id])?;
    for event in stored.image(&manifests::home_of(db, repository)?).deleted(&tags, now) {
        jobs::record(db, &event)?;
    }
    if referrers == Referrers::Follow {
        manifests::enqueue_follow_up(db, repository, &stored.digest, now)?;
    }
    Ok(tags)
}

pub(super) fn delete_tag(
    db: Db<'_>,
    repository: RepositoryId,
    tag: &Tag,
    expected: Option<&Digest>,
    last: LastTag,
    now: Timestamp,
) -> Result<TagDeleted, DeleteImageError> {
    let stored = manifests::by_tag(db, repository, tag)?.ok_or(DeleteImageError::NotFound)?;
    if expected.is_some_and(|expected| *expected != stored.digest) {
        return Err(DeleteImageError::TagPointsElsewhere(stored.digest));
    }
    let image_deleted = last == LastTag::DeletesImage && manifests::count_tags(db, stored.id)? == 1;
    if image_deleted {
        remove(db, repository, &stored, Referrers::Follow, now)?;
    } else {
        db.run("DELETE FROM tag WHERE repository_id = ?1 AND name = ?2", params![repository.0, tag.as_str()])?;
        manifests::revise(db, stored.id)?;
        for event in stored.image(&manifests::home_of(db, repository)?).deleted([tag], now) {
            jobs::record(db, &event)?;
        }
    }
    Ok(TagDeleted { digest: stored.digest, image_deleted })
}

pub(super) fn delete_all(
    db: Db<'_>,
    repository: RepositoryId,
    deletions: &[ImageDeletion],
    now: Timestamp,
) -> StoreResult<Vec<Result<ImageDeleted, DeleteImageError>>> {
    let one = |deletion: &ImageDeletion| match deletion {
        ImageDeletion::Image(digest) => {
            let tags = delete(db, repository, digest, Referrers::Follow, now)?;
            Ok(ImageDeleted { digest: digest.clone(), tags, image_deleted: true })
        }
        ImageDeletion::Tag { tag, expected } => {
            let TagDeleted { digest, image_deleted } =
                delete_tag(db, repository, tag, expected.as_ref(), LastTag::DeletesImage, now)?;
            Ok(ImageDeleted { digest, tags: vec![tag.clone()], image_deleted })
        }
    };
    // What is refused is refused before it writes.
    let refused_or_done = |deletion| match one(deletion) {
        Err(DeleteImageError::Store(error)) => Err(error),
        other => Ok(other),
    };
    deletions.iter().map(refused_or_done).collect()
}

pub(super) fn follow_subject(
    db: Db<'_>,
    repository: RepositoryId,
    referrer: &Digest,
    now: Timestamp,
) -> StoreResult<bool> {
    let Some(stored) = manifests::by_digest(db, repository, referrer)? else { return Ok(false) };
    let Some(subject) = &stored.subject else { return Ok(false) };
    let class = match manifests::by_digest(db, repository, subject)?.map(|subject| subject.status) {
        Some(ImageStatus::Archived) => StorageClass::Archive,
        Some(ImageStatus::Active | ImageStatus::Activating) => StorageClass::Standard,
        None => {
            return match remove(db, repository, &stored, Referrers::Follow, now) {
                Ok(_tags) => Ok(true),
                Err(DeleteImageError::Store(error)) => Err(error),
                Err(_) => Ok(false),
            };
        }
    };
    super::storage_class::follow(db, repository, &stored, class, now)
}

pub(super) fn record_pulls(db: Db<'_>, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()> {
    let sql = "UPDATE manifest SET last_pulled_at = ?2 \
               WHERE id = ?1 AND (last_pulled_at IS NULL OR last_pulled_at < ?2)";
    for (manifest, at) in pulls {
        db.run(sql, [manifest.0, rows::millis(*at)])?;
    }
    Ok(())
}
