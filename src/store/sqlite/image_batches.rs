//! Deletion of many images and tags in one transaction.

use jiff::Timestamp;

use super::db::Db;
use super::image_deletion::{delete, delete_tag};
use crate::StoreResult;
use crate::images::{
    DeleteImageError, ImageDeleted, ImageDeletion, LastTag, Referrers, TagDeleted,
};
use crate::repositories::RepositoryId;

pub(super) fn delete_all(
    db: Db<'_>,
    repository: RepositoryId,
    deletions: &[ImageDeletion],
    now: Timestamp,
) -> StoreResult<Vec<Result<ImageDeleted, DeleteImageError>>> {
    let one = |deletion: &ImageDeletion| match deletion {
        ImageDeletion::Image(digest) => {
            let tags = delete(db, repository, digest, Referrers::Follow, now)?;
            Ok(ImageDeleted { digest: digest.clone(), tags, image_deleted: true })
        }
        ImageDeletion::Tag { tag, expected } => {
            let TagDeleted { digest, image_deleted } =
                delete_tag(db, repository, tag, expected.as_ref(), LastTag::DeletesImage, now)?;
            Ok(ImageDeleted { digest, tags: vec![tag.clone()], image_deleted })
        }
    };
    // A refusal comes before the first write, so it leaves nothing half done.
    let refused_or_done = |deletion| match one(deletion) {
        Err(DeleteImageError::Store(error)) => Err(error),
        other => Ok(other),
    };
    deletions.iter().map(refused_or_done).collect()
}
