//! Layers: lookups, links and leases of blobs.

use std::collections::HashMap;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor, PgPool, Row};

use super::PostgresStore;
use super::error::TxResult;
use super::rows::{self, get, ids_by_digest, millis, parsed, signed};
use crate::layers::{Blob, Layer, LayerStore, MountOutcome, UnlinkOutcome};
use crate::repositories::RepositoryId;
use crate::{BlobKey, Generation, KeyReference, Lookup, Sealed, StoreResult};
use wharfage_domain::names::{AccountId, Digest, RepositoryName};

#[async_trait::async_trait]
impl LayerStore for PostgresStore {
    async fn find_blob(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StoreResult<Lookup<Blob>> {
        self.run(|| find(&self.pool, account, repository, digest)).await
    }

    async fn find_layers(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<Option<Layer>>> {
        self.run(|| find_layers(&self.pool, repository, digests)).await
    }

    async fn list_blob_sources(
        &self,
        account: &AccountId,
        digest: &Digest,
        limit: usize,
    ) -> StoreResult<Vec<(RepositoryId, RepositoryName)>> {
        self.run(|| list_sources(&self.pool, account, digest, limit)).await
    }

    async fn mount_blob(
        &self,
        from: RepositoryId,
        to: RepositoryId,
        digest: &Digest,
        referenced_only: bool,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> StoreResult<MountOutcome> {
        self.run(|| mount(&self.pool, from, to, digest, referenced_only, now, lease_until)).await
    }

    async fn unlink_blob(
        &self,
        repository: RepositoryId,
        digest: &Digest,
    ) -> StoreResult<UnlinkOutcome> {
        self.run(|| unlink(&self.pool, repository, digest)).await
    }

    async fn extend_leases(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
        until: Timestamp,
    ) -> StoreResult<()> {
        self.run(|| extend_leases(&self.pool, repository, digests, until)).await
    }

    async fn set_blob_damaged(
        &self,
        generation: Generation,
        at: Option<Timestamp>,
    ) -> StoreResult<()> {
        self.run(|| set_damaged(&self.pool, generation, at)).await
    }

    async fn find_live_generations(
        &self,
        generations: &[Generation],
    ) -> StoreResult<Vec<Generation>> {
        self.run(|| find_live_generations(&self.pool, generations)).await
    }
}

/// The columns that [`bytes()`] and [`blob`] read, of the alias `b`.
macro_rules! blob_columns {
    () => {
        "b.digest, b.size, b.generation, b.stored_size, b.key_id, b.wrapped_key, b.damaged_at IS NOT NULL AS damaged"
    };
}

/// The condition that every image with the blob of link `l` is archived, and that the blob has not
/// been pushed since.
macro_rules! archived {
    () => {
        "(EXISTS (SELECT 1 FROM manifest_blob e WHERE e.link_id = l.id AND e.archived_at >= l.linked_at)
          AND NOT EXISTS (SELECT 1 FROM manifest_blob e WHERE e.link_id = l.id AND e.archived_at IS NULL))"
    };
}

fn blob(row: &PgRow) -> StoreResult<Blob> {
    Ok(Blob { digest: parsed(row, "digest")?, bytes: bytes(row)?, damaged: get(row, "damaged")? })
}

fn bytes(row: &PgRow) -> StoreResult<BlobKey> {
    Ok(BlobKey {
        generation: parsed(row, "generation")?,
        size: rows::unsigned(row, "size")?,
        stored_size: rows::unsigned(row, "stored_size")?,
        key: rows::key_reference(get(row, "key_id")?, get(row, "wrapped_key")?)?,
    })
}

pub(super) async fn find(
    pool: &PgPool,
    account: &AccountId,
    repository: &RepositoryName,
    digest: &Digest,
) -> TxResult<Lookup<Blob>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        blob_columns!(),
        ", ",
        archived!(),
        " AS archived
         FROM repository r
         LEFT JOIN (repository_blob l JOIN blob b ON b.id = l.blob_id AND b.state = 'live')
                ON l.repository_id = r.id AND l.digest = $3
         WHERE r.account_id = $1 AND r.name = $2",
    ))
    .bind(account.as_str())
    .bind(repository.as_str())
    .bind(digest.as_str())
    .fetch_optional(pool)
    .await?;
    Ok(match row {
        None => Lookup::NoRepository,
        Some(row) if get::<Option<&str>>(&row, "digest")?.is_none() || get(&row, "archived")? => {
            Lookup::Missing
        }
        Some(row) => Lookup::Found(blob(&row)?),
    })
}

pub(super) async fn find_layers(
    pool: &PgPool,
    repository: RepositoryId,
    digests: &[Digest],
) -> TxResult<Vec<Option<Layer>>> {
    // Selects the media type that the oldest active image gives the layer, else the oldest archived
    // one.
    let found = sqlx::query(concat!(
        "SELECT ",
        blob_columns!(),
        ", (SELECT e.media_type FROM manifest_blob e WHERE e.link_id = l.id
                 ORDER BY e.archived_at NULLS FIRST, e.manifest_id LIMIT 1) AS media_type, ",
        archived!(),
        " AS archived
         FROM (",
        ids_by_digest!("repository_blob"),
        ") k
         JOIN repository_blob l ON l.id = k.id
         JOIN blob b ON b.id = l.blob_id AND b.state = 'live'",
    ))
    .bind(repository.0)
    .bind(digests.iter().map(Digest::as_str).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    let layer = |row| {
        let blob = blob(row)?;
        let media_type: Option<String> = get(row, "media_type")?;
        // Every edge has a media type, so a missing one means that there is no edge.
        let referenced = media_type.is_some();
        Ok((
            blob.digest.clone(),
            Layer { blob, media_type, referenced, archived: get(row, "archived")? },
        ))
    };
    let layers = found.iter().map(layer).collect::<StoreResult<HashMap<Digest, Layer>>>()?;
    Ok(digests.iter().map(|digest| layers.get(digest).cloned()).collect())
}

pub(super) async fn list_sources(
    pool: &PgPool,
    account: &AccountId,
    digest: &Digest,
    limit: usize,
) -> TxResult<Vec<(RepositoryId, RepositoryName)>> {
    // The condition on both columns makes the links a range of their index. With the blob's id
    // alone the planner expected few links of a layer that all repositories have, and read and
    // sorted all of them.
    let found = sqlx::query(
        "SELECT r.id, r.name, l.id AS link
         FROM blob b
         CROSS JOIN LATERAL (
             SELECT l.id, l.blob_id, l.repository_id FROM repository_blob l
             WHERE (l.blob_id, l.id) > (b.id, 0) ORDER BY l.blob_id, l.id LIMIT $3) l
         JOIN repository r ON r.id = l.repository_id AND r.deleted_at IS NULL
         WHERE b.account_id = $1 AND b.digest = $2 AND b.state = 'live' AND b.damaged_at IS NULL AND l.blob_id = b.id
         LIMIT $3",
    )
    .bind(account.as_str())
    .bind(digest.as_str())
    .bind(rows::limit(limit))
    .fetch_all(pool)
    .await?;
    let source = |row| Ok((get(row, "link")?, RepositoryId(get(row, "id")?), parsed(row, "name")?));
    let mut sources = found
        .iter()
        .map(source)
        .collect::<StoreResult<Vec<(i64, RepositoryId, RepositoryName)>>>()?;
    sources.sort_unstable_by_key(|(link, ..)| *link);
    Ok(sources.into_iter().map(|(_, id, name)| (id, name)).collect())
}

pub(super) async fn mount(
    pool: &PgPool,
    from: RepositoryId,
    to: RepositoryId,
    digest: &Digest,
    referenced_only: bool,
    now: Timestamp,
    lease_until: Timestamp,
) -> TxResult<MountOutcome> {
    let mut tx = pool.begin().await?;
    // Prevents the deletion of the destination until the transaction ends.
    let target =
        sqlx::query("SELECT 1 FROM repository WHERE id = $1 AND deleted_at IS NULL FOR KEY SHARE")
            .bind(to.0);
    if target.fetch_optional(&mut *tx).await?.is_none() {
        return Ok(MountOutcome::NotMountable);
    }
    // A blob that the destination has counts as mounted, whatever the source has.
    let blob: Option<i64> = sqlx::query_scalar(concat!(
        "(SELECT blob_id FROM repository_blob WHERE repository_id = $2 AND digest = $3 LIMIT 1)
         UNION ALL
         SELECT l.blob_id
         FROM repository source
         JOIN repository target ON target.id = $2 AND target.account_id = source.account_id
              AND target.encryption_type = source.encryption_type
              AND target.kms_key IS NOT DISTINCT FROM source.kms_key
         CROSS JOIN LATERAL (
             SELECT * FROM repository_blob WHERE repository_id = source.id AND digest = $3 LIMIT 1) l
         WHERE source.id = $1 AND (NOT $4 OR EXISTS (SELECT 1 FROM manifest_blob e WHERE e.link_id = l.id)) AND NOT ",
        archived!(),
        " LIMIT 1",
    ))
    .bind(from.0)
    .bind(to.0)
    .bind(digest.as_str())
    .bind(referenced_only)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(blob) = blob else { return Ok(MountOutcome::NotMountable) };
    if extend_intact_lease(&mut tx, blob, lease_until).await?.is_none() {
        return Ok(MountOutcome::NotMountable);
    }
    link(&mut tx, to, digest, blob, now).await?;
    tx.commit().await?;
    Ok(MountOutcome::Mounted)
}

pub(super) async fn unlink(
    pool: &PgPool,
    repository: RepositoryId,
    digest: &Digest,
) -> TxResult<UnlinkOutcome> {
    // The check keeps ordinary refusals out of the server's error log; in a race the foreign key
    // decides.
    let row = sqlx::query(
        "WITH link AS (SELECT id FROM repository_blob WHERE repository_id = $1 AND digest = $2 LIMIT 1),
              gone AS (
                  DELETE FROM repository_blob WHERE id IN (
                      SELECT id FROM link WHERE NOT EXISTS (SELECT 1 FROM manifest_blob e WHERE e.link_id = link.id))
                  RETURNING id)
         SELECT EXISTS (SELECT 1 FROM link) AS found, EXISTS (SELECT 1 FROM gone) AS unlinked",
    )
    .bind(repository.0)
    .bind(digest.as_str())
    .fetch_one(pool)
    .await;
    match row {
        Ok(row) if row.try_get("unlinked")? => Ok(UnlinkOutcome::Unlinked),
        Ok(row) if row.try_get("found")? => Ok(UnlinkOutcome::InUse),
        Ok(_) => Ok(UnlinkOutcome::NotFound),
        Err(error)
            if error
                .as_database_error()
                .is_some_and(|report| report.is_foreign_key_violation()) =>
        {
            Ok(UnlinkOutcome::InUse)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn extend_leases(
    pool: &PgPool,
    repository: RepositoryId,
    digests: &[Digest],
    until: Timestamp,
) -> TxResult<()> {
    // Rows are locked in one order, so that concurrent extensions of the same leases do not
    // deadlock.
    sqlx::query(concat!(
        "WITH short AS (
             SELECT id FROM blob
             WHERE id = ANY (ARRAY(
                 SELECT l.blob_id FROM (",
        ids_by_digest!("repository_blob"),
        ") k JOIN repository_blob l ON l.id = k.id))
               AND lease_until < $3
             ORDER BY id FOR NO KEY UPDATE)
         UPDATE blob SET lease_until = $3 WHERE id = ANY (ARRAY(SELECT id FROM short)) AND lease_until < $3",
    ))
    .bind(repository.0)
    .bind(digests.iter().map(Digest::as_str).collect::<Vec<_>>())
    .bind(millis(until))
    .execute(pool)
    .await?;
    Ok(())
}

pub(super) async fn set_damaged<E>(
    executor: impl PgExecutor<'_>,
    generation: Generation,
    at: Option<Timestamp>,
) -> TxResult<(), E> {
    sqlx::query(
        "UPDATE blob SET damaged_at = $2 WHERE generation = $1 AND (damaged_at IS NULL) <> ($2::bigint IS NULL)",
    )
    .bind(generation.to_string())
    .bind(at.map(millis))
    .execute(executor)
    .await?;
    Ok(())
}

pub(super) async fn find_live_generations(
    pool: &PgPool,
    generations: &[Generation],
) -> TxResult<Vec<Generation>> {
    let rows =
        sqlx::query("SELECT generation FROM blob WHERE generation = ANY($1) AND state = 'live'")
            .bind(generations.iter().map(Generation::to_string).collect::<Vec<_>>())
            .fetch_all(pool)
            .await?;
    Ok(rows.iter().map(|row| parsed(row, "generation")).collect::<StoreResult<_>>()?)
}

/// A blob to be added.
#[derive(Clone, Copy)]
pub(super) struct NewBlob<'a> {
    pub(super) account: &'a str,
    pub(super) encryption: &'a str,
    pub(super) digest: &'a Digest,
    pub(super) size: u64,
    pub(super) sealed: &'a Sealed,
    pub(super) key: Option<&'a KeyReference>,
    pub(super) now: Timestamp,
    pub(super) lease_until: Timestamp,
}

/// Inserts a blob. Of concurrent commits of the same bytes one inserts. The others wait for it and
/// get its row, locked and live, as do later commits.
pub(super) async fn insert<E>(
    tx: &mut PgConnection,
    new: &NewBlob<'_>,
) -> TxResult<(i64, BlobKey), E> {
    let NewBlob { account, encryption, digest, size, sealed, key, now, lease_until } = *new;
    let (key_id, wrapped_key) = rows::key_columns(key);
    let row = sqlx::query(concat!(
        "INSERT INTO blob AS b (account_id, digest, encryption, size, generation, state, lease_until, created_at,
                                stored_size, key_id, wrapped_key)
         VALUES ($1, $2, $3, $4, $5, 'live', $6, $7, $8, $9, $10)
         ON CONFLICT (account_id, digest, encryption) WHERE state = 'live'
         DO UPDATE SET lease_until = greatest(b.lease_until, excluded.lease_until)
         RETURNING b.id, ",
        blob_columns!()
    ))
    .bind(account)
    .bind(digest.as_str())
    .bind(encryption)
    .bind(signed(size)?)
    .bind(sealed.generation.to_string())
    .bind(millis(lease_until))
    .bind(millis(now))
    .bind(signed(sealed.stored_size)?)
    .bind(key_id)
    .bind(wrapped_key)
    .fetch_one(tx)
    .await?;
    Ok((get(&row, "id")?, bytes(&row)?))
}

/// Replaces the bytes of a damaged blob, whose row the caller has locked, with those just written.
pub(super) async fn replace_bytes<E>(
    tx: &mut PgConnection,
    blob: i64,
    new: &NewBlob<'_>,
) -> TxResult<(), E> {
    let NewBlob { size, sealed, key, .. } = *new;
    let (key_id, wrapped_key) = rows::key_columns(key);
    sqlx::query(
        "UPDATE blob SET size = $2, generation = $3, stored_size = $4, key_id = $5, wrapped_key = $6, damaged_at = NULL
         WHERE id = $1",
    )
    .bind(blob)
    .bind(signed(size)?)
    .bind(sealed.generation.to_string())
    .bind(signed(sealed.stored_size)?)
    .bind(key_id)
    .bind(wrapped_key)
    .execute(tx)
    .await?;
    Ok(())
}

/// Links a live blob, whose row the caller has locked, into a repository; false if the repository
/// has the digest already. From then on that one is served even if every image that has it is
/// archived.
pub(super) async fn link<E>(
    tx: &mut PgConnection,
    repository: RepositoryId,
    digest: &Digest,
    blob: i64,
    now: Timestamp,
) -> TxResult<bool, E> {
    let linked = sqlx::query(
        "INSERT INTO repository_blob (repository_id, digest, blob_id, linked_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (repository_id, digest) DO NOTHING",
    )
    .bind(repository.0)
    .bind(digest.as_str())
    .bind(blob)
    .bind(millis(now))
    .execute(&mut *tx)
    .await?;
    if linked.rows_affected() > 0 {
        return Ok(true);
    }
    // Later than an archival in the same millisecond.
    sqlx::query(
        "UPDATE repository_blob SET linked_at = $3 WHERE repository_id = $1 AND digest = $2 AND linked_at < $3",
    )
    .bind(repository.0)
    .bind(digest.as_str())
    .bind(millis(now).saturating_add(1))
    .execute(tx)
    .await?;
    Ok(false)
}

/// Extends a blob's lease, which locks its row; `None` if it is no longer live.
pub(super) async fn extend_live_lease<E>(
    tx: &mut PgConnection,
    blob: i64,
    until: Timestamp,
) -> TxResult<Option<(i64, BlobKey)>, E> {
    let leased = sqlx::query(concat!(
        "UPDATE blob b SET lease_until = greatest(lease_until, $2) WHERE id = $1 AND state = 'live' RETURNING ",
        blob_columns!()
    ))
    .bind(blob)
    .bind(millis(until))
    .fetch_optional(tx)
    .await?;
    Ok(leased.map(|row| bytes(&row)).transpose()?.map(|bytes| (blob, bytes)))
}

/// Extends a blob's lease like [`extend_live_lease`]; `None` also if it is damaged.
async fn extend_intact_lease(
    tx: &mut PgConnection,
    blob: i64,
    until: Timestamp,
) -> TxResult<Option<i64>> {
    let leased = sqlx::query_scalar(
        "UPDATE blob SET lease_until = greatest(lease_until, $2)
         WHERE id = $1 AND state = 'live' AND damaged_at IS NULL RETURNING id",
    )
    .bind(blob)
    .bind(millis(until))
    .fetch_optional(tx)
    .await?;
    Ok(leased)
}
