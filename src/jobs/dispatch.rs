//! Claims jobs for the lanes with a free worker, and runs each with a heartbeat.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::kinds::{JobKind, KINDS, Lane, kind};
use super::{JobContext, JobError, JobSettings, handle, on_dead_job};
use wharfage_process::shutdown::Stop;
use wharfage_store::StoreError;
use wharfage_store::jobs::{Job, JobEnd};

/// The duration of a claim without a heartbeat: a job of a killed process waits as long.
const LEASE_DURATION: Duration = Duration::from_secs(30);
/// The interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// The pause after the database did not answer.
const OUTAGE_PAUSE: Duration = Duration::from_secs(5);

/// The workers of each lane.
struct Workers(Vec<(Lane, Arc<Semaphore>)>);

impl Workers {
    fn new() -> Self {
        Self(
            Lane::ALL
                .iter()
                .map(|lane| (*lane, Arc::new(Semaphore::new(lane.workers()))))
                .collect(),
        )
    }

    fn of(&self, wanted: Lane) -> Option<&Arc<Semaphore>> {
        self.0.iter().find(|(lane, _)| *lane == wanted).map(|(_, workers)| workers)
    }

    /// Returns the kinds of the lanes with a free worker.
    fn open_kinds(&self) -> Vec<&'static str> {
        let open = |kind: &&JobKind| {
            self.of(kind.lane).is_some_and(|workers| workers.available_permits() > 0)
        };
        KINDS.iter().filter(open).map(|kind| kind.name).collect()
    }

    /// Takes a worker for a job of this kind. Only [`run`] takes workers, so an open lane has one.
    fn take(&self, name: &str) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self.of(kind(name)?.lane)?).try_acquire_owned().ok()
    }
}

/// Runs jobs until `stop`; returns after the running jobs have been released.
pub(super) async fn run(context: Arc<JobContext>, settings: Arc<JobSettings>, mut stop: Stop) {
    let workers = Workers::new();
    let mut running = JoinSet::new();
    while !*stop.borrow() {
        let kinds = workers.open_kinds();
        let claimed = match kinds.as_slice() {
            [] => Ok(None),
            kinds => context.metadata.claim_job(kinds, Timestamp::now(), LEASE_DURATION).await,
        };
        let pause = match claimed {
            Ok(Some(job)) => {
                let worker = workers.take(&job.kind);
                let (context, settings, stop) =
                    (Arc::clone(&context), Arc::clone(&settings), stop.clone());
                running.spawn(async move {
                    execute(&context, &settings, job, stop).await;
                    drop(worker);
                });
                continue;
            }
            Ok(None) => settings.poll,
            Err(error) => {
                let seconds = OUTAGE_PAUSE.as_secs();
                tracing::warn!(%error, "cannot claim jobs; trying again in {seconds} s");
                OUTAGE_PAUSE
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Some(ended) = running.join_next() => report(ended),
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
    while let Some(ended) = running.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job panicked; it runs again when its lease ends");
    }
}

async fn execute(context: &JobContext, settings: &JobSettings, job: Job, mut stop: Stop) {
    let Job { id, kind: name, key, attempts, .. } = &job;
    let outcome = tokio::select! {
        outcome = handle(context, settings, &job) => outcome,
        () = renew_until_lost(context, *id, *attempts) => {
            tracing::warn!(job = id, kind = name, key, "lost the claim on a job: another worker runs it");
            return;
        }
        _ = stop.wait_for(|stop| *stop) => Err(JobError::Store(StoreError::Unavailable("the process stops".into()))),
    };
    let now = Timestamp::now();
    let pause = match &outcome {
        Err(JobError::Store(_)) if *stop.borrow() => Some(Duration::ZERO),
        Err(JobError::Store(_)) => kind(name).and_then(|kind| kind.pause(*attempts)),
        Ok(()) | Err(JobError::Permanent(_)) => None,
    };
    let (end, state) = match (outcome, pause) {
        (Ok(()), _) => (JobEnd::Done, "done"),
        (Err(error), Some(pause)) => {
            tracing::warn!(job = id, kind = name, key, attempts, wait_seconds = pause.as_secs(), %error, "a job failed");
            (JobEnd::Retry { at: now + pause, error: error.to_string() }, "failed")
        }
        (Err(error), None) => {
            tracing::error!(
                job = id, kind = name, key, attempts, %error,
                "a job is dead: repair the cause, then run wharfage jobs requeue"
            );
            on_dead_job(context, &job).await;
            (JobEnd::Dead { error: error.to_string() }, "dead")
        }
    };
    context.metrics.ended(name, state);
    if let Err(error) = context.metadata.end_job(*id, *attempts, end).await {
        tracing::warn!(job = id, kind = name, key, %error, "cannot record the end of a job; it runs again");
    }
}

/// Renews the claim at every heartbeat; returns only when it is lost.
async fn renew_until_lost(context: &JobContext, id: i64, attempts: u32) {
    loop {
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        match context.metadata.heartbeat_job(id, attempts, LEASE_DURATION).await {
            Ok(true) => {}
            Ok(false) => return,
            // A lease lasts three heartbeats; if none succeeds, another worker takes the job.
            Err(error) => {
                tracing::warn!(job = id, %error, "cannot renew the claim on a job; trying again")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::tests::bed;
    use wharfage_store::jobs::{
        DeleteGeneration, EvaluateLifecycle, EvaluatePreview, JobFilter, JobPayload as _, JobState,
        NewJob,
    };
    use wharfage_store::repositories::RepositoryId;

    #[test]
    fn a_preview_finds_a_worker_while_every_lifecycle_worker_is_busy() {
        let workers = Workers::new();
        let busy: Vec<_> = std::iter::from_fn(|| workers.take(EvaluateLifecycle::KIND)).collect();
        assert!(!busy.is_empty());
        let open = workers.open_kinds();
        assert!(
            open.contains(&EvaluatePreview::KIND)
                && open.contains(&DeleteGeneration::KIND)
                && !open.contains(&EvaluateLifecycle::KIND)
        );
        drop(busy);
        assert!(workers.open_kinds().contains(&EvaluateLifecycle::KIND));
    }

    #[tokio::test]
    async fn jobs_of_every_lane_run_and_hopeless_ones_are_dead() {
        let (_folder, context, id) = bed().await;
        let (context, now) = (Arc::new(context), Timestamp::now());
        let unreadable = NewJob {
            payload: "no JSON".into(),
            ..EvaluateLifecycle { repository: RepositoryId(4711) }.job(now)
        };
        let (lifecycle, preview) =
            (EvaluateLifecycle { repository: id }, EvaluatePreview { repository: id });
        for job in [lifecycle.job(now), preview.job(now), unreadable] {
            context.metadata.enqueue_job(job).await.unwrap();
        }
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let settings =
            Arc::new(JobSettings { poll: Duration::from_millis(1), ..JobSettings::default() });
        let running = tokio::spawn(run(Arc::clone(&context), settings, stopped));
        loop {
            let jobs = context.metadata.list_jobs(&JobFilter::default(), None, 10).await.unwrap();
            if let [dead] = jobs.as_slice()
                && dead.state == JobState::Dead
            {
                assert_eq!((dead.key.as_str(), dead.attempts), ("4711", 1));
                break;
            }
            tokio::task::yield_now().await;
        }
        stop.send_replace(true);
        running.await.unwrap();
    }
}
