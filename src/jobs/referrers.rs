//! Signatures and other referrers follow their subject when the API or a lifecycle policy deletes,
//! archives or restores it. (At `/v2/`, a referrer may outlive its subject.) The store writes the
//! jobs in the transaction of their cause.

use jiff::Timestamp;

use wharfage_store::images::ReferrerFilter;
use wharfage_store::jobs::FollowSubject;
use wharfage_store::{Metadata, StoreResult};

const PAGE: usize = 100;

/// Deletes, archives or restores the referrers like their subject. The subject is checked again for
/// each referrer: one that was pushed again keeps its referrers. The referrers of a referrer follow
/// it by another job.
pub async fn run(metadata: &dyn Metadata, follow: &FollowSubject) -> StoreResult<()> {
    let FollowSubject { repository, subject } = follow;
    let repository = *repository;
    let everything = ReferrerFilter { artifact_types: Vec::new(), status: None };
    let (mut after, mut followed) = (None, 0_u64);
    loop {
        let referrers =
            metadata.list_referrers(repository, subject, &everything, after.as_ref(), PAGE).await?;
        for referrer in &referrers {
            followed += u64::from(
                metadata.follow_subject(repository, &referrer.digest, Timestamp::now()).await?,
            );
        }
        if referrers.len() < PAGE {
            break;
        }
        after = referrers.last().map(|referrer| referrer.digest.clone());
    }
    tracing::info!(repository = repository.0, %subject, followed, "referrers followed their subject");
    Ok(())
}
