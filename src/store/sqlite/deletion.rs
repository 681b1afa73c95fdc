//! Deleting a repository: it is gone at once, and a job empties it in batches.

use jiff::Timestamp;
use rusqlite::params;

use super::db::Db;
use super::{jobs, previews, repositories, uploads};
use crate::store::jobs::DeleteRepository;
use crate::store::repositories::{DeleteRepositoryError, RepositoryId};
use crate::store::usage::of_repository;
use crate::store::{StoreResult, rows};

pub(super) fn mark(db: Db<'_>, id: RepositoryId, force: bool, now: Timestamp) -> Result<(), DeleteRepositoryError> {
    if !repositories::exists(db, id)? {
        return Err(DeleteRepositoryError::NotFound);
    }
    if !force && db.exists("SELECT 1 FROM manifest WHERE repository_id = ?1 LIMIT 1", [id.0])? {
        return Err(DeleteRepositoryError::NotEmpty);
    }
    let sql = "UPDATE repository SET deleted_at = ?2, account_id = '', name = CAST(id AS TEXT), policy = NULL, \
               lifecycle_policy = NULL, lifecycle_due_at = NULL WHERE id = ?1";
    db.run(sql, [id.0, rows::millis(now)])?;
    jobs::enqueue(db, &DeleteRepository { repository: id }.job(now))?;
    Ok(())
}

pub(super) fn empty(db: Db<'_>, id: RepositoryId, limit: usize, now: Timestamp) -> StoreResult<bool> {
    if !db.exists("SELECT 1 FROM repository WHERE id = ?1 AND deleted_at IS NOT NULL", [id.0])? {
        return Ok(true);
    }
    let did = uploads::discard(db, id, limit, now)? > 0 || images(db, id, limit)? || rest(db, id, limit)?;
    if !did {
        db.run("DELETE FROM usage WHERE scope = ?1", [of_repository(id)])?;
        db.run("DELETE FROM repository WHERE id = ?1", [id.0])?;
    }
    Ok(!did)
}

/// Deletes images and the edges to and from them, whatever holds them: nothing of the repository is seen any more.
fn images(db: Db<'_>, id: RepositoryId, limit: usize) -> StoreResult<bool> {
    let sql = "SELECT id FROM manifest WHERE repository_id = ?1 ORDER BY digest LIMIT ?2";
    let images: Vec<i64> = db.all(sql, [id.0, rows::limit(limit)], |row| Ok(row.get(0)?))?;
    for image in &images {
        for sql in [
            "DELETE FROM manifest_child WHERE parent_id = ?1",
            "DELETE FROM manifest_child WHERE child_id = ?1",
            // Payload, tags and edges to blobs go with it.
            "DELETE FROM manifest WHERE id = ?1",
        ] {
            db.run(sql, [image])?;
        }
    }
    Ok(!images.is_empty())
}

/// Deletes preview results, then links. The blobs await the collector.
fn rest(db: Db<'_>, id: RepositoryId, limit: usize) -> StoreResult<bool> {
    if previews::discard_results(db, id, None, limit)? > 0 {
        return Ok(true);
    }
    let sql = "DELETE FROM repository_blob WHERE id IN \
                 (SELECT id FROM repository_blob WHERE repository_id = ?1 ORDER BY digest LIMIT ?2)";
    Ok(db.run(sql, params![id.0, rows::limit(limit)])? > 0)
}
