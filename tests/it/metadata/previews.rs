//! Lifecycle policy previews.

use wharfage::store::images::ImageStatus;
use wharfage::store::previews::{Preview, PreviewResult, PreviewRun, PreviewState};

use super::*;

const KIND: &str = "lifecycle-preview";

async fn start(store: &Fixture, repository: &Repository, policy: &str, seconds: i64) -> bool {
    let job = job(KIND, &repository.id.0.to_string(), "{}", at(seconds));
    store.start_preview(repository.id, policy, at(seconds), job).await.unwrap()
}

/// Finishes the preview that was started at `seconds`, with these results.
async fn finish(
    store: &Fixture,
    repository: &Repository,
    seconds: i64,
    state: PreviewState,
    results: &[PreviewResult],
) {
    let run = PreviewRun::new(repository.id, at(seconds));
    if !results.is_empty() {
        store.add_preview_results(run, 0, results.to_vec()).await.unwrap();
    }
    store.finish_preview(run, state).await.unwrap();
}

async fn results_of(store: &Fixture, repository: &Repository) -> Vec<PreviewResult> {
    let results = store.list_preview_results(repository.id, None, None, 10).await.unwrap();
    results.into_iter().map(|(_, result)| result).collect()
}

fn complete(seconds: i64) -> PreviewState {
    PreviewState::Complete {
        completed_at: at(seconds),
        summary: r#"{"expiringImageTotalCount":1}"#.into(),
    }
}

fn result(payload: &str, rule_priority: u32) -> PreviewResult {
    PreviewResult {
        digest: digest(payload),
        tags: tags(&["a", "b"]),
        pushed_at: at(0),
        action: "EXPIRE".into(),
        rule_priority,
        status: ImageStatus::Archived,
    }
}

pub async fn one_preview_runs_at_a_time(mut store: Fixture) {
    let repository = store.repository_named("app").await;
    assert_eq!(store.find_preview(repository.id).await.unwrap(), None);
    assert!(start(&store, &repository, "first", 1).await);
    assert!(!start(&store, &repository, "second", 2).await);
    assert_eq!(store.waiting(KIND).await, 1);
    let preview = |state| Preview { policy: "first".into(), started_at: at(1), state };
    assert_eq!(
        store.find_preview(repository.id).await.unwrap(),
        Some(preview(PreviewState::InProgress))
    );
    finish(&store, &repository, 1, complete(3), &[]).await;
    store.reopen().await;
    assert_eq!(store.find_preview(repository.id).await.unwrap(), Some(preview(complete(3))));
    assert!(start(&store, &repository, "third", 4).await);
    finish(&store, &repository, 4, PreviewState::Failed, &[]).await;
    assert_eq!(
        store.find_preview(repository.id).await.unwrap().unwrap().state,
        PreviewState::Failed
    );
}

pub async fn a_previews_results_are_paged(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "policy", 1).await;
    let result = |number: u32| PreviewResult {
        tags: if number.is_multiple_of(3) { tags(&["a", "b"]) } else { Vec::new() },
        ..result(&format!("image {number}"), number)
    };
    let results: Vec<_> = (0..7).map(result).collect();
    let run = PreviewRun::new(repository.id, at(1));
    for (batch, position) in results.chunks(3).zip([0, 3, 6]) {
        assert!(store.add_preview_results(run, position, batch.to_vec()).await.unwrap());
    }
    assert_eq!(results_of(&store, &repository).await, [], "nobody sees them before the end");
    store.finish_preview(run, complete(2)).await.unwrap();
    for tagged in [None, Some(true), Some(false)] {
        let mut read: Vec<(u64, PreviewResult)> = Vec::new();
        loop {
            let after = read.last().map(|(position, _)| *position);
            let page = store.list_preview_results(repository.id, tagged, after, 2).await.unwrap();
            if page.is_empty() {
                break;
            }
            assert!(page.len() <= 2);
            read.extend(page);
        }
        let read: Vec<_> = read.into_iter().map(|(_, result)| result).collect();
        let mut expected = results.clone();
        expected.retain(|result| tagged.is_none_or(|tagged| tagged != result.tags.is_empty()));
        assert_eq!(read, expected, "in the order in which they were given");
    }
    let digests = ["image 5", "image 0", "none", "image 5"].map(digest);
    let some = store.find_preview_results(repository.id, &digests).await.unwrap();
    assert_eq!(some, [(0, results[0].clone()), (5, results[5].clone())]);
    assert_eq!(store.find_preview_results(repository.id, &[]).await.unwrap(), []);
}

pub async fn a_killed_run_leaves_no_results(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "first", 1).await;
    let [killed, other, own] = [(); 3].map(|()| PreviewRun::new(repository.id, at(1)));
    for (run, payload) in [(killed, "killed"), (other, "other"), (own, "own")] {
        assert!(
            store
                .add_preview_results(run, 0, vec![result(payload, 1), result("and", 1)])
                .await
                .unwrap()
        );
    }
    store.finish_preview(own, complete(2)).await.unwrap();
    let expected = [result("own", 1), result("and", 1)];
    assert_eq!(results_of(&store, &repository).await, expected);
    assert!(
        !store.add_preview_results(killed, 2, vec![result("late", 1)]).await.unwrap(),
        "the preview has ended"
    );
    assert!(
        store.prune_preview_results(other, 10).await.unwrap(),
        "who did not end the preview deletes nothing"
    );
    let mut batches = 0;
    while !store.prune_preview_results(own, 1).await.unwrap() {
        batches += 1;
    }
    assert_eq!(batches, 4, "two results of two runs, one at a time");
    assert_eq!(results_of(&store, &repository).await, expected);
    start(&store, &repository, "second", 3).await;
    assert!(
        store.prune_preview_results(own, 10).await.unwrap(),
        "another preview has been started"
    );
    let next = PreviewRun::new(repository.id, at(3));
    store.finish_preview(next, PreviewState::Failed).await.unwrap();
    assert!(!store.prune_preview_results(next, 10).await.unwrap());
    assert!(store.prune_preview_results(next, 10).await.unwrap());
}

pub async fn the_end_of_another_preview_is_ignored(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "first", 1).await;
    finish(&store, &repository, 1, PreviewState::Failed, &[]).await;
    start(&store, &repository, "second", 2).await;
    finish(&store, &repository, 1, complete(3), &[result("image", 1)]).await;
    assert_eq!(
        store.find_preview(repository.id).await.unwrap().unwrap().state,
        PreviewState::InProgress
    );
    assert_eq!(results_of(&store, &repository).await, []);
    finish(&store, &repository, 2, complete(4), &[result("image", 1)]).await;
    // A job that runs twice finishes its preview once.
    finish(&store, &repository, 2, PreviewState::Failed, &[]).await;
    assert_eq!(store.find_preview(repository.id).await.unwrap().unwrap().state, complete(4));
    assert_eq!(results_of(&store, &repository).await.len(), 1);
}

pub async fn a_new_preview_drops_the_last_results(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "first", 1).await;
    finish(&store, &repository, 1, complete(2), &[result("image", 1)]).await;
    assert!(start(&store, &repository, "second", 3).await);
    assert_eq!(results_of(&store, &repository).await, []);
}

pub async fn a_deleted_repository_has_no_preview(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "policy", 1).await;
    store.delete_repository(repository.id, false, at(2)).await.unwrap();
    assert_eq!(store.find_preview(repository.id).await.unwrap(), None);
    finish(&store, &repository, 1, complete(3), &[result("image", 1)]).await;
    assert!(!start(&store, &repository, "policy", 4).await);
    assert_eq!(store.find_preview(repository.id).await.unwrap(), None);
}
