//! Pulling and pushing a manifest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use sqlx::{PgConnection, PgPool};

use super::failure::{Attempt, Failure};
use super::rows::{self, get, ids_by_digest, millis, parsed, signed};
use super::{images, jobs, storage_class, usage};
use crate::names::{AccountId, Digest, Reference, RepositoryName, Tag};
use crate::store::events::ImageSubject;
use crate::store::images::{
    ImageStatus, Manifest, ManifestId, NewManifest, PutManifest, PutManifestError, PutOutcome, SizeMismatch, TagEffect,
    tag_effect,
};
use crate::store::repositories::{RepositoryId, TagMutability};
use crate::store::usage::{MARGIN, of_repository};
use crate::store::{Lookup, StoreError, StoreResult};

pub(super) async fn find(
    pool: &PgPool,
    account: &AccountId,
    repository: &RepositoryName,
    reference: &Reference,
) -> Attempt<Lookup<Manifest>> {
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
    let row = sqlx::query(sql).bind(account.as_str()).bind(repository.as_str()).bind(name).fetch_optional(pool).await?;
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

pub(super) async fn put(pool: &PgPool, put: &PutManifest) -> Attempt<PutOutcome, PutManifestError> {
    let mut tx = pool.begin().await?;
    let target = lock_repository(&mut tx, put.repository).await?;
    let links = lock_blobs(&mut tx, put).await?;
    let known_tags = lock_tags(&mut tx, put).await?;
    let children = lock_children(&mut tx, put).await?;
    let stored = store(&mut tx, put, &links, &children, &known_tags).await?;
    if stored.created {
        check_image_quota(&mut tx, put).await?;
    }
    let tags = set_tags(&mut tx, put, &target.mutability, &stored, &known_tags).await?;
    if tags.iter().any(|(_, effect)| matches!(effect, TagEffect::Created | TagEffect::Moved)) {
        check_tag_quota(&mut tx, put, stored.id).await?;
    }
    let Stored { created, restored, retyped, .. } = stored;
    let outcome = PutOutcome { created, restored, retyped, tags };
    if outcome.unchanged() {
        tx.commit().await?;
        return Ok(outcome);
    }
    let manifest = &put.manifest;
    let mut jobs = put.jobs.clone();
    if restored {
        jobs.extend(images::follow_ups(&mut tx, put.repository, &[&manifest.digest], put.now).await?);
    }
    let archived = children.iter().filter(|child| child.status != ImageStatus::Active).map(|child| child.id).collect();
    jobs.extend(storage_class::restore(&mut tx, put.repository, archived, put.now).await?);
    let image = ImageSubject {
        account: &target.account,
        repository: &target.name,
        digest: &manifest.digest,
        media_type: &manifest.media_type,
        artifact_media_type: manifest.artifact_type.as_deref().or(manifest.config_media_type.as_deref()),
        is_referrer: manifest.subject.is_some(),
    };
    jobs::record(&mut *tx, &image.pushed(&outcome, put.now)).await?;
    jobs::enqueue(&mut tx, &jobs).await?;
    tx.commit().await?;
    Ok(outcome)
}

/// What a push has to know of its repository.
struct Target {
    account: AccountId,
    name: RepositoryName,
    mutability: TagMutability,
}

/// Keeps the repository from being deleted until the end of the transaction; its settings may change.
async fn lock_repository(tx: &mut PgConnection, id: RepositoryId) -> Attempt<Target, PutManifestError> {
    let row = sqlx::query(
        "SELECT account_id, name, tag_mutability, exclusions FROM repository
             WHERE id = $1 AND deleted_at IS NULL FOR KEY SHARE",
    )
    .bind(id.0)
    .fetch_optional(tx)
    .await?;
    let row = row.ok_or(Failure::Refused(PutManifestError::NoRepository))?;
    Ok(Target {
        account: parsed(&row, "account_id")?,
        name: parsed(&row, "name")?,
        mutability: rows::tag_mutability(&row)?,
    })
}

/// A blob's link, by which the manifest will hold it.
struct Link {
    id: i64,
    size: u64,
}

/// Keeps the links of the manifest's blobs from being removed, and a blob with a link stays live.
async fn lock_blobs(tx: &mut PgConnection, put: &PutManifest) -> Attempt<HashMap<Digest, Link>, PutManifestError> {
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
    let link = |row| Ok((parsed(row, "digest")?, Link { id: get(row, "id")?, size: rows::unsigned(row, "size")? }));
    let links = found.iter().map(link).collect::<StoreResult<HashMap<Digest, Link>>>()?;
    let missing: Vec<Digest> =
        blobs.iter().map(|blob| &blob.digest).filter(|digest| !links.contains_key(digest)).cloned().collect();
    if !missing.is_empty() {
        return Err(Failure::Refused(PutManifestError::BlobsNotFound(missing)));
    }
    for blob in blobs {
        if let Some(link) = links.get(&blob.digest) {
            check_size(&blob.digest, blob.size, link.size)?;
        }
    }
    Ok(links)
}

fn check_size(digest: &Digest, stated: u64, actual: u64) -> Attempt<(), PutManifestError> {
    if stated == actual {
        return Ok(());
    }
    let mismatch = SizeMismatch { digest: digest.clone(), stated, actual };
    Err(Failure::Refused(PutManifestError::SizeMismatch(mismatch)))
}

/// Locks the tags to be set that are there, in the order of their names, and says which manifests they point at.
async fn lock_tags(tx: &mut PgConnection, put: &PutManifest) -> Attempt<BTreeMap<String, i64>, PutManifestError> {
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
struct Child {
    id: i64,
    image_size: u64,
    status: ImageStatus,
}

/// Keeps the index's children from being deleted (and from being archived: that locks the row as a deletion does).
async fn lock_children(tx: &mut PgConnection, put: &PutManifest) -> Attempt<Vec<Child>, PutManifestError> {
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
        let child =
            Child { id: get(row, "id")?, image_size: rows::unsigned(row, "image_size")?, status: rows::status(row)? };
        Ok((parsed(row, "digest")?, (rows::unsigned(row, "payload_size")?, child)))
    };
    let found = found.iter().map(read).collect::<StoreResult<BTreeMap<Digest, (u64, Child)>>>()?;
    let missing = wanted.iter().map(|child| &child.digest).filter(|digest| !found.contains_key(digest));
    let missing: Vec<Digest> = missing.cloned().collect();
    if !missing.is_empty() {
        return Err(Failure::Refused(PutManifestError::ChildrenNotFound(missing)));
    }
    for child in wanted {
        if let Some((size, _)) = found.get(&child.digest) {
            check_size(&child.digest, child.size, *size)?;
        }
    }
    Ok(found.into_values().map(|(_, child)| child).collect())
}

/// The manifest's row, which is locked until the end of the transaction.
struct Stored {
    id: ManifestId,
    created: bool,
    restored: bool,
    retyped: bool,
    /// The digests of the manifests that the known tags point at, whose rows are locked too.
    tagged: HashMap<i64, Digest>,
}

async fn store(
    tx: &mut PgConnection,
    put: &PutManifest,
    links: &HashMap<Digest, Link>,
    children: &[Child],
    known_tags: &BTreeMap<String, i64>,
) -> Attempt<Stored, PutManifestError> {
    let inserted = insert(tx, put, links, children).await?;
    if let Some(id) = inserted {
        insert_edges(tx, &put.manifest, id, links, children).await?;
        if known_tags.is_empty() {
            return Ok(Stored { id, created: true, restored: false, retyped: false, tagged: HashMap::new() });
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
    // It was there a moment ago and was deleted since: the next attempt inserts it.
    let (id, restored, retyped) = own.ok_or(Failure::Raced)?;
    let created = inserted.is_some();
    if restored {
        storage_class::activate(tx, &[id.0], put.now).await?;
    }
    if !created {
        // Whoever pushes an image wants it, also where nothing else changes.
        sqlx::query("UPDATE manifest SET revision = revision + 1, media_type = $2 WHERE id = $1")
            .bind(id.0)
            .bind(&put.manifest.media_type)
            .execute(tx)
            .await?;
    }
    Ok(Stored { id, created, restored, retyped, tagged })
}

/// Inserts the manifest and its payload; nothing when its digest is there already.
async fn insert(
    tx: &mut PgConnection,
    put: &PutManifest,
    links: &HashMap<Digest, Link>,
    children: &[Child],
) -> Attempt<Option<ManifestId>, PutManifestError> {
    let NewManifest { digest, media_type, payload, artifact_type, config_media_type, subject, annotations, .. } =
        &put.manifest;
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
    links: &HashMap<Digest, Link>,
    children: &[Child],
) -> Attempt<(), PutManifestError> {
    if !manifest.blobs.is_empty() {
        let edges = manifest.blobs.iter().filter_map(|blob| Some((links.get(&blob.digest)?.id, &*blob.media_type)));
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
        sqlx::query("INSERT INTO manifest_child (parent_id, child_id) SELECT $1, UNNEST($2::bigint[])")
            .bind(id.0)
            .bind(children.iter().map(|child| child.id).collect::<Vec<_>>())
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// Counts the repository's images, the new one included; near the limit under a lock, so that of two replicas' pushes one
/// sees the other's.
async fn check_image_quota(tx: &mut PgConnection, put: &PutManifest) -> Attempt<(), PutManifestError> {
    let scope = of_repository(put.repository);
    if usage::of(&mut *tx, &scope).await?.0.saturating_add(MARGIN) <= put.max_images {
        return Ok(());
    }
    sqlx::query("SELECT 1 FROM repository WHERE id = $1 FOR NO KEY UPDATE")
        .bind(put.repository.0)
        .execute(&mut *tx)
        .await?;
    if usage::of(&mut *tx, &scope).await?.0 <= put.max_images {
        return Ok(());
    }
    Err(Failure::Refused(PutManifestError::TooManyImages(put.max_images)))
}

/// Counts the image's tags, the new ones included: whoever tags an image holds its row's lock.
async fn check_tag_quota(tx: &mut PgConnection, put: &PutManifest, id: ManifestId) -> Attempt<(), PutManifestError> {
    let count = sqlx::query_scalar("SELECT count(*) FROM tag WHERE manifest_id = $1").bind(id.0).fetch_one(tx).await?;
    if rows::count(count) <= put.max_tags {
        return Ok(());
    }
    Err(Failure::Refused(PutManifestError::TooManyTags(put.max_tags)))
}

/// Points the tags at the manifest, and says what that did to each, in the order given.
async fn set_tags(
    tx: &mut PgConnection,
    put: &PutManifest,
    mutability: &TagMutability,
    stored: &Stored,
    known: &BTreeMap<String, i64>,
) -> Attempt<Vec<(Tag, TagEffect)>, PutManifestError> {
    let (mut effects, mut moved, mut displaced) = (Vec::with_capacity(put.tags.len()), Vec::new(), Vec::new());
    for tag in &put.tags {
        let current = match known.get(tag.as_str()) {
            None => None,
            Some(id) => {
                let digest = stored.tagged.get(id);
                Some((*id, digest.ok_or_else(|| StoreError::Inconsistent(format!("{tag} points nowhere")))?))
            }
        };
        let effect = tag_effect(mutability, tag, current.map(|(_, digest)| digest), &put.manifest.digest);
        match (effect, current) {
            (TagEffect::Refused, Some((_, current))) => {
                let (tag, current) = (tag.clone(), current.clone());
                return Err(Failure::Refused(PutManifestError::TagAlreadyExists { tag, current }));
            }
            (TagEffect::Moved, Some((id, _))) => {
                moved.push(tag.as_str());
                displaced.push(id);
            }
            _ => {}
        }
        effects.push((tag.clone(), effect));
    }
    let new: BTreeSet<&str> = put.tags.iter().map(Tag::as_str).filter(|name| !known.contains_key(*name)).collect();
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
        // Of two pushes that create the same tag one inserts. The other waited for its end, and its next attempt finds it.
        if created.rows_affected() < new.len() as u64 {
            return Err(Failure::Raced);
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
        images::revise(tx, &displaced).await?;
    }
    Ok(effects)
}
