//! Has signatures and other referrers follow their subject when it was deleted by the API or a lifecycle policy, archived or
//! restored. (At `/v2/` a referrer may outlive its subject.) The jobs are written by the store, along with their cause.

use jiff::Timestamp;

use wharfage_store::images::ReferrerFilter;
use wharfage_store::jobs::FollowSubject;
use wharfage_store::{Metadata, StoreResult};

const PAGE: usize = 100;

/// Makes the referrers what their subject is by now. What that is, is looked at again for each: a subject that was pushed
/// again keeps its referrers. What refers to a referrer follows it by a job of its own.
pub async fn run(metadata: &dyn Metadata, follow: &FollowSubject) -> StoreResult<()> {
    let FollowSubject { repository, subject } = follow;
    let repository = *repository;
    let everything = ReferrerFilter { artifact_types: Vec::new(), status: None };
    let (mut after, mut followed) = (None, 0_u64);
    loop {
        let referrers = metadata.list_referrers(repository, subject, &everything, after.as_ref(), PAGE).await?;
        for referrer in &referrers {
            followed += u64::from(metadata.follow_subject(repository, &referrer.digest, Timestamp::now()).await?);
        }
        if referrers.len() < PAGE {
            break;
        }
        after = referrers.last().map(|referrer| referrer.digest.clone());
    }
    tracing::info!(repository = repository.0, %subject, followed, "referrers followed their subject");
    Ok(())
}
