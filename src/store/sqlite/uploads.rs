//! Upload sessions.

use jiff::Timestamp;
use rusqlite::{Row, params};
use uuid::Uuid;

use super::blobs::{self, NewBlob};
use super::db::{Db, text};
use super::{jobs, repositories};
use crate::store::jobs::DeleteGeneration;
use crate::store::repositories::RepositoryId;
use crate::store::uploads::{CommitUpload, Committed, MOST_COUNTED, Upload, UploadError, UploadProgress};
use crate::store::{StoreResult, WriterState, rows};

pub(super) fn create(db: Db<'_>, upload: &Upload) -> StoreResult<bool> {
    let Upload { id, repository, generation, algorithm, started_at, progress } = upload;
    let UploadProgress { version, offset, hash_state, writer, door, updated_at } = progress;
    if !repositories::exists(db, *repository)? {
        return Ok(false);
    }
    let sql = "INSERT INTO upload (id, repository_id, generation, algorithm, started_at, version, byte_offset, \
               updated_at, hash_state, door_state, writer_state) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let values = params![
        id.to_string(),
        repository.0,
        generation.to_string(),
        algorithm.as_str(),
        rows::millis(*started_at),
        version,
        rows::signed(*offset)?,
        rows::millis(*updated_at),
        hash_state,
        door,
        writer.0
    ];
    db.run(sql, values)?;
    Ok(true)
}

pub(super) fn find(db: Db<'_>, repository: RepositoryId, id: Uuid) -> StoreResult<Option<Upload>> {
    let sql = "SELECT generation, algorithm, started_at, version, byte_offset, updated_at, hash_state, door_state, \
               writer_state FROM upload WHERE id = ?1 AND repository_id = ?2";
    db.first(sql, params![id.to_string(), repository.0], |row| {
        Ok(Upload {
            id,
            repository,
            generation: rows::parse(text(row, 0)?)?,
            algorithm: rows::parse(text(row, 1)?)?,
            started_at: rows::time(row.get(2)?)?,
            progress: UploadProgress {
                version: row.get(3)?,
                offset: rows::unsigned(row.get(4)?)?,
                updated_at: rows::time(row.get(5)?)?,
                hash_state: row.get(6)?,
                door: row.get(7)?,
                writer: WriterState(row.get(8)?),
            },
        })
    })
}

pub(super) fn advance(db: Db<'_>, id: Uuid, progress: &UploadProgress) -> Result<(), UploadError> {
    let UploadProgress { version, offset, hash_state, writer, door, updated_at } = progress;
    let id = id.to_string();
    let sql = "UPDATE upload SET version = ?2, byte_offset = ?3, updated_at = ?4, hash_state = ?5, door_state = ?6, \
               writer_state = ?7 WHERE id = ?1 AND version = ?2 - 1";
    let values = params![id, version, rows::signed(*offset)?, rows::millis(*updated_at), hash_state, door, writer.0];
    match db.run(sql, values)? {
        0 if db.exists("SELECT 1 FROM upload WHERE id = ?1", [id])? => Err(UploadError::Conflict),
        0 => Err(UploadError::NotFound),
        _ => Ok(()),
    }
}

pub(super) fn commit(db: Db<'_>, commit: &CommitUpload) -> Result<Committed, UploadError> {
    let CommitUpload { id, version, digest, size, now, lease_until } = commit;
    let id = id.to_string();
    let sql = "SELECT version, repository_id, generation FROM upload WHERE id = ?1";
    let read = |row: &Row<'_>| Ok((row.get(0)?, RepositoryId(row.get(1)?), row.get(2)?));
    let stored: Option<(i64, RepositoryId, String)> = db.first(sql, [&id], read)?;
    let (stored, repository, generation) = stored.ok_or(UploadError::NotFound)?;
    if stored != *version {
        return Err(UploadError::Conflict);
    }
    db.run("DELETE FROM upload WHERE id = ?1", [&id])?;
    let committed = if blobs::confirm(db, repository, digest, *now, *lease_until)? {
        Committed::AlreadyInRepository
    } else {
        let home = repositories::by_id(db, repository)?;
        let home = home.ok_or(UploadError::NotFound)?;
        let (account, encryption) = (home.account.as_str(), rows::encryption(&home.encryption));
        if let Some(blob) = blobs::live(db, account, digest, &encryption)? {
            blobs::link(db, repository, digest, blob, *now, *lease_until)?;
            Committed::Shared
        } else {
            let (encryption, generation) = (encryption.as_str(), generation.as_str());
            let new = NewBlob { account, encryption, repository, digest, size: *size, generation, now: *now };
            blobs::add(db, &new, *lease_until)?;
            Committed::New
        }
    };
    if committed != Committed::New {
        // Its bytes are finished: there is nothing half written to give up.
        let copy = DeleteGeneration { generation: generation.parse()?, writer: WriterState::default() };
        jobs::enqueue(db, &copy.job(*now))?;
    }
    Ok(committed)
}

/// Removes a session whose id, generation and writer state these are.
fn remove(db: Db<'_>, (id, generation, writer): (String, String, Vec<u8>), now: Timestamp) -> StoreResult<()> {
    let deletion = DeleteGeneration { generation: generation.parse()?, writer: WriterState(writer) };
    jobs::enqueue(db, &deletion.job(now))?;
    db.run("DELETE FROM upload WHERE id = ?1", [id]).map(drop)
}

fn removable(row: &Row<'_>) -> StoreResult<(String, String, Vec<u8>)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

pub(super) fn cancel(db: Db<'_>, repository: RepositoryId, id: Uuid, now: Timestamp) -> StoreResult<bool> {
    let sql = "SELECT id, generation, writer_state FROM upload WHERE id = ?1 AND repository_id = ?2";
    let found = db.first(sql, params![id.to_string(), repository.0], removable)?;
    let was_there = found.is_some();
    if let Some(upload) = found {
        remove(db, upload, now)?;
    }
    Ok(was_there)
}

pub(super) fn cancel_stale(db: Db<'_>, before: Timestamp, now: Timestamp, limit: usize) -> StoreResult<u64> {
    let sql = "SELECT id, generation, writer_state FROM upload WHERE updated_at < ?1 ORDER BY updated_at, id LIMIT ?2";
    let stale = db.all(sql, [rows::millis(before), rows::limit(limit)], removable)?;
    let count = stale.len() as u64;
    for upload in stale {
        remove(db, upload, now)?;
    }
    Ok(count)
}

/// Removes sessions of a repository that was deleted, at most so many; how many.
pub(super) fn discard(db: Db<'_>, repository: RepositoryId, limit: usize, now: Timestamp) -> StoreResult<usize> {
    let sql = "SELECT id, generation, writer_state FROM upload WHERE repository_id = ?1 LIMIT ?2";
    let gone = db.all(sql, [repository.0, rows::limit(limit)], removable)?;
    let count = gone.len();
    for upload in gone {
        remove(db, upload, now)?;
    }
    Ok(count)
}

pub(super) fn count(db: Db<'_>) -> StoreResult<u64> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM upload LIMIT ?1)";
    let count: Option<i64> = db.first(sql, [rows::signed(MOST_COUNTED)?], |row| Ok(row.get(0)?))?;
    rows::unsigned(count.unwrap_or_default())
}
