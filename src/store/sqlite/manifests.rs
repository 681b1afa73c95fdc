//! What changes images: pushes, deletions, storage classes, recorded pulls.

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::{Db, text};
use super::jobs;
use crate::names::{AccountId, Digest, RepositoryName, Tag};
use crate::store::events::ImageSubject;
use crate::store::images::{
    DeleteImageError, ImageStatus, LastTag, ManifestId, NewManifest, PutManifest, PutManifestError, PutOutcome,
    StorageClass, StorageClassError, TagDeleted, TagEffect, tag_effect,
};
use crate::store::repositories::{RepositoryId, TagMutability};
use crate::store::{StoreError, StoreResult, rows};

/// The repository that an image is in, as far as a change of the image needs it.
struct Home {
    account: AccountId,
    name: RepositoryName,
    tag_mutability: TagMutability,
}

fn home(db: Db<'_>, repository: RepositoryId) -> StoreResult<Option<Home>> {
    let sql = "SELECT account_id, name, tag_mutability, exclusions FROM repository WHERE id = ?1";
    db.first(sql, [repository.0], |row| {
        Ok(Home {
            account: rows::parse(text(row, 0)?)?,
            name: rows::parse(text(row, 1)?)?,
            tag_mutability: rows::tag_mutability(text(row, 2)?, text(row, 3)?)?,
        })
    })
}

/// A stored image, as far as its changes and its events need it.
struct Stored {
    id: i64,
    digest: Digest,
    media_type: String,
    artifact_media_type: Option<String>,
    is_referrer: bool,
    status: ImageStatus,
}

const STORED: &str = "m.id, m.digest, m.media_type, coalesce(m.artifact_type, m.config_media_type), \
                      m.subject IS NOT NULL, m.status";

impl Stored {
    fn read(row: &Row<'_>) -> StoreResult<Self> {
        Ok(Self {
            id: row.get(0)?,
            digest: rows::parse(text(row, 1)?)?,
            media_type: row.get(2)?,
            artifact_media_type: row.get(3)?,
            is_referrer: row.get(4)?,
            status: rows::status(text(row, 5)?)?,
        })
    }

    fn subject<'a>(&'a self, home: &'a Home) -> ImageSubject<'a> {
        ImageSubject {
            account: &home.account,
            repository: &home.name,
            digest: &self.digest,
            media_type: &self.media_type,
            artifact_media_type: self.artifact_media_type.as_deref(),
            is_referrer: self.is_referrer,
        }
    }
}

fn by_digest(db: Db<'_>, repository: RepositoryId, digest: &Digest) -> StoreResult<Option<Stored>> {
    let sql = format!("SELECT {STORED} FROM manifest m WHERE m.repository_id = ?1 AND m.digest = ?2");
    db.first(&sql, params![repository.0, digest.as_str()], Stored::read)
}

fn by_tag(db: Db<'_>, repository: RepositoryId, tag: &Tag) -> StoreResult<Option<Stored>> {
    let sql = format!(
        "SELECT {STORED} FROM tag t JOIN manifest m ON m.id = t.manifest_id WHERE t.repository_id = ?1 AND t.name = ?2"
    );
    db.first(&sql, params![repository.0, tag.as_str()], Stored::read)
}

pub(super) fn put(db: Db<'_>, put: &PutManifest) -> Result<PutOutcome, PutManifestError> {
    let PutManifest { repository, manifest, tags, now, max_images, max_tags, jobs } = put;
    let home = home(db, *repository)?.ok_or(PutManifestError::NoRepository)?;
    let known = by_digest(db, *repository, &manifest.digest)?;
    // What a stored manifest needs cannot have gone: the edges restrict.
    let needs = if known.is_none() { Some(needs(db, *repository, manifest)?) } else { None };

    let mut effects = Vec::with_capacity(tags.len());
    for tag in tags {
        let current = by_tag(db, *repository, tag)?.map(|stored| stored.digest);
        let effect = tag_effect(&home.tag_mutability, tag, current.as_ref(), &manifest.digest);
        match (effect, current) {
            (TagEffect::Refused, Some(current)) => {
                return Err(PutManifestError::TagAlreadyExists { tag: tag.clone(), current });
            }
            (effect, _) => effects.push((tag.clone(), effect)),
        }
    }
    let restored = known.as_ref().is_some_and(|known| known.status != ImageStatus::Active);
    let outcome = PutOutcome { created: known.is_none(), restored, tags: effects };
    if outcome.unchanged() {
        return Ok(outcome);
    }

    if outcome.created && images(db, *repository)? >= *max_images {
        return Err(PutManifestError::TooManyImages(*max_images));
    }
    let set = outcome.tags.iter().filter(|(_, effect)| *effect != TagEffect::Unchanged);
    let set: Vec<&Tag> = set.map(|(tag, _)| tag).collect();
    let has = known.as_ref().map_or(Ok(0), |known| count_tags(db, known.id))?;
    if !set.is_empty() && has + set.len() as u64 > *max_tags {
        return Err(PutManifestError::TooManyTags(*max_tags));
    }

    let stored = match (known, needs) {
        (Some(known), _) => known,
        (None, needs) => insert(db, *repository, manifest, &needs.unwrap_or_default(), *now)?,
    };
    if restored {
        let sql = "UPDATE manifest SET status = 'ACTIVE', activated_at = ?2 WHERE id = ?1";
        db.run(sql, [stored.id, rows::millis(*now)])?;
    }
    for tag in set {
        let sql = "INSERT INTO tag (repository_id, name, manifest_id) VALUES (?1, ?2, ?3) \
                   ON CONFLICT DO UPDATE SET manifest_id = excluded.manifest_id";
        db.run(sql, params![repository.0, tag.as_str(), stored.id])?;
    }
    for event in stored.subject(&home).pushed(&outcome, *now) {
        jobs::record(db, &event)?;
    }
    for job in jobs {
        jobs::enqueue(db, job)?;
    }
    Ok(outcome)
}

/// What a new manifest needs, found in its repository.
#[derive(Default)]
struct Needs {
    links: Vec<i64>,
    children: Vec<i64>,
    image_size: i64,
}

fn needs(db: Db<'_>, repository: RepositoryId, manifest: &NewManifest) -> Result<Needs, PutManifestError> {
    let mut needs = Needs::default();
    let pair = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let mut missing = Vec::new();
    for blob in &manifest.blobs {
        let sql = "SELECT l.id, b.size FROM repository_blob l JOIN blob b ON b.id = l.blob_id \
                   WHERE l.repository_id = ?1 AND l.digest = ?2 AND b.state = 'live'";
        let found: Option<(i64, i64)> = db.first(sql, params![repository.0, blob.digest.as_str()], pair)?;
        match found {
            Some((link, size)) => {
                needs.links.push(link);
                needs.image_size = needs.image_size.saturating_add(size);
            }
            None => missing.push(blob.digest.clone()),
        }
    }
    if !missing.is_empty() {
        return Err(PutManifestError::BlobsNotFound(missing));
    }
    let mut largest = 0;
    for child in &manifest.children {
        let sql = "SELECT id, image_size FROM manifest WHERE repository_id = ?1 AND digest = ?2";
        let found: Option<(i64, i64)> = db.first(sql, params![repository.0, child.as_str()], pair)?;
        match found {
            Some((id, size)) => {
                needs.children.push(id);
                largest = largest.max(size);
            }
            None => missing.push(child.clone()),
        }
    }
    if !missing.is_empty() {
        return Err(PutManifestError::ChildrenNotFound(missing));
    }
    if !needs.children.is_empty() {
        needs.image_size = largest;
    }
    Ok(needs)
}

fn insert(
    db: Db<'_>,
    repository: RepositoryId,
    manifest: &NewManifest,
    needs: &Needs,
    now: Timestamp,
) -> StoreResult<Stored> {
    let NewManifest {
        digest,
        media_type,
        payload,
        artifact_type,
        config_media_type,
        subject,
        annotations,
        blobs,
        children: _,
    } = manifest;
    let sql = "INSERT INTO manifest (repository_id, digest, media_type, status, payload_size, image_size, pushed_at, \
               artifact_type, config_media_type, subject, annotations) \
               VALUES (?1, ?2, ?3, 'ACTIVE', ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let values = params![
        repository.0,
        digest.as_str(),
        media_type,
        rows::signed(payload.len() as u64)?,
        needs.image_size,
        rows::millis(now),
        artifact_type,
        config_media_type,
        subject.as_ref().map(Digest::as_str),
        rows::annotations(annotations)?
    ];
    let id = db.insert(sql, values)?;
    let sql = "INSERT INTO manifest_payload (manifest_id, payload) VALUES (?1, ?2)";
    db.run(sql, params![id, payload.as_ref()])?;
    for (link, blob) in needs.links.iter().zip(blobs) {
        let sql = "INSERT INTO manifest_blob (manifest_id, link_id, media_type) VALUES (?1, ?2, ?3)";
        db.run(sql, params![id, link, blob.media_type])?;
    }
    for child in &needs.children {
        db.run("INSERT INTO manifest_child (parent_id, child_id) VALUES (?1, ?2)", [id, *child])?;
    }
    Ok(Stored {
        id,
        digest: digest.clone(),
        media_type: media_type.clone(),
        artifact_media_type: artifact_type.clone().or_else(|| config_media_type.clone()),
        is_referrer: subject.is_some(),
        status: ImageStatus::Active,
    })
}

fn images(db: Db<'_>, repository: RepositoryId) -> StoreResult<u64> {
    super::repositories::usage(db, repository).map(|(images, _)| images)
}

fn count_tags(db: Db<'_>, manifest: i64) -> StoreResult<u64> {
    let sql = "SELECT count(*) FROM tag WHERE manifest_id = ?1";
    let count: Option<i64> = db.first(sql, [manifest], |row| Ok(row.get(0)?))?;
    rows::unsigned(count.unwrap_or_default())
}

/// The indexes that hold a manifest, in the order of their digests.
fn holders(db: Db<'_>, manifest: i64, active_only: bool) -> StoreResult<Vec<Digest>> {
    let sql = "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id \
               WHERE e.child_id = ?1 AND (NOT ?2 OR p.status <> 'ARCHIVED') ORDER BY p.digest";
    db.all(sql, params![manifest, active_only], |row| rows::parse(text(row, 0)?))
}

/// The repository of an image that is there.
fn home_of(db: Db<'_>, repository: RepositoryId) -> StoreResult<Home> {
    home(db, repository)?.ok_or_else(|| StoreError::Inconsistent("an image has no repository".into()))
}

pub(super) fn delete_image(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    now: Timestamp,
) -> Result<Vec<Tag>, DeleteImageError> {
    let stored = by_digest(db, repository, digest)?.ok_or(DeleteImageError::NotFound)?;
    remove(db, repository, &stored, now)
}

pub(super) fn expire_image(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    policy: &str,
    tags: &[Tag],
    now: Timestamp,
) -> Result<(), DeleteImageError> {
    if !has_lifecycle_policy(db, repository, policy)? {
        return Err(DeleteImageError::PolicyChanged);
    }
    let stored = by_digest(db, repository, digest)?.ok_or(DeleteImageError::NotFound)?;
    if super::listings::tags_of(db, ManifestId(stored.id))? != tags {
        return Err(DeleteImageError::TagsChanged);
    }
    remove(db, repository, &stored, now).map(drop)
}

/// Removes an image that is there.
fn remove(db: Db<'_>, repository: RepositoryId, stored: &Stored, now: Timestamp) -> Result<Vec<Tag>, DeleteImageError> {
    let holders = holders(db, stored.id, false)?;
    if !holders.is_empty() {
        return Err(DeleteImageError::ReferencedBy(holders));
    }
    let tags = super::listings::tags_of(db, ManifestId(stored.id))?;
    // Payload, tags and edges go with it.
    db.run("DELETE FROM manifest WHERE id = ?1", [stored.id])?;
    for event in stored.subject(&home_of(db, repository)?).deleted(&tags, now) {
        jobs::record(db, &event)?;
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
    let stored = by_tag(db, repository, tag)?.ok_or(DeleteImageError::NotFound)?;
    if expected.is_some_and(|expected| *expected != stored.digest) {
        return Err(DeleteImageError::TagPointsElsewhere(stored.digest));
    }
    let image_deleted = last == LastTag::DeletesImage && count_tags(db, stored.id)? == 1;
    if image_deleted {
        remove(db, repository, &stored, now)?;
    } else {
        db.run("DELETE FROM tag WHERE repository_id = ?1 AND name = ?2", params![repository.0, tag.as_str()])?;
        for event in stored.subject(&home_of(db, repository)?).deleted([tag], now) {
            jobs::record(db, &event)?;
        }
    }
    Ok(TagDeleted { digest: stored.digest, image_deleted })
}

pub(super) fn set_storage_class(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    class: StorageClass,
    now: Timestamp,
) -> Result<ImageStatus, StorageClassError> {
    let stored = by_digest(db, repository, digest)?.ok_or(StorageClassError::NotFound)?;
    let (status, sql, activated_at) = match (class, stored.status) {
        (StorageClass::Archive, ImageStatus::Active) => {
            let holders = holders(db, stored.id, true)?;
            if !holders.is_empty() {
                return Err(StorageClassError::ReferencedBy(holders));
            }
            (ImageStatus::Archived, "UPDATE manifest SET status = ?2, archived_at = ?3 WHERE id = ?1", None)
        }
        (StorageClass::Standard, ImageStatus::Archived) => {
            (ImageStatus::Active, "UPDATE manifest SET status = ?2, activated_at = ?3 WHERE id = ?1", Some(now))
        }
        (_, status) => return Err(StorageClassError::Unchanged(status)),
    };
    db.run(sql, params![stored.id, status.as_str(), rows::millis(now)])?;
    jobs::record(db, &stored.subject(&home_of(db, repository)?).moved(class, activated_at, now))?;
    Ok(status)
}

pub(super) fn archive_image(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    policy: &str,
    now: Timestamp,
) -> Result<(), StorageClassError> {
    if !has_lifecycle_policy(db, repository, policy)? {
        return Err(StorageClassError::PolicyChanged);
    }
    set_storage_class(db, repository, digest, StorageClass::Archive, now).map(drop)
}

fn has_lifecycle_policy(db: Db<'_>, repository: RepositoryId, policy: &str) -> StoreResult<bool> {
    let sql = "SELECT 1 FROM repository WHERE id = ?1 AND lifecycle_policy = ?2";
    db.exists(sql, params![repository.0, policy])
}

pub(super) fn record_pulls(db: Db<'_>, pulls: &[(ManifestId, Timestamp)]) -> StoreResult<()> {
    let sql = "UPDATE manifest SET last_pulled_at = ?2 \
               WHERE id = ?1 AND (last_pulled_at IS NULL OR last_pulled_at < ?2)";
    for (manifest, at) in pulls {
        db.run(sql, [manifest.0, rows::millis(*at)])?;
    }
    Ok(())
}
