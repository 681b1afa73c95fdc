//! Upload sessions, and what becomes of their bytes.

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::failure::{Attempt, Failure};
use super::rows::{self, get, millis, parsed, signed};
use super::{blobs, jobs};
use crate::names::Digest;
use crate::store::jobs::DeleteGeneration;
use crate::store::repositories::{Encryption, RepositoryId};
use crate::store::uploads::{CommitUpload, Committed, MOST_COUNTED, Upload, UploadError, UploadProgress};
use crate::store::{Generation, StoreError, StoreResult, WriterState};

pub(super) async fn create(pool: &PgPool, upload: &Upload) -> Attempt<bool> {
    let Upload { id, repository, generation, algorithm, started_at, progress } = upload;
    let created = sqlx::query(
        "INSERT INTO upload (id, repository_id, generation, algorithm, started_at, version, byte_offset, updated_at,
                             hash_state, door_state, writer_state)
         SELECT $1, r.id, $3, $4, $5, $6, $7, $8, $9, $10, $11
         FROM repository r WHERE r.id = $2 AND r.deleted_at IS NULL FOR KEY SHARE",
    )
    .bind(id.to_string())
    .bind(repository.0)
    .bind(generation.to_string())
    .bind(algorithm.as_str())
    .bind(millis(*started_at))
    .bind(progress.version)
    .bind(signed(progress.offset)?)
    .bind(millis(progress.updated_at))
    .bind(&progress.hash_state)
    .bind(&progress.door)
    .bind(&progress.writer.0)
    .execute(pool)
    .await
    .map_err(Failure::from);
    match created {
        Ok(created) => Ok(created.rows_affected() > 0),
        Err(failure) if failure.is_foreign_key() => Ok(false),
        Err(failure) => Err(failure),
    }
}

pub(super) async fn get_one(pool: &PgPool, repository: RepositoryId, id: Uuid) -> Attempt<Option<Upload>> {
    let row = sqlx::query("SELECT * FROM upload WHERE id = $1 AND repository_id = $2")
        .bind(id.to_string())
        .bind(repository.0)
        .fetch_optional(pool)
        .await?;
    Ok(row.as_ref().map(upload).transpose()?)
}

fn upload(row: &PgRow) -> StoreResult<Upload> {
    Ok(Upload {
        id: parsed(row, "id")?,
        repository: RepositoryId(get(row, "repository_id")?),
        generation: parsed(row, "generation")?,
        algorithm: parsed(row, "algorithm")?,
        started_at: rows::time(row, "started_at")?,
        progress: UploadProgress {
            version: get(row, "version")?,
            offset: rows::unsigned(row, "byte_offset")?,
            hash_state: get(row, "hash_state")?,
            writer: WriterState(get(row, "writer_state")?),
            door: get(row, "door_state")?,
            updated_at: rows::time(row, "updated_at")?,
        },
    })
}

pub(super) async fn advance(pool: &PgPool, id: Uuid, progress: &UploadProgress) -> Attempt<(), UploadError> {
    let UploadProgress { version, offset, hash_state, writer, door, updated_at } = progress;
    let advanced = sqlx::query(
        "UPDATE upload SET version = $2, byte_offset = $3, hash_state = $4, writer_state = $5, door_state = $6,
                           updated_at = $7
         WHERE id = $1 AND version = $2 - 1",
    )
    .bind(id.to_string())
    .bind(version)
    .bind(signed(*offset)?)
    .bind(hash_state)
    .bind(&writer.0)
    .bind(door)
    .bind(millis(*updated_at))
    .execute(pool)
    .await?;
    if advanced.rows_affected() > 0 {
        return Ok(());
    }
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM upload WHERE id = $1)")
        .bind(id.to_string())
        .fetch_one(pool)
        .await?;
    Err(Failure::Refused(if exists { UploadError::Conflict } else { UploadError::NotFound }))
}

pub(super) async fn commit(pool: &PgPool, commit: &CommitUpload) -> Attempt<Committed, UploadError> {
    let CommitUpload { id, version, digest, size, now, lease_until } = commit;
    let mut tx = pool.begin().await?;
    let row = sqlx::query(
        "SELECT u.repository_id, u.generation, u.version, r.account_id, r.encryption_type, r.kms_key
         FROM upload u JOIN repository r ON r.id = u.repository_id AND r.deleted_at IS NULL
         WHERE u.id = $1 FOR KEY SHARE OF r FOR UPDATE OF u",
    )
    .bind(id.to_string())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Err(Failure::Refused(UploadError::NotFound)) };
    if get::<i64>(&row, "version")? != *version {
        return Err(Failure::Refused(UploadError::Conflict));
    }
    let repository = RepositoryId(get(&row, "repository_id")?);
    let written: Generation = parsed(&row, "generation")?;
    let encryption = Encryption { kind: get(&row, "encryption_type")?, kms_key: get(&row, "kms_key")? };

    // Of all who bring the same bytes at once one inserts; the others wait for it and get its row, locked and live.
    let live = sqlx::query(
        "INSERT INTO blob AS b (account_id, digest, encryption, size, generation, state, lease_until, created_at)
         VALUES ($1, $2, $3, $4, $5, 'live', $6, $7)
         ON CONFLICT (account_id, digest, encryption) WHERE state = 'live'
         DO UPDATE SET lease_until = greatest(b.lease_until, excluded.lease_until)
         RETURNING b.id, b.generation",
    )
    .bind(get::<&str>(&row, "account_id")?)
    .bind(digest.as_str())
    .bind(rows::encryption(&encryption))
    .bind(signed(*size)?)
    .bind(written.to_string())
    .bind(millis(*lease_until))
    .bind(millis(*now))
    .fetch_one(&mut *tx)
    .await?;
    let is_new = parsed::<Generation>(&live, "generation")? == written;
    let linked = blobs::link(&mut tx, repository, digest, get(&live, "id")?, *now).await?;
    let committed = match (is_new, linked) {
        (true, true) => Committed::New,
        (false, true) => Committed::Shared,
        (false, false) => Committed::AlreadyInRepository,
        (true, false) => return Err(link_to_dead_blob(digest).into()),
    };
    sqlx::query("DELETE FROM upload WHERE id = $1").bind(id.to_string()).execute(&mut *tx).await?;
    if !is_new {
        // The bytes are finished, so the backend needs nothing to delete them.
        let job = DeleteGeneration { generation: written, writer: WriterState::default() }.job(*now);
        jobs::enqueue(&mut tx, &[job]).await?;
    }
    tx.commit().await?;
    Ok(committed)
}

fn link_to_dead_blob(digest: &Digest) -> StoreError {
    StoreError::Inconsistent(format!("a repository links {digest}, of which there is no live blob"))
}

pub(super) async fn cancel(pool: &PgPool, repository: RepositoryId, id: Uuid, now: Timestamp) -> Attempt<bool> {
    let mut tx = pool.begin().await?;
    let gone =
        sqlx::query("DELETE FROM upload WHERE id = $1 AND repository_id = $2 RETURNING generation, writer_state")
            .bind(id.to_string())
            .bind(repository.0)
            .fetch_all(&mut *tx)
            .await?;
    hand_over(&mut tx, &gone, now).await?;
    tx.commit().await?;
    Ok(!gone.is_empty())
}

pub(super) async fn cancel_stale(pool: &PgPool, before: Timestamp, now: Timestamp, limit: usize) -> Attempt<u64> {
    let mut tx = pool.begin().await?;
    let gone = sqlx::query(
        "DELETE FROM upload WHERE id IN (
             SELECT id FROM upload WHERE updated_at < $1 ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED)
         RETURNING generation, writer_state",
    )
    .bind(millis(before))
    .bind(rows::limit(limit))
    .fetch_all(&mut *tx)
    .await?;
    hand_over(&mut tx, &gone, now).await?;
    tx.commit().await?;
    Ok(gone.len() as u64)
}

/// Removes sessions of a repository that was deleted, at most so many; how many.
pub(super) async fn discard(
    tx: &mut PgConnection,
    repository: RepositoryId,
    limit: usize,
    now: Timestamp,
) -> Attempt<usize> {
    let gone = sqlx::query(
        "DELETE FROM upload WHERE id = ANY (ARRAY(
             SELECT id FROM upload WHERE repository_id = $1 LIMIT $2 FOR UPDATE))
         RETURNING generation, writer_state",
    )
    .bind(repository.0)
    .bind(rows::limit(limit))
    .fetch_all(&mut *tx)
    .await?;
    hand_over(tx, &gone, now).await?;
    Ok(gone.len())
}

/// Hands the generations of sessions that are gone to the jobs that delete them.
async fn hand_over<E>(tx: &mut PgConnection, gone: &[PgRow], now: Timestamp) -> Attempt<(), E> {
    let job = |row| {
        let generation = parsed(row, "generation")?;
        Ok(DeleteGeneration { generation, writer: WriterState(get(row, "writer_state")?) }.job(now))
    };
    let new_jobs = gone.iter().map(job).collect::<StoreResult<Vec<_>>>()?;
    jobs::enqueue(tx, &new_jobs).await
}

pub(super) async fn open(pool: &PgPool) -> Attempt<u64> {
    let row = sqlx::query("SELECT count(*) AS open FROM (SELECT 1 FROM upload LIMIT $1) u")
        .bind(signed(MOST_COUNTED)?)
        .fetch_one(pool)
        .await?;
    Ok(rows::unsigned(&row, "open")?)
}
