//! The rows that every change of an image reads.
//!
//! A deletion or archival first locks the manifest's row FOR UPDATE. A push of an index that holds
//! it takes FOR KEY SHARE, so it comes entirely before or entirely after.

use jiff::Timestamp;
use sqlx::PgConnection;
use sqlx::postgres::PgRow;

use super::error::{TxError, TxResult};
use super::rows::{self, get, parse, parsed};
use crate::StoreResult;
use crate::events::ImageEvents;
use crate::images::{ImageStatus, MAX_NAMED_PARENTS, ManifestId};
use crate::jobs::{FollowSubject, NewJob};
use crate::repositories::RepositoryId;
use wharfage_domain::names::{AccountId, Digest, RepositoryName, Tag};

/// A locked image, as far as its changes and its events need it.
pub(super) struct ImageRow {
    pub(super) id: ManifestId,
    pub(super) status: ImageStatus,
    account: AccountId,
    repository: RepositoryName,
    pub(super) digest: Digest,
    media_type: String,
    artifact_media_type: Option<String>,
    pub(super) subject: Option<Digest>,
    pub(super) revision: u64,
    pub(super) last_pulled_at: Option<Timestamp>,
}

/// The columns of [`ImageRow::read`], of the aliases `m` and `r`.
macro_rules! image_row_columns {
    () => {
        "m.id, m.status, m.digest, m.media_type, m.subject, m.revision, m.last_pulled_at, r.account_id, r.name, \
         coalesce(m.artifact_type, m.config_media_type) AS artifact_media_type"
    };
}

pub(super) use image_row_columns;

impl ImageRow {
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

    /// Returns the builder of its events.
    pub(super) fn events(&self) -> ImageEvents<'_> {
        ImageEvents {
            account: &self.account,
            repository: &self.repository,
            digest: &self.digest,
            media_type: &self.media_type,
            artifact_media_type: self.artifact_media_type.as_deref(),
            is_referrer: self.subject.is_some(),
        }
    }
}

/// Locks an image for deletion or archival.
async fn lock<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    digest: &Digest,
) -> TxResult<Option<ImageRow>, E> {
    let row = sqlx::query(concat!(
        "SELECT ",
        image_row_columns!(),
        " FROM manifest m JOIN repository r ON r.id = m.repository_id AND r.deleted_at IS NULL
          WHERE m.repository_id = $1 AND m.digest = $2 FOR UPDATE OF m",
    ))
    .bind(repository.0)
    .bind(digest.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(row.as_ref().map(ImageRow::read).transpose()?)
}

/// Locks an image and its tags. All transactions lock tags first.
pub(super) async fn lock_with_tags<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    digest: &Digest,
) -> TxResult<Option<(ImageRow, Vec<Tag>)>, E> {
    let locked: Vec<String> = sqlx::query_scalar(
        "SELECT t.name FROM manifest m JOIN tag t ON t.manifest_id = m.id
         WHERE m.repository_id = $1 AND m.digest = $2 ORDER BY t.name FOR UPDATE OF t",
    )
    .bind(repository.0)
    .bind(digest.as_str())
    .fetch_all(&mut *tx)
    .await?;
    let Some(image) = lock(tx, repository, digest).await? else { return Ok(None) };
    let tags: Vec<String> =
        sqlx::query_scalar("SELECT name FROM tag WHERE manifest_id = $1 ORDER BY name")
            .bind(image.id.0)
            .fetch_all(tx)
            .await?;
    // The image got a tag before it was locked. The next attempt locks that tag too.
    if tags != locked {
        return Err(TxError::Raced);
    }
    Ok(Some((image, tags.iter().map(|tag| parse(tag)).collect::<StoreResult<_>>()?)))
}

/// Reads the status of a manifest, if it exists, and locks it against changes until the transaction
/// ends.
pub(super) async fn lock_status<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    subject: &Digest,
) -> TxResult<Option<ImageStatus>, E> {
    let row = sqlx::query(
        "SELECT status FROM manifest WHERE repository_id = $1 AND digest = $2 FOR SHARE",
    )
    .bind(repository.0)
    .bind(subject.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(row.as_ref().map(rows::status).transpose()?)
}

/// Lists the indexes that hold a manifest, up to [`MAX_NAMED_PARENTS`]: active ones first, then the
/// oldest.
pub(super) async fn list_parents<E>(
    tx: &mut PgConnection,
    id: ManifestId,
) -> TxResult<Vec<Digest>, E> {
    let digests: Vec<String> = sqlx::query_scalar(
        "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id
         WHERE e.child_id = $1 ORDER BY e.archived_at NULLS FIRST, e.parent_id LIMIT $2",
    )
    .bind(id.0)
    .bind(rows::limit(MAX_NAMED_PARENTS))
    .fetch_all(tx)
    .await?;
    Ok(digests.iter().map(|digest| parse(digest)).collect::<StoreResult<_>>()?)
}

/// Lists the active indexes that hold a manifest, up to [`MAX_NAMED_PARENTS`], the oldest first.
pub(super) async fn list_active_parents<E>(
    tx: &mut PgConnection,
    id: ManifestId,
) -> TxResult<Vec<Digest>, E> {
    let digests: Vec<String> = sqlx::query_scalar(
        "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id
         WHERE e.child_id = $1 AND e.archived_at IS NULL ORDER BY e.archived_at NULLS FIRST, e.parent_id LIMIT $2",
    )
    .bind(id.0)
    .bind(rows::limit(MAX_NAMED_PARENTS))
    .fetch_all(tx)
    .await?;
    Ok(digests.iter().map(|digest| parse(digest)).collect::<StoreResult<_>>()?)
}

/// Increases the revisions of images whose rows are locked.
pub(super) async fn revise<E>(tx: &mut PgConnection, ids: &[i64]) -> TxResult<(), E> {
    if !ids.is_empty() {
        let sql = "UPDATE manifest SET revision = revision + 1 WHERE id = ANY($1)";
        sqlx::query(sql).bind(ids).execute(tx).await?;
    }
    Ok(())
}

/// Returns the jobs for the referrers of these subjects to follow them; none for a subject without
/// referrers.
pub(super) async fn follow_up_jobs<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    subjects: &[&Digest],
    now: Timestamp,
) -> TxResult<Vec<NewJob>, E> {
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
    let job =
        |subject: &String| Ok(FollowSubject { repository, subject: parse(subject)? }.after(now));
    Ok(subjects.iter().map(job).collect::<StoreResult<_>>()?)
}
