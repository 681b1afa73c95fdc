//! Manifests: pulling and pushing them.

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::Db;
use super::image_rows::{self, ImageRow};
use super::rows::{self, optional_time, parsed, text};
use super::{SqliteStore, events, jobs, repositories, storage_class, usage};
use crate::manifests::{
    BlobReference, ChildReference, ImageStatus, Manifest, ManifestId, ManifestStore, NewManifest,
    PutManifest, PutManifestError, PutOutcome, SizeMismatch, TagEffect, tag_effect,
};
use crate::repositories::RepositoryId;
use crate::usage::repository_scope;
use crate::{Lookup, StoreResult};
use wharfage_domain::names::{AccountId, Digest, Reference, RepositoryName, Tag};

#[async_trait::async_trait]
impl ManifestStore for SqliteStore {
    async fn find_manifest(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> StoreResult<Lookup<Manifest>> {
        self.readers.read(|db| find(db, account, repository, reference))
    }

    async fn put_manifest(&self, put: PutManifest) -> Result<PutOutcome, PutManifestError> {
        self.grow(put.manifest.payload.len(), move |db| self::put(db, &put)).await
    }
}

pub(super) fn find(
    db: Db<'_>,
    account: &AccountId,
    repository: &RepositoryName,
    reference: &Reference,
) -> StoreResult<Lookup<Manifest>> {
    let (sql, reference) = match reference {
        Reference::Tag(tag) => (
            "SELECT m.id, m.digest, m.media_type, p.payload, m.status, m.last_pulled_at FROM repository r \
             JOIN tag t ON t.repository_id = r.id AND t.name = ?3 JOIN manifest m ON m.id = t.manifest_id \
             JOIN manifest_payload p ON p.manifest_id = m.id WHERE r.account_id = ?1 AND r.name = ?2",
            tag.as_str(),
        ),
        Reference::Digest(digest) => (
            "SELECT m.id, m.digest, m.media_type, p.payload, m.status, m.last_pulled_at FROM repository r \
             JOIN manifest m ON m.repository_id = r.id AND m.digest = ?3 \
             JOIN manifest_payload p ON p.manifest_id = m.id WHERE r.account_id = ?1 AND r.name = ?2",
            digest.as_str(),
        ),
    };
    let found = db.first(sql, [account.as_str(), repository.as_str(), reference], |row| {
        Ok(Manifest {
            id: ManifestId(row.get(0)?),
            digest: parsed(row, 1)?,
            media_type: row.get(2)?,
            payload: Bytes::from(row.get::<_, Vec<u8>>(3)?),
            status: rows::status(text(row, 4)?)?,
            last_pulled_at: optional_time(row, 5)?,
        })
    })?;
    Ok(match found {
        Some(manifest) => Lookup::Found(manifest),
        None if repositories::exists_by_name(db, account, repository)? => Lookup::Missing,
        None => Lookup::NoRepository,
    })
}

pub(super) fn put(db: Db<'_>, put: &PutManifest) -> Result<PutOutcome, PutManifestError> {
    let PutManifest { repository, manifest, tags, now, max_images, max_tags, jobs } = put;
    let image_repository =
        image_rows::find_repository(db, *repository)?.ok_or(PutManifestError::NoRepository)?;
    let known = image_rows::find_by_digest(db, *repository, &manifest.digest)?;
    // The references of a stored manifest exist: foreign keys restrict their deletion.
    let needs = if known.is_none() { Some(find_needs(db, *repository, manifest)?) } else { None };

    let (mut effects, mut displaced) = (Vec::with_capacity(tags.len()), Vec::new());
    for tag in tags {
        let current = image_rows::find_by_tag(db, *repository, tag)?;
        let effect = tag_effect(
            &image_repository.tag_mutability,
            tag,
            current.as_ref().map(|stored| &stored.digest),
            &manifest.digest,
        );
        match (effect, current) {
            (TagEffect::Refused, Some(ImageRow { digest: current, .. })) => {
                return Err(PutManifestError::TagAlreadyExists { tag: tag.clone(), current });
            }
            (TagEffect::Moved, Some(ImageRow { id, .. })) => displaced.push(id),
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
        // A push shows that the image is wanted, even if it changes nothing else.
        image_rows::revise(db, known.id)?;
    }
    if outcome.unchanged() {
        return Ok(outcome);
    }

    if outcome.created && usage::find(db, &repository_scope(*repository))?.0 >= *max_images {
        return Err(PutManifestError::TooManyImages(*max_images));
    }
    let set = outcome.tags.iter().filter(|(_, effect)| *effect != TagEffect::Unchanged);
    let set: Vec<&Tag> = set.map(|(tag, _)| tag).collect();
    let has = known.as_ref().map_or(Ok(0), |known| image_rows::count_tags(db, known.id))?;
    if !set.is_empty() && has + set.len() as u64 > *max_tags {
        return Err(PutManifestError::TooManyTags(*max_tags));
    }

    let stored = match (known, needs) {
        (Some(known), _) => ImageRow { media_type: manifest.media_type.clone(), ..known },
        (None, needs) => insert(db, *repository, manifest, &needs.unwrap_or_default(), *now)?,
    };
    if outcome.retyped {
        db.run(
            "UPDATE manifest SET media_type = ?2 WHERE id = ?1",
            params![stored.id, stored.media_type],
        )?;
    }
    if outcome.restored {
        storage_class::activate(db, stored.id, *now)?;
        image_rows::enqueue_follow_up(db, *repository, &stored.digest, *now)?;
    }
    storage_class::restore_children(db, *repository, &image_repository, stored.id, *now)?;
    for tag in set {
        let sql = "INSERT INTO tag (repository_id, name, manifest_id, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?4) \
                   ON CONFLICT DO UPDATE SET manifest_id = excluded.manifest_id, updated_at = excluded.updated_at, \
                   archived_at = NULL";
        db.run(sql, params![repository.0, tag.as_str(), stored.id, rows::millis(*now)])?;
    }
    for id in displaced {
        image_rows::revise(db, id)?;
    }
    for event in stored.events(&image_repository).pushed(&outcome, *now) {
        events::record(db, &event)?;
    }
    for job in jobs {
        jobs::enqueue(db, job)?;
    }
    Ok(outcome)
}

/// The references of a new manifest, found in its repository.
#[derive(Default)]
struct ManifestNeeds {
    links: Vec<i64>,
    children: Vec<i64>,
    image_size: i64,
}

fn find_needs(
    db: Db<'_>,
    repository: RepositoryId,
    manifest: &NewManifest,
) -> Result<ManifestNeeds, PutManifestError> {
    let mut needs = ManifestNeeds::default();
    let pair = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let mut missing = Vec::new();
    for blob in &manifest.blobs {
        let sql = "SELECT l.id, b.size FROM repository_blob l JOIN blob b ON b.id = l.blob_id \
                   WHERE l.repository_id = ?1 AND l.digest = ?2 AND b.state = 'live' AND b.damaged_at IS NULL";
        let BlobReference { digest, size: stated, .. } = blob;
        let found: Option<(i64, i64)> =
            db.first(sql, params![repository.0, digest.as_str()], pair)?;
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
        let found: Option<(i64, i64, i64)> =
            db.first(sql, params![repository.0, digest.as_str()], read)?;
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
    needs: &ManifestNeeds,
    now: Timestamp,
) -> StoreResult<ImageRow> {
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
        let sql =
            "INSERT INTO manifest_blob (manifest_id, link_id, media_type) VALUES (?1, ?2, ?3)";
        db.run(sql, params![id, link, blob.media_type])?;
    }
    for child in &needs.children {
        db.run("INSERT INTO manifest_child (parent_id, child_id) VALUES (?1, ?2)", [id, *child])?;
    }
    Ok(ImageRow {
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
