//! Upload sessions, and what happens to their bytes.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Row, params};
use uuid::Uuid;

use super::db::Db;
use super::layers::{self, NewBlob};
use super::rows::{self, optional_time, parsed};
use super::{SqliteStore, jobs, repositories};
use crate::jobs::{DeleteGeneration, JobPayload as _, late};
use crate::repositories::RepositoryId;
use crate::uploads::{
    AdvanceUpload, COUNT_LIMIT, CommitOutcome, CommitUpload, KnownBlob, LATE_WRITE, Upload,
    UploadClaim, UploadError, UploadProgress, UploadStore,
};
use crate::{Generation, StoreResult, WriterState};

#[async_trait::async_trait]
impl UploadStore for SqliteStore {
    async fn create_upload(&self, upload: Upload, claim: Option<Duration>) -> StoreResult<bool> {
        self.grow(0, move |db| create(db, &upload, claim)).await
    }

    async fn find_upload(&self, repository: RepositoryId, id: Uuid) -> StoreResult<Option<Upload>> {
        self.readers.read(|db| find(db, repository, id))
    }

    async fn claim_upload(
        &self,
        read: &Upload,
        fresh: Generation,
        now: Timestamp,
        lease: Duration,
    ) -> Result<UploadClaim, UploadError> {
        let (id, read) = (read.id, (read.version, read.generation));
        self.writer.write(move |db| claim(db, id, read, fresh, now, lease)).await
    }

    async fn renew_upload(
        &self,
        id: Uuid,
        version: i64,
        now: Timestamp,
        lease: Duration,
    ) -> Result<(), UploadError> {
        self.writer.write(move |db| renew(db, id, version, now, lease)).await
    }

    async fn release_upload(&self, id: Uuid, version: i64, clean: bool) -> StoreResult<()> {
        self.writer.write(move |db| release(db, id, version, clean)).await
    }

    async fn advance_upload(&self, advance: AdvanceUpload) -> Result<(), UploadError> {
        self.writer.write(move |db| self::advance(db, &advance)).await
    }

    async fn commit_upload(&self, commit: CommitUpload) -> Result<CommitOutcome, UploadError> {
        self.writer.write(move |db| self::commit(db, &commit)).await
    }

    async fn cancel_upload(
        &self,
        repository: RepositoryId,
        id: Uuid,
        version: Option<i64>,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.writer.write(move |db| cancel(db, repository, id, version, now)).await
    }

    async fn cancel_stale_uploads(
        &self,
        before: Timestamp,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<u64> {
        self.writer.write(move |db| cancel_stale(db, before, now, limit)).await
    }

    async fn count_uploads(&self) -> StoreResult<u64> {
        self.readers.read(count)
    }
}

pub(super) fn create(db: Db<'_>, upload: &Upload, claim: Option<Duration>) -> StoreResult<bool> {
    let Upload {
        id,
        repository,
        generation,
        key,
        algorithm,
        started_at,
        announced,
        version,
        progress,
        ..
    } = upload;
    let UploadProgress { offset, hash_state, writer, protocol_state, updated_at } = progress;
    if !repositories::exists(db, *repository)? {
        return Ok(false);
    }
    let sql = "INSERT INTO upload (id, repository_id, generation, algorithm, started_at, version, byte_offset, \
               updated_at, hash_state, protocol_state, writer_state, announced, claimed_until, key_id, wrapped_key) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
    let (key_id, wrapped_key) = rows::key_columns(key.as_ref());
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
        protocol_state,
        writer.0,
        announced,
        claim.map(|lease| claim_end(*started_at, lease)),
        key_id,
        wrapped_key
    ];
    db.run(sql, values)?;
    Ok(true)
}

pub(super) fn find(db: Db<'_>, repository: RepositoryId, id: Uuid) -> StoreResult<Option<Upload>> {
    let sql = "SELECT generation, algorithm, started_at, version, byte_offset, updated_at, hash_state, protocol_state, \
               writer_state, announced, claimed_until, key_id, wrapped_key FROM upload \
               WHERE id = ?1 AND repository_id = ?2";
    db.first(sql, params![id.to_string(), repository.0], |row| {
        Ok(Upload {
            id,
            repository,
            generation: parsed(row, 0)?,
            key: rows::key_reference(row.get(11)?, row.get(12)?)?,
            algorithm: parsed(row, 1)?,
            started_at: rows::time(row.get(2)?)?,
            announced: row.get(9)?,
            version: row.get(3)?,
            claimed_until: optional_time(row, 10)?,
            progress: UploadProgress {
                offset: rows::unsigned(row.get(4)?)?,
                updated_at: rows::time(row.get(5)?)?,
                hash_state: row.get(6)?,
                protocol_state: row.get(7)?,
                writer: WriterState(row.get(8)?),
            },
        })
    })
}

pub(super) fn claim(
    db: Db<'_>,
    id: Uuid,
    read: (i64, Generation),
    fresh: Generation,
    now: Timestamp,
    lease: Duration,
) -> Result<UploadClaim, UploadError> {
    let id = id.to_string();
    let sql = "SELECT generation, claimed_until, version FROM upload WHERE id = ?1";
    let columns = |row: &Row<'_>| Ok((parsed(row, 0)?, row.get(1)?, row.get(2)?));
    let found: Option<(Generation, Option<i64>, i64)> = db.first(sql, [&id], columns)?;
    let (before, claimed_until, version) = found.ok_or(UploadError::NotFound)?;
    if (version, before) != read || claimed_until.is_some_and(|until| until > rows::millis(now)) {
        return Err(UploadError::Conflict);
    }
    let takeover = claimed_until.is_some();
    let generation = if takeover { fresh } else { before };
    if takeover {
        jobs::enqueue(db, &DeleteGeneration::of(before).job(late(now)))?;
    }
    let sql = "UPDATE upload SET version = version + 1, claimed_until = ?2, generation = ?3 WHERE id = ?1";
    db.run(sql, params![id, claim_end(now, lease), generation.to_string()])?;
    Ok(UploadClaim { version: version + 1, generation, takeover })
}

/// Returns the end of a claim that begins now, in milliseconds.
fn claim_end(now: Timestamp, lease: Duration) -> i64 {
    rows::millis(now).saturating_add(rows::lease(lease))
}

pub(super) fn renew(
    db: Db<'_>,
    id: Uuid,
    version: i64,
    now: Timestamp,
    lease: Duration,
) -> Result<(), UploadError> {
    let id = id.to_string();
    let sql = "UPDATE upload SET claimed_until = ?3 WHERE id = ?1 AND version = ?2 AND claimed_until IS NOT NULL";
    match db.run(sql, params![id, version, claim_end(now, lease)])? {
        0 => Err(refusal(db, &id)?),
        _ => Ok(()),
    }
}

pub(super) fn release(db: Db<'_>, id: Uuid, version: i64, clean: bool) -> StoreResult<()> {
    let sql = "UPDATE upload SET claimed_until = ?3 WHERE id = ?1 AND version = ?2 AND claimed_until IS NOT NULL";
    db.run(sql, params![id.to_string(), version, (!clean).then_some(0)]).map(drop)
}

/// Expires the claims of previous processes. They have ended, because one process at a time has the
/// database open.
pub(super) fn release_all(db: Db<'_>) -> StoreResult<()> {
    db.run("UPDATE upload SET claimed_until = 0 WHERE claimed_until > 0", []).map(drop)
}

pub(super) fn advance(db: Db<'_>, advance: &AdvanceUpload) -> Result<(), UploadError> {
    let AdvanceUpload { id, version, progress, generation, hold, now } = advance;
    let UploadProgress { offset, hash_state, writer, protocol_state, updated_at } = progress;
    let id = id.to_string();
    let sql = "UPDATE upload SET byte_offset = ?3, updated_at = ?4, hash_state = ?5, protocol_state = ?6, \
               writer_state = ?7, generation = ?8, claimed_until = ?9 \
               WHERE id = ?1 AND version = ?2 AND claimed_until IS NOT NULL";
    let values = params![
        id,
        version,
        rows::signed(*offset)?,
        rows::millis(*updated_at),
        hash_state,
        protocol_state,
        writer.0,
        generation.to_string(),
        hold.map(|lease| claim_end(*now, lease))
    ];
    match db.run(sql, values)? {
        0 => Err(refusal(db, &id)?),
        _ => Ok(()),
    }
}

/// Returns the reason why a statement that names a claim changed no row.
fn refusal(db: Db<'_>, id: &str) -> StoreResult<UploadError> {
    let exists = db.exists("SELECT 1 FROM upload WHERE id = ?1", [id])?;
    Ok(if exists { UploadError::Conflict } else { UploadError::NotFound })
}

pub(super) fn commit(db: Db<'_>, commit: &CommitUpload) -> Result<CommitOutcome, UploadError> {
    let CommitUpload { id, version, digest, size, sealed, known, now, lease_until } = commit;
    let id = id.to_string();
    let sql = "SELECT version, repository_id, key_id, wrapped_key FROM upload WHERE id = ?1";
    let read = |row: &Row<'_>| {
        Ok((row.get(0)?, RepositoryId(row.get(1)?), rows::key_reference(row.get(2)?, row.get(3)?)?))
    };
    let (stored, repository, key) = db.first(sql, [&id], read)?.ok_or(UploadError::NotFound)?;
    let stored: i64 = stored;
    if stored != *version {
        return Err(UploadError::Conflict);
    }
    let found = repositories::find_by_id(db, repository)?.ok_or(UploadError::NotFound)?;
    let (account, encryption) = (found.account.as_str(), rows::encryption(&found.encryption));
    let new = NewBlob {
        account,
        encryption: &encryption,
        digest,
        size: *size,
        sealed,
        key: key.as_ref(),
        now: *now,
    };

    // The repository's own blob comes before the account's: it may have another encryption.
    let mut gone = sealed.leftover.clone();
    let linked = layers::find_linked(db, repository, digest)?;
    let live = match &linked {
        Some(linked) => layers::find_live_by_id(db, linked.blob)?,
        None => layers::find_live(db, account, digest, &encryption)?,
    };
    let (blob, committed) = match (live, known) {
        (None, _) => (layers::insert(db, &new, *lease_until)?, CommitOutcome::New),
        (Some((blob, bytes)), Some(KnownBlob { generation, intact }))
            if *generation == bytes.generation =>
        {
            if *intact {
                gone.push(sealed.generation);
                layers::set_damaged(db, bytes.generation, None)?;
                (
                    blob,
                    if linked.is_some() {
                        CommitOutcome::AlreadyInRepository
                    } else {
                        CommitOutcome::Shared
                    },
                )
            } else {
                gone.push(bytes.generation);
                layers::replace_bytes(db, blob, &new)?;
                (blob, CommitOutcome::Healed)
            }
        }
        (Some((_, bytes)), _) => return Err(UploadError::Unchecked(bytes)),
    };
    match &linked {
        Some(linked) => layers::confirm(db, linked, *now, *lease_until)?,
        None => layers::link(db, repository, digest, blob, *now, *lease_until)?,
    }
    db.run("DELETE FROM upload WHERE id = ?1", [&id])?;
    for generation in gone {
        jobs::enqueue(db, &DeleteGeneration::of(generation).job(*now))?;
    }
    Ok(committed)
}

pub(super) fn cancel(
    db: Db<'_>,
    repository: RepositoryId,
    id: Uuid,
    version: Option<i64>,
    now: Timestamp,
) -> StoreResult<bool> {
    let sql = format!(
        "{REMOVABLE} WHERE id = ?1 AND repository_id = ?2 AND version = coalesce(?3, version)"
    );
    let found = db.first(&sql, params![id.to_string(), repository.0, version], removable)?;
    let was_there = found.is_some();
    if let Some(mut upload) = found {
        upload.claimed_until = upload.claimed_until.filter(|_| version.is_none());
        remove(db, upload, now)?;
    }
    Ok(was_there)
}

pub(super) fn cancel_stale(
    db: Db<'_>,
    before: Timestamp,
    now: Timestamp,
    limit: usize,
) -> StoreResult<u64> {
    let idle = format!(
        "{REMOVABLE} WHERE updated_at < ?1 AND (claimed_until IS NULL OR claimed_until <= ?2) \
         ORDER BY updated_at, id LIMIT ?3"
    );
    let unannounced = format!(
        "{REMOVABLE} WHERE announced = 0 AND claimed_until <= ?1 ORDER BY claimed_until LIMIT ?2"
    );
    let mut count = 0;
    for upload in
        db.all(&idle, [rows::millis(before), rows::millis(now), rows::limit(limit)], removable)?
    {
        remove(db, upload, now)?;
        count += 1;
    }
    for upload in
        db.all(&unannounced, [rows::millis(now - LATE_WRITE), rows::limit(limit)], removable)?
    {
        remove(db, upload, now)?;
        count += 1;
    }
    Ok(count)
}

/// Removes at most `limit` sessions of a deleted repository, and returns how many.
pub(super) fn cancel_all(
    db: Db<'_>,
    repository: RepositoryId,
    limit: usize,
    now: Timestamp,
) -> StoreResult<usize> {
    let sql = format!("{REMOVABLE} WHERE repository_id = ?1 LIMIT ?2");
    let gone = db.all(&sql, [repository.0, rows::limit(limit)], removable)?;
    let count = gone.len();
    for upload in gone {
        remove(db, upload, now)?;
    }
    Ok(count)
}

/// A session to be removed.
struct RemovableUpload {
    id: String,
    generation: Generation,
    writer: WriterState,
    claimed_until: Option<Timestamp>,
}

/// The columns of [`removable`].
const REMOVABLE: &str = "SELECT id, generation, writer_state, claimed_until FROM upload";

fn removable(row: &Row<'_>) -> StoreResult<RemovableUpload> {
    Ok(RemovableUpload {
        id: row.get(0)?,
        generation: parsed(row, 1)?,
        writer: WriterState(row.get(2)?),
        claimed_until: optional_time(row, 3)?,
    })
}

fn remove(db: Db<'_>, upload: RemovableUpload, now: Timestamp) -> StoreResult<()> {
    let RemovableUpload { id, generation, writer, claimed_until } = upload;
    jobs::enqueue(db, &DeleteGeneration::of_session(generation, writer, claimed_until, now))?;
    db.run("DELETE FROM upload WHERE id = ?1", [id]).map(drop)
}

pub(super) fn count(db: Db<'_>) -> StoreResult<u64> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM upload LIMIT ?1)";
    let count: Option<i64> = db.first(sql, [rows::signed(COUNT_LIMIT)?], |row| Ok(row.get(0)?))?;
    rows::unsigned(count.unwrap_or_default())
}
