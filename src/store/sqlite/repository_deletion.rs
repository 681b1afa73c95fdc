//! Deletion of a repository: it disappears at once, and a job deletes its rows in batches.

use jiff::Timestamp;
use rusqlite::params;

use super::db::Db;
use super::{jobs, previews, repositories, rows, uploads};
use crate::StoreResult;
use crate::jobs::{DeleteRepository, JobPayload as _};
use crate::repositories::{DeleteRepositoryError, RepositoryId};
use crate::usage::repository_scope;

/// The number of tags and edges a batch may delete for each image that it may delete.
const ROWS_PER_IMAGE: usize = 10;

pub(super) fn delete(
    db: Db<'_>,
    id: RepositoryId,
    force: bool,
    now: Timestamp,
) -> Result<(), DeleteRepositoryError> {
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

pub(super) fn empty(
    db: Db<'_>,
    id: RepositoryId,
    limit: usize,
    now: Timestamp,
) -> StoreResult<bool> {
    if !db.exists("SELECT 1 FROM repository WHERE id = ?1 AND deleted_at IS NOT NULL", [id.0])? {
        return Ok(true);
    }
    let did = uploads::cancel_all(db, id, limit, now)? > 0
        || delete_images(db, id, limit)?
        || delete_rest(db, id, limit)?;
    if !did {
        db.run("DELETE FROM usage WHERE scope = ?1", [repository_scope(id)])?;
        db.run("DELETE FROM repository WHERE id = ?1", [id.0])?;
    }
    Ok(!did)
}

/// Deletes images with their tags and edges, even if indexes hold them: the repository is invisible
/// already. The writer is blocked meanwhile, and one image may have tens of thousands of tags and
/// of indexes that hold it. So tags and edges count as well.
fn delete_images(db: Db<'_>, id: RepositoryId, limit: usize) -> StoreResult<bool> {
    let sql = "SELECT id FROM manifest WHERE repository_id = ?1 ORDER BY digest LIMIT ?2";
    let images: Vec<i64> = db.all(sql, [id.0, rows::limit(limit)], |row| Ok(row.get(0)?))?;
    let mut left = limit * ROWS_PER_IMAGE;
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
        // Deletes the payload too, by cascade.
        db.run("DELETE FROM manifest WHERE id = ?1", [image])?;
    }
    Ok(!images.is_empty())
}

/// Deletes preview results, then links. The blobs await the collector.
fn delete_rest(db: Db<'_>, id: RepositoryId, limit: usize) -> StoreResult<bool> {
    if previews::delete_results(db, id, None, limit)? > 0 {
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
    fn a_batch_changes_a_limited_number_of_rows() {
        const LIMIT: usize = 5;
        let connection = super::super::schema::in_memory();
        let db = Db(&connection);
        // An image with 200 tags that 200 indexes hold.
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
            // Triggers change another row with each deleted one.
            assert!(
                changed <= (LIMIT * 2 * (ROWS_PER_IMAGE + 1)) as u64,
                "{changed} rows in one batch"
            );
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
