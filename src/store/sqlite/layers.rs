//! Layers: lookups, links and leases of blobs.

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::Db;
use super::rows::{self, parsed, text};
use super::{SqliteStore, repositories};
use crate::layers::{Blob, Layer, LayerStore, MountOutcome, UnlinkOutcome};
use crate::repositories::RepositoryId;
use crate::{BlobKey, Generation, KeyReference, Lookup, Sealed, StoreResult};
use wharfage_domain::names::{AccountId, Digest, RepositoryName};

#[async_trait::async_trait]
impl LayerStore for SqliteStore {
    async fn find_blob(
        &self,
        account: &AccountId,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StoreResult<Lookup<Blob>> {
        self.readers.read(|db| find(db, account, repository, digest))
    }

    async fn find_layers(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
    ) -> StoreResult<Vec<Option<Layer>>> {
        let digests = digests.to_vec();
        self.readers.page(move |db| find_layers(db, repository, &digests)).await
    }

    async fn list_blob_sources(
        &self,
        account: &AccountId,
        digest: &Digest,
        limit: usize,
    ) -> StoreResult<Vec<(RepositoryId, RepositoryName)>> {
        self.readers.read(|db| list_sources(db, account, digest, limit))
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
        let digest = digest.clone();
        self.grow(0, move |db| mount(db, from, to, &digest, referenced_only, now, lease_until))
            .await
    }

    async fn unlink_blob(
        &self,
        repository: RepositoryId,
        digest: &Digest,
    ) -> StoreResult<UnlinkOutcome> {
        let digest = digest.clone();
        self.writer.write(move |db| unlink(db, repository, &digest)).await
    }

    async fn extend_leases(
        &self,
        repository: RepositoryId,
        digests: &[Digest],
        until: Timestamp,
    ) -> StoreResult<()> {
        // Usually the leases are long enough, and then nothing has to be written.
        let short = self.readers.read(|db| list_short_leases(db, repository, digests, until))?;
        if !short.is_empty() {
            self.writer.write(move |db| extend_leases(db, repository, &short, until)).await?;
        }
        Ok(())
    }

    async fn set_blob_damaged(
        &self,
        generation: Generation,
        at: Option<Timestamp>,
    ) -> StoreResult<()> {
        self.writer.write(move |db| set_damaged(db, generation, at)).await
    }

    async fn find_live_generations(
        &self,
        generations: &[Generation],
    ) -> StoreResult<Vec<Generation>> {
        self.readers.read(|db| find_live_generations(db, generations))
    }
}

/// The columns that [`bytes()`] and [`blob`] read, of the alias `b`.
macro_rules! blob_columns {
    () => {
        "b.size, b.generation, b.stored_size, b.key_id, b.wrapped_key, b.damaged_at IS NOT NULL"
    };
}

/// The condition that every image with the blob of link `l` is archived, and that the blob has not
/// been pushed since.
const ARCHIVED: &str = "(EXISTS (SELECT 1 FROM manifest_blob e WHERE e.link_id = l.id AND e.archived_at >= l.linked_at) \
                        AND NOT EXISTS (SELECT 1 FROM manifest_blob e WHERE e.link_id = l.id AND e.archived_at IS NULL))";

fn blob(row: &Row<'_>, digest: &Digest) -> StoreResult<Blob> {
    Ok(Blob { digest: digest.clone(), bytes: bytes(row)?, damaged: row.get(5)? })
}

fn bytes(row: &Row<'_>) -> StoreResult<BlobKey> {
    Ok(BlobKey {
        generation: parsed(row, 1)?,
        size: rows::unsigned(row.get(0)?)?,
        stored_size: rows::unsigned(row.get(2)?)?,
        key: rows::key_reference(row.get(3)?, row.get(4)?)?,
    })
}

pub(super) fn find(
    db: Db<'_>,
    account: &AccountId,
    repository: &RepositoryName,
    digest: &Digest,
) -> StoreResult<Lookup<Blob>> {
    let found =
        db.first(&find_sql(), [account.as_str(), repository.as_str(), digest.as_str()], |row| {
            let archived: bool = row.get(6)?;
            Ok((blob(row, digest)?, archived))
        })?;
    Ok(match found {
        Some((_, true)) => Lookup::Missing,
        Some((blob, false)) => Lookup::Found(blob),
        None if repositories::exists_by_name(db, account, repository)? => Lookup::Missing,
        None => Lookup::NoRepository,
    })
}

fn find_sql() -> String {
    format!(
        "SELECT {}, {ARCHIVED} FROM repository r \
         JOIN repository_blob l ON l.repository_id = r.id AND l.digest = ?3 \
         JOIN blob b ON b.id = l.blob_id \
         WHERE r.account_id = ?1 AND r.name = ?2 AND b.state = 'live'",
        blob_columns!()
    )
}

pub(super) fn find_layers(
    db: Db<'_>,
    repository: RepositoryId,
    digests: &[Digest],
) -> StoreResult<Vec<Option<Layer>>> {
    digests.iter().map(|digest| find_layer(db, repository, digest)).collect()
}

fn find_layer(db: Db<'_>, repository: RepositoryId, digest: &Digest) -> StoreResult<Option<Layer>> {
    db.first(&layer_sql(), params![repository.0, digest.as_str()], |row| {
        let media_type: Option<String> = row.get(6)?;
        // Every edge has a media type, so a missing one means that there is no edge.
        let referenced = media_type.is_some();
        Ok(Layer { blob: blob(row, digest)?, media_type, referenced, archived: row.get(7)? })
    })
}

/// Selects the media type that the oldest active image gives the layer, else the oldest archived
/// one.
fn layer_sql() -> String {
    format!(
        "SELECT {}, \
         (SELECT e.media_type FROM manifest_blob e WHERE e.link_id = l.id ORDER BY e.archived_at, e.manifest_id LIMIT 1), \
         {ARCHIVED} \
         FROM repository_blob l JOIN blob b ON b.id = l.blob_id \
         WHERE l.repository_id = ?1 AND l.digest = ?2 AND b.state = 'live'",
        blob_columns!()
    )
}

pub(super) fn list_sources(
    db: Db<'_>,
    account: &AccountId,
    digest: &Digest,
    limit: usize,
) -> StoreResult<Vec<(RepositoryId, RepositoryName)>> {
    // The planner may prefer an index of the state alone, by which it would read all blobs.
    let sql = "SELECT r.id, r.name FROM blob b INDEXED BY blob_live \
               CROSS JOIN repository_blob l ON l.id IN \
                 (SELECT id FROM repository_blob WHERE blob_id = b.id ORDER BY id LIMIT ?3) \
               JOIN repository r ON r.id = l.repository_id AND r.deleted_at IS NULL \
               WHERE b.account_id = ?1 AND b.digest = ?2 AND b.state = 'live' AND b.damaged_at IS NULL LIMIT ?3";
    db.all(sql, params![account.as_str(), digest.as_str(), rows::limit(limit)], |row| {
        Ok((RepositoryId(row.get(0)?), parsed(row, 1)?))
    })
}

pub(super) fn mount(
    db: Db<'_>,
    from: RepositoryId,
    to: RepositoryId,
    digest: &Digest,
    referenced_only: bool,
    now: Timestamp,
    lease_until: Timestamp,
) -> StoreResult<MountOutcome> {
    let Some(target) = repositories::find_by_id(db, to)? else {
        return Ok(MountOutcome::NotMountable);
    };
    if let Some(present) = find_linked(db, to, digest)? {
        if present.damaged {
            return Ok(MountOutcome::NotMountable);
        }
        confirm(db, &present, now, lease_until)?;
        return Ok(MountOutcome::Mounted);
    }
    let Some(source) = find_linked(db, from, digest)? else {
        return Ok(MountOutcome::NotMountable);
    };
    let alike = source.account == target.account.as_str()
        && source.encryption == rows::encryption(&target.encryption);
    let referenced = || db.exists("SELECT 1 FROM manifest_blob WHERE link_id = ?1", [source.link]);
    if source.damaged || source.archived || !alike || (referenced_only && !referenced()?) {
        return Ok(MountOutcome::NotMountable);
    }
    link(db, to, digest, source.blob, now, lease_until)?;
    Ok(MountOutcome::Mounted)
}

pub(super) fn unlink(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
) -> StoreResult<UnlinkOutcome> {
    let Some(LinkedBlob { link, .. }) = find_linked(db, repository, digest)? else {
        return Ok(UnlinkOutcome::NotFound);
    };
    if db.exists("SELECT 1 FROM manifest_blob WHERE link_id = ?1", [link])? {
        return Ok(UnlinkOutcome::InUse);
    }
    db.run("DELETE FROM repository_blob WHERE id = ?1", [link])?;
    Ok(UnlinkOutcome::Unlinked)
}

pub(super) fn extend_leases(
    db: Db<'_>,
    repository: RepositoryId,
    digests: &[Digest],
    until: Timestamp,
) -> StoreResult<()> {
    for digest in digests {
        if let Some(LinkedBlob { blob, .. }) = find_linked(db, repository, digest)? {
            extend_lease(db, blob, until)?;
        }
    }
    Ok(())
}

/// Returns those of the blobs whose leases end before `until`.
pub(super) fn list_short_leases(
    db: Db<'_>,
    repository: RepositoryId,
    digests: &[Digest],
    until: Timestamp,
) -> StoreResult<Vec<Digest>> {
    let sql = "SELECT 1 FROM repository_blob l JOIN blob b ON b.id = l.blob_id \
               WHERE l.repository_id = ?1 AND l.digest = ?2 AND b.lease_until < ?3";
    let mut short = Vec::new();
    for digest in digests {
        if db.exists(sql, params![repository.0, digest.as_str(), rows::millis(until)])? {
            short.push(digest.clone());
        }
    }
    Ok(short)
}

pub(super) fn set_damaged(
    db: Db<'_>,
    generation: Generation,
    at: Option<Timestamp>,
) -> StoreResult<()> {
    let sql = "UPDATE blob SET damaged_at = ?2 WHERE generation = ?1 AND (damaged_at IS NULL) <> (?2 IS NULL)";
    db.run(sql, params![generation.to_string(), at.map(rows::millis)]).map(drop)
}

pub(super) fn find_live_generations(
    db: Db<'_>,
    generations: &[Generation],
) -> StoreResult<Vec<Generation>> {
    let names: Vec<String> = generations.iter().map(Generation::to_string).collect();
    let sql = "SELECT b.generation FROM json_each(?1) g CROSS JOIN blob b ON b.generation = g.value \
               WHERE b.state = 'live'";
    db.all(sql, [serde_json::Value::from(names).to_string()], |row| text(row, 0)?.parse())
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
}

/// Inserts the row of a new live blob.
pub(super) fn insert(db: Db<'_>, new: &NewBlob<'_>, lease_until: Timestamp) -> StoreResult<i64> {
    let NewBlob { account, encryption, digest, size, sealed, key, now } = *new;
    let sql = "INSERT INTO blob (account_id, digest, encryption, size, generation, state, lease_until, created_at, \
               stored_size, key_id, wrapped_key) VALUES (?1, ?2, ?3, ?4, ?5, 'live', ?6, ?7, ?8, ?9, ?10)";
    let (key_id, wrapped_key) = rows::key_columns(key);
    db.insert(
        sql,
        params![
            account,
            digest.as_str(),
            encryption,
            rows::signed(size)?,
            sealed.generation.to_string(),
            rows::millis(lease_until),
            rows::millis(now),
            rows::signed(sealed.stored_size)?,
            key_id,
            wrapped_key
        ],
    )
}

/// Replaces the bytes of a damaged blob with those just written.
pub(super) fn replace_bytes(db: Db<'_>, blob: i64, new: &NewBlob<'_>) -> StoreResult<()> {
    let NewBlob { size, sealed, key, .. } = *new;
    let (key_id, wrapped_key) = rows::key_columns(key);
    let sql = "UPDATE blob SET size = ?2, generation = ?3, stored_size = ?4, key_id = ?5, wrapped_key = ?6, \
               damaged_at = NULL WHERE id = ?1";
    let (size, stored_size) = (rows::signed(size)?, rows::signed(sealed.stored_size)?);
    db.run(
        sql,
        params![blob, size, sealed.generation.to_string(), stored_size, key_id, wrapped_key],
    )
    .map(drop)
}

/// A live blob with its link.
pub(super) struct LinkedBlob {
    link: i64,
    pub(super) blob: i64,
    account: String,
    encryption: String,
    /// See [`ARCHIVED`].
    archived: bool,
    damaged: bool,
}

pub(super) fn find_linked(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
) -> StoreResult<Option<LinkedBlob>> {
    let sql = format!(
        "SELECT l.id, b.id, b.account_id, b.encryption, {ARCHIVED}, b.damaged_at IS NOT NULL \
         FROM repository_blob l JOIN blob b ON b.id = l.blob_id \
         WHERE l.repository_id = ?1 AND l.digest = ?2 AND b.state = 'live'"
    );
    db.first(&sql, params![repository.0, digest.as_str()], |row| {
        Ok(LinkedBlob {
            link: row.get(0)?,
            blob: row.get(1)?,
            account: row.get(2)?,
            encryption: row.get(3)?,
            archived: row.get(4)?,
            damaged: row.get(5)?,
        })
    })
}

/// Links a blob into a repository that does not have its digest, and extends the blob's lease.
pub(super) fn link(
    db: Db<'_>,
    repository: RepositoryId,
    digest: &Digest,
    blob: i64,
    now: Timestamp,
    lease_until: Timestamp,
) -> StoreResult<()> {
    let sql = "INSERT INTO repository_blob (repository_id, digest, blob_id, linked_at) VALUES (?1, ?2, ?3, ?4)";
    db.run(sql, params![repository.0, digest.as_str(), blob, rows::millis(now)])?;
    extend_lease(db, blob, lease_until)
}

/// Extends the lease of a blob that was pushed or mounted again. From then on it is served even if
/// every image that has it is archived.
pub(super) fn confirm(
    db: Db<'_>,
    linked: &LinkedBlob,
    now: Timestamp,
    lease_until: Timestamp,
) -> StoreResult<()> {
    // Later than an archival in the same millisecond.
    let sql = "UPDATE repository_blob SET linked_at = ?2 WHERE id = ?1 AND linked_at < ?2";
    db.run(sql, [linked.link, rows::millis(now).saturating_add(1)])?;
    extend_lease(db, linked.blob, lease_until)
}

fn extend_lease(db: Db<'_>, blob: i64, until: Timestamp) -> StoreResult<()> {
    let sql = "UPDATE blob SET lease_until = ?2 WHERE id = ?1 AND lease_until < ?2";
    db.run(sql, [blob, rows::millis(until)]).map(drop)
}

/// Finds the registry's live blob of a digest under an encryption, with its bytes.
pub(super) fn find_live(
    db: Db<'_>,
    account: &str,
    digest: &Digest,
    encryption: &str,
) -> StoreResult<Option<(i64, BlobKey)>> {
    let sql = concat!(
        "SELECT ",
        blob_columns!(),
        ", b.id FROM blob b WHERE b.account_id = ?1 AND b.digest = ?2 AND b.encryption = ?3 AND b.state = 'live'"
    );
    db.first(sql, [account, digest.as_str(), encryption], |row| Ok((row.get(6)?, bytes(row)?)))
}

/// Finds a live blob by its row id, with its bytes.
pub(super) fn find_live_by_id(db: Db<'_>, blob: i64) -> StoreResult<Option<(i64, BlobKey)>> {
    let sql =
        concat!("SELECT ", blob_columns!(), " FROM blob b WHERE b.id = ?1 AND b.state = 'live'");
    db.first(sql, [blob], |row| Ok((blob, bytes(row)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_of_many_images_costs_as_much_as_one_of_few() {
        let connection = super::super::schema::in_memory();
        for sql in [find_sql(), layer_sql()] {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let steps: Vec<String> =
                statement.raw_query().mapped(|row| row.get(3)).collect::<Result<_, _>>().unwrap();
            // Each lookup of a link's edges reads one place of their index.
            assert!(steps.iter().any(|step| step.contains("manifest_blob_by_link")), "{steps:?}");
            assert!(
                !steps.iter().any(|step| step.starts_with("SCAN") || step.contains("B-TREE")),
                "{steps:?}"
            );
        }
    }
}
