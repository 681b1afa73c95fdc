//! Deleting images, and when they were pulled.
//!
//! Whoever deletes or archives a manifest first locks its row as a deletion does: a push of an index that holds it, which
//! has the row's FOR KEY SHARE, comes wholly before or wholly after.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};

use super::failure::{Attempt, Failure};
use super::rows::{self, get, millis, parse, parsed, signed};
use super::{jobs, storage_class};
use crate::names::{AccountId, Digest, RepositoryName, Tag};
use crate::store::StoreResult;
use crate::store::events::ImageSubject;
use crate::store::images::{
    DeleteImageError, ImageStatus, LastTag, LifecycleDecision, ManifestId, NAMED_HOLDERS, Referrers, Stale,
    StorageClass, TagDeleted,
};
use crate::store::jobs::{FollowSubject, NewJob};
use crate::store::repositories::RepositoryId;

/// A locked image, with what its changes and events need.
pub(super) struct Locked {
    pub(super) id: ManifestId,
    pub(super) status: ImageStatus,
    account: AccountId,
    repository: RepositoryName,
    pub(super) digest: Digest,
    media_type: String,
    artifact_media_type: Option<String>,
    subject: Option<Digest>,
    revision: u64,
    last_pulled_at: Option<Timestamp>,
}

/// The columns of [`Locked::read`], of the aliases `m` and `r`.
macro_rules! locked_columns {
    () => {
        "m.id, m.status, m.digest, m.media_type, m.subject, m.revision, m.last_pulled_at, r.account_id, r.name, \
         coalesce(m.artifact_type, m.config_media_type) AS artifact_media_type"
    };
}
pub(super) use locked_columns;

impl Locked {
    pub(super) fn read(row: &PgRow) -> StoreResult<Self> {
        let subject: Option<&str> = get(row, "subject")?;
        Ok(Self {
            id: ManifestId(get(row, "id")?),
            status: rows::status(row)?,
            account: parsed(row, "account_id")?,
            repository: parsed(row, "name")?,
            digest: parsed(row, "digest")?,
            media_type: get(row, "media_type")?,
            artifact_media_type: get(row, "artifact_media_type")?,
            subject: subject.map(parse).transpose()?,
            revision: rows::unsigned(row, "revision")?,
            last_pulled_at: rows::optional_time(row, "last_pulled_at")?,
        })
    }

    /// What its events are about.
    pub(super) fn image(&self) -> ImageSubject<'_> {
        ImageSubject {
            account: &self.account,
            repository: &self.repository,
            digest: &self.digest,
            media_type: &self.media_type,
            artifact_media_type: self.artifact_media_type.as_deref(),
            is_referrer: self.subject.is_some(),
        }
    }
}

/// Locks an image as a deletion does.
async fn lock<E>(tx: &mut PgConnection, repository: RepositoryId, digest: &Digest) -> Attempt<Option<Locked>, E> {
    let row = sqlx::query(concat!(
        "SELECT ",
        locked_columns!(),
        " FROM manifest m JOIN repository r ON r.id = m.repository_id AND r.deleted_at IS NULL
          WHERE m.repository_id = $1 AND m.digest = $2 FOR UPDATE OF m",
    ))
    .bind(repository.0)
    .bind(digest.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(row.as_ref().map(Locked::read).transpose()?)
}

/// The indexes that hold an image: as many as a refusal names, those that can be pulled first, then the oldest.
async fn parents<E>(tx: &mut PgConnection, id: ManifestId) -> Attempt<Vec<Digest>, E> {
    let digests: Vec<String> = sqlx::query_scalar(
        "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id
         WHERE e.child_id = $1 ORDER BY e.archived_at NULLS FIRST, e.parent_id LIMIT $2",
    )
    .bind(id.0)
    .bind(rows::limit(NAMED_HOLDERS))
    .fetch_all(tx)
    .await?;
    Ok(digests.iter().map(|digest| parse(digest)).collect::<StoreResult<_>>()?)
}

/// The indexes that hold an image and can be pulled: as many as a refusal names, the oldest first.
pub(super) async fn active_parents<E>(tx: &mut PgConnection, id: ManifestId) -> Attempt<Vec<Digest>, E> {
    let digests: Vec<String> = sqlx::query_scalar(
        "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id
         WHERE e.child_id = $1 AND e.archived_at IS NULL ORDER BY e.archived_at NULLS FIRST, e.parent_id LIMIT $2",
    )
    .bind(id.0)
    .bind(rows::limit(NAMED_HOLDERS))
    .fetch_all(tx)
    .await?;
    Ok(digests.iter().map(|digest| parse(digest)).collect::<StoreResult<_>>()?)
}

/// Whether the repository has the policy that the decision is the policy's, which it keeps until the transaction's end.
pub(super) async fn check_policy<E: From<Stale>>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    decision: &LifecycleDecision,
) -> Attempt<(), E> {
    let held = sqlx::query("SELECT 1 FROM repository WHERE id = $1 AND lifecycle_policy = $2 FOR SHARE");
    let held = held.bind(repository.0).bind(decision.policy.as_ref()).fetch_optional(tx).await?;
    held.map(drop).ok_or(Failure::Refused(Stale::Policy.into()))
}

/// Whether the rest of what a decision about a locked image rests on holds. `class` is where the image is to go, if it is
/// not to be deleted.
pub(super) async fn check_image<E: From<Stale>>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    image: &Locked,
    decision: &LifecycleDecision,
    class: Option<StorageClass>,
) -> Attempt<(), E> {
    let LifecycleDecision { policy: _, revision, last_pulled_at, follows_subject, kept } = decision;
    let stale = |what: Stale| Err(Failure::Refused(what.into()));
    if image.revision != *revision || image.last_pulled_at != *last_pulled_at {
        return stale(Stale::Image);
    }
    if let (true, Some(subject)) = (follows_subject, &image.subject) {
        let status = lock_subject(tx, repository, subject).await?;
        let left = status.is_none() || (class.is_some() && status == Some(ImageStatus::Archived));
        if !left {
            return stale(Stale::Subject);
        }
    }
    if kept.is_empty() {
        return Ok(());
    }
    let (ids, revisions): (Vec<i64>, Vec<u64>) = kept.iter().map(|(ManifestId(id), revision)| (*id, *revision)).unzip();
    let revisions = revisions.into_iter().map(signed).collect::<StoreResult<Vec<i64>>>()?;
    let all: bool = sqlx::query_scalar(
        "SELECT NOT EXISTS (
             SELECT 1 FROM UNNEST($1::bigint[], $2::bigint[]) AS k (id, revision)
             WHERE NOT EXISTS (SELECT 1 FROM manifest m WHERE m.id = k.id AND m.revision = k.revision OFFSET 0))",
    )
    .bind(ids)
    .bind(revisions)
    .fetch_one(tx)
    .await?;
    if all { Ok(()) } else { stale(Stale::Kept) }
}

/// The status of a subject that is there, which it keeps until the transaction's end.
async fn lock_subject<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    subject: &Digest,
) -> Attempt<Option<ImageStatus>, E> {
    let row = sqlx::query("SELECT status FROM manifest WHERE repository_id = $1 AND digest = $2 FOR SHARE")
        .bind(repository.0)
        .bind(subject.as_str())
        .fetch_optional(tx)
        .await?;
    Ok(row.as_ref().map(rows::status).transpose()?)
}

/// The jobs that have the referrers of these subjects follow them; none for what nothing refers to.
pub(super) async fn follow_ups<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    subjects: &[&Digest],
    now: Timestamp,
) -> Attempt<Vec<NewJob>, E> {
    if subjects.is_empty() {
        return Ok(Vec::new());
    }
    let subjects: Vec<String> = sqlx::query_scalar(
        "SELECT s.digest FROM UNNEST($2::text[]) AS s (digest)
         WHERE EXISTS (SELECT 1 FROM manifest m
                       WHERE m.repository_id = $1 AND m.subject = s.digest AND m.subject IS NOT NULL OFFSET 0)",
    )
    .bind(repository.0)
    .bind(subjects.iter().map(|digest| digest.as_str()).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let job = |subject: &String| Ok(FollowSubject { repository, subject: parse(subject)? }.after(now));
    Ok(subjects.iter().map(job).collect::<StoreResult<_>>()?)
}

pub(super) async fn delete(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    referrers: Referrers,
    now: Timestamp,
) -> Attempt<Vec<Tag>, DeleteImageError> {
    let mut tx = pool.begin().await?;
    let (image, tags) =
        lock_with_tags(&mut tx, repository, digest).await?.ok_or(Failure::Refused(DeleteImageError::NotFound))?;
    delete_row(&mut tx, repository, &image, &tags, referrers, now).await?;
    tx.commit().await?;
    Ok(tags)
}

pub(super) async fn expire(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
    decision: &LifecycleDecision,
    now: Timestamp,
) -> Attempt<(), DeleteImageError> {
    let mut tx = pool.begin().await?;
    check_policy(&mut tx, repository, decision).await?;
    let (image, tags) =
        lock_with_tags(&mut tx, repository, digest).await?.ok_or(Failure::Refused(DeleteImageError::NotFound))?;
    check_image(&mut tx, repository, &image, decision, None).await?;
    delete_row(&mut tx, repository, &image, &tags, Referrers::Follow, now).await?;
    tx.commit().await?;
    Ok(())
}

/// Locks an image and its tags, the tags first, as everybody does.
pub(super) async fn lock_with_tags<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    digest: &Digest,
) -> Attempt<Option<(Locked, Vec<Tag>)>, E> {
    let locked: Vec<String> = sqlx::query_scalar(
        "SELECT t.name FROM manifest m JOIN tag t ON t.manifest_id = m.id
         WHERE m.repository_id = $1 AND m.digest = $2 ORDER BY t.name FOR UPDATE OF t",
    )
    .bind(repository.0)
    .bind(digest.as_str())
    .fetch_all(&mut *tx)
    .await?;
    let Some(image) = lock(tx, repository, digest).await? else { return Ok(None) };
    let tags: Vec<String> = sqlx::query_scalar("SELECT name FROM tag WHERE manifest_id = $1 ORDER BY name")
        .bind(image.id.0)
        .fetch_all(tx)
        .await?;
    // It got a tag before it was locked: the next attempt locks that one too.
    if tags != locked {
        return Err(Failure::Raced);
    }
    Ok(Some((image, tags.iter().map(|tag| parse(tag)).collect::<StoreResult<_>>()?)))
}

/// Deletes a locked image with its locked tags, unless an index holds it.
async fn delete_row(
    tx: &mut PgConnection,
    repository: RepositoryId,
    image: &Locked,
    tags: &[Tag],
    referrers: Referrers,
    now: Timestamp,
) -> Attempt<(), DeleteImageError> {
    let parents = parents(tx, image.id).await?;
    if !parents.is_empty() {
        return Err(Failure::Refused(DeleteImageError::ReferencedBy(parents)));
    }
    // Payload, tags and edges go with it.
    sqlx::query("DELETE FROM manifest WHERE id = $1").bind(image.id.0).execute(&mut *tx).await?;
    jobs::record(&mut *tx, &image.image().deleted(tags, now)).await?;
    if referrers == Referrers::Follow {
        let jobs = follow_ups(tx, repository, &[&image.digest], now).await?;
        jobs::enqueue(tx, &jobs).await?;
    }
    Ok(())
}

pub(super) async fn delete_tag(
    pool: &PgPool,
    repository: RepositoryId,
    tag: &Tag,
    expected: Option<&Digest>,
    last: LastTag,
    now: Timestamp,
) -> Attempt<TagDeleted, DeleteImageError> {
    let mut tx = pool.begin().await?;
    let manifest: Option<i64> =
        sqlx::query_scalar("SELECT manifest_id FROM tag WHERE repository_id = $1 AND name = $2 FOR UPDATE")
            .bind(repository.0)
            .bind(tag.as_str())
            .fetch_optional(&mut *tx)
            .await?;
    let manifest = manifest.ok_or(Failure::Refused(DeleteImageError::NotFound))?;
    let row = sqlx::query(concat!(
        "SELECT ",
        locked_columns!(),
        " FROM manifest m JOIN repository r ON r.id = m.repository_id AND r.deleted_at IS NULL
          WHERE m.id = $1 FOR UPDATE OF m",
    ))
    .bind(manifest)
    .fetch_optional(&mut *tx)
    .await?;
    let row = row.ok_or(Failure::Refused(DeleteImageError::NotFound))?;
    let image = Locked::read(&row)?;
    if expected.is_some_and(|expected| *expected != image.digest) {
        return Err(Failure::Refused(DeleteImageError::TagPointsElsewhere(image.digest)));
    }
    let image_deleted = last == LastTag::DeletesImage && !has_other_tags(&mut tx, image.id, tag).await?;
    if image_deleted {
        delete_row(&mut tx, repository, &image, std::slice::from_ref(tag), Referrers::Follow, now).await?;
    } else {
        sqlx::query("DELETE FROM tag WHERE repository_id = $1 AND name = $2")
            .bind(repository.0)
            .bind(tag.as_str())
            .execute(&mut *tx)
            .await?;
        revise(&mut tx, &[image.id.0]).await?;
        jobs::record(&mut *tx, &image.image().deleted([tag], now)).await?;
    }
    tx.commit().await?;
    Ok(TagDeleted { digest: image.digest, image_deleted })
}

async fn has_other_tags(tx: &mut PgConnection, id: ManifestId, tag: &Tag) -> Attempt<bool, DeleteImageError> {
    let any = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tag WHERE manifest_id = $1 AND name <> $2)");
    Ok(any.bind(id.0).bind(tag.as_str()).fetch_one(tx).await?)
}

/// Counts a change of images whose rows are locked.
pub(super) async fn revise<E>(tx: &mut PgConnection, ids: &[i64]) -> Attempt<(), E> {
    if !ids.is_empty() {
        let sql = "UPDATE manifest SET revision = revision + 1 WHERE id = ANY($1)";
        sqlx::query(sql).bind(ids).execute(tx).await?;
    }
    Ok(())
}

pub(super) async fn follow_subject(
    pool: &PgPool,
    repository: RepositoryId,
    referrer: &Digest,
    now: Timestamp,
) -> Attempt<bool> {
    match follow(pool, repository, referrer, now).await {
        Ok(changed) => Ok(changed),
        Err(Failure::Refused(DeleteImageError::Store(error))) => Err(Failure::Refused(error)),
        Err(Failure::Refused(_)) => Ok(false),
        Err(Failure::Store(error)) => Err(Failure::Store(error)),
        Err(Failure::Database(error)) => Err(Failure::Database(error)),
        Err(Failure::Raced) => Err(Failure::Raced),
    }
}

async fn follow(
    pool: &PgPool,
    repository: RepositoryId,
    referrer: &Digest,
    now: Timestamp,
) -> Attempt<bool, DeleteImageError> {
    let mut tx = pool.begin().await?;
    let (image, tags) =
        lock_with_tags(&mut tx, repository, referrer).await?.ok_or(Failure::Refused(DeleteImageError::NotFound))?;
    let Some(subject) = &image.subject else { return Ok(false) };
    let changed = match lock_subject(&mut tx, repository, subject).await? {
        None => {
            delete_row(&mut tx, repository, &image, &tags, Referrers::Follow, now).await?;
            true
        }
        Some(ImageStatus::Archived) => {
            storage_class::follow(&mut tx, repository, &image, StorageClass::Archive, now).await?
        }
        Some(ImageStatus::Active | ImageStatus::Activating) => {
            storage_class::follow(&mut tx, repository, &image, StorageClass::Standard, now).await?
        }
    };
    tx.commit().await?;
    Ok(changed)
}

pub(super) async fn record_pulls(pool: &PgPool, pulls: &[(ManifestId, Timestamp)]) -> Attempt<()> {
    let mut latest: BTreeMap<i64, i64> = BTreeMap::new();
    for (id, at) in pulls {
        let at = millis(*at);
        latest.entry(id.0).and_modify(|last| *last = at.max(*last)).or_insert(at);
    }
    // The rows are locked in the order that everybody keeps, so that replicas that pull the same images do not deadlock.
    sqlx::query(
        "WITH pull AS (SELECT * FROM UNNEST($1::bigint[], $2::bigint[]) AS t (id, at)),
              locked AS (SELECT m.id FROM manifest m WHERE m.id = ANY($1) ORDER BY m.digest FOR NO KEY UPDATE)
         UPDATE manifest m SET last_pulled_at = pull.at FROM pull JOIN locked ON locked.id = pull.id
         WHERE m.id = pull.id AND (m.last_pulled_at IS NULL OR m.last_pulled_at < pull.at)",
    )
    .bind(latest.keys().copied().collect::<Vec<_>>())
    .bind(latest.values().copied().collect::<Vec<_>>())
    .execute(pool)
    .await?;
    Ok(())
}
