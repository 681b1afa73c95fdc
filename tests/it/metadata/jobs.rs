//! Jobs and events.

use std::collections::BTreeSet;

use wharfage::store::jobs::{Event, Job, JobCount, JobEnd};

use super::*;

async fn claim(store: &Fixture, seconds: i64) -> Option<Job> {
    store.claim_job(&["a", "b"], at(seconds), MINUTE).await.unwrap()
}

async fn counts(store: &Fixture) -> Vec<(String, String, u64)> {
    let counts = store.job_counts().await.unwrap();
    let mut counts: Vec<_> = counts.into_iter().map(|JobCount { kind, state, count }| (kind, state, count)).collect();
    counts.sort();
    counts
}

pub async fn the_job_that_is_due_longest_comes_first(store: Fixture) {
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
    assert_eq!((claimed.kind.as_str(), claimed.key.as_str(), claimed.payload.as_str()), ("a", "k", "payload"));
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
    assert_eq!(counts(&store).await, [("a".into(), "running".into(), 1), ("b".into(), "waiting".into(), 1)]);
}

pub async fn a_job_enqueued_while_its_like_runs_waits_behind_it(store: Fixture) {
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
            // A worker may find nothing because others hold what is left for the moment: none are given back here.
            while let Some(job) = store.claim_job(&["a"], at(1), MINUTE).await.unwrap() {
                claimed.push(job.id);
            }
            claimed
        })
    });
    let claimed: Vec<i64> = futures::future::join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(claimed.len(), 40);
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 40, "each once");
}

pub async fn a_lease_that_ran_out_lets_another_claim_the_job(store: Fixture) {
    store.enqueue_job(job("a", "k", "first", at(0))).await.unwrap();
    let lost = claim(&store, 0).await.unwrap();
    store.enqueue_job(job("a", "k", "second", at(0))).await.unwrap();
    assert_eq!(claim(&store, 59).await, None);
    let again = claim(&store, 60).await.unwrap();
    assert_eq!((again.id, again.attempts, again.payload.as_str()), (lost.id, 2, "first"));
    assert_eq!(claim(&store, 60).await, None);
    // Who lost the claim has no say any more.
    assert!(!store.heartbeat_job(lost.id, lost.attempts, at(999)).await.unwrap());
    store.end_job(lost.id, lost.attempts, JobEnd::Done).await.unwrap();
    assert_eq!(counts(&store).await, [("a".into(), "running".into(), 1), ("a".into(), "waiting".into(), 1)]);
    store.end_job(again.id, again.attempts, JobEnd::Done).await.unwrap();
    assert_eq!(claim(&store, 61).await.unwrap().payload, "second");
}

pub async fn a_heartbeat_keeps_the_job_until_the_claim_is_lost(store: Fixture) {
    store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
    let held = claim(&store, 0).await.unwrap();
    assert!(store.heartbeat_job(held.id, held.attempts, at(100)).await.unwrap());
    assert_eq!(claim(&store, 99).await, None);
    assert!(claim(&store, 100).await.is_some());
    assert!(!store.heartbeat_job(held.id, held.attempts, at(300)).await.unwrap());
    assert!(!store.heartbeat_job(held.id + 1, 1, at(300)).await.unwrap());
}

pub async fn a_failed_job_is_tried_again_when_it_says(store: Fixture) {
    store.enqueue_job(job("a", "k", "payload", at(0))).await.unwrap();
    let first = claim(&store, 0).await.unwrap();
    let retry = JobEnd::Retry { at: at(50), error: "the upstream did not answer".into() };
    store.end_job(first.id, first.attempts, retry).await.unwrap();
    assert_eq!(claim(&store, 49).await, None);
    let second = claim(&store, 50).await.unwrap();
    assert_eq!((second.id, second.attempts, second.payload.as_str()), (first.id, 2, "payload"));
}

pub async fn a_failed_job_joins_the_one_that_waits_behind_it(store: Fixture) {
    store.enqueue_job(job("a", "k", "first", at(0))).await.unwrap();
    let first = claim(&store, 0).await.unwrap();
    store.enqueue_job(job("a", "k", "second", at(20))).await.unwrap();
    let retry = JobEnd::Retry { at: at(50), error: "no".into() };
    store.end_job(first.id, first.attempts, retry).await.unwrap();
    assert_eq!(counts(&store).await, [("a".into(), "waiting".into(), 1)]);
    assert_eq!(claim(&store, 19).await, None);
    let joined = claim(&store, 20).await.unwrap();
    assert_eq!((joined.payload.as_str(), joined.attempts), ("second", 2), "it remembers the attempts");
}

pub async fn a_dead_job_is_kept_and_not_claimed(store: Fixture) {
    store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
    let held = claim(&store, 0).await.unwrap();
    store.end_job(held.id, held.attempts, JobEnd::Dead { error: "it never will".into() }).await.unwrap();
    assert_eq!(claim(&store, 1_000_000).await, None);
    assert_eq!(counts(&store).await, [("a".into(), "dead".into(), 1)]);
    store.enqueue_job(job("a", "k", "{}", at(0))).await.unwrap();
    assert!(claim(&store, 1).await.is_some(), "a dead job holds up no other");
}

pub async fn jobs_survive_a_restart(mut store: Fixture) {
    store.enqueue_job(job("a", "held", "{}", at(0))).await.unwrap();
    let held = claim(&store, 0).await.unwrap();
    store.enqueue_job(job("a", "waiting", "{}", at(1))).await.unwrap();
    store.reopen().await;
    assert_eq!(claim(&store, 1).await.unwrap().key, "waiting");
    assert!(store.heartbeat_job(held.id, held.attempts, at(100)).await.unwrap());
}

pub async fn events_come_newest_first_and_per_registry(store: Fixture) {
    let event = |seconds: i64, account: AccountId, repository: Option<&str>| Event {
        at: at(seconds),
        account,
        repository: repository.map(name),
        kind: "PolicyExecutionEvent".into(),
        detail: format!(r#"{{"number":{seconds}}}"#),
    };
    let other: AccountId = "210987654321".parse().unwrap();
    let (one, two, three) =
        (event(1, account(), Some("app")), event(2, other.clone(), None), event(3, account(), None));
    for event in [&one, &two, &three] {
        store.record_event(event.clone()).await.unwrap();
    }
    assert_eq!(store.events(&account(), 10).await.unwrap(), [three.clone(), one]);
    assert_eq!(store.events(&account(), 1).await.unwrap(), [three]);
    assert_eq!(store.events(&other, 10).await.unwrap(), [two]);
}
