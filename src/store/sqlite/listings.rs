//! What is read of images: the manifest of a pull, images by reference, and keyset pages of everything.

use bytes::Bytes;
use rusqlite::{Row, params};

use super::db::{Db, text, text_or_null};
use super::repositories;
use crate::names::{AccountId, Digest, Reference, RepositoryName, Tag};
use crate::store::images::{
    Image, ImageFilter, ImageIdentifier, ImageStatus, Manifest, ManifestId, ReferrerFilter, TagStatusFilter,
    TaggedImage,
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

const IMAGE: &str = "m.id, m.digest, m.media_type, m.artifact_type, m.config_media_type, m.payload_size, \
                     m.image_size, m.subject, m.annotations, m.pushed_at, m.last_pulled_at, m.status, m.archived_at, \
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
        annotations: rows::annotations_of(text_or_null(row, 8)?)?,
        pushed_at: rows::time(row.get(9)?)?,
        last_pulled_at: time(row, 10)?,
        status: rows::status(text(row, 11)?)?,
        archived_at: time(row, 12)?,
        activated_at: time(row, 13)?,
        revision: rows::unsigned(row.get(14)?)?,
    })
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
    let sql = "SELECT t.name FROM tag t JOIN manifest m ON m.id = t.manifest_id \
               WHERE t.repository_id = ?1 AND t.name > ?2 AND length(t.name) <= ?4 AND m.status <> 'ARCHIVED' \
               ORDER BY t.name LIMIT ?3";
    let values = params![repository.0, after.unwrap_or_default(), rows::limit(limit), rows::limit(Tag::MAX_OCI)];
    db.all(sql, values, |row| rows::parse(text(row, 0)?))
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

/// The manifests of a filter's status, by the index that finds them: those that are not active are few and have their own.
fn of_status(status: Option<ImageStatus>) -> (&'static str, &'static str) {
    match status {
        None => ("manifest m", ""),
        Some(ImageStatus::Active) => ("manifest m", " AND m.status = 'ACTIVE'"),
        Some(ImageStatus::Archived) => {
            ("manifest m INDEXED BY manifest_not_active", " AND m.status <> 'ACTIVE' AND m.status = 'ARCHIVED'")
        }
        Some(ImageStatus::Activating) => {
            ("manifest m INDEXED BY manifest_not_active", " AND m.status <> 'ACTIVE' AND m.status = 'ACTIVATING'")
        }
    }
}

fn list_images_sql(filter: ImageFilter) -> String {
    let (manifests, of_status) = of_status(filter.status);
    let of_tags = match filter.tag_status {
        TagStatusFilter::Any => "",
        TagStatusFilter::Tagged => " AND EXISTS (SELECT 1 FROM tag t WHERE t.manifest_id = m.id)",
        TagStatusFilter::Untagged => " AND NOT EXISTS (SELECT 1 FROM tag t WHERE t.manifest_id = m.id)",
    };
    format!(
        "SELECT {IMAGE} FROM {manifests} WHERE m.repository_id = ?1 AND m.digest > ?2{of_status}{of_tags} \
         ORDER BY m.digest LIMIT ?3"
    )
}

pub(super) fn list_images(
    db: Db<'_>,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&Digest>,
    limit: usize,
) -> StoreResult<Vec<TaggedImage>> {
    let after = after.map_or("", Digest::as_str);
    let page = db.all(&list_images_sql(filter), params![repository.0, after, rows::limit(limit)], image)?;
    page.into_iter().map(|image| with_tags(db, image)).collect()
}

fn list_image_ids_sql(filter: ImageFilter) -> String {
    let (manifests, of_status) = of_status(filter.status);
    let (join, of_tags) = match filter.tag_status {
        TagStatusFilter::Any => ("LEFT JOIN", ""),
        TagStatusFilter::Tagged => ("JOIN", ""),
        TagStatusFilter::Untagged => ("LEFT JOIN", " AND t.name IS NULL"),
    };
    // An entry without a tag comes before those with one, and no tag is empty.
    format!(
        "SELECT m.digest, t.name FROM {manifests} {join} tag t ON t.manifest_id = m.id \
         WHERE m.repository_id = ?1 AND m.digest >= ?2 AND (m.digest > ?2 OR t.name > ?3){of_status}{of_tags} \
         ORDER BY m.digest, t.name LIMIT ?4"
    )
}

pub(super) fn list_image_ids(
    db: Db<'_>,
    repository: RepositoryId,
    filter: ImageFilter,
    after: Option<&ImageIdentifier>,
    limit: usize,
) -> StoreResult<Vec<ImageIdentifier>> {
    let after_digest = after.map_or("", |after| after.digest.as_str());
    let after_tag = after.and_then(|after| after.tag.as_ref()).map_or("", Tag::as_str);
    let values = params![repository.0, after_digest, after_tag, rows::limit(limit)];
    db.all(&list_image_ids_sql(filter), values, |row| {
        let tag = text_or_null(row, 1)?.map(rows::parse).transpose()?;
        Ok(ImageIdentifier { digest: digest(row, 0)?, tag })
    })
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
    let sql = format!(
        "SELECT {IMAGE} FROM manifest m WHERE m.repository_id = ?1 AND m.subject = ?2 AND m.digest > ?3 \
         AND (?4 IS NULL OR coalesce(m.artifact_type, m.config_media_type) IN (SELECT value FROM json_each(?4))) \
         AND (?5 IS NULL OR m.status = ?5) ORDER BY m.digest LIMIT ?6"
    );
    let ReferrerFilter { artifact_types, status } = filter;
    let types = if artifact_types.is_empty() { None } else { Some(rows::json(artifact_types)?) };
    let after = after.map_or("", Digest::as_str);
    let status = status.map(ImageStatus::as_str);
    db.all(&sql, params![repository.0, subject.as_str(), after, types, status, rows::limit(limit)], image)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    /// How SQLite would carry out a statement.
    fn plan(connection: &Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps = statement.raw_query().mapped(|row| row.get(3));
        steps.map(Result::unwrap).collect()
    }

    #[test]
    fn a_page_of_images_costs_what_is_on_it() {
        let connection = super::super::in_memory();
        use ImageStatus::{Activating, Active, Archived};
        use TagStatusFilter::{Any, Tagged, Untagged};
        for tag_status in [Any, Tagged, Untagged] {
            for status in [None, Some(Active), Some(Archived), Some(Activating)] {
                let filter = ImageFilter { tag_status, status };
                for sql in [list_images_sql(filter), list_image_ids_sql(filter)] {
                    let steps = plan(&connection, &sql);
                    // Sorting the tags of one image is no matter; sorting images would be.
                    let sorts_or_scans = |step: &String| step.starts_with("SCAN") || step.ends_with("FOR ORDER BY");
                    assert!(!steps.iter().any(sorts_or_scans), "{filter:?}: {steps:?}");
                }
            }
        }
    }
}
