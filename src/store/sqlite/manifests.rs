//! Pushing a manifest, and the rows that every change of an image looks at.

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::{Db, text, text_or_null};
use super::{jobs, storage_class};
use crate::names::{AccountId, Digest, RepositoryName, Tag};
use crate::store::events::ImageSubject;
use crate::store::images::{
    BlobReference, ChildReference, ImageStatus, NAMED_HOLDERS, NewManifest, PutManifest, PutManifestError, PutOutcome,
    SizeMismatch, TagEffect, tag_effect,
};
use crate::store::jobs::FollowSubject;
use crate::store::repositories::{RepositoryId, TagMutability};
use crate::store::{StoreError, StoreResult, rows};

/// The repository that an image is in, as far as a change of the image needs it.
pub(super) struct Home {
    account: AccountId,
    name: RepositoryName,
    tag_mutability: TagMutability,
}

fn home(db: Db<'_>, repository: RepositoryId) -> StoreResult<Option<Home>> {
    let sql = "SELECT account_id, name, tag_mutability, exclusions FROM repository \
               WHERE id = ?1 AND deleted_at IS NULL";
    db.first(sql, [repository.0], |row| {
        Ok(Home {
            account: rows::parse(text(row, 0)?)?,
            name: rows::parse(text(row, 1)?)?,
            tag_mutability: rows::tag_mutability(text(row, 2)?, text(row, 3)?)?,
        })
    })
}

/// A stored image, as far as its changes and its events need it.
pub(super) struct Stored {
    pub(super) id: i64,
    pub(super) digest: Digest,
    media_type: String,
    artifact_media_type: Option<String>,
    pub(super) subject: Option<Digest>,
    pub(super) status: ImageStatus,
    pub(super) revision: u64,
    pub(super) last_pulled_at: Option<Timestamp>,
}

/// The columns of [`Stored::read`], of the alias `m`.
pub(super) const STORED: &str = "m.id, m.digest, m.media_type, coalesce(m.artifact_type, m.config_media_type), \
                                 m.subject, m.status, m.revision, m.last_pulled_at";

impl Stored {
    pub(super) fn read(row: &Row<'_>) -> StoreResult<Self> {
        Ok(Self {
            id: row.get(0)?,
            digest: rows::parse(text(row, 1)?)?,
            media_type: row.get(2)?,
            artifact_media_type: row.get(3)?,
            subject: text_or_null(row, 4)?.map(rows::parse).transpose()?,
            status: rows::status(text(row, 5)?)?,
            revision: rows::unsigned(row.get(6)?)?,
            last_pulled_at: row.get::<_, Option<i64>>(7)?.map(rows::time).transpose()?,
        })
    }

    /// What its events are about.
    pub(super) fn image<'a>(&'a self, home: &'a Home) -> ImageSubject<'a> {
        ImageSubject {
            account: &home.account,
            repository: &home.name,
            digest: &self.digest,
            media_type: &self.media_type,
            artifact_media_type: self.artifact_media_type.as_deref(),
            is_referrer: self.subject.is_some(),
        }
    }
}

pub(super) fn by_digest(db: Db<'_>, repository: RepositoryId, digest: &Digest) -> StoreResult<Option<Stored>> {
    let sql = format!(
        "SELECT {STORED} FROM manifest m JOIN repository r ON r.id = m.repository_id AND r.deleted_at IS NULL \
         WHERE m.repository_id = ?1 AND m.digest = ?2"
    );
    db.first(&sql, params![repository.0, digest.as_str()], Stored::read)
}

pub(super) fn by_tag(db: Db<'_>, repository: RepositoryId, tag: &Tag) -> StoreResult<Option<Stored>> {
    let sql = format!(
        "SELECT {STORED} FROM tag t JOIN manifest m ON m.id = t.manifest_id \
         JOIN repository r ON r.id = t.repository_id AND r.deleted_at IS NULL \
         WHERE t.repository_id = ?1 AND t.name = ?2"
    );
    db.first(&sql, params![repository.0, tag.as_str()], Stored::read)
}

pub(super) fn put(db: Db<'_>, put: &PutManifest) -> Result<PutOutcome, PutManifestError> {
    let PutManifest { repository, manifest, tags, now, max_images, max_tags, jobs } = put;
    let home = home(db, *repository)?.ok_or(PutManifestError::NoRepository)?;
    let known = by_digest(db, *repository, &manifest.digest)?;
    // What a stored manifest needs cannot have gone: the edges restrict.
    let needs = if known.is_none() { Some(needs(db, *repository, manifest)?) } else { None };

    let (mut effects, mut displaced) = (Vec::with_capacity(tags.len()), Vec::new());
    for tag in tags {
        let current = by_tag(db, *repository, tag)?;
        let effect =
            tag_effect(&home.tag_mutability, tag, current.as_ref().map(|stored| &stored.digest), &manifest.digest);
        match (effect, current) {
            (TagEffect::Refused, Some(Stored { digest: current, .. })) => {
                return Err(PutManifestError::TagAlreadyExists { tag: tag.clone(), current });
            }
            (TagEffect::Moved, Some(Stored { id, .. })) => displaced.push(id),
            _ => {}
        }
        effects.push((tag.clone(), effect));
    }
    let outcome = PutOutcome {
        created: known.is_none(),
        restored: known.as_ref().is_some_and(|known| known.status != ImageStatus::Active),
        retyped: known.as_ref().is_some_and(|known| known.media_type != manifest.media_type),
        tags: effects,
    };
    if let Some(known) = &known {
        // Whoever pushes an image wants it, also where nothing else changes.
        revise(db, known.id)?;
    }
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
        (Some(known), _) => Stored { media_type: manifest.media_type.clone(), ..known },
        (None, needs) => insert(db, *repository, manifest, &needs.unwrap_or_default(), *now)?,
    };
    if outcome.retyped {
        db.run("UPDATE manifest SET media_type = ?2 WHERE id = ?1", params![stored.id, stored.media_type])?;
    }
    if outcome.restored {
        storage_class::activate(db, stored.id, *now)?;
        enqueue_follow_up(db, *repository, &stored.digest, *now)?;
    }
    storage_class::restore_children(db, *repository, &home, stored.id, *now)?;
    for tag in set {
        let sql = "INSERT INTO tag (repository_id, name, manifest_id, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?4) \
                   ON CONFLICT DO UPDATE SET manifest_id = excluded.manifest_id, updated_at = excluded.updated_at, \
                   archived_at = NULL";
        db.run(sql, params![repository.0, tag.as_str(), stored.id, rows::millis(*now)])?;
    }
    for id in displaced {
        revise(db, id)?;
    }
    for event in stored.image(&home).pushed(&outcome, *now) {
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
                   WHERE l.repository_id = ?1 AND l.digest = ?2 AND b.state = 'live' AND b.damaged_at IS NULL";
        let BlobReference { digest, size: stated, .. } = blob;
        let found: Option<(i64, i64)> = db.first(sql, params![repository.0, digest.as_str()], pair)?;
        match found {
            Some((link, size)) => {
                check_size(digest, *stated, size)?;
                needs.links.push(link);
                needs.image_size = needs.image_size.saturating_add(size);
            }
            None => missing.push(digest.clone()),
        }
    }
    if !missing.is_empty() {
        return Err(PutManifestError::BlobsNotFound(missing));
    }
    let mut largest = 0;
    for ChildReference { digest, size: stated } in &manifest.children {
        let sql = "SELECT id, image_size, payload_size FROM manifest WHERE repository_id = ?1 AND digest = ?2";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let found: Option<(i64, i64, i64)> = db.first(sql, params![repository.0, digest.as_str()], read)?;
        match found {
            Some((id, image_size, size)) => {
                check_size(digest, *stated, size)?;
                needs.children.push(id);
                largest = largest.max(image_size);
            }
            None => missing.push(digest.clone()),
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

fn check_size(digest: &Digest, stated: u64, actual: i64) -> Result<(), PutManifestError> {
    let actual = rows::unsigned(actual)?;
    if stated == actual {
        return Ok(());
    }
    Err(PutManifestError::SizeMismatch(SizeMismatch { digest: digest.clone(), stated, actual }))
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
        subject: subject.clone(),
        status: ImageStatus::Active,
        revision: 1,
        last_pulled_at: None,
    })
}

fn images(db: Db<'_>, repository: RepositoryId) -> StoreResult<u64> {
    super::repositories::usage(db, repository).map(|(images, _)| images)
}

pub(super) fn count_tags(db: Db<'_>, manifest: i64) -> StoreResult<u64> {
    let sql = "SELECT count(*) FROM tag WHERE manifest_id = ?1";
    let count: Option<i64> = db.first(sql, [manifest], |row| Ok(row.get(0)?))?;
    rows::unsigned(count.unwrap_or_default())
}

/// Counts a change of an image.
pub(super) fn revise(db: Db<'_>, manifest: i64) -> StoreResult<()> {
    db.run("UPDATE manifest SET revision = revision + 1 WHERE id = ?1", [manifest]).map(drop)
}

/// Writes the job that has the referrers of a subject follow it, if it has any.
pub(super) fn enqueue_follow_up(
    db: Db<'_>,
    repository: RepositoryId,
    subject: &Digest,
    now: Timestamp,
) -> StoreResult<()> {
    let sql = "SELECT 1 FROM manifest WHERE repository_id = ?1 AND subject = ?2";
    if !db.exists(sql, params![repository.0, subject.as_str()])? {
        return Ok(());
    }
    jobs::enqueue(db, &FollowSubject { repository, subject: subject.clone() }.after(now))
}

/// The indexes that hold a manifest: as many as a refusal names, those that can be pulled first, then the oldest.
pub(super) fn holders(db: Db<'_>, manifest: i64) -> StoreResult<Vec<Digest>> {
    let sql = "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id \
               WHERE e.child_id = ?1 ORDER BY e.archived_at, e.parent_id LIMIT ?2";
    db.all(sql, params![manifest, rows::limit(NAMED_HOLDERS)], |row| rows::parse(text(row, 0)?))
}

/// The indexes that hold a manifest and can be pulled: as many as a refusal names, the oldest first.
pub(super) fn active_holders(db: Db<'_>, manifest: i64) -> StoreResult<Vec<Digest>> {
    let sql = "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id \
               WHERE e.child_id = ?1 AND e.archived_at IS NULL ORDER BY e.parent_id LIMIT ?2";
    db.all(sql, params![manifest, rows::limit(NAMED_HOLDERS)], |row| rows::parse(text(row, 0)?))
}

/// The repository of an image that is there.
pub(super) fn home_of(db: Db<'_>, repository: RepositoryId) -> StoreResult<Home> {
    home(db, repository)?.ok_or_else(|| StoreError::Inconsistent("an image has no repository".into()))
}
