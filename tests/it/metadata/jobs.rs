//! Background jobs.

use std::collections::BTreeSet;

use wharfage::store::jobs::{Job, JobCount, JobEnd, JobFilter, JobState, Requeue};

use super::*;

async fn claim(store: &Fixture, seconds: i64) -> Option<Job> {
    store.claim_job(&["a", "b"], at(seconds), MINUTE).await.unwrap()
}

/// Claims a job with a lease that expires at once. Leases end by the database's clock, which a test
/// cannot change.
async fn claim_briefly(store: &Fixture) -> Job {
    store.claim_job(&["a", "b"], at(0), Duration::ZERO).await.unwrap().unwrap()
}

/// Claims the one due job, and makes it dead.
async fn kill(store: &Fixture, error: &str) {
    let held = claim(store, 100).await.unwrap();
    store.end_job(held.id, held.attempts, JobEnd::Dead { error: error.into() }).await.unwrap();
}

async fn listed(
    store: &Fixture,
    filter: JobFilter,
) -> Vec<(String, JobState, u32, Option<String>)> {
    let jobs = store.list_jobs(&filter, None, 100).await.unwrap();
    jobs.into_iter().map(|job| (job.key, job.state, job.attempts, job.last_error)).collect()
}

async fn counts(store: &Fixture) -> Vec<(String, String, u64)> {
    let counts = store.count_jobs(&["a", "b"]).await.unwrap();
    let mut counts: Vec<_> =
        counts.into_iter().map(|JobCount { kind, state, count }| (kind, state, count)).collect();
    counts.sort();
    counts
}

pub async fn the_longest_overdue_job_is_claimed_first(store: Fixture) {
    for (kind, key, due) in [("a", "late", 30), ("b", "early", 10), ("a", "middle", 20)] {
        store.enqueue_job(job(kind, key, "{}", at(due))).await.unwrap();
    }
    let mut keys = Vec::new();
    while let Some(job) = claim(&store, 30).await {
        assert_eq!(job.attempts, 1);
        keys.push(job.key);
    }
    assert_eq!(keys, ["early", "middle", "late"]);
}

pub async fn a_job_is_not_claimed_before_its_time_nor_for_another_kind(store: Fixture) {
    store.enqueue_job(job("a", "k", "payload", at(10))).await.unwrap();
    assert_eq!(claim(&store, 9).await, None);
    assert_eq!(store.claim_job(&["b"], at(10), MINUTE).await.unwrap(), None);
    assert_eq!(store.claim_job(&[], at(10), MINUTE).await.unwrap(), None);
    let claimed = claim(&store, 10).await.unwrap();
    assert_eq!(
        (claimed.kind.as_str(), claimed.key.as_str(), claimed.payload.as_str()),
        ("a", "k", "payload")
    );
    assert_eq!(claim(&store, 11).await, None, "it is held");
    store.end_job(claimed.id, claimed.attempts, JobEnd::Done).await.unwrap();
    assert_eq!(counts(&store).await, []);
}

pub async fn waiting_jobs_of_one_key_coalesce(store: Fixture) {
    store.enqueue_job(job("a", "k", "old", at(20))).await.unwrap();
    store.enqueue_job(job("a", "k", "new", at(10))).await.unwrap();
    store.enqueue_job(job("a", "k", "newest", at(30))).await.unwrap();
    store.enqueue_job(job("b", "k", "other kind", at(5))).await.unwrap();
    assert_eq!(store.claim_job(&["a"], at(9), MINUTE).await.unwrap(), None);
    let claimed = store.claim_job(&["a"], at(10), MINUTE).await.unwrap().unwrap();
    assert_eq!(claimed.payload, "newest", "the newest payload at the earliest time");
    assert_eq!(
        counts(&store).await,
        [("a".into(), "running".into(), 1), ("b".into(), "waiting".into(), 1)]
    );
}

pub async fn a_job_waits_behind_a_running_one_of_its_key(store: Fixture) {
    store.enqueue_job(job("a", "k", "first", at(0))).await.unwrap();
    let first = claim(&store, 0).await.unwrap();
    store.enqueue_job(job("a", "k", "second", at(0))).await.unwrap();
    assert_eq!(claim(&store, 1).await, None, "no two of a key run at once");
    store.end_job(first.id, first.attempts, JobEnd::Done).await.unwrap();
    let second = claim(&store, 1).await.unwrap();
    assert_eq!((second.payload.as_str(), second.attempts), ("second", 1));
    assert_ne!(first.id, second.id);
}

pub async fn no_job_is_claimed_twice_at_once(store: Fixture) {
    for number in 0..40 {
        store.enqueue_job(job("a", &number.to_string(), "{}", at(0))).await.unwrap();
    }
    let workers = (0..8).map(|_| {
        let store = store.handle();
        tokio::spawn(async move {
            let mut claimed = Vec::new();
            // A worker may find nothing while others hold the remaining jobs.
            while let Some(job) = store.claim_job(&["a"], at(1), MINUTE).await.unwrap() {
                claimed.push(job.id);
            }
            claimed
        })
    });
    let claimed: Vec<i64> =
        futures::future::join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(claimed.len(), 40);
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 40, "each once");
}

pub async fn a_job_with_an_expired_lease_is_claimed_again(store: Fixture) {
    store.enqueue_job(job("a", "k", "first", at(0))).await.unwrap();
    let lost = claim_briefly(&store).await;
    store.enqueue_job(job("a", "k", "second", at(0))).await.unwrap();
    let again = claim(&store, 0).await.unwrap();
    assert_eq!((again.id, again.attempts, again.payload.as_str()), (lost.id, 2, "first"));
    assert_eq!(claim(&store, 60).await, None, "it is held");
    // The lost claim has no effect any more.
    assert!(!store.heartbeat_job(lost.id, lost.attempts, MINUTE).await.unwrap());
    store.end_job(lost.id, lost.attempts, JobEnd::Done).await.unwrap();
    assert_eq!(
        counts(&store).await,
        [("a".into(), "running".into(), 1), ("a".into(), "waiting".into(), 1)]
    );
    store.end_job(again.id, again.attempts, JobEnd::Done).await.unwrap();
    assert_eq!(claim(&store, 61).await.unwrap().payload, "second");
}

pub async fn a_lease_ends_by_the_databases_clock(store: Fixture) {
    store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
    assert!(claim(&store, 0).await.is_some());
    // A replica whose clock is years ahead takes no job of another.
    let ahead = Timestamp::now() + Duration::from_secs(10 * 365 * 24 * 3600);
    assert_eq!(store.claim_job(&["a"], ahead, MINUTE).await.unwrap(), None);
}

pub async fn a_heartbeat_keeps_the_job_until_the_claim_is_lost(store: Fixture) {
    store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
    let held = claim_briefly(&store).await;
    assert!(store.heartbeat_job(held.id, held.attempts, MINUTE).await.unwrap());
    assert_eq!(claim(&store, 100).await, None);
    assert!(store.heartbeat_job(held.id, held.attempts, Duration::ZERO).await.unwrap());
    assert!(claim(&store, 100).await.is_some());
    assert!(!store.heartbeat_job(held.id, held.attempts, MINUTE).await.unwrap());
    assert!(!store.heartbeat_job(held.id + 1, 1, MINUTE).await.unwrap());
}

pub async fn a_long_queue_does_not_hide_other_kinds(store: Fixture) {
    for number in 0..50 {
        store.enqueue_job(job("a", &number.to_string(), "{}", at(0))).await.unwrap();
    }
    store.enqueue_job(job("b", "late", "{}", at(9))).await.unwrap();
    let claimed = store.claim_job(&["b"], at(9), MINUTE).await.unwrap().unwrap();
    assert_eq!(claimed.key, "late");
}

pub async fn a_failed_job_is_retried_at_its_time(store: Fixture) {
    store.enqueue_job(job("a", "k", "payload", at(0))).await.unwrap();
    let first = claim(&store, 0).await.unwrap();
    let retry = JobEnd::Retry { at: at(50), error: "the upstream did not answer".into() };
    store.end_job(first.id, first.attempts, retry).await.unwrap();
    assert_eq!(claim(&store, 49).await, None);
    let second = claim(&store, 50).await.unwrap();
    assert_eq!((second.id, second.attempts, second.payload.as_str()), (first.id, 2, "payload"));
}

pub async fn a_failed_job_coalesces_with_the_waiting_one(store: Fixture) {
    store.enqueue_job(job("a", "k", "first", at(0))).await.unwrap();
    let first = claim(&store, 0).await.unwrap();
    store.enqueue_job(job("a", "k", "second", at(20))).await.unwrap();
    let retry = JobEnd::Retry { at: at(50), error: "no".into() };
    store.end_job(first.id, first.attempts, retry).await.unwrap();
    assert_eq!(counts(&store).await, [("a".into(), "waiting".into(), 1)]);
    assert_eq!(claim(&store, 19).await, None);
    let joined = claim(&store, 20).await.unwrap();
    assert_eq!(
        (joined.payload.as_str(), joined.attempts),
        ("second", 2),
        "it remembers the attempts"
    );
}

pub async fn a_dead_job_is_kept_and_not_claimed(store: Fixture) {
    store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
    let held = claim(&store, 0).await.unwrap();
    store
        .end_job(held.id, held.attempts, JobEnd::Dead { error: "it never will".into() })
        .await
        .unwrap();
    assert_eq!(claim(&store, 1_000_000).await, None);
    assert_eq!(counts(&store).await, [("a".into(), "dead".into(), 1)]);
    store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
    assert!(claim(&store, 1).await.is_some(), "a dead job holds up no other");
}

pub async fn the_last_dead_job_is_kept_until_its_key_is_done(store: Fixture) {
    for error in ["first", "second"] {
        store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
        kill(&store, error).await;
        assert_eq!(
            listed(&store, JobFilter::default()).await,
            [("k".into(), JobState::Dead, 1, Some(error.to_owned()))]
        );
    }
    store.enqueue_job(job("a", "other", "{}", at(0))).await.unwrap();
    kill(&store, "of another key").await;
    store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
    let works = claim(&store, 1).await.unwrap();
    store.end_job(works.id, works.attempts, JobEnd::Done).await.unwrap();
    assert_eq!(
        listed(&store, JobFilter::default()).await,
        [("other".into(), JobState::Dead, 1, Some("of another key".into()))]
    );
}

pub async fn jobs_are_listed_by_kind_and_state_in_pages(store: Fixture) {
    for (kind, key) in [("a", "1"), ("b", "2"), ("a", "3")] {
        store.enqueue_job(job(kind, key, "{}", at(5))).await.unwrap();
    }
    let held = store.claim_job(&["b"], at(9), MINUTE).await.unwrap().unwrap();
    let keys = async |filter: JobFilter| -> Vec<String> {
        listed(&store, filter).await.into_iter().map(|(key, ..)| key).collect()
    };
    let kind = |kind: &str| JobFilter { kind: Some(kind.into()), state: None };
    assert_eq!(keys(JobFilter::default()).await, ["1", "2", "3"]);
    assert_eq!(keys(kind("a")).await, ["1", "3"]);
    assert_eq!(keys(JobFilter { kind: None, state: Some(JobState::Running) }).await, ["2"]);
    assert_eq!(
        keys(JobFilter { kind: Some("b".into()), state: Some(JobState::Waiting) }).await,
        [""; 0]
    );
    let behind = store.list_jobs(&JobFilter::default(), Some(held.id - 1), 1).await.unwrap();
    assert_eq!(behind.len(), 1);
    assert_eq!(
        (behind[0].id, behind[0].run_at, behind[0].state),
        (held.id, at(5), JobState::Running)
    );
}

pub async fn dead_jobs_are_requeued_by_id_by_kind_or_all(store: Fixture) {
    for (kind, key) in [("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")] {
        store.enqueue_job(job(kind, key, "payload", at(0))).await.unwrap();
        kill(&store, "it broke").await;
    }
    let first = store.list_jobs(&JobFilter::default(), None, 1).await.unwrap()[0].id;
    let waiting = async || -> Vec<String> {
        let waiting = JobFilter { kind: None, state: Some(JobState::Waiting) };
        listed(&store, waiting).await.into_iter().map(|(key, ..)| key).collect()
    };
    assert_eq!(store.requeue_jobs(&Requeue::One(first), at(7)).await.unwrap(), 1);
    assert_eq!(waiting().await, ["1"]);
    assert_eq!(claim(&store, 6).await, None, "it is due when it was requeued");
    let again = claim(&store, 7).await.unwrap();
    assert_eq!(
        (again.id, again.attempts, again.payload.as_str()),
        (first, 1, "payload"),
        "its attempts are forgotten"
    );
    assert_eq!(store.requeue_jobs(&Requeue::One(first), at(7)).await.unwrap(), 0, "it runs");
    assert_eq!(store.requeue_jobs(&Requeue::One(first + 999), at(7)).await.unwrap(), 0);
    store.end_job(first, 1, JobEnd::Done).await.unwrap();

    assert_eq!(store.requeue_jobs(&Requeue::Kind("b".into()), at(7)).await.unwrap(), 2);
    assert_eq!(waiting().await, ["3", "4"]);
    assert_eq!(store.requeue_jobs(&Requeue::Dead, at(7)).await.unwrap(), 1);
    assert_eq!(waiting().await, ["2", "3", "4"]);
    assert_eq!(store.requeue_jobs(&Requeue::Dead, at(7)).await.unwrap(), 0);
}

pub async fn requeuing_merges_dead_jobs_and_makes_late_ones_due(store: Fixture) {
    store.enqueue_job(job("a", "k", "old", at(0))).await.unwrap();
    kill(&store, "it broke").await;
    store.enqueue_job(job("a", "k", "new", at(500))).await.unwrap();
    assert_eq!(store.requeue_jobs(&Requeue::Dead, at(7)).await.unwrap(), 1);
    assert_eq!(counts(&store).await, [("a".into(), "waiting".into(), 1)]);
    let claimed = claim(&store, 7).await.unwrap();
    assert_eq!(claimed.payload, "new");
    let retry = JobEnd::Retry { at: at(9_000), error: "not yet".into() };
    store.end_job(claimed.id, claimed.attempts, retry).await.unwrap();
    assert_eq!(store.requeue_jobs(&Requeue::One(claimed.id), at(8)).await.unwrap(), 1);
    assert_eq!(claim(&store, 8).await.unwrap().attempts, 1);
}

pub async fn jobs_survive_a_restart(mut store: Fixture) {
    store.enqueue_job(job("a", "held", "{}", at(0))).await.unwrap();
    let held = claim(&store, 0).await.unwrap();
    store.enqueue_job(job("a", "waiting", "{}", at(1))).await.unwrap();
    store.reopen().await;
    let mut claimed = Vec::new();
    while let Some(job) = claim(&store, 1).await {
        claimed.push(job.key);
    }
    assert!(claimed.iter().any(|key| key == "waiting"), "{claimed:?}");
    // On SQLite the restart expires all leases. On PostgreSQL another replica may still hold the
    // job.
    let again = claimed.iter().any(|key| key == "held");
    assert_eq!(store.heartbeat_job(held.id, held.attempts, MINUTE).await.unwrap(), !again);
}
