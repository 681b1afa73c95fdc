//! The rows that every change of an image reads.

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::Db;
use super::jobs;
use super::rows::{self, optional_parsed, optional_time, parsed, text};
use crate::events::ImageEvents;
use crate::images::{ImageStatus, MAX_NAMED_PARENTS};
use crate::jobs::FollowSubject;
use crate::repositories::{RepositoryId, TagMutability};
use crate::{StoreError, StoreResult};
use wharfage_domain::names::{AccountId, Digest, RepositoryName, Tag};

/// The repository of an image, as far as a change of the image needs it.
pub(super) struct ImageRepository {
    account: AccountId,
    name: RepositoryName,
    pub(super) tag_mutability: TagMutability,
}

/// Finds the repository that a push is for.
pub(super) fn find_repository(
    db: Db<'_>,
    repository: RepositoryId,
) -> StoreResult<Option<ImageRepository>> {
    let sql = "SELECT account_id, name, tag_mutability, exclusions FROM repository \
               WHERE id = ?1 AND deleted_at IS NULL";
    db.first(sql, [repository.0], |row| {
        Ok(ImageRepository {
            account: parsed(row, 0)?,
            name: parsed(row, 1)?,
            tag_mutability: rows::tag_mutability(text(row, 2)?, text(row, 3)?)?,
        })
    })
}

/// Finds the repository of an existing image.
pub(super) fn repository_of(db: Db<'_>, repository: RepositoryId) -> StoreResult<ImageRepository> {
    find_repository(db, repository)?
        .ok_or_else(|| StoreError::Inconsistent("an image has no repository".into()))
}

/// A stored image, as far as its changes and its events need it.
pub(super) struct ImageRow {
    pub(super) id: i64,
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) artifact_media_type: Option<String>,
    pub(super) subject: Option<Digest>,
    pub(super) status: ImageStatus,
    pub(super) revision: u64,
    pub(super) last_pulled_at: Option<Timestamp>,
}

/// The columns of [`ImageRow::read`], of the alias `m`.
pub(super) const IMAGE_ROW: &str = "m.id, m.digest, m.media_type, coalesce(m.artifact_type, m.config_media_type), \
                                 m.subject, m.status, m.revision, m.last_pulled_at";

impl ImageRow {
    pub(super) fn read(row: &Row<'_>) -> StoreResult<Self> {
        Ok(Self {
            id: row.get(0)?,
            digest: parsed(row, 1)?,
            media_type: row.get(2)?,
            artifact_media_type: row.get(3)?,
            subject: optional_parsed(row, 4)?,
            status: rows::status(text(row, 5)?)?,
            revision: rows::unsigned(row.get(6)?)?,
            last_pulled_at: optional_time(row, 7)?,
        })
    }

    /// Returns the builder of its events.
    pub(super) fn events<'a>(&'a self, repository: &'a ImageRepository) -> ImageEvents<'a> {
        ImageEvents {
            account: &repository.account,
            repository: &repository.name,
            digest: &self.digest,
            media_type: &self.media_type,
            artifact_media_type: self.artifact_media_type.as_deref(),
            is_referrer: self.subject.is_some(),
        }
    }
}

pub(super) fn find_by_digest(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
) -> StoreResult<Option<ImageRow>> {
    let sql = format!(
        "SELECT {IMAGE_ROW} FROM manifest m JOIN repository r ON r.id = m.repository_id AND r.deleted_at IS NULL \
         WHERE m.repository_id = ?1 AND m.digest = ?2"
    );
    db.first(&sql, params![repository.0, digest.as_str()], ImageRow::read)
}

pub(super) fn find_by_tag(
    db: Db<'_>,
    repository: RepositoryId,
    tag: &Tag,
) -> StoreResult<Option<ImageRow>> {
    let sql = format!(
        "SELECT {IMAGE_ROW} FROM tag t JOIN manifest m ON m.id = t.manifest_id \
         JOIN repository r ON r.id = t.repository_id AND r.deleted_at IS NULL \
         WHERE t.repository_id = ?1 AND t.name = ?2"
    );
    db.first(&sql, params![repository.0, tag.as_str()], ImageRow::read)
}

/// Lists an image's tags, sorted.
pub(super) fn tags_of(db: Db<'_>, manifest: i64) -> StoreResult<Vec<Tag>> {
    let sql = "SELECT name FROM tag WHERE manifest_id = ?1 ORDER BY name";
    db.all(sql, [manifest], |row| parsed(row, 0))
}

pub(super) fn count_tags(db: Db<'_>, manifest: i64) -> StoreResult<u64> {
    let sql = "SELECT count(*) FROM tag WHERE manifest_id = ?1";
    let count: Option<i64> = db.first(sql, [manifest], |row| Ok(row.get(0)?))?;
    rows::unsigned(count.unwrap_or_default())
}

/// Lists the indexes that hold a manifest, up to [`MAX_NAMED_PARENTS`]: active ones first, then the
/// oldest.
pub(super) fn list_parents(db: Db<'_>, manifest: i64) -> StoreResult<Vec<Digest>> {
    let sql = "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id \
               WHERE e.child_id = ?1 ORDER BY e.archived_at, e.parent_id LIMIT ?2";
    db.all(sql, params![manifest, rows::limit(MAX_NAMED_PARENTS)], |row| parsed(row, 0))
}

/// Lists the active indexes that hold a manifest, up to [`MAX_NAMED_PARENTS`], the oldest first.
pub(super) fn list_active_parents(db: Db<'_>, manifest: i64) -> StoreResult<Vec<Digest>> {
    let sql = "SELECT p.digest FROM manifest_child e JOIN manifest p ON p.id = e.parent_id \
               WHERE e.child_id = ?1 AND e.archived_at IS NULL ORDER BY e.parent_id LIMIT ?2";
    db.all(sql, params![manifest, rows::limit(MAX_NAMED_PARENTS)], |row| parsed(row, 0))
}

/// Increases an image's revision.
pub(super) fn revise(db: Db<'_>, manifest: i64) -> StoreResult<()> {
    db.run("UPDATE manifest SET revision = revision + 1 WHERE id = ?1", [manifest]).map(drop)
}

/// Enqueues the job for the referrers of a subject to follow it, if it has any.
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
