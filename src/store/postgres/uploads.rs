//! Upload sessions, and what happens to their bytes.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::error::{TxError, TxResult};
use super::layers::{self, NewBlob};
use super::rows::{self, get, millis, parsed, signed};
use super::{PostgresStore, jobs};
use crate::jobs::{DeleteGeneration, JobPayload as _, late};
use crate::repositories::{Encryption, RepositoryId};
use crate::uploads::{
    AdvanceUpload, COUNT_LIMIT, CommitOutcome, CommitUpload, KnownBlob, LATE_WRITE, Upload,
    UploadClaim, UploadError, UploadProgress, UploadStore,
};
use crate::{Generation, StoreResult, WriterState};

#[async_trait::async_trait]
impl UploadStore for PostgresStore {
    async fn create_upload(&self, upload: Upload, claim: Option<Duration>) -> StoreResult<bool> {
        self.run(|| create(&self.pool, &upload, claim)).await
    }

    async fn find_upload(&self, repository: RepositoryId, id: Uuid) -> StoreResult<Option<Upload>> {
        self.run(|| find(&self.pool, repository, id)).await
    }

    async fn claim_upload(
        &self,
        read: &Upload,
        fresh: Generation,
        _now: Timestamp,
        lease: Duration,
    ) -> Result<UploadClaim, UploadError> {
        self.run(|| claim(&self.pool, read, fresh, lease)).await
    }

    async fn renew_upload(
        &self,
        id: Uuid,
        version: i64,
        _now: Timestamp,
        lease: Duration,
    ) -> Result<(), UploadError> {
        self.run(|| renew(&self.pool, id, version, lease)).await
    }

    async fn release_upload(&self, id: Uuid, version: i64, clean: bool) -> StoreResult<()> {
        self.run(|| release(&self.pool, id, version, clean)).await
    }

    async fn advance_upload(&self, advance: AdvanceUpload) -> Result<(), UploadError> {
        self.run(|| self::advance(&self.pool, &advance)).await
    }

    async fn commit_upload(&self, commit: CommitUpload) -> Result<CommitOutcome, UploadError> {
        self.run(|| self::commit(&self.pool, &commit)).await
    }

    async fn cancel_upload(
        &self,
        repository: RepositoryId,
        id: Uuid,
        version: Option<i64>,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.run(|| cancel(&self.pool, repository, id, version, now)).await
    }

    async fn cancel_stale_uploads(
        &self,
        before: Timestamp,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<u64> {
        self.run(|| cancel_stale(&self.pool, before, now, limit)).await
    }

    async fn count_uploads(&self) -> StoreResult<u64> {
        self.run(|| count(&self.pool)).await
    }
}

/// The database's time in milliseconds. Claims end by it, because the replicas' clocks may differ.
macro_rules! clock {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    };
}

pub(super) async fn create(
    pool: &PgPool,
    upload: &Upload,
    claim: Option<Duration>,
) -> TxResult<bool> {
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
    let (key_id, wrapped_key) = rows::key_columns(key.as_ref());
    let created = sqlx::query(concat!(
        "INSERT INTO upload (id, repository_id, generation, algorithm, started_at, version, byte_offset, updated_at,
                             hash_state, protocol_state, writer_state, announced, claimed_until, key_id, wrapped_key)
         SELECT $1, r.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, ",
        clock!(),
        " + $13::bigint, $14, $15
         FROM repository r WHERE r.id = $2 AND r.deleted_at IS NULL FOR KEY SHARE",
    ))
    .bind(id.to_string())
    .bind(repository.0)
    .bind(generation.to_string())
    .bind(algorithm.as_str())
    .bind(millis(*started_at))
    .bind(version)
    .bind(signed(progress.offset)?)
    .bind(millis(progress.updated_at))
    .bind(&progress.hash_state)
    .bind(&progress.protocol_state)
    .bind(&progress.writer.0)
    .bind(announced)
    .bind(claim.map(rows::lease))
    .bind(key_id)
    .bind(wrapped_key)
    .execute(pool)
    .await
    .map_err(TxError::from);
    match created {
        Ok(created) => Ok(created.rows_affected() > 0),
        Err(failure) if failure.is_foreign_key() => Ok(false),
        Err(failure) => Err(failure),
    }
}

pub(super) async fn find(
    pool: &PgPool,
    repository: RepositoryId,
    id: Uuid,
) -> TxResult<Option<Upload>> {
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
        key: rows::key_reference(get(row, "key_id")?, get(row, "wrapped_key")?)?,
        algorithm: parsed(row, "algorithm")?,
        started_at: rows::time(row, "started_at")?,
        announced: get(row, "announced")?,
        version: get(row, "version")?,
        claimed_until: rows::optional_time(row, "claimed_until")?,
        progress: UploadProgress {
            offset: rows::unsigned(row, "byte_offset")?,
            hash_state: get(row, "hash_state")?,
            writer: WriterState(get(row, "writer_state")?),
            protocol_state: get(row, "protocol_state")?,
            updated_at: rows::time(row, "updated_at")?,
        },
    })
}

pub(super) async fn claim(
    pool: &PgPool,
    read: &Upload,
    fresh: Generation,
    lease: Duration,
) -> TxResult<UploadClaim, UploadError> {
    let Upload { id, version, generation, .. } = read;
    // Usually the session is unclaimed, and one statement suffices.
    let claimed = sqlx::query(concat!(
        "UPDATE upload SET version = version + 1, claimed_until = ",
        clock!(),
        " + $3 WHERE id = $1 AND version = $2 AND generation = $4 AND claimed_until IS NULL",
    ))
    .bind(id.to_string())
    .bind(version)
    .bind(rows::lease(lease))
    .bind(generation.to_string())
    .execute(pool)
    .await?;
    if claimed.rows_affected() > 0 {
        return Ok(UploadClaim { version: version + 1, generation: *generation, takeover: false });
    }

    let mut tx = pool.begin().await?;
    let row = sqlx::query(concat!(
        "SELECT generation, version, claimed_until, ",
        clock!(),
        " AS clock FROM upload WHERE id = $1 FOR UPDATE",
    ))
    .bind(id.to_string())
    .fetch_optional(&mut *tx)
    .await?;
    let row = row.ok_or(TxError::Refused(UploadError::NotFound))?;
    let (now, before) = (rows::time(&row, "clock")?, parsed::<Generation>(&row, "generation")?);
    match rows::optional_time(&row, "claimed_until")? {
        _ if get::<i64>(&row, "version")? != *version => {
            return Err(TxError::Refused(UploadError::Conflict));
        }
        _ if before != *generation => return Err(TxError::Refused(UploadError::Conflict)),
        Some(until) if until > now => return Err(TxError::Refused(UploadError::Conflict)),
        Some(_) => {}
        // The claim was released just now.
        None => return Err(TxError::Raced),
    }
    jobs::enqueue_all(&mut tx, &[DeleteGeneration::of(before).job(late(now))]).await?;
    sqlx::query("UPDATE upload SET version = version + 1, claimed_until = $2, generation = $3 WHERE id = $1")
        .bind(id.to_string())
        .bind(millis(now).saturating_add(rows::lease(lease)))
        .bind(fresh.to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(UploadClaim { version: version + 1, generation: fresh, takeover: true })
}

pub(super) async fn renew(
    pool: &PgPool,
    id: Uuid,
    version: i64,
    lease: Duration,
) -> TxResult<(), UploadError> {
    let prolonged = sqlx::query(concat!(
        "UPDATE upload SET claimed_until = ",
        clock!(),
        " + $3 WHERE id = $1 AND version = $2 AND claimed_until IS NOT NULL",
    ))
    .bind(id.to_string())
    .bind(version)
    .bind(rows::lease(lease))
    .execute(pool)
    .await?;
    if prolonged.rows_affected() > 0 { Ok(()) } else { Err(refusal(pool, id).await?) }
}

pub(super) async fn release(pool: &PgPool, id: Uuid, version: i64, clean: bool) -> TxResult<()> {
    sqlx::query("UPDATE upload SET claimed_until = $3 WHERE id = $1 AND version = $2 AND claimed_until IS NOT NULL")
        .bind(id.to_string())
        .bind(version)
        .bind((!clean).then_some(0_i64))
        .execute(pool)
        .await?;
    Ok(())
}

pub(super) async fn advance(pool: &PgPool, advance: &AdvanceUpload) -> TxResult<(), UploadError> {
    let AdvanceUpload { id, version, progress, generation, hold, .. } = advance;
    let UploadProgress { offset, hash_state, writer, protocol_state, updated_at } = progress;
    let advanced = sqlx::query(concat!(
        "UPDATE upload SET byte_offset = $3, hash_state = $4, writer_state = $5, protocol_state = $6, updated_at = $7,
                           generation = $8, claimed_until = ",
        clock!(),
        " + $9::bigint
         WHERE id = $1 AND version = $2 AND claimed_until IS NOT NULL",
    ))
    .bind(id.to_string())
    .bind(version)
    .bind(signed(*offset)?)
    .bind(hash_state)
    .bind(&writer.0)
    .bind(protocol_state)
    .bind(millis(*updated_at))
    .bind(generation.to_string())
    .bind(hold.map(rows::lease))
    .execute(pool)
    .await?;
    if advanced.rows_affected() > 0 { Ok(()) } else { Err(refusal(pool, *id).await?) }
}

/// Returns the reason why a statement that names a claim changed no row.
async fn refusal(pool: &PgPool, id: Uuid) -> TxResult<TxError<UploadError>, UploadError> {
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM upload WHERE id = $1)")
        .bind(id.to_string())
        .fetch_one(pool)
        .await?;
    Ok(TxError::Refused(if exists { UploadError::Conflict } else { UploadError::NotFound }))
}

pub(super) async fn commit(
    pool: &PgPool,
    commit: &CommitUpload,
) -> TxResult<CommitOutcome, UploadError> {
    let CommitUpload { id, version, digest, size, sealed, known, now, lease_until } = commit;
    let mut tx = pool.begin().await?;
    let row = sqlx::query(
        "SELECT u.repository_id, u.version, u.key_id, u.wrapped_key, r.account_id, r.encryption_type, r.kms_key,
                l.blob_id
         FROM upload u JOIN repository r ON r.id = u.repository_id AND r.deleted_at IS NULL
         LEFT JOIN repository_blob l ON l.repository_id = r.id AND l.digest = $2
         WHERE u.id = $1 FOR KEY SHARE OF r FOR UPDATE OF u",
    )
    .bind(id.to_string())
    .bind(digest.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Err(TxError::Refused(UploadError::NotFound)) };
    if get::<i64>(&row, "version")? != *version {
        return Err(TxError::Refused(UploadError::Conflict));
    }
    let repository = RepositoryId(get(&row, "repository_id")?);
    let encryption =
        Encryption { kind: get(&row, "encryption_type")?, kms_key: get(&row, "kms_key")? };
    let key = rows::key_reference(get(&row, "key_id")?, get(&row, "wrapped_key")?)?;
    let new = NewBlob {
        account: get(&row, "account_id")?,
        encryption: &rows::encryption(&encryption),
        digest,
        size: *size,
        sealed,
        key: key.as_ref(),
        now: *now,
        lease_until: *lease_until,
    };

    // The repository's own blob comes before the account's: it may have another encryption.
    let mut gone = sealed.leftover.clone();
    let linked: Option<i64> = get(&row, "blob_id")?;
    let (blob, bytes) = match linked {
        Some(blob) => {
            layers::extend_live_lease(&mut tx, blob, *lease_until).await?.ok_or(TxError::Raced)?
        }
        None => layers::insert(&mut tx, &new).await?,
    };
    let committed = match known {
        _ if bytes.generation == sealed.generation => CommitOutcome::New,
        Some(KnownBlob { generation, intact: true }) if *generation == bytes.generation => {
            gone.push(sealed.generation);
            layers::set_damaged(&mut *tx, bytes.generation, None).await?;
            if linked.is_some() {
                CommitOutcome::AlreadyInRepository
            } else {
                CommitOutcome::Shared
            }
        }
        Some(KnownBlob { generation, intact: false }) if *generation == bytes.generation => {
            gone.push(bytes.generation);
            layers::replace_bytes(&mut tx, blob, &new).await?;
            CommitOutcome::Healed
        }
        _ => return Err(TxError::Refused(UploadError::Unchecked(bytes))),
    };
    if !layers::link(&mut tx, repository, digest, blob, *now).await? && linked.is_none() {
        // Another request has linked it in between.
        return Err(TxError::Raced);
    }
    sqlx::query("DELETE FROM upload WHERE id = $1").bind(id.to_string()).execute(&mut *tx).await?;
    let deletions: Vec<_> =
        gone.into_iter().map(|generation| DeleteGeneration::of(generation).job(*now)).collect();
    jobs::enqueue_all(&mut tx, &deletions).await?;
    tx.commit().await?;
    Ok(committed)
}

pub(super) async fn cancel(
    pool: &PgPool,
    repository: RepositoryId,
    id: Uuid,
    version: Option<i64>,
    now: Timestamp,
) -> TxResult<bool> {
    let mut tx = pool.begin().await?;
    let gone = sqlx::query(
        "DELETE FROM upload WHERE id = $1 AND repository_id = $2 AND version = coalesce($3, version)
         RETURNING generation, writer_state, CASE WHEN $3 IS NULL THEN claimed_until END AS claimed_until",
    )
    .bind(id.to_string())
    .bind(repository.0)
    .bind(version)
    .fetch_all(&mut *tx)
    .await?;
    enqueue_deletions(&mut tx, &gone, now).await?;
    tx.commit().await?;
    Ok(!gone.is_empty())
}

pub(super) async fn cancel_stale(
    pool: &PgPool,
    before: Timestamp,
    now: Timestamp,
    limit: usize,
) -> TxResult<u64> {
    let mut tx = pool.begin().await?;
    let gone = sqlx::query(concat!(
        // Two lists of ids: with an OR of both conditions the planner would scan the whole table.
        "DELETE FROM upload WHERE id = ANY (
             ARRAY(SELECT id FROM upload WHERE updated_at < $1 AND (claimed_until IS NULL OR claimed_until <= ",
        clock!(),
        ")         ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED)
             || ARRAY(SELECT id FROM upload WHERE NOT announced AND claimed_until <= least($3, ",
        clock!(),
        ")             ORDER BY claimed_until LIMIT $2 FOR UPDATE SKIP LOCKED))
         RETURNING generation, writer_state, claimed_until",
    ))
    .bind(millis(before))
    .bind(rows::limit(limit))
    .bind(millis(now - LATE_WRITE))
    .fetch_all(&mut *tx)
    .await?;
    enqueue_deletions(&mut tx, &gone, now).await?;
    tx.commit().await?;
    Ok(gone.len() as u64)
}

/// Removes at most `limit` sessions of a deleted repository, and returns how many.
pub(super) async fn cancel_all(
    tx: &mut PgConnection,
    repository: RepositoryId,
    limit: usize,
    now: Timestamp,
) -> TxResult<usize> {
    let gone = sqlx::query(
        "DELETE FROM upload WHERE id = ANY (ARRAY(
             SELECT id FROM upload WHERE repository_id = $1 LIMIT $2 FOR UPDATE))
         RETURNING generation, writer_state, claimed_until",
    )
    .bind(repository.0)
    .bind(rows::limit(limit))
    .fetch_all(&mut *tx)
    .await?;
    enqueue_deletions(tx, &gone, now).await?;
    Ok(gone.len())
}

/// Enqueues the jobs that delete the generations of removed sessions.
async fn enqueue_deletions<E>(
    tx: &mut PgConnection,
    gone: &[PgRow],
    now: Timestamp,
) -> TxResult<(), E> {
    let job = |row| {
        let (generation, writer) =
            (parsed(row, "generation")?, WriterState(get(row, "writer_state")?));
        let claimed_until = rows::optional_time(row, "claimed_until")?;
        Ok(DeleteGeneration::of_session(generation, writer, claimed_until, now))
    };
    let new_jobs = gone.iter().map(job).collect::<StoreResult<Vec<_>>>()?;
    jobs::enqueue_all(tx, &new_jobs).await
}

pub(super) async fn count(pool: &PgPool) -> TxResult<u64> {
    let row = sqlx::query("SELECT count(*) AS open FROM (SELECT 1 FROM upload LIMIT $1) u")
        .bind(signed(COUNT_LIMIT)?)
        .fetch_one(pool)
        .await?;
    Ok(rows::unsigned(&row, "open")?)
}
