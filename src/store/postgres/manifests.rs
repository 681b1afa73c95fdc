//! Manifests: pulling and pushing them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use sqlx::{PgConnection, PgPool};

use super::error::{TxError, TxResult};
use super::rows::{self, get, ids_by_digest, millis, parsed, signed};
use super::{PostgresStore, events, image_rows, jobs, storage_class, usage};
use crate::events::ImageEvents;
use crate::manifests::{
    ImageStatus, Manifest, ManifestId, ManifestStore, NewManifest, PutManifest, PutManifestError,
    PutOutcome, SizeMismatch, TagEffect, tag_effect,
};
use crate::repositories::{RepositoryId, TagMutability};
use crate::usage::{EXACT_COUNT_MARGIN, repository_scope};
use crate::{Lookup, StoreError, StoreResult};
use wharfage_domain::names::{AccountId, Digest, Reference, RepositoryName, Tag};

#[async_trait::async_trait]
impl ManifestStore for PostgresStore {
    async fn find_manifest(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> StoreResult<Lookup<Manifest>> {
        self.run(|| find(&self.pool, account, repository, reference)).await
    }

    async fn put_manifest(&self, put: PutManifest) -> Result<PutOutcome, PutManifestError> {
        self.run(|| self::put(&self.pool, &put)).await
    }
}

pub(super) async fn find(
    pool: &PgPool,
    account: &AccountId,
    repository: &RepositoryName,
    reference: &Reference,
) -> TxResult<Lookup<Manifest>> {
    let (sql, name) = match reference {
        Reference::Digest(digest) => (
            "SELECT m.id, m.digest, m.media_type, m.status, m.last_pulled_at, p.payload
             FROM repository r
             LEFT JOIN (manifest m JOIN manifest_payload p ON p.manifest_id = m.id)
                    ON m.repository_id = r.id AND m.digest = $3
             WHERE r.account_id = $1 AND r.name = $2",
            digest.as_str(),
        ),
        Reference::Tag(tag) => (
            "SELECT m.id, m.digest, m.media_type, m.status, m.last_pulled_at, p.payload
             FROM repository r
             LEFT JOIN (tag t JOIN manifest m ON m.id = t.manifest_id JOIN manifest_payload p ON p.manifest_id = m.id)
                    ON t.repository_id = r.id AND t.name = $3
             WHERE r.account_id = $1 AND r.name = $2",
            tag.as_str(),
        ),
    };
    let row = sqlx::query(sql)
        .bind(account.as_str())
        .bind(repository.as_str())
        .bind(name)
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(Lookup::NoRepository) };
    let Some(id) = get(&row, "id")? else { return Ok(Lookup::Missing) };
    Ok(Lookup::Found(Manifest {
        id: ManifestId(id),
        digest: parsed(&row, "digest")?,
        media_type: get(&row, "media_type")?,
        payload: Bytes::from(get::<Vec<u8>>(&row, "payload")?),
        status: rows::status(&row)?,
        last_pulled_at: rows::optional_time(&row, "last_pulled_at")?,
    }))
}

pub(super) async fn put(
    pool: &PgPool,
    put: &PutManifest,
) -> TxResult<PutOutcome, PutManifestError> {
    let mut tx = pool.begin().await?;
    let repository = lock_repository(&mut tx, put.repository).await?;
    let links = lock_blobs(&mut tx, put).await?;
    let known_tags = lock_tags(&mut tx, put).await?;
    let children = lock_children(&mut tx, put).await?;
    let stored = store(&mut tx, put, &links, &children, &known_tags).await?;
    if stored.created {
        check_image_quota(&mut tx, put).await?;
    }
    let tags = set_tags(&mut tx, put, &repository.tag_mutability, &stored, &known_tags).await?;
    if tags.iter().any(|(_, effect)| matches!(effect, TagEffect::Created | TagEffect::Moved)) {
        check_tag_quota(&mut tx, put, stored.id).await?;
    }
    let StoredManifest { created, restored, retyped, .. } = stored;
    let outcome = PutOutcome { created, restored, retyped, tags };
    if outcome.unchanged() {
        tx.commit().await?;
        return Ok(outcome);
    }
    let manifest = &put.manifest;
    let mut jobs = put.jobs.clone();
    if restored {
        jobs.extend(
            image_rows::follow_up_jobs(&mut tx, put.repository, &[&manifest.digest], put.now)
                .await?,
        );
    }
    let archived = children
        .iter()
        .filter(|child| child.status != ImageStatus::Active)
        .map(|child| child.id)
        .collect();
    jobs.extend(storage_class::restore_children(&mut tx, put.repository, archived, put.now).await?);
    let image_events = ImageEvents {
        account: &repository.account,
        repository: &repository.name,
        digest: &manifest.digest,
        media_type: &manifest.media_type,
        artifact_media_type: manifest
            .artifact_type
            .as_deref()
            .or(manifest.config_media_type.as_deref()),
        is_referrer: manifest.subject.is_some(),
    };
    events::record_all(&mut *tx, &image_events.pushed(&outcome, put.now)).await?;
    jobs::enqueue_all(&mut tx, &jobs).await?;
    tx.commit().await?;
    Ok(outcome)
}

/// The repository of a push.
struct ImageRepository {
    account: AccountId,
    name: RepositoryName,
    tag_mutability: TagMutability,
}

/// Prevents the deletion of the repository until the transaction ends; its settings may change.
async fn lock_repository(
    tx: &mut PgConnection,
    id: RepositoryId,
) -> TxResult<ImageRepository, PutManifestError> {
    let row = sqlx::query(
        "SELECT account_id, name, tag_mutability, exclusions FROM repository
             WHERE id = $1 AND deleted_at IS NULL FOR KEY SHARE",
    )
    .bind(id.0)
    .fetch_optional(tx)
    .await?;
    let row = row.ok_or(TxError::Refused(PutManifestError::NoRepository))?;
    Ok(ImageRepository {
        account: parsed(&row, "account_id")?,
        name: parsed(&row, "name")?,
        tag_mutability: rows::tag_mutability(&row)?,
    })
}

/// A blob's link, which the manifest will reference.
struct LockedLink {
    id: i64,
    size: u64,
}

/// Prevents the removal of the links to the manifest's blobs. A blob with a link stays live.
async fn lock_blobs(
    tx: &mut PgConnection,
    put: &PutManifest,
) -> TxResult<HashMap<Digest, LockedLink>, PutManifestError> {
    let blobs = &put.manifest.blobs;
    if blobs.is_empty() {
        return Ok(HashMap::new());
    }
    let found = sqlx::query(concat!(
        "SELECT l.id, l.digest, b.size FROM (",
        ids_by_digest!("repository_blob"),
        ") k
         JOIN repository_blob l ON l.id = k.id
         JOIN blob b ON b.id = l.blob_id AND b.state = 'live'
         WHERE b.damaged_at IS NULL
         ORDER BY l.digest FOR KEY SHARE OF l",
    ))
    .bind(put.repository.0)
    .bind(blobs.iter().map(|blob| blob.digest.as_str()).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let link = |row| {
        Ok((
            parsed(row, "digest")?,
            LockedLink { id: get(row, "id")?, size: rows::unsigned(row, "size")? },
        ))
    };
    let links = found.iter().map(link).collect::<StoreResult<HashMap<Digest, LockedLink>>>()?;
    let missing: Vec<Digest> = blobs
        .iter()
        .map(|blob| &blob.digest)
        .filter(|digest| !links.contains_key(digest))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Err(TxError::Refused(PutManifestError::BlobsNotFound(missing)));
    }
    for blob in blobs {
        if let Some(link) = links.get(&blob.digest) {
            check_size(&blob.digest, blob.size, link.size)?;
        }
    }
    Ok(links)
}

fn check_size(digest: &Digest, stated: u64, actual: u64) -> TxResult<(), PutManifestError> {
    if stated == actual {
        return Ok(());
    }
    let mismatch = SizeMismatch { digest: digest.clone(), stated, actual };
    Err(TxError::Refused(PutManifestError::SizeMismatch(mismatch)))
}

/// Locks those of the tags that exist, in the order of their names, and returns the manifests that
/// they point at.
async fn lock_tags(
    tx: &mut PgConnection,
    put: &PutManifest,
) -> TxResult<BTreeMap<String, i64>, PutManifestError> {
    if put.tags.is_empty() {
        return Ok(BTreeMap::new());
    }
    let locked: Vec<(String, i64)> = sqlx::query_as(
        "SELECT name, manifest_id FROM tag WHERE repository_id = $1 AND name = ANY($2) ORDER BY name FOR UPDATE",
    )
    .bind(put.repository.0)
    .bind(put.tags.iter().map(Tag::as_str).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    Ok(locked.into_iter().collect())
}

/// A stored manifest that the new index will hold.
struct LockedChild {
    id: i64,
    image_size: u64,
    status: ImageStatus,
}

/// Prevents the deletion of the index's children, and their archival, which takes the same lock.
async fn lock_children(
    tx: &mut PgConnection,
    put: &PutManifest,
) -> TxResult<Vec<LockedChild>, PutManifestError> {
    let wanted = &put.manifest.children;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let found = sqlx::query(concat!(
        "SELECT m.id, m.digest, m.image_size, m.payload_size, m.status FROM (",
        ids_by_digest!("manifest"),
        ") k
         JOIN manifest m ON m.id = k.id
         ORDER BY m.digest FOR KEY SHARE OF m",
    ))
    .bind(put.repository.0)
    .bind(wanted.iter().map(|child| child.digest.as_str()).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let read = |row| {
        let child = LockedChild {
            id: get(row, "id")?,
            image_size: rows::unsigned(row, "image_size")?,
            status: rows::status(row)?,
        };
        Ok((parsed(row, "digest")?, (rows::unsigned(row, "payload_size")?, child)))
    };
    let found =
        found.iter().map(read).collect::<StoreResult<BTreeMap<Digest, (u64, LockedChild)>>>()?;
    let missing =
        wanted.iter().map(|child| &child.digest).filter(|digest| !found.contains_key(digest));
    let missing: Vec<Digest> = missing.cloned().collect();
    if !missing.is_empty() {
        return Err(TxError::Refused(PutManifestError::ChildrenNotFound(missing)));
    }
    for child in wanted {
        if let Some((size, _)) = found.get(&child.digest) {
            check_size(&child.digest, child.size, *size)?;
        }
    }
    Ok(found.into_values().map(|(_, child)| child).collect())
}

/// The manifest's row, locked until the transaction ends.
struct StoredManifest {
    id: ManifestId,
    created: bool,
    restored: bool,
    retyped: bool,
    /// Digests of the manifests that the existing tags point at, whose rows are locked too.
    tagged: HashMap<i64, Digest>,
}

async fn store(
    tx: &mut PgConnection,
    put: &PutManifest,
    links: &HashMap<Digest, LockedLink>,
    children: &[LockedChild],
    known_tags: &BTreeMap<String, i64>,
) -> TxResult<StoredManifest, PutManifestError> {
    let inserted = insert(tx, put, links, children).await?;
    if let Some(id) = inserted {
        insert_edges(tx, &put.manifest, id, links, children).await?;
        if known_tags.is_empty() {
            return Ok(StoredManifest {
                id,
                created: true,
                restored: false,
                retyped: false,
                tagged: HashMap::new(),
            });
        }
    }
    let rows = sqlx::query(
        "SELECT id, digest, media_type, status FROM manifest
         WHERE id IN (SELECT id FROM manifest WHERE repository_id = $1 AND digest = $2
                      UNION SELECT UNNEST($3::bigint[]))
         ORDER BY digest FOR NO KEY UPDATE",
    )
    .bind(put.repository.0)
    .bind(put.manifest.digest.as_str())
    .bind(known_tags.values().copied().collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await?;
    let (mut tagged, mut own) = (HashMap::new(), None);
    for row in &rows {
        let (id, digest): (i64, Digest) = (get(row, "id")?, parsed(row, "digest")?);
        if digest == put.manifest.digest {
            let retyped = get::<&str>(row, "media_type")? != put.manifest.media_type;
            own = Some((ManifestId(id), rows::status(row)? != ImageStatus::Active, retyped));
        }
        tagged.insert(id, digest);
    }
    // It was deleted after the insert found it. The next attempt inserts it.
    let (id, restored, retyped) = own.ok_or(TxError::Raced)?;
    let created = inserted.is_some();
    if restored {
        storage_class::activate(tx, &[id.0], put.now).await?;
    }
    if !created {
        // A push shows that the image is wanted, even if it changes nothing else.
        sqlx::query("UPDATE manifest SET revision = revision + 1, media_type = $2 WHERE id = $1")
            .bind(id.0)
            .bind(&put.manifest.media_type)
            .execute(tx)
            .await?;
    }
    Ok(StoredManifest { id, created, restored, retyped, tagged })
}

/// Inserts the manifest and its payload; `None` if the digest exists already.
async fn insert(
    tx: &mut PgConnection,
    put: &PutManifest,
    links: &HashMap<Digest, LockedLink>,
    children: &[LockedChild],
) -> TxResult<Option<ManifestId>, PutManifestError> {
    let NewManifest {
        digest,
        media_type,
        payload,
        artifact_type,
        config_media_type,
        subject,
        annotations,
        ..
    } = &put.manifest;
    let image_size = if children.is_empty() {
        links.values().map(|link| link.size).sum()
    } else {
        children.iter().map(|child| child.image_size).max().unwrap_or(0)
    };
    let id: Option<i64> = sqlx::query_scalar(
        "WITH new AS (
             INSERT INTO manifest (repository_id, digest, media_type, status, payload_size, image_size, pushed_at,
                                   artifact_type, config_media_type, subject, annotations)
             VALUES ($1, $2, $3, 'ACTIVE', $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (repository_id, digest) DO NOTHING RETURNING id),
         payload AS (INSERT INTO manifest_payload (manifest_id, payload) SELECT id, $11 FROM new)
         SELECT id FROM new",
    )
    .bind(put.repository.0)
    .bind(digest.as_str())
    .bind(media_type)
    .bind(signed(payload.len() as u64)?)
    .bind(signed(image_size)?)
    .bind(millis(put.now))
    .bind(artifact_type)
    .bind(config_media_type)
    .bind(subject.as_ref().map(Digest::as_str))
    .bind(rows::annotations(annotations)?)
    .bind(payload.as_ref())
    .fetch_optional(tx)
    .await?;
    Ok(id.map(ManifestId))
}

async fn insert_edges(
    tx: &mut PgConnection,
    manifest: &NewManifest,
    id: ManifestId,
    links: &HashMap<Digest, LockedLink>,
    children: &[LockedChild],
) -> TxResult<(), PutManifestError> {
    if !manifest.blobs.is_empty() {
        let edges = manifest
            .blobs
            .iter()
            .filter_map(|blob| Some((links.get(&blob.digest)?.id, &*blob.media_type)));
        let (link_ids, media_types): (Vec<i64>, Vec<&str>) = edges.unzip();
        sqlx::query(
            "INSERT INTO manifest_blob (manifest_id, link_id, media_type)
             SELECT $1, link_id, media_type FROM UNNEST($2::bigint[], $3::text[]) AS t (link_id, media_type)",
        )
        .bind(id.0)
        .bind(link_ids)
        .bind(media_types)
        .execute(&mut *tx)
        .await?;
    }
    if !children.is_empty() {
        sqlx::query(
            "INSERT INTO manifest_child (parent_id, child_id) SELECT $1, UNNEST($2::bigint[])",
        )
        .bind(id.0)
        .bind(children.iter().map(|child| child.id).collect::<Vec<_>>())
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// Checks the number of images, the new one included. Near the limit it takes a lock, so that of
/// two concurrent pushes one sees the other's image.
async fn check_image_quota(
    tx: &mut PgConnection,
    put: &PutManifest,
) -> TxResult<(), PutManifestError> {
    let scope = repository_scope(put.repository);
    if usage::find(&mut *tx, &scope).await?.0.saturating_add(EXACT_COUNT_MARGIN) <= put.max_images {
        return Ok(());
    }
    sqlx::query("SELECT 1 FROM repository WHERE id = $1 FOR NO KEY UPDATE")
        .bind(put.repository.0)
        .execute(&mut *tx)
        .await?;
    if usage::find(&mut *tx, &scope).await?.0 <= put.max_images {
        return Ok(());
    }
    Err(TxError::Refused(PutManifestError::TooManyImages(put.max_images)))
}

/// Checks the number of the image's tags, the new ones included. Every push that tags an image
/// locks its row.
async fn check_tag_quota(
    tx: &mut PgConnection,
    put: &PutManifest,
    id: ManifestId,
) -> TxResult<(), PutManifestError> {
    let count = sqlx::query_scalar("SELECT count(*) FROM tag WHERE manifest_id = $1")
        .bind(id.0)
        .fetch_one(tx)
        .await?;
    if rows::count(count) <= put.max_tags {
        return Ok(());
    }
    Err(TxError::Refused(PutManifestError::TooManyTags(put.max_tags)))
}

/// Points the tags at the manifest, and returns the effect on each, in the order given.
async fn set_tags(
    tx: &mut PgConnection,
    put: &PutManifest,
    mutability: &TagMutability,
    stored: &StoredManifest,
    known: &BTreeMap<String, i64>,
) -> TxResult<Vec<(Tag, TagEffect)>, PutManifestError> {
    let (mut effects, mut moved, mut displaced) =
        (Vec::with_capacity(put.tags.len()), Vec::new(), Vec::new());
    for tag in &put.tags {
        let current = match known.get(tag.as_str()) {
            None => None,
            Some(id) => {
                let digest = stored.tagged.get(id);
                Some((
                    *id,
                    digest
                        .ok_or_else(|| StoreError::Inconsistent(format!("{tag} points nowhere")))?,
                ))
            }
        };
        let effect =
            tag_effect(mutability, tag, current.map(|(_, digest)| digest), &put.manifest.digest);
        match (effect, current) {
            (TagEffect::Refused, Some((_, current))) => {
                let (tag, current) = (tag.clone(), current.clone());
                return Err(TxError::Refused(PutManifestError::TagAlreadyExists { tag, current }));
            }
            (TagEffect::Moved, Some((id, _))) => {
                moved.push(tag.as_str());
                displaced.push(id);
            }
            _ => {}
        }
        effects.push((tag.clone(), effect));
    }
    let new: BTreeSet<&str> =
        put.tags.iter().map(Tag::as_str).filter(|name| !known.contains_key(*name)).collect();
    if !new.is_empty() {
        let created = sqlx::query(
            "INSERT INTO tag (repository_id, name, manifest_id, created_at, updated_at)
             SELECT $1, name, $3, $4, $4 FROM UNNEST($2::text[]) AS t (name)
             ON CONFLICT (repository_id, name) DO NOTHING",
        )
        .bind(put.repository.0)
        .bind(new.iter().copied().collect::<Vec<_>>())
        .bind(stored.id.0)
        .bind(millis(put.now))
        .execute(&mut *tx)
        .await?;
        // Of two pushes that create the same tag, one inserts it. The other has waited for that and
        // finds the tag in its next attempt.
        if created.rows_affected() < new.len() as u64 {
            return Err(TxError::Raced);
        }
    }
    if !moved.is_empty() {
        sqlx::query(
            "UPDATE tag SET manifest_id = $3, updated_at = $4, archived_at = NULL
                     WHERE repository_id = $1 AND name = ANY($2)",
        )
        .bind(put.repository.0)
        .bind(moved)
        .bind(stored.id.0)
        .bind(millis(put.now))
        .execute(&mut *tx)
        .await?;
        image_rows::revise(tx, &displaced).await?;
    }
    Ok(effects)
}
