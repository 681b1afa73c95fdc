//! Events.

use wharfage::store::events::Event;
use wharfage::store::images::LastTag;

use super::*;

pub async fn old_events_are_pruned_by_age_and_by_number(store: Fixture) {
    let event = |seconds: i64| Event {
        at: at(seconds),
        account: account(),
        repository: None,
        kind: "ECR Image Action".into(),
        detail: "{}".into(),
    };
    for seconds in 0..10 {
        store.record_event(event(seconds)).await.unwrap();
    }
    let left = async || store.list_events(&account(), 100).await.unwrap().len();
    assert_eq!(store.prune_events(at(0), 100, 100).await.unwrap(), 0);
    assert_eq!(store.prune_events(at(5), 100, 2).await.unwrap(), 2, "no more than asked");
    assert_eq!(store.prune_events(at(5), 100, 100).await.unwrap(), 3);
    assert_eq!(
        (left().await, store.list_events(&account(), 1).await.unwrap()),
        (5, vec![event(9)])
    );
    assert_eq!(store.prune_events(at(0), 2, 100).await.unwrap(), 3, "the last two stay");
    assert_eq!(store.list_events(&account(), 100).await.unwrap(), [event(9), event(8)]);
}

pub async fn events_are_listed_newest_first_per_registry(store: Fixture) {
    let event = |seconds: i64, account: AccountId, repository: Option<&str>| Event {
        at: at(seconds),
        account,
        repository: repository.map(name),
        kind: "PolicyExecutionEvent".into(),
        detail: format!(r#"{{"number":{seconds}}}"#),
    };
    let other: AccountId = "210987654321".parse().unwrap();
    let (one, two, three) = (
        event(1, account(), Some("app")),
        event(2, other.clone(), None),
        event(3, account(), None),
    );
    for event in [&one, &two, &three] {
        store.record_event(event.clone()).await.unwrap();
    }
    assert_eq!(store.list_events(&account(), 10).await.unwrap(), [three.clone(), one]);
    assert_eq!(store.list_events(&account(), 1).await.unwrap(), [three]);
    assert_eq!(store.list_events(&other, 10).await.unwrap(), [two]);
}

pub async fn pushes_and_deletions_are_recorded(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.image(&repository, "image", &["a", "b"]).await;
    store.image(&repository, "untagged", &[]).await;
    let referrer = NewManifest { subject: Some(digest("image")), ..manifest("referrer") };
    store.put_manifest(put(&repository, referrer, &[])).await.unwrap();
    store.delete_tag(repository.id, &tag("a"), None, LastTag::KeepsImage, at(1)).await.unwrap();
    store.delete_image(repository.id, &digest("image"), Referrers::Stay, at(1)).await.unwrap();
    store.delete_image(repository.id, &digest("untagged"), Referrers::Stay, at(1)).await.unwrap();
    let recorded = store.recorded().await;
    let recorded: Vec<_> = recorded
        .iter()
        .map(|(kind, act, tag)| (kind.as_str(), act.as_str(), tag.as_deref()))
        .collect();
    assert_eq!(
        recorded,
        [
            ("ECR Image Action", "PUSH", Some("a")),
            ("ECR Image Action", "PUSH", Some("b")),
            ("ECR Image Action", "PUSH", None),
            ("ECR Referrer Action", "PUSH", None),
            ("ECR Image Action", "DELETE", Some("a")),
            ("ECR Image Action", "DELETE", Some("b")),
            ("ECR Image Action", "DELETE", None),
        ]
    );
}
