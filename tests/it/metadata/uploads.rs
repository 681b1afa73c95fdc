//! Upload sessions, from the first chunk to the blob.

use wharfage::store::jobs::DeleteGeneration;
use wharfage::store::repositories::{Encryption, NewRepository};
use wharfage::store::uploads::UploadError;

use super::*;

pub async fn an_upload_is_read_back_as_it_was_stored(store: Fixture) {
    let (repository, other) = (store.repository_named("app").await, store.repository_named("other").await);
    let upload = Upload {
        algorithm: Algorithm::Sha512,
        progress: UploadProgress { writer: WriterState(vec![7; 100_000]), ..progress(3, 1 << 40) },
        ..new_upload(&repository)
    };
    assert!(store.create_upload(upload.clone()).await.unwrap());
    assert_eq!(store.upload(repository.id, upload.id).await.unwrap(), Some(upload.clone()));
    assert_eq!(store.upload(other.id, upload.id).await.unwrap(), None, "it belongs to its repository");
    assert_eq!(store.upload(repository.id, Uuid::new_v4()).await.unwrap(), None);
    assert_eq!(store.open_uploads().await.unwrap(), 1);

    store.delete_repository(other.id, false, at(1)).await.unwrap();
    assert!(!store.create_upload(new_upload(&other)).await.unwrap(), "the repository is gone");
}

pub async fn a_chunk_is_one_compare_and_swap(store: Fixture) {
    let repository = store.repository_named("app").await;
    let upload = new_upload(&repository);
    store.create_upload(upload.clone()).await.unwrap();

    let attempts = (0..8_u64).map(|offset| {
        let (store, id) = (store.handle(), upload.id);
        tokio::spawn(async move { store.advance_upload(id, progress(1, offset)).await.map(|()| offset) })
    });
    let mut winners = Vec::new();
    for attempt in futures::future::join_all(attempts).await {
        match attempt.unwrap() {
            Ok(offset) => winners.push(offset),
            Err(error) => assert!(matches!(error, UploadError::Conflict), "{error:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "one request advances a version: {winners:?}");
    let stored = store.upload(repository.id, upload.id).await.unwrap().unwrap();
    assert_eq!(stored, Upload { progress: progress(1, winners[0]), ..upload });

    let nowhere = store.advance_upload(Uuid::new_v4(), progress(1, 1)).await;
    assert!(matches!(nowhere, Err(UploadError::NotFound)), "{nowhere:?}");
}

pub async fn an_acknowledged_chunk_survives_a_restart(mut store: Fixture) {
    let repository = store.repository_named("app").await;
    let upload = new_upload(&repository);
    store.create_upload(upload.clone()).await.unwrap();
    store.advance_upload(upload.id, progress(1, 70)).await.unwrap();
    store.reopen().await;
    let stored = store.upload(repository.id, upload.id).await.unwrap().unwrap();
    assert_eq!(stored.progress, progress(1, 70));
    store.advance_upload(upload.id, progress(2, 90)).await.unwrap();
}

pub async fn a_commit_makes_a_blob_and_ends_the_session(mut store: Fixture) {
    let repository = store.repository_named("app").await;
    let upload = new_upload(&repository);
    store.create_upload(upload.clone()).await.unwrap();
    store.advance_upload(upload.id, progress(1, 42)).await.unwrap();
    let commit = CommitUpload { version: 1, size: 42, ..commit(upload.id, &digest("layer")) };
    assert_eq!(store.commit_upload(commit.clone()).await.unwrap(), Committed::New);
    store.reopen().await;

    let Lookup::Found(blob) = store.find_blob(&account(), &repository.name, &digest("layer")).await.unwrap() else {
        panic!("the blob is found");
    };
    assert_eq!((blob.size, blob.generation), (42, upload.generation));
    assert_eq!(store.upload(repository.id, upload.id).await.unwrap(), None);
    assert_eq!(store.waiting(DeleteGeneration::KIND).await, 0);
    let again = store.commit_upload(commit).await;
    assert!(matches!(again, Err(UploadError::NotFound)), "{again:?}");
}

pub async fn a_commit_of_a_stale_version_changes_nothing(store: Fixture) {
    let repository = store.repository_named("app").await;
    let upload = new_upload(&repository);
    store.create_upload(upload.clone()).await.unwrap();
    store.advance_upload(upload.id, progress(1, 42)).await.unwrap();
    let stale = store.commit_upload(commit(upload.id, &digest("layer"))).await;
    assert!(matches!(stale, Err(UploadError::Conflict)), "{stale:?}");
    assert!(!store.has_blob(&repository, &digest("layer")).await);
    assert!(store.upload(repository.id, upload.id).await.unwrap().is_some());
}

async fn deletions(store: &Fixture) -> Vec<DeleteGeneration> {
    let mut deletions = Vec::new();
    while let Some(job) = store.claim_job(&[DeleteGeneration::KIND], at(1000), MINUTE).await.unwrap() {
        assert_eq!(job.key, DeleteGeneration::parse(&job.payload).unwrap().generation.to_string());
        deletions.push(DeleteGeneration::parse(&job.payload).unwrap());
    }
    deletions
}

pub async fn bytes_that_the_registry_has_are_shared_and_the_copy_is_deleted(store: Fixture) {
    let (first, second) = (store.repository_named("first").await, store.repository_named("second").await);
    assert_eq!(store.commit(&first, &digest("layer"), at(0)).await, Committed::New);

    let copy = new_upload(&second);
    store.create_upload(copy.clone()).await.unwrap();
    assert_eq!(store.commit_upload(commit(copy.id, &digest("layer"))).await.unwrap(), Committed::Shared);
    assert!(store.has_blob(&second, &digest("layer")).await);
    // The copy was finished: there is nothing half written to give up.
    let finished = |upload: &Upload| DeleteGeneration { generation: upload.generation, writer: WriterState::default() };
    assert_eq!(deletions(&store).await, [finished(&copy)]);

    let again = new_upload(&first);
    store.create_upload(again.clone()).await.unwrap();
    assert_eq!(store.commit_upload(commit(again.id, &digest("layer"))).await.unwrap(), Committed::AlreadyInRepository);
    assert_eq!(deletions(&store).await, [finished(&again)]);
    assert_eq!(store.open_uploads().await.unwrap(), 0);
}

pub async fn bytes_are_not_shared_across_registries_or_keys(store: Fixture) {
    let plain = store.repository_named("plain").await;
    let foreign = NewRepository { account: "210987654321".parse().unwrap(), ..new_repository("foreign") };
    let foreign = store.create_repository(foreign, 10).await.unwrap();
    let kms = Encryption { kind: "KMS".into(), kms_key: Some("arn:aws:kms:r:1:key/k".into()) };
    let encrypted = NewRepository { encryption: kms, ..new_repository("encrypted") };
    let encrypted = store.create_repository(encrypted, 10).await.unwrap();
    for repository in [&plain, &foreign, &encrypted] {
        assert_eq!(store.commit(repository, &digest("layer"), at(0)).await, Committed::New);
    }
}

pub async fn the_same_digest_committed_at_once_makes_one_blob(store: Fixture) {
    let (first, second) = (store.repository_named("first").await, store.repository_named("second").await);
    let mut commits = Vec::new();
    for turn in 0..12 {
        let upload = new_upload(if turn % 2 == 0 { &first } else { &second });
        store.create_upload(upload.clone()).await.unwrap();
        let handle = store.handle();
        commits.push(tokio::spawn(async move { handle.commit_upload(commit(upload.id, &digest("layer"))).await }));
    }
    let outcomes: Vec<_> =
        futures::future::join_all(commits).await.into_iter().map(|done| done.unwrap().unwrap()).collect();
    let count = |what: Committed| outcomes.iter().filter(|outcome| **outcome == what).count();
    assert_eq!((count(Committed::New), count(Committed::Shared)), (1, 1), "{outcomes:?}");
    assert_eq!(store.waiting(DeleteGeneration::KIND).await, 11, "every copy is deleted");
    assert!(store.has_blob(&first, &digest("layer")).await && store.has_blob(&second, &digest("layer")).await);
}

pub async fn cancelling_hands_the_generation_to_a_job(store: Fixture) {
    let (repository, other) = (store.repository_named("app").await, store.repository_named("other").await);
    let upload = new_upload(&repository);
    store.create_upload(upload.clone()).await.unwrap();
    assert!(!store.cancel_upload(other.id, upload.id, at(1)).await.unwrap(), "it belongs to another repository");
    assert!(store.cancel_upload(repository.id, upload.id, at(1)).await.unwrap());
    assert!(!store.cancel_upload(repository.id, upload.id, at(1)).await.unwrap());
    assert_eq!(store.upload(repository.id, upload.id).await.unwrap(), None);
    let expected = DeleteGeneration { generation: upload.generation, writer: upload.progress.writer };
    assert_eq!(deletions(&store).await, [expected]);
}

pub async fn stale_uploads_are_cancelled_oldest_first_and_no_more_than_asked(store: Fixture) {
    let repository = store.repository_named("app").await;
    let mut ids = Vec::new();
    for age in [30, 10, 20] {
        let progress = UploadProgress { updated_at: at(age), ..progress(0, 0) };
        let upload = Upload { progress, ..new_upload(&repository) };
        ids.push(upload.id);
        store.create_upload(upload).await.unwrap();
    }
    let left = async || {
        let mut left = Vec::new();
        for (id, age) in ids.iter().zip([30, 10, 20]) {
            if store.upload(repository.id, *id).await.unwrap().is_some() {
                left.push(age);
            }
        }
        left
    };
    assert_eq!(store.cancel_stale_uploads(at(30), at(40), 1).await.unwrap(), 1);
    assert_eq!(left().await, [30, 20]);
    assert_eq!(store.cancel_stale_uploads(at(30), at(40), 10).await.unwrap(), 1);
    assert_eq!(left().await, [30], "a chunk that came at that very moment is not stale");
    assert_eq!(store.waiting(DeleteGeneration::KIND).await, 2);
}
