//! Pulling and pushing a manifest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use sqlx::{PgConnection, PgPool};

use super::failure::{Attempt, Failure};
use super::jobs;
use super::rows::{self, get, millis, parse, parsed, signed};
use crate::names::{AccountId, Digest, Reference, RepositoryName, Tag};
use crate::store::events::ImageSubject;
use crate::store::images::{
    ImageStatus, Manifest, ManifestId, NewManifest, PutManifest, PutManifestError, PutOutcome, TagEffect, tag_effect,
};
use crate::store::repositories::{RepositoryId, TagMutability};
use crate::store::{Lookup, StoreError, StoreResult};

/// How many images short of its limit a repository is when pushes to it begin to count one after the other. More pushes
/// than this would have to be under way at once, all of new images, to exceed the limit unseen.
const QUOTA_MARGIN: u64 = 1_000;

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
    let children = lock_children(&mut tx, put).await?;
    let stored = store(&mut tx, put, &links, &children).await?;
    if stored.created {
        check_image_quota(&mut tx, put).await?;
    }
    let tags = set_tags(&mut tx, put, &target.mutability, stored.id).await?;
    if tags.iter().any(|(_, effect)| matches!(effect, TagEffect::Created | TagEffect::Moved)) {
        check_tag_quota(&mut tx, put, stored.id).await?;
    }
    let outcome = PutOutcome { created: stored.created, restored: stored.restored, tags };
    if outcome.unchanged() {
        return Ok(outcome);
    }
    let manifest = &put.manifest;
    let subject = ImageSubject {
        account: &target.account,
        repository: &target.name,
        digest: &manifest.digest,
        media_type: &stored.media_type,
        artifact_media_type: manifest.artifact_type.as_deref().or(manifest.config_media_type.as_deref()),
        is_referrer: manifest.subject.is_some(),
    };
    jobs::record(&mut *tx, &subject.pushed(&outcome, put.now)).await?;
    jobs::enqueue(&mut tx, &put.jobs).await?;
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
    let row =
        sqlx::query("SELECT account_id, name, tag_mutability, exclusions FROM repository WHERE id = $1 FOR KEY SHARE")
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
    let found = sqlx::query(
        "SELECT l.id, l.digest, b.size FROM repository_blob l JOIN blob b ON b.id = l.blob_id AND b.state = 'live'
         WHERE l.repository_id = $1 AND l.digest = ANY($2) ORDER BY l.digest FOR KEY SHARE OF l",
    )
    .bind(put.repository.0)
    .bind(blobs.iter().map(|blob| blob.digest.as_str()).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let link = |row| Ok((parsed(row, "digest")?, Link { id: get(row, "id")?, size: rows::unsigned(row, "size")? }));
    let links = found.iter().map(link).collect::<StoreResult<HashMap<Digest, Link>>>()?;
    let missing: Vec<Digest> =
        blobs.iter().map(|blob| &blob.digest).filter(|digest| !links.contains_key(digest)).cloned().collect();
    if missing.is_empty() { Ok(links) } else { Err(Failure::Refused(PutManifestError::BlobsNotFound(missing))) }
}

/// A stored manifest that the new index will hold.
struct Child {
    id: i64,
    image_size: u64,
}

/// Keeps the index's children from being deleted (and from being archived: that locks the row as a deletion does).
async fn lock_children(tx: &mut PgConnection, put: &PutManifest) -> Attempt<Vec<Child>, PutManifestError> {
    let wanted = &put.manifest.children;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let found = sqlx::query(
        "SELECT id, digest, image_size FROM manifest
         WHERE repository_id = $1 AND digest = ANY($2) ORDER BY digest FOR KEY SHARE",
    )
    .bind(put.repository.0)
    .bind(wanted.iter().map(Digest::as_str).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let digests = found.iter().map(|row| parsed(row, "digest")).collect::<StoreResult<BTreeSet<Digest>>>()?;
    let missing: Vec<Digest> = wanted.iter().filter(|digest| !digests.contains(digest)).cloned().collect();
    if !missing.is_empty() {
        return Err(Failure::Refused(PutManifestError::ChildrenNotFound(missing)));
    }
    let child = |row| Ok(Child { id: get(row, "id")?, image_size: rows::unsigned(row, "image_size")? });
    Ok(found.iter().map(child).collect::<StoreResult<_>>()?)
}

/// The manifest's row, which is locked until the end of the transaction.
struct Stored {
    id: ManifestId,
    media_type: String,
    created: bool,
    restored: bool,
}

async fn store(
    tx: &mut PgConnection,
    put: &PutManifest,
    links: &HashMap<Digest, Link>,
    children: &[Child],
) -> Attempt<Stored, PutManifestError> {
    if let Some(id) = insert(tx, put, links, children).await? {
        insert_edges(tx, &put.manifest, id, links, children).await?;
        return Ok(Stored { id, media_type: put.manifest.media_type.clone(), created: true, restored: false });
    }
    let known = sqlx::query(
        "SELECT id, media_type, status FROM manifest WHERE repository_id = $1 AND digest = $2 FOR NO KEY UPDATE",
    )
    .bind(put.repository.0)
    .bind(put.manifest.digest.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    // It was there a moment ago and was deleted since: the next attempt inserts it.
    let known = known.ok_or(Failure::Raced)?;
    let id = ManifestId(get(&known, "id")?);
    let restored = rows::status(&known)? != ImageStatus::Active;
    if restored {
        sqlx::query("UPDATE manifest SET status = 'ACTIVE', activated_at = $2 WHERE id = $1")
            .bind(id.0)
            .bind(millis(put.now))
            .execute(tx)
            .await?;
    }
    Ok(Stored { id, media_type: get(&known, "media_type")?, created: false, restored })
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
    if count_images(tx, put.repository).await?.saturating_add(QUOTA_MARGIN) <= put.max_images {
        return Ok(());
    }
    sqlx::query("SELECT 1 FROM repository WHERE id = $1 FOR NO KEY UPDATE")
        .bind(put.repository.0)
        .execute(&mut *tx)
        .await?;
    if count_images(tx, put.repository).await? <= put.max_images {
        return Ok(());
    }
    Err(Failure::Refused(PutManifestError::TooManyImages(put.max_images)))
}

async fn count_images(tx: &mut PgConnection, repository: RepositoryId) -> Attempt<u64, PutManifestError> {
    let count = sqlx::query_scalar("SELECT count(*) FROM manifest WHERE repository_id = $1");
    Ok(rows::count(count.bind(repository.0).fetch_one(tx).await?))
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
    id: ManifestId,
) -> Attempt<Vec<(Tag, TagEffect)>, PutManifestError> {
    let names: BTreeSet<&str> = put.tags.iter().map(Tag::as_str).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = names.into_iter().collect();
    // Of two pushes that create the same tag one inserts; the other waits here for its end, and then finds the tag.
    let created: Vec<String> = sqlx::query_scalar(
        "INSERT INTO tag (repository_id, name, manifest_id) SELECT $1, name, $3 FROM UNNEST($2::text[]) AS t (name)
         ON CONFLICT (repository_id, name) DO NOTHING RETURNING name",
    )
    .bind(put.repository.0)
    .bind(&names)
    .bind(id.0)
    .fetch_all(&mut *tx)
    .await?;
    let created: BTreeSet<&str> = created.iter().map(String::as_str).collect();
    let known: Vec<&str> = names.into_iter().filter(|name| !created.contains(name)).collect();
    let current = lock_tags(tx, put.repository, &known).await?;

    let mut effects = Vec::with_capacity(put.tags.len());
    for tag in &put.tags {
        if created.contains(tag.as_str()) {
            effects.push((tag.clone(), TagEffect::Created));
            continue;
        }
        // It was there a moment ago and was deleted since: the next attempt inserts it.
        let current = current.get(tag.as_str()).ok_or(Failure::Raced)?;
        let effect = tag_effect(mutability, tag, Some(current), &put.manifest.digest);
        if effect == TagEffect::Refused {
            let (tag, current) = (tag.clone(), current.clone());
            return Err(Failure::Refused(PutManifestError::TagAlreadyExists { tag, current }));
        }
        effects.push((tag.clone(), effect));
    }
    let is_moved = |(_, effect): &&(Tag, TagEffect)| *effect == TagEffect::Moved;
    let moved: Vec<&str> = effects.iter().filter(is_moved).map(|(tag, _)| tag.as_str()).collect();
    if !moved.is_empty() {
        sqlx::query("UPDATE tag SET manifest_id = $3 WHERE repository_id = $1 AND name = ANY($2)")
            .bind(put.repository.0)
            .bind(moved)
            .bind(id.0)
            .execute(tx)
            .await?;
    }
    Ok(effects)
}

/// Locks tags, and says which digests they point at.
async fn lock_tags(
    tx: &mut PgConnection,
    repository: RepositoryId,
    names: &[&str],
) -> Attempt<BTreeMap<String, Digest>, PutManifestError> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Two statements: a join in the locking one would see a tag that has just moved beside the manifests of before.
    let locked: Vec<(String, i64)> = sqlx::query_as(
        "SELECT name, manifest_id FROM tag WHERE repository_id = $1 AND name = ANY($2) ORDER BY name FOR UPDATE",
    )
    .bind(repository.0)
    .bind(names)
    .fetch_all(&mut *tx)
    .await?;
    let digests: Vec<(i64, String)> = sqlx::query_as("SELECT id, digest FROM manifest WHERE id = ANY($1)")
        .bind(locked.iter().map(|(_, manifest)| *manifest).collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
    let digests: HashMap<i64, String> = digests.into_iter().collect();
    let current = |(name, manifest): (String, i64)| {
        let digest =
            digests.get(&manifest).ok_or_else(|| StoreError::Inconsistent(format!("{name} points nowhere")))?;
        Ok((name, parse(digest)?))
    };
    Ok(locked.into_iter().map(current).collect::<StoreResult<_>>()?)
}
