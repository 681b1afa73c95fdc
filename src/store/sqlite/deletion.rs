//! Deleting a repository: it is gone at once, and a job empties it in batches.

use jiff::Timestamp;
use rusqlite::params;

use super::db::Db;
use super::{jobs, previews, repositories, uploads};
use crate::store::jobs::{DeleteRepository, JobPayload as _};
use crate::store::repositories::{DeleteRepositoryError, RepositoryId};
use crate::store::usage::of_repository;
use crate::store::{StoreResult, rows};

/// Tags and edges that a batch deletes for each image that it may delete.
const ROWS_OF_AN_IMAGE: usize = 10;

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

/// Deletes images and what belongs to them, whatever holds them: nothing of the repository is seen any more. The writer works
/// for nobody else meanwhile, and one image may have ten thousands of tags and of indexes that hold it: so what belongs to
/// them counts, too.
fn images(db: Db<'_>, id: RepositoryId, limit: usize) -> StoreResult<bool> {
    let sql = "SELECT id FROM manifest WHERE repository_id = ?1 ORDER BY digest LIMIT ?2";
    let images: Vec<i64> = db.all(sql, [id.0, rows::limit(limit)], |row| Ok(row.get(0)?))?;
    let mut left = limit * ROWS_OF_AN_IMAGE;
    for image in &images {
        for sql in [
            "DELETE FROM manifest_child WHERE (parent_id, child_id) IN
                 (SELECT parent_id, child_id FROM manifest_child WHERE child_id = ?1 LIMIT ?2)",
            "DELETE FROM manifest_child WHERE (parent_id, child_id) IN
                 (SELECT parent_id, child_id FROM manifest_child WHERE parent_id = ?1 LIMIT ?2)",
            "DELETE FROM manifest_blob WHERE (manifest_id, link_id) IN
                 (SELECT manifest_id, link_id FROM manifest_blob WHERE manifest_id = ?1 LIMIT ?2)",
            "DELETE FROM tag WHERE (repository_id, name) IN
                 (SELECT repository_id, name FROM tag WHERE manifest_id = ?1 LIMIT ?2)",
        ] {
            left -= db.run(sql, [*image, rows::limit(left)])?;
            if left == 0 {
                return Ok(true);
            }
        }
        // The payload goes with it.
        db.run("DELETE FROM manifest WHERE id = ?1", [image])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_changes_few_rows_whatever_an_image_has() {
        const LIMIT: usize = 5;
        let connection = super::super::in_memory();
        let db = Db(&connection);
        // An image that 200 indexes hold, and that has 200 tags.
        let fill = "
            INSERT INTO repository (id, account_id, name, created_at, tag_mutability, exclusions, scan_on_push,
                                    encryption_type, deleted_at)
                VALUES (1, '', '1', 0, 'MUTABLE', '[]', 0, 'AES256', 1);
            WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
            INSERT INTO manifest (id, repository_id, digest, media_type, status, payload_size, image_size, pushed_at)
                SELECT i + 1, 1, format('sha256:%064d', i), 'm', 'ACTIVE', 0, 0, 0 FROM n;
            INSERT INTO manifest_child (parent_id, child_id) SELECT id, 1 FROM manifest WHERE id > 1;
            INSERT INTO tag (repository_id, name, manifest_id) SELECT 1, 't' || id, 1 FROM manifest WHERE id > 1;";
        connection.execute_batch(fill).unwrap();
        let mut batches = 0;
        loop {
            let before = connection.total_changes();
            let done = empty(db, RepositoryId(1), LIMIT, Timestamp::UNIX_EPOCH).unwrap();
            let changed = connection.total_changes() - before;
            // Triggers change another row with each that goes.
            assert!(changed <= (LIMIT * 2 * (ROWS_OF_AN_IMAGE + 1)) as u64, "{changed} rows in one batch");
            batches += 1;
            if done {
                break;
            }
        }
        assert!(batches > 40, "{batches}");
        for table in ["repository", "manifest", "manifest_child", "tag"] {
            assert!(!db.exists(&format!("SELECT 1 FROM {table}"), []).unwrap(), "{table}");
        }
    }
}
