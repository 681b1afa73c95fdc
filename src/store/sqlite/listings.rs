//! What is read of images: the manifest of a pull, images by reference, and keyset pages of everything.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rusqlite::{Row, params};

use super::db::{Db, text, text_or_null};
use super::repositories;
use crate::names::{AccountId, Digest, Reference, RepositoryName, Tag};
use crate::store::images::{
    Image, ImageFilter, ImageIdentifier, ImageRange, Manifest, ManifestId, ReferrerFilter, TaggedImage, statuses,
};
use crate::store::repositories::RepositoryId;
use crate::store::{Lookup, StoreResult, rows};

pub(super) fn find_manifest(
    db: Db<'_>,
    account: &AccountId,
    repository: &RepositoryName,
    reference: &Reference,
) -> StoreResult<Lookup<Manifest>> {
    let (sql, reference) = match reference {
        Reference::Tag(tag) => (
            "SELECT m.id, m.digest, m.media_type, p.payload, m.status, m.last_pulled_at FROM repository r \
             JOIN tag t ON t.repository_id = r.id AND t.name = ?3 JOIN manifest m ON m.id = t.manifest_id \
             JOIN manifest_payload p ON p.manifest_id = m.id WHERE r.account_id = ?1 AND r.name = ?2",
            tag.as_str(),
        ),
        Reference::Digest(digest) => (
            "SELECT m.id, m.digest, m.media_type, p.payload, m.status, m.last_pulled_at FROM repository r \
             JOIN manifest m ON m.repository_id = r.id AND m.digest = ?3 \
             JOIN manifest_payload p ON p.manifest_id = m.id WHERE r.account_id = ?1 AND r.name = ?2",
            digest.as_str(),
        ),
    };
    let found = db.first(sql, [account.as_str(), repository.as_str(), reference], |row| {
        Ok(Manifest {
            id: ManifestId(row.get(0)?),
            digest: digest(row, 1)?,
            media_type: row.get(2)?,
            payload: Bytes::from(row.get::<_, Vec<u8>>(3)?),
            status: rows::status(text(row, 4)?)?,
            last_pulled_at: time(row, 5)?,
        })
    })?;
    Ok(match found {
        Some(manifest) => Lookup::Found(manifest),
        None if repositories::exists_by_name(db, account, repository)? => Lookup::Missing,
        None => Lookup::NoRepository,
    })
}

fn digest(row: &Row<'_>, column: usize) -> StoreResult<Digest> {
    rows::parse(text(row, column)?)
}

fn time(row: &Row<'_>, column: usize) -> StoreResult<Option<jiff::Timestamp>> {
    row.get::<_, Option<i64>>(column)?.map(rows::time).transpose()
}

/// The columns that [`image`] reads.
const IMAGE: &str = "m.id, m.digest, m.media_type, m.artifact_type, m.config_media_type, m.payload_size, \
                     m.image_size, m.subject, m.pushed_at, m.last_pulled_at, m.status, m.archived_at, \
                     m.activated_at, m.revision";

fn image(row: &Row<'_>) -> StoreResult<Image> {
    Ok(Image {
        id: ManifestId(row.get(0)?),
        digest: digest(row, 1)?,
        media_type: row.get(2)?,
        artifact_type: row.get(3)?,
        config_media_type: row.get(4)?,
        payload_size: rows::unsigned(row.get(5)?)?,
        image_size: rows::unsigned(row.get(6)?)?,
        subject: text_or_null(row, 7)?.map(rows::parse).transpose()?,
        annotations: BTreeMap::new(),
        pushed_at: rows::time(row.get(8)?)?,
        last_pulled_at: time(row, 9)?,
        status: rows::status(text(row, 10)?)?,
        archived_at: time(row, 11)?,
        activated_at: time(row, 12)?,
        revision: rows::unsigned(row.get(13)?)?,
    })
}

/// An image with its annotations, the column after those of [`IMAGE`], which only lists of referrers read.
fn referrer(row: &Row<'_>) -> StoreResult<Image> {
    Ok(Image { annotations: rows::annotations_of(text_or_null(row, 14)?)?, ..image(row)? })
}

/// An image's tags, sorted.
pub(super) fn tags_of(db: Db<'_>, manifest: ManifestId) -> StoreResult<Vec<Tag>> {
    let sql = "SELECT name FROM tag WHERE manifest_id = ?1 ORDER BY name";
    db.all(sql, [manifest.0], |row| rows::parse(text(row, 0)?))
}

fn with_tags(db: Db<'_>, image: Image) -> StoreResult<TaggedImage> {
    let tags = tags_of(db, image.id)?;
    Ok(TaggedImage { image, tags })
}

pub(super) fn tags(db: Db<'_>, repository: RepositoryId, after: Option<&str>, limit: usize) -> StoreResult<Vec<Tag>> {
    // The index `tag_listed` holds these and no others, so the text says what its text says.
    let sql = format!(
        "SELECT name FROM tag WHERE repository_id = ?1 AND name > ?2 AND archived_at IS NULL AND length(name) <= {} \
         ORDER BY name LIMIT ?3",
        Tag::MAX_OCI
    );
    db.all(&sql, params![repository.0, after.unwrap_or_default(), rows::limit(limit)], |row| rows::parse(text(row, 0)?))
}

pub(super) fn images(
    db: Db<'_>,
    repository: RepositoryId,
    references: &[Reference],
) -> StoreResult<Vec<Option<TaggedImage>>> {
    let by_tag = format!(
        "SELECT {IMAGE} FROM tag t JOIN manifest m ON m.id = t.manifest_id WHERE t.repository_id = ?1 AND t.name = ?2"
    );
    let by_digest = format!("SELECT {IMAGE} FROM manifest m WHERE m.repository_id = ?1 AND m.digest = ?2");
    let find = |reference: &Reference| {
        let (sql, name) = match reference {
            Reference::Tag(tag) => (&by_tag, tag.as_str()),
            Reference::Digest(digest) => (&by_digest, digest.as_str()),
        };
        let found = db.first(sql, params![repository.0, name], image)?;
        found.map(|image| with_tags(db, image)).transpose()
    };
    references.iter().map(find).collect()
}

/// An image on a page of a listing.
struct Listed {
    id: i64,
    digest: Digest,
    tag_count: i64,
}

/// The images of a filter whose digests are `from` or greater, in the order of their digests. Each range of the filter is one of
/// the index; what they give together is merged here.
fn page(
    db: Db<'_>,
    repository: RepositoryId,
    filter: ImageFilter,
    from: &str,
    limit: usize,
) -> StoreResult<Vec<Listed>> {
    let listed = |row: &Row<'_>| Ok(Listed { id: row.get(0)?, digest: digest(row, 1)?, tag_count: row.get(2)? });
    let ranges = filter.ranges();
    if ranges.is_empty() {
        let sql = "SELECT id, digest, tag_count FROM manifest \
                   WHERE repository_id = ?1 AND digest >= ?2 ORDER BY digest LIMIT ?3";
        return db.all(sql, params![repository.0, from, rows::limit(limit)], listed);
    }
    let mut page = Vec::new();
    for ImageRange { status, tagged } in ranges {
        let sql = "SELECT id, digest, tag_count FROM manifest \
                   WHERE repository_id = ?1 AND status = ?4 AND min(tag_count, 1) = ?5 AND digest >= ?2 \
                   ORDER BY digest LIMIT ?3";
        let values = params![repository.0, from, rows::limit(limit), status.as_str(), i64::from(tagged)];
        page.extend(db.all(sql, values, listed)?);
    }
    page.sort_unstable_by(|one, other| one.digest.cmp(&other.digest));
    page.truncate(limit);
    Ok(page)
}

pub(super) fn list_images(
    db: Db<'_>,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&Digest>,
    limit: usize,
) -> StoreResult<Vec<TaggedImage>> {
    let by_id = format!("SELECT {IMAGE} FROM manifest m WHERE m.id = ?1");
    let mut images = Vec::new();
    for Listed { id, digest, tag_count } in page(db, repository, filter, after.map_or("", Digest::as_str), limit + 1)? {
        if after == Some(&digest) || images.len() == limit {
            continue;
        }
        let tags = if tag_count == 0 { Vec::new() } else { tags_of(db, ManifestId(id))? };
        let image = db.first(&by_id, [id], image)?;
        images.extend(image.map(|image| TaggedImage { image, tags }));
    }
    Ok(images)
}

pub(super) fn list_image_ids(
    db: Db<'_>,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&ImageIdentifier>,
    limit: usize,
) -> StoreResult<Vec<ImageIdentifier>> {
    let from = after.map_or("", |after| after.digest.as_str());
    let mut entries = Vec::new();
    // Each image but the first has an entry, so one more than the page are enough.
    for Listed { id, digest, tag_count } in page(db, repository, filter, from, limit + 1)? {
        if entries.len() == limit {
            break;
        }
        let begun = after.filter(|after| after.digest == digest);
        if tag_count == 0 {
            // An entry without a tag comes before those with one.
            entries.extend(begun.is_none().then_some(ImageIdentifier { digest, tag: None }));
            continue;
        }
        let last = begun.and_then(|after| after.tag.as_ref()).map_or("", Tag::as_str);
        let sql = "SELECT name FROM tag WHERE manifest_id = ?1 AND name > ?2 ORDER BY name LIMIT ?3";
        let names =
            db.all(sql, params![id, last, rows::limit(limit - entries.len())], |row| rows::parse(text(row, 0)?))?;
        entries.extend(names.into_iter().map(|tag| ImageIdentifier { digest: digest.clone(), tag: Some(tag) }));
    }
    Ok(entries)
}

pub(super) fn index_edges(
    db: Db<'_>,
    repository: RepositoryId,
    after: Option<&(Digest, Digest)>,
    limit: usize,
) -> StoreResult<Vec<(Digest, Digest)>> {
    let (parent, child) = after.map_or(("", ""), |(parent, child)| (parent.as_str(), child.as_str()));
    let sql = "SELECT p.digest, c.digest FROM manifest p JOIN manifest_child e ON e.parent_id = p.id \
               JOIN manifest c ON c.id = e.child_id \
               WHERE p.repository_id = ?1 AND p.digest >= ?2 AND (p.digest > ?2 OR c.digest > ?3) \
               ORDER BY p.digest, c.digest LIMIT ?4";
    let values = params![repository.0, parent, child, rows::limit(limit)];
    db.all(sql, values, |row| Ok((digest(row, 0)?, digest(row, 1)?)))
}

pub(super) fn referrers(
    db: Db<'_>,
    repository: RepositoryId,
    subject: &Digest,
    filter: &ReferrerFilter,
    after: Option<&Digest>,
    limit: usize,
) -> StoreResult<Vec<Image>> {
    let of_any_type = format!(
        "SELECT {IMAGE}, m.annotations FROM manifest m WHERE m.repository_id = ?1 AND m.subject = ?2 AND m.status = ?3 \
         AND m.digest > ?4 ORDER BY m.digest LIMIT ?5"
    );
    let of_type = format!(
        "SELECT {IMAGE}, m.annotations FROM manifest m WHERE m.repository_id = ?1 AND m.subject = ?2 AND m.status = ?3 \
         AND coalesce(m.artifact_type, m.config_media_type) = ?6 AND m.digest > ?4 ORDER BY m.digest LIMIT ?5"
    );
    // Each type counts once.
    let types: BTreeSet<&str> = filter.artifact_types.iter().map(String::as_str).collect();
    let (subject, after, limited) = (subject.as_str(), after.map_or("", Digest::as_str), rows::limit(limit));
    let mut page = Vec::new();
    for status in statuses(filter.status) {
        let status = status.as_str();
        if types.is_empty() {
            page.extend(db.all(&of_any_type, params![repository.0, subject, status, after, limited], referrer)?);
        }
        for kind in &types {
            page.extend(db.all(&of_type, params![repository.0, subject, status, after, limited, kind], referrer)?);
        }
    }
    page.sort_unstable_by(|one, other| one.digest.cmp(&other.digest));
    page.truncate(limit);
    Ok(page)
}
