//! Lifecycle policy previews.

use wharfage::store::images::ImageStatus;
use wharfage::store::lifecycle::{Preview, PreviewResult, PreviewState};

use super::*;

const KIND: &str = "lifecycle-preview";

async fn start(store: &Fixture, repository: &Repository, policy: &str, seconds: i64) -> bool {
    let job = job(KIND, &repository.id.0.to_string(), "{}", at(seconds));
    store.start_preview(repository.id, policy, at(seconds), job).await.unwrap()
}

fn complete(seconds: i64) -> PreviewState {
    PreviewState::Complete { completed_at: at(seconds), summary: r#"{"expiringImageTotalCount":1}"#.into() }
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
    assert_eq!(store.preview(repository.id).await.unwrap(), None);
    assert!(start(&store, &repository, "first", 1).await);
    assert!(!start(&store, &repository, "second", 2).await);
    assert_eq!(store.waiting(KIND).await, 1);
    let preview = |state| Preview { policy: "first".into(), started_at: at(1), state };
    assert_eq!(store.preview(repository.id).await.unwrap(), Some(preview(PreviewState::InProgress)));
    store.finish_preview(repository.id, at(1), complete(3), Vec::new()).await.unwrap();
    store.reopen().await;
    assert_eq!(store.preview(repository.id).await.unwrap(), Some(preview(complete(3))));
    assert!(start(&store, &repository, "third", 4).await);
    store.finish_preview(repository.id, at(4), PreviewState::Failed, Vec::new()).await.unwrap();
    assert_eq!(store.preview(repository.id).await.unwrap().unwrap().state, PreviewState::Failed);
}

pub async fn a_previews_results_are_paged(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "policy", 1).await;
    let results: Vec<_> = (0..5).map(|number| result(&format!("image {number}"), number)).collect();
    store.finish_preview(repository.id, at(1), complete(2), results.clone()).await.unwrap();
    let mut read: Vec<(u64, PreviewResult)> = Vec::new();
    loop {
        let after = read.last().map(|(position, _)| *position);
        let page = store.preview_results(repository.id, after, 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 2);
        read.extend(page);
    }
    assert!(read.is_sorted_by_key(|(position, _)| *position));
    let read: Vec<_> = read.into_iter().map(|(_, result)| result).collect();
    assert_eq!(read, results, "in the order in which they were given");
}

pub async fn the_end_of_another_preview_is_ignored(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "first", 1).await;
    store.finish_preview(repository.id, at(1), PreviewState::Failed, Vec::new()).await.unwrap();
    start(&store, &repository, "second", 2).await;
    store.finish_preview(repository.id, at(1), complete(3), vec![result("image", 1)]).await.unwrap();
    assert_eq!(store.preview(repository.id).await.unwrap().unwrap().state, PreviewState::InProgress);
    assert_eq!(store.preview_results(repository.id, None, 10).await.unwrap(), []);
    store.finish_preview(repository.id, at(2), complete(4), vec![result("image", 1)]).await.unwrap();
    // A job that runs twice ends its preview once.
    store.finish_preview(repository.id, at(2), PreviewState::Failed, Vec::new()).await.unwrap();
    assert_eq!(store.preview(repository.id).await.unwrap().unwrap().state, complete(4));
    assert_eq!(store.preview_results(repository.id, None, 10).await.unwrap().len(), 1);
}

pub async fn a_new_preview_forgets_the_last_ones_results(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "first", 1).await;
    store.finish_preview(repository.id, at(1), complete(2), vec![result("image", 1)]).await.unwrap();
    assert!(start(&store, &repository, "second", 3).await);
    assert_eq!(store.preview_results(repository.id, None, 10).await.unwrap(), []);
}

pub async fn a_repository_that_is_gone_has_no_preview(store: Fixture) {
    let repository = store.repository_named("app").await;
    start(&store, &repository, "policy", 1).await;
    store.delete_repository(repository.id, false, at(2)).await.unwrap();
    assert_eq!(store.preview(repository.id).await.unwrap(), None);
    store.finish_preview(repository.id, at(1), complete(3), vec![result("image", 1)]).await.unwrap();
    assert!(!start(&store, &repository, "policy", 4).await);
    assert_eq!(store.preview(repository.id).await.unwrap(), None);
}
