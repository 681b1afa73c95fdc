//! Deletion of images and tags, and referrers that follow their subjects.

use std::collections::BTreeSet;

use wharfage::store::images::{
    DeleteImageError, ImageDeleted, ImageDeletion, ImageFilter, ImageStatus, LastTag, ManifestId,
    Stale, StorageClass, StorageClassError, TagDeleted,
};
use wharfage::store::jobs::{FollowSubject, JobPayload as _};
use wharfage::store::repositories::RepositoryChange;

use super::storage_class::{archive, status_of};
use super::*;

pub async fn deleting_an_image_deletes_its_tags_and_frees_its_blobs(mut store: Fixture) {
    let repository = store.repository_named("app").await;
    let layer = store.blob(&repository, "layer").await;
    let image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
    store.put_manifest(put(&repository, image, &["b", "a"])).await.unwrap();
    let absent = store.delete_image(repository.id, &digest("absent"), Referrers::Stay, at(1)).await;
    assert!(matches!(absent, Err(DeleteImageError::NotFound)), "{absent:?}");
    assert_eq!(
        store.delete_image(repository.id, &digest("image"), Referrers::Stay, at(1)).await.unwrap(),
        tags(&["a", "b"])
    );
    store.reopen().await;
    assert_eq!(store.found(&repository, "a").await, Lookup::Missing);
    assert_eq!(store.found(&repository, digest("image").as_str()).await, Lookup::Missing);
    assert!(!store.layer(repository.id, &layer).await.unwrap().unwrap().referenced);
}

async fn set_policy(store: &Fixture, repository: &Repository, policy: Option<&str>) {
    let change = RepositoryChange::LifecyclePolicy(policy.map(str::to_owned));
    assert!(store.change_repository(repository.id, change, Vec::new()).await.unwrap());
}

fn stale<T: std::fmt::Debug>(outcome: Result<T, DeleteImageError>) -> Stale {
    match outcome {
        Err(DeleteImageError::Stale(stale)) => stale,
        other => panic!("{other:?}"),
    }
}

pub async fn a_decision_about_a_changed_image_is_stale(store: Fixture) {
    let repository = store.repository_named("app").await;
    set_policy(&store, &repository, Some("policy")).await;
    let changes = [
        "a push that changes nothing",
        "a tag",
        "a tag that moved",
        "a tag that went",
        "a pull",
        "archived",
        "restored",
    ];
    for change in changes {
        let (kept, moves) = (
            format!("{change} kept").replace(' ', "-"),
            format!("{change} moves").replace(' ', "-"),
        );
        let image = store.image(&repository, change, &[&kept, &moves]).await;
        if change == "restored" {
            archive(&store, &repository, &image).await;
        }
        let decision = store.decision(&repository, &image, "policy").await;
        match change {
            "a tag" => drop(store.image(&repository, change, &["new"]).await),
            "a tag that moved" => drop(store.image(&repository, "another image", &[&moves]).await),
            "a tag that went" => {
                let gone = store
                    .delete_tag(repository.id, &tag(&moves), None, LastTag::KeepsImage, at(1))
                    .await;
                gone.unwrap();
            }
            "a pull" => {
                let id = store.image_of(&repository, &image).await.unwrap().image.id;
                store.record_pulls(&[(id, at(5))]).await.unwrap();
            }
            "archived" => archive(&store, &repository, &image).await,
            "restored" => {
                store
                    .set_storage_class(repository.id, &image, StorageClass::Standard, at(2))
                    .await
                    .unwrap();
            }
            _ => drop(store.image(&repository, change, &[&kept]).await),
        }
        let before = store.image_of(&repository, &image).await;
        let recorded = store.recorded().await.len();
        assert_eq!(
            stale(store.expire_image(repository.id, &image, decision.clone(), at(9)).await),
            Stale::Image,
            "{change}"
        );
        let archived = store.archive_image(repository.id, &image, decision, at(9)).await;
        assert!(
            matches!(archived, Err(StorageClassError::Stale(Stale::Image))),
            "{change}: {archived:?}"
        );
        assert_eq!(store.image_of(&repository, &image).await, before, "{change}");
        assert_eq!(store.recorded().await.len(), recorded, "{change}");

        let decision = store.decision(&repository, &image, "policy").await;
        store.expire_image(repository.id, &image, decision.clone(), at(9)).await.unwrap();
        let gone = store.expire_image(repository.id, &image, decision, at(9)).await;
        assert!(matches!(gone, Err(DeleteImageError::NotFound)), "{gone:?}");
    }
}

pub async fn a_decision_is_stale_if_a_kept_image_changed(store: Fixture) {
    let repository = store.repository_named("app").await;
    set_policy(&store, &repository, Some("policy")).await;
    let old = store.image(&repository, "old", &["old"]).await;
    let mut kept: Vec<(ManifestId, u64)> = Vec::new();
    for payload in ["one", "two"] {
        let image = store.image(&repository, payload, &[payload]).await;
        let image = store.image_of(&repository, &image).await.unwrap().image;
        kept.push((image.id, image.revision));
    }
    let decision = async |kept: &[(ManifestId, u64)]| LifecycleDecision {
        kept: kept.into(),
        ..store.decision(&repository, &old, "policy").await
    };
    let seen = decision(&kept).await;
    store.record_pulls(&[(kept[0].0, at(3))]).await.unwrap();
    store.image(&repository, "three", &["three"]).await;
    store.image(&repository, "four", &["two"]).await;
    assert_eq!(
        stale(store.expire_image(repository.id, &old, seen.clone(), at(4)).await),
        Stale::Kept,
        "it lost its tag"
    );
    store.delete_image(repository.id, &digest("two"), Referrers::Stay, at(4)).await.unwrap();
    assert_eq!(
        stale(store.expire_image(repository.id, &old, seen.clone(), at(4)).await),
        Stale::Kept,
        "it is gone"
    );
    let archived = store.archive_image(repository.id, &old, seen, at(4)).await;
    assert!(matches!(archived, Err(StorageClassError::Stale(Stale::Kept))), "{archived:?}");
    // A kept image that was only pulled, or not touched, does not make the decision stale.
    store.expire_image(repository.id, &old, decision(&kept[..1]).await, at(4)).await.unwrap();
}

pub async fn a_decision_about_a_referrer_is_stale_if_its_subject_exists(store: Fixture) {
    let repository = store.repository_named("app").await;
    set_policy(&store, &repository, Some("policy")).await;
    let subject = store.image(&repository, "subject", &["a"]).await;
    let signature = NewManifest { subject: Some(subject.clone()), ..manifest("signature") };
    store.put_manifest(put(&repository, signature, &[])).await.unwrap();
    let signature = digest("signature");
    let decision = async || LifecycleDecision {
        follows_subject: true,
        ..store.decision(&repository, &signature, "policy").await
    };
    let expire =
        async || store.expire_image(repository.id, &signature, decision().await, at(2)).await;
    assert_eq!(stale(expire().await), Stale::Subject);
    let archived = store.archive_image(repository.id, &signature, decision().await, at(2)).await;
    assert!(matches!(archived, Err(StorageClassError::Stale(Stale::Subject))), "{archived:?}");

    archive(&store, &repository, &subject).await;
    assert_eq!(
        stale(expire().await),
        Stale::Subject,
        "it follows into the archive, not out of the repository"
    );
    store.archive_image(repository.id, &signature, decision().await, at(2)).await.unwrap();
    store.delete_image(repository.id, &subject, Referrers::Stay, at(2)).await.unwrap();
    expire().await.unwrap();
}

pub async fn a_decision_of_a_replaced_policy_is_stale(store: Fixture) {
    let repository = store.repository_named("app").await;
    let image = store.image(&repository, "image", &["a"]).await;
    let expire = async |policy| {
        let decision = store.decision(&repository, &image, policy).await;
        store.expire_image(repository.id, &image, decision, at(1)).await
    };
    let archive = async |policy| {
        let decision = store.decision(&repository, &image, policy).await;
        store.archive_image(repository.id, &image, decision, at(1)).await
    };
    for now in [Some("new"), None] {
        set_policy(&store, &repository, now).await;
        let refused = (expire("old").await, archive("old").await);
        assert!(
            matches!(
                &refused,
                (
                    Err(DeleteImageError::Stale(Stale::Policy)),
                    Err(StorageClassError::Stale(Stale::Policy))
                )
            ),
            "{refused:?}"
        );
        let Lookup::Found(found) = store.found(&repository, "a").await else {
            panic!("the image is there")
        };
        assert_eq!(found.status, ImageStatus::Active);
    }
    set_policy(&store, &repository, Some("new")).await;
    archive("new").await.unwrap();
    let again = archive("new").await;
    assert!(matches!(again, Err(StorageClassError::Unchanged(ImageStatus::Archived))), "{again:?}");
    let last = store.decision(&repository, &image, "new").await;
    expire("new").await.unwrap();
    let gone = store.archive_image(repository.id, &image, last, at(1)).await;
    assert!(matches!(gone, Err(StorageClassError::NotFound)), "{gone:?}");
}

pub async fn an_image_held_by_an_index_is_not_deleted(store: Fixture) {
    let repository = store.repository_named("app").await;
    let child = store.image(&repository, "child", &["a"]).await;
    let index = store.index(&repository, &[&child], &[]).await;
    // An archived index still holds its children.
    store.set_storage_class(repository.id, &index, StorageClass::Archive, at(1)).await.unwrap();
    match store.delete_image(repository.id, &child, Referrers::Stay, at(2)).await {
        Err(DeleteImageError::ReferencedBy(by)) => assert_eq!(by, std::slice::from_ref(&index)),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.tagged(&repository, "a").await, Some(child.clone()));
    store.delete_image(repository.id, &index, Referrers::Stay, at(3)).await.unwrap();
    store.delete_image(repository.id, &child, Referrers::Stay, at(3)).await.unwrap();
}

pub async fn a_refusal_names_at_most_a_hundred_indexes(store: Fixture) {
    let repository = store.repository_named("app").await;
    let child = store.image(&repository, "child", &[]).await;
    let mut indexes = Vec::new();
    for number in 0..103 {
        indexes.push(store.index_of(&repository, &format!("index {number}"), &[&child], &[]).await);
    }
    for index in &indexes[..2] {
        store.set_storage_class(repository.id, index, StorageClass::Archive, at(1)).await.unwrap();
    }
    // Active indexes come first, the oldest of them before the others.
    match store.delete_image(repository.id, &child, Referrers::Stay, at(2)).await {
        Err(DeleteImageError::ReferencedBy(by)) => assert_eq!(by, indexes[2..102]),
        other => panic!("{other:?}"),
    }
    match store.set_storage_class(repository.id, &child, StorageClass::Archive, at(2)).await {
        Err(StorageClassError::ReferencedBy(by)) => assert_eq!(by, indexes[2..102]),
        other => panic!("{other:?}"),
    }
    for index in &indexes[2..] {
        store.set_storage_class(repository.id, index, StorageClass::Archive, at(3)).await.unwrap();
    }
    match store.delete_image(repository.id, &child, Referrers::Stay, at(4)).await {
        Err(DeleteImageError::ReferencedBy(by)) => assert_eq!(by.len(), 100),
        other => panic!("{other:?}"),
    }
    store.set_storage_class(repository.id, &child, StorageClass::Archive, at(4)).await.unwrap();
    // A restored index holds the children that it restored.
    store
        .set_storage_class(repository.id, &indexes[7], StorageClass::Standard, at(5))
        .await
        .unwrap();
    match store.set_storage_class(repository.id, &child, StorageClass::Archive, at(6)).await {
        Err(StorageClassError::ReferencedBy(by)) => assert_eq!(by, indexes[7..8]),
        other => panic!("{other:?}"),
    }
}

pub async fn deleting_the_last_tag_keeps_or_deletes_the_image(store: Fixture) {
    let repository = store.repository_named("app").await;
    let image = store.image(&repository, "image", &["a", "b"]).await;
    let delete = async |name: &str, last: LastTag| {
        store.delete_tag(repository.id, &tag(name), None, last, at(1)).await
    };
    let stays = TagDeleted { digest: image.clone(), image_deleted: false };
    assert_eq!(delete("a", LastTag::DeletesImage).await.unwrap(), stays, "another tag is left");
    assert_eq!(delete("b", LastTag::KeepsImage).await.unwrap(), stays);
    assert_eq!(store.image_of(&repository, &image).await.unwrap().tags, []);
    let absent = delete("b", LastTag::KeepsImage).await;
    assert!(matches!(absent, Err(DeleteImageError::NotFound)), "{absent:?}");

    store.image(&repository, "image", &["c"]).await;
    let goes = TagDeleted { digest: image.clone(), image_deleted: true };
    assert_eq!(delete("c", LastTag::DeletesImage).await.unwrap(), goes);
    assert_eq!(store.image_of(&repository, &image).await, None);
}

pub async fn a_tag_is_deleted_only_from_the_expected_digest(store: Fixture) {
    let repository = store.repository_named("app").await;
    let image = store.image(&repository, "image", &["a"]).await;
    let delete = async |expected: &Digest| {
        store.delete_tag(repository.id, &tag("a"), Some(expected), LastTag::KeepsImage, at(1)).await
    };
    match delete(&digest("other")).await {
        Err(DeleteImageError::TagPointsElsewhere(actual)) => assert_eq!(actual, image),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.tagged(&repository, "a").await, Some(image.clone()));
    delete(&image).await.unwrap();
    assert_eq!(store.tagged(&repository, "a").await, None);
}

pub async fn a_batch_deletes_like_single_deletions_in_sequence(store: Fixture) {
    let repository = store.repository_named("app").await;
    let one = store.image(&repository, "one", &["a", "b"]).await;
    let two = store.image(&repository, "two", &["c"]).await;
    let three = store.image(&repository, "three", &["d"]).await;
    let (held, free) = (
        store.image(&repository, "held", &["e"]).await,
        store.image(&repository, "free", &[]).await,
    );
    let index = store.index(&repository, &[&held, &free], &[]).await;
    let signature = NewManifest { subject: Some(two.clone()), ..manifest("signature") };
    store.put_manifest(put(&repository, signature, &[])).await.unwrap();
    let before = store.recorded().await.len();

    let untag = |name: &str, expected: Option<&Digest>| ImageDeletion::Tag {
        tag: tag(name),
        expected: expected.cloned(),
    };
    let image = |digest: &Digest| ImageDeletion::Image(digest.clone());
    let deletions = [
        untag("a", Some(&one)),
        untag("a", None),
        untag("d", Some(&one)),
        untag("c", None),
        image(&two),
        image(&held),
        untag("e", None),
        image(&index),
        image(&held),
        image(&digest("none")),
        untag("none", None),
        untag("b", None),
        image(&free),
    ];
    let outcomes = store.delete_images(repository.id, &deletions, at(1)).await.unwrap();
    let recorded = |outcome: &Result<ImageDeleted, DeleteImageError>| match outcome {
        Ok(ImageDeleted { digest, tags, image_deleted }) => {
            let tags: Vec<&str> = tags.iter().map(Tag::as_str).collect();
            format!("{digest} {tags:?} {image_deleted}")
        }
        Err(error) => error.to_string(),
    };
    let absent = DeleteImageError::NotFound.to_string();
    let by_index = DeleteImageError::ReferencedBy(vec![index.clone()]).to_string();
    let expected = [
        format!(r#"{one} ["a"] false"#),
        absent.clone(),
        DeleteImageError::TagPointsElsewhere(three.clone()).to_string(),
        format!(r#"{two} ["c"] true"#),
        absent.clone(),
        by_index.clone(),
        by_index,
        format!("{index} [] true"),
        format!(r#"{held} ["e"] true"#),
        absent.clone(),
        absent,
        format!(r#"{one} ["b"] true"#),
        format!("{free} [] true"),
    ];
    assert_eq!(outcomes.iter().map(recorded).collect::<Vec<_>>(), expected);
    let left =
        store.list_image_ids(repository.id, ImageFilter::EVERYTHING, None, 10).await.unwrap();
    let left: BTreeSet<_> = left.into_iter().map(|id| (id.digest, id.tag)).collect();
    assert_eq!(left, BTreeSet::from([(three, Some(tag("d"))), (digest("signature"), None)]));
    let deleted: Vec<_> = store
        .recorded()
        .await
        .split_off(before)
        .into_iter()
        .map(|(_, action, tag)| (action, tag))
        .collect();
    let tags = [Some("a"), Some("c"), None, Some("e"), Some("b"), None];
    assert_eq!(deleted, tags.map(|tag| ("DELETE".to_owned(), tag.map(str::to_owned))));
    assert_eq!(store.waiting(FollowSubject::KIND).await, 1, "the signature follows what it signed");
    assert_eq!(store.delete_images(repository.id, &[], at(2)).await.unwrap().len(), 0);
}

pub async fn the_last_tag_of_a_held_image_is_kept_with_it(store: Fixture) {
    let repository = store.repository_named("app").await;
    let child = store.image(&repository, "child", &["a"]).await;
    let index = store.index(&repository, &[&child], &[]).await;
    let delete =
        async |last: LastTag| store.delete_tag(repository.id, &tag("a"), None, last, at(1)).await;
    match delete(LastTag::DeletesImage).await {
        Err(DeleteImageError::ReferencedBy(by)) => assert_eq!(by, [index]),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.tagged(&repository, "a").await, Some(child.clone()));
    delete(LastTag::KeepsImage).await.unwrap();
    assert!(store.image_of(&repository, &child).await.is_some());
}

pub async fn the_job_for_referrers_is_written_with_its_cause(store: Fixture) {
    let repository = store.repository_named("app").await;
    set_policy(&store, &repository, Some("policy")).await;
    let waiting = async || store.waiting(FollowSubject::KIND).await;
    // A subject with a signature, held by an index if `held`, and one without referrers.
    let subject = async |payload: &str, held: bool| {
        let subject = store.image(&repository, payload, &[payload]).await;
        let signature = NewManifest {
            subject: Some(subject.clone()),
            ..manifest(&format!("signature of {payload}"))
        };
        store.put_manifest(put(&repository, signature, &[])).await.unwrap();
        if held {
            store.index_of(&repository, &format!("index of {payload}"), &[&subject], &[]).await;
        }
        subject
    };
    let delete_tag = async |name: &str| {
        store.delete_tag(repository.id, &tag(name), None, LastTag::DeletesImage, at(1)).await
    };

    let held = subject("held", true).await;
    store.delete_image(repository.id, &held, Referrers::Follow, at(1)).await.unwrap_err();
    delete_tag("held").await.unwrap_err();
    store.set_storage_class(repository.id, &held, StorageClass::Archive, at(1)).await.unwrap_err();
    let decision = store.decision(&repository, &held, "policy").await;
    store.expire_image(repository.id, &held, decision, at(1)).await.unwrap_err();
    let alone = store.image(&repository, "alone", &[]).await;
    store.delete_image(repository.id, &alone, Referrers::Follow, at(1)).await.unwrap();
    let kept = subject("kept", false).await;
    store.delete_image(repository.id, &kept, Referrers::Stay, at(1)).await.unwrap();
    assert_eq!(waiting().await, 0);

    for (before, cause) in
        ["delete", "delete the last tag", "archive", "expire", "archive by policy"]
            .iter()
            .enumerate()
    {
        let name = cause.replace(' ', "-");
        let subject = subject(&name, false).await;
        assert_eq!(waiting().await, before as u64);
        let decision = store.decision(&repository, &subject, "policy").await;
        match *cause {
            "delete" => drop(
                store
                    .delete_image(repository.id, &subject, Referrers::Follow, at(1))
                    .await
                    .unwrap(),
            ),
            "delete the last tag" => assert!(delete_tag(&name).await.unwrap().image_deleted),
            "archive" => archive(&store, &repository, &subject).await,
            "expire" => store.expire_image(repository.id, &subject, decision, at(1)).await.unwrap(),
            _ => store.archive_image(repository.id, &subject, decision, at(1)).await.unwrap(),
        }
        assert_eq!(waiting().await, before as u64 + 1, "{cause}");
    }
}

pub async fn a_referrer_follows_the_current_state_of_its_subject(store: Fixture) {
    let repository = store.repository_named("app").await;
    let subject = store.image(&repository, "subject", &["a"]).await;
    let refer = async |payload: &str, subject: &Digest| {
        let referrer = NewManifest { subject: Some(subject.clone()), ..manifest(payload) };
        store.put_manifest(put(&repository, referrer, &[payload])).await.unwrap();
        digest(payload)
    };
    let signature = refer("signature", &subject).await;
    let attestation = refer("attestation", &signature).await;
    let follow = async |referrer: &Digest| {
        store.follow_subject(repository.id, referrer, at(5)).await.unwrap()
    };
    let status = async |image: &Digest| status_of(&store, &repository, image).await;

    assert!(!follow(&signature).await, "the subject is as it is");
    assert!(!follow(&subject).await && !follow(&digest("absent")).await, "neither is a referrer");
    archive(&store, &repository, &subject).await;
    assert!(follow(&signature).await && !follow(&signature).await);
    assert_eq!(status(&signature).await, Some(ImageStatus::Archived));
    // The push made it active again.
    store.image(&repository, "subject", &["a"]).await;
    assert!(follow(&signature).await);
    assert_eq!(status(&signature).await, Some(ImageStatus::Active));

    store.delete_image(repository.id, &subject, Referrers::Follow, at(6)).await.unwrap();
    store.image(&repository, "subject", &["a"]).await;
    assert!(!follow(&signature).await, "the subject is back");
    store.delete_image(repository.id, &subject, Referrers::Follow, at(7)).await.unwrap();
    let index = store.index_of(&repository, "index", &[&signature], &[]).await;
    assert!(!follow(&signature).await, "an index holds it");
    store.delete_image(repository.id, &index, Referrers::Stay, at(7)).await.unwrap();
    assert!(follow(&signature).await);
    assert_eq!(
        (status(&signature).await, status(&attestation).await),
        (None, Some(ImageStatus::Active))
    );
    // Its own referrers follow by another job than the subject's.
    assert_eq!(store.waiting(FollowSubject::KIND).await, 2);
    assert!(follow(&attestation).await);
    assert_eq!(store.tagged(&repository, "attestation").await, None);
}
