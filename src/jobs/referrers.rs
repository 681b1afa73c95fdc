//! Lets signatures and other referrers follow their subject when the API deleted it or moved it to another storage class:
//! Amazon ECR promises that within a day. (At `/v2/` a referrer may outlive its subject.)

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::JobError;
use crate::names::{Digest, Reference};
use crate::registry::Registry;
use crate::store::images::{DeleteImageError, Image, ImageStatus, ReferrerFilter, StorageClass, StorageClassError};
use crate::store::jobs::NewJob;
use crate::store::repositories::RepositoryId;
use crate::store::{Metadata, StoreResult};

/// The kind of these jobs.
pub const KIND: &str = "referrers";

/// How long a subject that went may come back before its referrers go: a push that is tried again pushes it anew.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);
const PAGE: usize = 100;

#[derive(Serialize, Deserialize)]
struct Payload {
    repository: i64,
    subject: Digest,
}

/// Enqueues the job for a subject that goes, or went, or moved; nothing if nothing refers to it.
///
/// # Errors
/// The store's.
pub async fn enqueue(
    metadata: &dyn Metadata,
    repository: RepositoryId,
    subject: &Digest,
    now: Timestamp,
) -> StoreResult<()> {
    if page(metadata, repository, subject, None, 1).await?.is_empty() {
        return Ok(());
    }
    let key = format!("{}/{subject}", repository.0);
    let payload = serde_json::json!({ "repository": repository.0, "subject": subject }).to_string();
    let run_at = now.checked_add(PATIENCE).unwrap_or(now);
    metadata.enqueue_job(NewJob { kind: KIND.into(), key, payload, run_at }).await
}

async fn page(
    metadata: &dyn Metadata,
    repository: RepositoryId,
    subject: &Digest,
    after: Option<&Digest>,
    limit: usize,
) -> StoreResult<Vec<Image>> {
    let everything = ReferrerFilter { artifact_types: Vec::new(), status: None };
    metadata.referrers(repository, subject, &everything, after, limit).await
}

/// What the subject's state asks of its referrers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    Away,
    To(StorageClass),
}

/// Makes the referrers what their subject is now: gone, archived or active.
pub(crate) async fn run(registry: &Arc<Registry>, payload: &str) -> Result<(), JobError> {
    let Payload { repository, subject } = serde_json::from_str(payload)
        .map_err(|error| JobError::Hopeless(format!("the payload {payload:?} does not parse: {error}")))?;
    let (repository, metadata) = (RepositoryId(repository), registry.metadata.as_ref());
    let found = metadata.images(repository, &[Reference::Digest(subject.clone())]).await?;
    let follow = match found.into_iter().next().flatten().map(|found| found.image.status) {
        None => Follow::Away,
        Some(ImageStatus::Archived) => Follow::To(StorageClass::Archive),
        Some(ImageStatus::Active | ImageStatus::Activating) => Follow::To(StorageClass::Standard),
    };
    let (mut after, mut followed) = (None, 0_u64);
    loop {
        let referrers = page(metadata, repository, &subject, after.as_ref(), PAGE).await?;
        for referrer in &referrers {
            // What refers to a referrer follows it in turn.
            enqueue(metadata, repository, &referrer.digest, Timestamp::now()).await?;
            followed += u64::from(act(metadata, repository, &referrer.digest, follow).await?);
        }
        if referrers.len() < PAGE {
            break;
        }
        after = referrers.last().map(|referrer| referrer.digest.clone());
    }
    tracing::info!(repository = repository.0, %subject, ?follow, followed, "referrers followed their subject");
    Ok(())
}

/// Whether anything changed: who is there already, gone already or held by an index stays as it is.
async fn act(metadata: &dyn Metadata, repository: RepositoryId, digest: &Digest, follow: Follow) -> StoreResult<bool> {
    let now = Timestamp::now();
    match follow {
        Follow::Away => match metadata.delete_image(repository, digest, now).await {
            Ok(_tags) => Ok(true),
            Err(DeleteImageError::Store(error)) => Err(error),
            Err(_) => Ok(false),
        },
        Follow::To(class) => match metadata.set_storage_class(repository, digest, class, now).await {
            Ok(_status) => Ok(true),
            Err(StorageClassError::Store(error)) => Err(error),
            Err(_) => Ok(false),
        },
    }
}
