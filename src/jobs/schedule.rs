//! Periodic work: due lifecycle policies, idle uploads, old events and usage counts, each with its
//! own interval.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{JobContext, JobError, JobSettings, pause};
use wharfage_process::shutdown::Stop;
use wharfage_store::StoreResult;
use wharfage_store::jobs::{JobPayload as _, PruneEvents};
use wharfage_store::repositories::LifecycleSchedule;

/// The number of rows per transaction.
const PAGE: usize = 500;
/// The interval of folding changes of usage: a count adds the changes since.
const FOLD_INTERVAL: Duration = Duration::from_secs(2);
/// The interval of checks for idle uploads and old events.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Enqueues the lifecycle policies that are due, until `stop`.
pub(super) async fn lifecycle(
    context: Arc<JobContext>,
    settings: Arc<JobSettings>,
    mut stop: Stop,
) {
    let every =
        (settings.lifecycle_interval / 4).clamp(Duration::from_millis(250), Duration::from_secs(5));
    while !*stop.borrow() {
        if let Err(error) = enqueue_due(&context, &settings, Timestamp::now(), PAGE).await {
            tracing::warn!(%error, "cannot enqueue due lifecycle policies; trying again");
        }
        pause(every, &mut stop).await;
    }
}

/// Enqueues whole pages of policies until none is due.
async fn enqueue_due(
    context: &JobContext,
    settings: &JobSettings,
    now: Timestamp,
    page: usize,
) -> StoreResult<()> {
    loop {
        let next_due = settings.next_due_range(now);
        let schedule = LifecycleSchedule { now, next_due, limit: page };
        if context.metadata.schedule_lifecycle(schedule).await? < page {
            return Ok(());
        }
    }
}

/// Folds changes of usage into the counts, until `stop`.
pub(super) async fn fold_usage(context: Arc<JobContext>, mut stop: Stop) {
    while !*stop.borrow() {
        match context.metadata.fold_usage(PAGE).await {
            // There is more.
            Ok(folded) if folded == PAGE as u64 => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot fold usage; counts are slower until it works")
            }
        }
        pause(FOLD_INTERVAL, &mut stop).await;
    }
}

/// Deletes idle uploads and enqueues the deletion of old events, until `stop`.
pub(super) async fn upkeep(context: Arc<JobContext>, settings: Arc<JobSettings>, mut stop: Stop) {
    let every = settings.upload_expiry.min(UPKEEP_INTERVAL);
    while !*stop.borrow() {
        if let Err(error) = run_upkeep(&context, &settings, Timestamp::now()).await {
            tracing::warn!(%error, "cannot delete idle uploads and old events; trying again");
        }
        pause(every, &mut stop).await;
    }
}

async fn run_upkeep(
    context: &JobContext,
    settings: &JobSettings,
    now: Timestamp,
) -> StoreResult<()> {
    let deleted =
        context.metadata.cancel_stale_uploads(now - settings.upload_expiry, now, PAGE).await?;
    if deleted > 0 {
        tracing::info!(uploads = deleted, "deleted idle upload sessions");
    }
    context.metadata.enqueue_job(PruneEvents {}.job(now)).await
}

/// Deletes old events in batches, so that no other write waits long.
pub(super) async fn prune_events(
    context: &JobContext,
    settings: &JobSettings,
) -> Result<(), JobError> {
    let age = SignedDuration::try_from(settings.events_age).unwrap_or(SignedDuration::MAX);
    let before = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
    loop {
        if context.metadata.prune_events(before, settings.events_kept, PAGE).await? < PAGE as u64 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::tests::bed;
    use wharfage_store::repositories::{
        Encryption, NewRepository, RepositoryChange, TagMutability,
    };

    #[tokio::test]
    async fn every_due_policy_is_enqueued_in_one_pass() {
        let (_folder, context, _) = bed().await;
        for number in 0..25 {
            let new = NewRepository {
                account: "123456789012".parse().unwrap(),
                name: format!("app-{number}").parse().unwrap(),
                created_at: Timestamp::now(),
                tag_mutability: TagMutability::MUTABLE,
                scan_on_push: false,
                encryption: Encryption::default(),
                tags: Vec::new(),
            };
            let id = context.metadata.create_repository(new, 100).await.unwrap().id;
            let policy = RepositoryChange::LifecyclePolicy(Some("{}".into()));
            assert!(context.metadata.change_repository(id, policy, Vec::new()).await.unwrap());
        }
        let (settings, now) = (JobSettings::default(), Timestamp::now());
        for now in [now, now + settings.lifecycle_interval / 2] {
            enqueue_due(&context, &settings, now, 10).await.unwrap();
            let counts = context.metadata.count_jobs(&wharfage_store::jobs::KINDS).await.unwrap();
            assert_eq!(counts.iter().map(|count| count.count).sum::<u64>(), 25);
        }
        // Policies are spread: not all are due again at the same time.
        let later = now + settings.lifecycle_interval.mul_f64(0.95);
        let schedule = LifecycleSchedule { now: later, next_due: (later, later), limit: 100 };
        let due = context.metadata.schedule_lifecycle(schedule).await.unwrap();
        assert!(due < 25, "{due}");
    }
}
