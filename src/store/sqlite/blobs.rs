//! Blobs in repositories: look-ups, links, leases.

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::db::{Db, text};
use super::repositories;
use crate::names::{AccountId, Digest, RepositoryName};
use crate::store::images::{Blob, Layer, MountBlob, UnlinkBlob};
use crate::store::repositories::RepositoryId;
use crate::store::{BlobKey, Generation, KeyReference, Lookup, Sealed, StoreResult, rows};

/// The columns that [`bytes()`] and [`blob`] read, of the table `b`.
macro_rules! blob_columns {
    () => {
        "b.size, b.generation, b.stored_size, b.key_id, b.wrapped_key, b.damaged_at IS NOT NULL"
    };
}

fn bytes(row: &Row<'_>) -> StoreResult<BlobKey> {
    Ok(BlobKey {
        generation: rows::parse(text(row, 1)?)?,
        size: rows::unsigned(row.get(0)?)?,
        stored_size: rows::unsigned(row.get(2)?)?,
        key: rows::key_reference(row.get(3)?, row.get(4)?)?,
    })
}

/// Whether every image that has the blob of link `l` is archived, and nobody has pushed the blob since.
const ARCHIVED: &str = "(EXISTS (SELECT 1 FROM manifest_blob e WHERE e.link_id = l.id AND e.archived_at >= l.linked_at) \
                        AND NOT EXISTS (SELECT 1 FROM manifest_blob e WHERE e.link_id = l.id AND e.archived_at IS NULL))";

fn blob(row: &Row<'_>, digest: &Digest) -> StoreResult<Blob> {
    Ok(Blob { digest: digest.clone(), bytes: bytes(row)?, damaged: row.get(5)? })
}

pub(super) fn find(
    db: Db<'_>,
    account: &AccountId,
    repository: &RepositoryName,
    digest: &Digest,
) -> StoreResult<Lookup<Blob>> {
    let found = db.first(&find_sql(), [account.as_str(), repository.as_str(), digest.as_str()], |row| {
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

fn layer(db: Db<'_>, repository: RepositoryId, digest: &Digest) -> StoreResult<Option<Layer>> {
    db.first(&layer_sql(), params![repository.0, digest.as_str()], |row| {
        let media_type: Option<String> = row.get(6)?;
        // Every edge has a media type, so there is one where there is an edge.
        let referenced = media_type.is_some();
        Ok(Layer { blob: blob(row, digest)?, media_type, referenced, archived: row.get(7)? })
    })
}

/// The media type is an active image's where there is one, and the oldest such image's.
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

pub(super) fn layers(db: Db<'_>, repository: RepositoryId, digests: &[Digest]) -> StoreResult<Vec<Option<Layer>>> {
    digests.iter().map(|digest| layer(db, repository, digest)).collect()
}

pub(super) fn sources(
    db: Db<'_>,
    account: &AccountId,
    digest: &Digest,
    limit: usize,
) -> StoreResult<Vec<(RepositoryId, RepositoryName)>> {
    // By the state alone, which the planner may prefer, it would be all blobs.
    let sql = "SELECT r.id, r.name FROM blob b INDEXED BY blob_live \
               CROSS JOIN repository_blob l ON l.id IN \
                 (SELECT id FROM repository_blob WHERE blob_id = b.id ORDER BY id LIMIT ?3) \
               JOIN repository r ON r.id = l.repository_id AND r.deleted_at IS NULL \
               WHERE b.account_id = ?1 AND b.digest = ?2 AND b.state = 'live' AND b.damaged_at IS NULL LIMIT ?3";
    db.all(sql, params![account.as_str(), digest.as_str(), rows::limit(limit)], |row| {
        Ok((RepositoryId(row.get(0)?), rows::parse(text(row, 1)?)?))
    })
}

/// A live blob as links see it.
pub(super) struct Linked {
    link: i64,
    pub(super) blob: i64,
    account: String,
    encryption: String,
    /// See [`ARCHIVED`].
    archived: bool,
    damaged: bool,
}

pub(super) fn linked(db: Db<'_>, repository: RepositoryId, digest: &Digest) -> StoreResult<Option<Linked>> {
    let sql = format!(
        "SELECT l.id, b.id, b.account_id, b.encryption, {ARCHIVED}, b.damaged_at IS NOT NULL \
         FROM repository_blob l JOIN blob b ON b.id = l.blob_id \
         WHERE l.repository_id = ?1 AND l.digest = ?2 AND b.state = 'live'"
    );
    db.first(&sql, params![repository.0, digest.as_str()], |row| {
        Ok(Linked {
            link: row.get(0)?,
            blob: row.get(1)?,
            account: row.get(2)?,
            encryption: row.get(3)?,
            archived: row.get(4)?,
            damaged: row.get(5)?,
        })
    })
}

/// Puts a blob into a repository that does not have its digest, and moves the blob's lease.
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
    move_lease(db, blob, lease_until)
}

fn move_lease(db: Db<'_>, blob: i64, until: Timestamp) -> StoreResult<()> {
    let sql = "UPDATE blob SET lease_until = ?2 WHERE id = ?1 AND lease_until < ?2";
    db.run(sql, [blob, rows::millis(until)]).map(drop)
}

pub(super) fn mount(
    db: Db<'_>,
    from: RepositoryId,
    to: RepositoryId,
    digest: &Digest,
    referenced_only: bool,
    now: Timestamp,
    lease_until: Timestamp,
) -> StoreResult<MountBlob> {
    let Some(target) = repositories::by_id(db, to)? else { return Ok(MountBlob::NotMountable) };
    if let Some(present) = linked(db, to, digest)? {
        if present.damaged {
            return Ok(MountBlob::NotMountable);
        }
        confirm(db, &present, now, lease_until)?;
        return Ok(MountBlob::Mounted);
    }
    let Some(source) = linked(db, from, digest)? else { return Ok(MountBlob::NotMountable) };
    let alike = source.account == target.account.as_str() && source.encryption == rows::encryption(&target.encryption);
    let referenced = || db.exists("SELECT 1 FROM manifest_blob WHERE link_id = ?1", [source.link]);
    if source.damaged || source.archived || !alike || (referenced_only && !referenced()?) {
        return Ok(MountBlob::NotMountable);
    }
    link(db, to, digest, source.blob, now, lease_until)?;
    Ok(MountBlob::Mounted)
}

pub(super) fn unlink(db: Db<'_>, repository: RepositoryId, digest: &Digest) -> StoreResult<UnlinkBlob> {
    let Some(Linked { link, .. }) = linked(db, repository, digest)? else {
        return Ok(UnlinkBlob::NotFound);
    };
    if db.exists("SELECT 1 FROM manifest_blob WHERE link_id = ?1", [link])? {
        return Ok(UnlinkBlob::InUse);
    }
    db.run("DELETE FROM repository_blob WHERE id = ?1", [link])?;
    Ok(UnlinkBlob::Unlinked)
}

/// Those of the blobs whose leases end before `until`.
pub(super) fn short_leases(
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

pub(super) fn extend_leases(
    db: Db<'_>,
    repository: RepositoryId,
    digests: &[Digest],
    until: Timestamp,
) -> StoreResult<()> {
    for digest in digests {
        if let Some(Linked { blob, .. }) = linked(db, repository, digest)? {
            move_lease(db, blob, until)?;
        }
    }
    Ok(())
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

/// Adds the row of a new live blob.
pub(super) fn add(db: Db<'_>, new: &NewBlob<'_>, lease_until: Timestamp) -> StoreResult<i64> {
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

/// Gives a damaged blob the bytes that were just written.
pub(super) fn replace_bytes(db: Db<'_>, blob: i64, new: &NewBlob<'_>) -> StoreResult<()> {
    let NewBlob { size, sealed, key, .. } = *new;
    let (key_id, wrapped_key) = rows::key_columns(key);
    let sql = "UPDATE blob SET size = ?2, generation = ?3, stored_size = ?4, key_id = ?5, wrapped_key = ?6, \
               damaged_at = NULL WHERE id = ?1";
    let (size, stored_size) = (rows::signed(size)?, rows::signed(sealed.stored_size)?);
    db.run(sql, params![blob, size, sealed.generation.to_string(), stored_size, key_id, wrapped_key]).map(drop)
}

pub(super) fn set_damaged(db: Db<'_>, generation: Generation, at: Option<Timestamp>) -> StoreResult<()> {
    let sql = "UPDATE blob SET damaged_at = ?2 WHERE generation = ?1 AND (damaged_at IS NULL) <> (?2 IS NULL)";
    db.run(sql, params![generation.to_string(), at.map(rows::millis)]).map(drop)
}

pub(super) fn live_generations(db: Db<'_>, generations: &[Generation]) -> StoreResult<Vec<Generation>> {
    let names: Vec<String> = generations.iter().map(Generation::to_string).collect();
    let sql = "SELECT b.generation FROM json_each(?1) g CROSS JOIN blob b ON b.generation = g.value \
               WHERE b.state = 'live'";
    db.all(sql, [serde_json::Value::from(names).to_string()], |row| text(row, 0)?.parse())
}

/// Keeps a blob that was pushed or mounted again: its lease is moved, and it is served although every image that has it may
/// be archived.
pub(super) fn confirm(db: Db<'_>, linked: &Linked, now: Timestamp, lease_until: Timestamp) -> StoreResult<()> {
    // Later than an archival in the same millisecond.
    let sql = "UPDATE repository_blob SET linked_at = ?2 WHERE id = ?1 AND linked_at < ?2";
    db.run(sql, [linked.link, rows::millis(now).saturating_add(1)])?;
    move_lease(db, linked.blob, lease_until)
}

/// The registry's live blob of a digest under an encryption, and its bytes.
pub(super) fn live(
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

/// A live blob and its bytes.
pub(super) fn by_id(db: Db<'_>, blob: i64) -> StoreResult<Option<(i64, BlobKey)>> {
    let sql = concat!("SELECT ", blob_columns!(), " FROM blob b WHERE b.id = ?1 AND b.state = 'live'");
    db.first(sql, [blob], |row| Ok((blob, bytes(row)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_of_many_images_costs_as_much_as_one_of_few() {
        let connection = super::super::in_memory();
        for sql in [find_sql(), layer_sql()] {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let steps: Vec<String> = statement.raw_query().mapped(|row| row.get(3)).collect::<Result<_, _>>().unwrap();
            // Each look at the edges of a link is at one place of their index.
            assert!(steps.iter().any(|step| step.contains("manifest_blob_by_link")), "{steps:?}");
            assert!(!steps.iter().any(|step| step.starts_with("SCAN") || step.contains("B-TREE")), "{steps:?}");
        }
    }
}
