//! Upload sessions, from the first chunk to the blob.

use wharfage::store::KeyReference;
use wharfage::store::jobs::{DeleteGeneration, JobPayload as _};
use wharfage::store::repositories::{Encryption, NewRepository};
use wharfage::store::uploads::{LATE_WRITE, UploadClaim};

use super::*;

/// The lease of a claim that has expired when it is granted.
const OVER: Duration = Duration::ZERO;

pub async fn an_upload_is_read_back_as_it_was_stored(store: Fixture) {
    let (repository, other) =
        (store.repository_named("app").await, store.repository_named("other").await);
    let upload = Upload {
        algorithm: Algorithm::Sha512,
        key: Some(KeyReference { id: "a key".into(), wrapped: vec![0, 255] }),
        announced: false,
        progress: UploadProgress { writer: WriterState(vec![7; 100_000]), ..progress(1 << 20) },
        ..new_upload(&repository)
    };
    assert!(store.create_upload(upload.clone(), None).await.unwrap());
    assert_eq!(store.find_upload(repository.id, upload.id).await.unwrap(), Some(upload.clone()));
    assert_eq!(
        store.find_upload(other.id, upload.id).await.unwrap(),
        None,
        "it belongs to its repository"
    );
    assert_eq!(store.find_upload(repository.id, Uuid::new_v4()).await.unwrap(), None);
    assert_eq!(store.count_uploads().await.unwrap(), 1);

    store.delete_repository(other.id, false, at(1)).await.unwrap();
    assert!(
        !store.create_upload(new_upload(&other), None).await.unwrap(),
        "the repository is gone"
    );
}

/// Creates a session.
async fn begun(store: &Fixture) -> (Repository, Upload) {
    let repository = store.repository_named("app").await;
    let upload = new_upload(&repository);
    assert!(store.create_upload(upload.clone(), None).await.unwrap());
    (repository, upload)
}

async fn stored(store: &Fixture, upload: &Upload) -> Upload {
    store.find_upload(upload.repository, upload.id).await.unwrap().unwrap()
}

async fn claim(
    store: &Fixture,
    upload: &Upload,
    lease: Duration,
) -> Result<UploadClaim, UploadError> {
    let read = stored(store, upload).await;
    store.claim_upload(&read, Generation::random(), Timestamp::now(), lease).await
}

pub async fn a_session_is_claimed_once_at_a_time(store: Fixture) {
    let (_, upload) = begun(&store).await;
    let attempts = (0..8).map(|_| {
        let (store, upload) = (store.handle(), upload.clone());
        tokio::spawn(async move {
            store.claim_upload(&upload, Generation::random(), Timestamp::now(), MINUTE).await
        })
    });
    let mut winners = 0;
    for attempt in futures::future::join_all(attempts).await {
        match attempt.unwrap() {
            Ok(claim) => {
                assert_eq!(
                    claim,
                    UploadClaim { version: 1, generation: upload.generation, takeover: false }
                );
                winners += 1;
            }
            Err(error) => assert!(matches!(error, UploadError::Conflict), "{error:?}"),
        }
    }
    assert_eq!(winners, 1, "one request claims a version");
    let again = claim(&store, &upload, MINUTE).await;
    assert!(matches!(again, Err(UploadError::Conflict)), "{again:?}");
    let other = Upload { id: Uuid::new_v4(), ..upload };
    let nowhere = store.claim_upload(&other, Generation::random(), Timestamp::now(), MINUTE).await;
    assert!(matches!(nowhere, Err(UploadError::NotFound)), "{nowhere:?}");

    let claimed = new_upload(&store.repository_named("other").await);
    store.create_upload(claimed.clone(), Some(MINUTE)).await.unwrap();
    let again =
        store.claim_upload(&claimed, Generation::random(), claimed.started_at, MINUTE).await;
    assert!(matches!(again, Err(UploadError::Conflict)), "one can be created claimed: {again:?}");
    store.advance_upload(advance(claimed.id, 0, 10)).await.unwrap();
}

pub async fn a_claim_requires_the_version_that_was_read(store: Fixture) {
    let (_, upload) = begun(&store).await;
    claim(&store, &upload, MINUTE).await.unwrap();
    store.release_upload(upload.id, 1, true).await.unwrap();
    let stale = store.claim_upload(&upload, Generation::random(), Timestamp::now(), MINUTE).await;
    assert!(matches!(stale, Err(UploadError::Conflict)), "{stale:?}");
}

pub async fn a_claim_after_a_stale_read_is_refused(store: Fixture) {
    for hold in [None, Some(OVER)] {
        let repository = store.repository_named(&format!("app{}", hold.is_some())).await;
        let upload = new_upload(&repository);
        store.create_upload(upload.clone(), None).await.unwrap();
        claim(&store, &upload, OVER).await.unwrap();
        let read = stored(&store, &upload).await;
        // The holder was only slow.
        let acknowledged =
            AdvanceUpload { generation: Generation::random(), hold, ..advance(upload.id, 1, 10) };
        store.advance_upload(acknowledged).await.unwrap();
        let stale = store.claim_upload(&read, Generation::random(), Timestamp::now(), MINUTE).await;
        assert!(matches!(stale, Err(UploadError::Conflict)), "{stale:?}");
        claim(&store, &upload, MINUTE).await.unwrap();
    }
}

pub async fn a_clean_end_of_a_claim_keeps_the_generation(store: Fixture) {
    let (_, upload) = begun(&store).await;
    assert_eq!(claim(&store, &upload, MINUTE).await.unwrap().generation, upload.generation);
    store.release_upload(upload.id, 1, true).await.unwrap();
    let next = Generation::random();
    let claimed = claim(&store, &upload, MINUTE).await.unwrap();
    assert_eq!(claimed, UploadClaim { version: 2, generation: upload.generation, takeover: false });
    let end = AdvanceUpload { generation: next, hold: None, ..advance(upload.id, 2, 10) };
    store.advance_upload(end).await.unwrap();
    assert_eq!(stored(&store, &upload).await.claimed_until, None);
    let claimed = claim(&store, &upload, MINUTE).await.unwrap();
    assert_eq!(claimed, UploadClaim { version: 3, generation: next, takeover: false });
    assert_eq!(store.waiting(DeleteGeneration::KIND).await, 0);
}

pub async fn an_expired_claim_is_taken_over_with_a_new_generation(store: Fixture) {
    let (_, upload) = begun(&store).await;
    claim(&store, &upload, OVER).await.unwrap();
    let fresh = Generation::random();
    let claimed = store
        .claim_upload(&stored(&store, &upload).await, fresh, Timestamp::now(), MINUTE)
        .await
        .unwrap();
    assert_eq!(claimed, UploadClaim { version: 2, generation: fresh, takeover: true });
    // A session whose writer failed is claimed by another too.
    store.release_upload(upload.id, 2, false).await.unwrap();
    let claimed = claim(&store, &upload, MINUTE).await.unwrap();
    assert!(claimed.takeover && claimed.generation != fresh, "{claimed:?}");

    let mut doomed: Vec<_> =
        deletions(&store).await.into_iter().map(|deletion| deletion.generation).collect();
    let mut expected = [upload.generation, fresh];
    doomed.sort();
    expected.sort();
    assert_eq!(doomed, expected, "what the losers wrote is deleted");
}

pub async fn a_lost_claim_neither_advances_nor_renews_nor_commits(store: Fixture) {
    let (repository, upload) = begun(&store).await;
    claim(&store, &upload, OVER).await.unwrap();
    claim(&store, &upload, MINUTE).await.unwrap();
    let advanced = store.advance_upload(advance(upload.id, 1, 10)).await;
    assert!(matches!(advanced, Err(UploadError::Conflict)), "{advanced:?}");
    let prolonged = store.renew_upload(upload.id, 1, Timestamp::now(), MINUTE).await;
    assert!(matches!(prolonged, Err(UploadError::Conflict)), "{prolonged:?}");
    let committed =
        store.commit_upload(CommitUpload { version: 1, ..commit(&upload, &digest("layer")) }).await;
    assert!(matches!(committed, Err(UploadError::Conflict)), "{committed:?}");
    store.release_upload(upload.id, 1, true).await.unwrap();
    assert!(stored(&store, &upload).await.claimed_until.is_some(), "the other claim is untouched");
    assert!(!store.has_blob(&repository, &digest("layer")).await);

    store.cancel_upload(repository.id, upload.id, None, at(0)).await.unwrap();
    let advanced = store.advance_upload(advance(upload.id, 2, 10)).await;
    assert!(matches!(advanced, Err(UploadError::NotFound)), "{advanced:?}");
    let prolonged = store.renew_upload(upload.id, 2, Timestamp::now(), MINUTE).await;
    assert!(matches!(prolonged, Err(UploadError::NotFound)), "{prolonged:?}");
}

pub async fn an_expired_claim_holds_until_it_is_taken_over(store: Fixture) {
    let (_, upload) = begun(&store).await;
    claim(&store, &upload, OVER).await.unwrap();
    store.renew_upload(upload.id, 1, Timestamp::now(), MINUTE).await.unwrap();
    let other = claim(&store, &upload, MINUTE).await;
    assert!(matches!(other, Err(UploadError::Conflict)), "{other:?}");
    store
        .advance_upload(AdvanceUpload { hold: Some(OVER), ..advance(upload.id, 1, 10) })
        .await
        .unwrap();
    assert_eq!(
        store
            .commit_upload(CommitUpload { version: 1, ..commit(&upload, &digest("layer")) })
            .await
            .unwrap(),
        CommitOutcome::New
    );
}

pub async fn an_acknowledged_chunk_survives_a_restart(mut store: Fixture) {
    let (_, upload) = begun(&store).await;
    claim(&store, &upload, MINUTE).await.unwrap();
    store.advance_upload(AdvanceUpload { hold: None, ..advance(upload.id, 1, 70) }).await.unwrap();
    store.reopen().await;
    assert_eq!(stored(&store, &upload).await.progress, progress(70));
    claim(&store, &upload, MINUTE).await.unwrap();
}

pub async fn a_commit_makes_a_blob_and_ends_the_session(mut store: Fixture) {
    let (repository, upload) = begun(&store).await;
    claim(&store, &upload, MINUTE).await.unwrap();
    let commit = CommitUpload { version: 1, ..commit(&upload, &digest("layer")) };
    assert_eq!(store.commit_upload(commit.clone()).await.unwrap(), CommitOutcome::New);
    store.reopen().await;

    let bytes = store.bytes_of(&repository, &digest("layer")).await;
    assert_eq!(bytes, (BlobKey::plain(upload.generation, 100), false));
    assert_eq!(store.find_upload(repository.id, upload.id).await.unwrap(), None);
    assert_eq!(store.waiting(DeleteGeneration::KIND).await, 0);
    let again = store.commit_upload(commit).await;
    assert!(matches!(again, Err(UploadError::NotFound)), "{again:?}");
}

pub async fn a_commit_records_how_the_bytes_are_stored(store: Fixture) {
    let repository = store.repository_named("app").await;
    let key = Some(KeyReference { id: "a key".into(), wrapped: vec![0, 255] });
    let upload = Upload { key: key.clone(), ..new_upload(&repository) };
    store.create_upload(upload.clone(), None).await.unwrap();
    let elsewhere = Generation::random();
    let sealed = Sealed { stored_size: 116, ..sealed(elsewhere) };
    store
        .commit_upload(CommitUpload { sealed, ..commit(&upload, &digest("layer")) })
        .await
        .unwrap();
    let (bytes, _) = store.bytes_of(&repository, &digest("layer")).await;
    assert_eq!(bytes, BlobKey { generation: elsewhere, size: 100, stored_size: 116, key });
}

pub async fn a_commit_of_a_stale_version_changes_nothing(store: Fixture) {
    let (repository, upload) = begun(&store).await;
    claim(&store, &upload, MINUTE).await.unwrap();
    let stale = store.commit_upload(commit(&upload, &digest("layer"))).await;
    assert!(matches!(stale, Err(UploadError::Conflict)), "{stale:?}");
    assert!(!store.has_blob(&repository, &digest("layer")).await);
    assert!(store.find_upload(repository.id, upload.id).await.unwrap().is_some());
}

/// Returns the generations to be deleted at any time.
async fn deletions(store: &Fixture) -> Vec<DeleteGeneration> {
    deletions_due(store, Timestamp::now() + 24.hours()).await
}

async fn deletions_due(store: &Fixture, now: Timestamp) -> Vec<DeleteGeneration> {
    let mut deletions = Vec::new();
    while let Some(job) =
        store.claim_job(&[DeleteGeneration::KIND], now, MINUTE * 10_000).await.unwrap()
    {
        let deletion = DeleteGeneration::parse(&job.payload).unwrap();
        assert_eq!(job.key, deletion.generation.to_string());
        deletions.push(deletion);
    }
    deletions
}

pub async fn bytes_of_an_existing_blob_are_shared_and_the_copy_deleted(store: Fixture) {
    let (first, second) =
        (store.repository_named("first").await, store.repository_named("second").await);
    assert_eq!(store.commit(&first, &digest("layer"), at(0)).await, CommitOutcome::New);

    let copy = new_upload(&second);
    store.create_upload(copy.clone(), None).await.unwrap();
    assert_eq!(
        store.commit_intact(commit(&copy, &digest("layer"))).await.unwrap(),
        CommitOutcome::Shared
    );
    assert!(store.has_blob(&second, &digest("layer")).await);
    assert_eq!(deletions(&store).await, [DeleteGeneration::of(copy.generation)]);

    let again = new_upload(&first);
    store.create_upload(again.clone(), None).await.unwrap();
    let committed = store.commit_intact(commit(&again, &digest("layer"))).await.unwrap();
    assert_eq!(committed, CommitOutcome::AlreadyInRepository);
    assert_eq!(deletions(&store).await, [DeleteGeneration::of(again.generation)]);
    assert_eq!(store.count_uploads().await.unwrap(), 0);
}

pub async fn an_existing_blob_is_linked_only_after_a_check(store: Fixture) {
    let (first, second) =
        (store.repository_named("first").await, store.repository_named("second").await);
    store.commit(&first, &digest("layer"), at(0)).await;
    let (there, _) = store.bytes_of(&first, &digest("layer")).await;
    for repository in [&first, &second] {
        let upload = new_upload(repository);
        store.create_upload(upload.clone(), None).await.unwrap();
        let another = Some(KnownBlob { generation: Generation::random(), intact: true });
        for known in [None, another] {
            let commit = CommitUpload { known, ..commit(&upload, &digest("layer")) };
            match store.commit_upload(commit).await {
                Err(UploadError::Unchecked(bytes)) => assert_eq!(bytes, there),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(stored(&store, &upload).await, upload, "nothing was written");
    }
    assert!(!store.has_blob(&second, &digest("layer")).await);
    assert_eq!(store.waiting(DeleteGeneration::KIND).await, 0);
}

pub async fn a_damaged_blob_gets_the_new_bytes_in_all_repositories(store: Fixture) {
    let (first, second) =
        (store.repository_named("first").await, store.repository_named("second").await);
    let third = store.repository_named("third").await;
    for pusher in [&first, &second, &third] {
        store.commit(&first, &digest("layer"), at(0)).await;
        store.commit(&second, &digest("layer"), at(0)).await;
        deletions(&store).await;
        let (damaged, _) = store.bytes_of(&first, &digest("layer")).await;
        store.set_blob_damaged(damaged.generation, Some(at(1))).await.unwrap();
        let upload = new_upload(pusher);
        store.create_upload(upload.clone(), None).await.unwrap();
        let known = Some(KnownBlob { generation: damaged.generation, intact: false });
        let commit = CommitUpload { known, ..commit(&upload, &digest("layer")) };
        assert_eq!(store.commit_upload(commit).await.unwrap(), CommitOutcome::Healed);
        for repository in [&first, &second, pusher] {
            let bytes = store.bytes_of(repository, &digest("layer")).await;
            assert_eq!(bytes, (BlobKey::plain(upload.generation, 100), false));
        }
        assert_eq!(deletions(&store).await, [DeleteGeneration::of(damaged.generation)]);
    }
}

pub async fn intermediate_objects_are_deleted_after_the_commit(store: Fixture) {
    let (_, upload) = begun(&store).await;
    let leftover = vec![Generation::random()];
    let sealed = Sealed { leftover: leftover.clone(), ..sealed(upload.generation) };
    store
        .commit_upload(CommitUpload { sealed, ..commit(&upload, &digest("layer")) })
        .await
        .unwrap();
    assert_eq!(deletions(&store).await, [DeleteGeneration::of(leftover[0])]);
}

pub async fn bytes_are_not_shared_across_registries_or_keys(store: Fixture) {
    let plain = store.repository_named("plain").await;
    let foreign =
        NewRepository { account: "210987654321".parse().unwrap(), ..new_repository("foreign") };
    let foreign = store.create_repository(foreign, 10).await.unwrap();
    let kms = Encryption { kind: "KMS".into(), kms_key: Some("arn:aws:kms:r:1:key/k".into()) };
    let encrypted = NewRepository { encryption: kms, ..new_repository("encrypted") };
    let encrypted = store.create_repository(encrypted, 10).await.unwrap();
    for repository in [&plain, &foreign, &encrypted] {
        assert_eq!(store.commit(repository, &digest("layer"), at(0)).await, CommitOutcome::New);
    }
}

pub async fn the_same_digest_committed_at_once_makes_one_blob(store: Fixture) {
    let (first, second) =
        (store.repository_named("first").await, store.repository_named("second").await);
    let mut commits = Vec::new();
    for turn in 0..12 {
        let upload = new_upload(if turn % 2 == 0 { &first } else { &second });
        store.create_upload(upload.clone(), None).await.unwrap();
        commits
            .push(tokio::spawn(commit_intact(store.handle(), commit(&upload, &digest("layer")))));
    }
    let outcomes: Vec<_> = futures::future::join_all(commits)
        .await
        .into_iter()
        .map(|done| done.unwrap().unwrap())
        .collect();
    let count = |what: CommitOutcome| outcomes.iter().filter(|outcome| **outcome == what).count();
    assert_eq!((count(CommitOutcome::New), count(CommitOutcome::Shared)), (1, 1), "{outcomes:?}");
    assert_eq!(store.waiting(DeleteGeneration::KIND).await, 11, "every copy is deleted");
    assert!(
        store.has_blob(&first, &digest("layer")).await
            && store.has_blob(&second, &digest("layer")).await
    );
}

pub async fn canceling_hands_the_generation_to_a_job(store: Fixture) {
    let (repository, upload) = begun(&store).await;
    let other = store.repository_named("other").await;
    let cancel = async |repository: &Repository| {
        store.cancel_upload(repository.id, upload.id, None, at(1)).await.unwrap()
    };
    assert!(!cancel(&other).await, "it belongs to another repository");
    assert!(cancel(&repository).await);
    assert!(!cancel(&repository).await);
    assert_eq!(store.find_upload(repository.id, upload.id).await.unwrap(), None);
    let expected =
        DeleteGeneration { generation: upload.generation, writer: upload.progress.writer };
    assert_eq!(deletions_due(&store, at(1)).await, [expected]);
}

pub async fn the_bytes_of_a_claim_are_deleted_only_after_its_end(store: Fixture) {
    for how in ["cancel", "delete"] {
        let repository = store.repository_named(how).await;
        let upload = new_upload(&repository);
        store.create_upload(upload.clone(), None).await.unwrap();
        claim(&store, &upload, MINUTE).await.unwrap();
        let until = stored(&store, &upload).await.claimed_until.unwrap();
        let now = Timestamp::now();
        match how {
            "cancel" => {
                assert!(store.cancel_upload(repository.id, upload.id, None, now).await.unwrap())
            }
            _ => {
                store.delete_repository(repository.id, false, now).await.unwrap();
                while !store.empty_repository(repository.id, 100, now).await.unwrap() {}
            }
        }
        assert_eq!(deletions_due(&store, until).await, [], "{how}: it may still be written to");
        assert_eq!(deletions_due(&store, until + LATE_WRITE).await.len(), 1, "{how}");
    }
}

pub async fn a_holder_cancels_its_own_claim_only(store: Fixture) {
    let (repository, upload) = begun(&store).await;
    claim(&store, &upload, OVER).await.unwrap();
    let claimed = claim(&store, &upload, MINUTE).await.unwrap();
    deletions(&store).await;
    let now = Timestamp::now();
    assert!(
        !store.cancel_upload(repository.id, upload.id, Some(1), now).await.unwrap(),
        "it was taken over"
    );
    assert!(store.cancel_upload(repository.id, upload.id, Some(2), now).await.unwrap());
    let due = deletions_due(&store, now).await;
    assert_eq!(due.len(), 1, "nothing of it is on its way");
    assert_eq!(due[0].generation, claimed.generation);
}

pub async fn stale_uploads_are_canceled_oldest_first_up_to_the_limit(store: Fixture) {
    let repository = store.repository_named("app").await;
    let mut ids = Vec::new();
    for age in [30, 10, 20] {
        let progress = UploadProgress { updated_at: at(age), ..progress(0) };
        let upload = Upload { progress, ..new_upload(&repository) };
        ids.push(upload.id);
        store.create_upload(upload, None).await.unwrap();
    }
    let left = async || {
        let mut left = Vec::new();
        for (id, age) in ids.iter().zip([30, 10, 20]) {
            if store.find_upload(repository.id, *id).await.unwrap().is_some() {
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

pub async fn an_unannounced_session_is_canceled_when_its_claim_expires(store: Fixture) {
    let repository = store.repository_named("app").await;
    let now = Timestamp::now();
    let mut ids = Vec::new();
    for (announced, lease) in [(false, OVER), (false, MINUTE * 60), (true, OVER)] {
        let progress = UploadProgress { updated_at: now, ..progress(0) };
        let upload = Upload { announced, started_at: now, progress, ..new_upload(&repository) };
        ids.push(upload.id);
        store.create_upload(upload, Some(lease)).await.unwrap();
    }
    assert_eq!(
        store.cancel_stale_uploads(now, now, 10).await.unwrap(),
        0,
        "its writer may only be slow"
    );
    let later = now + LATE_WRITE + 10.seconds();
    assert_eq!(store.cancel_stale_uploads(now, later, 10).await.unwrap(), 1);
    for (id, left) in ids.iter().zip([false, true, true]) {
        assert_eq!(store.find_upload(repository.id, *id).await.unwrap().is_some(), left);
    }
    // A claimed session is kept, however old it is.
    assert_eq!(store.cancel_stale_uploads(now + 1.hours(), now, 10).await.unwrap(), 1);
    assert!(store.find_upload(repository.id, ids[1]).await.unwrap().is_some());
}

pub async fn claims_by_a_clock_that_is_ahead_are_not_canceled(store: Fixture) {
    let repository = store.repository_named("app").await;
    // On SQLite the process's own clock is ahead.
    let ahead = Timestamp::now() + 24.hours();
    for announced in [true, false] {
        let upload = Upload { announced, started_at: ahead, ..new_upload(&repository) };
        store.create_upload(upload.clone(), Some(MINUTE)).await.unwrap();
        let reaped = async || store.cancel_stale_uploads(ahead, ahead, 10).await.unwrap();
        assert_eq!(reaped().await, 0);
        store.renew_upload(upload.id, 0, ahead, MINUTE).await.unwrap();
        assert_eq!(reaped().await, 0);
        store
            .advance_upload(AdvanceUpload { now: ahead, ..advance(upload.id, 0, 10) })
            .await
            .unwrap();
        assert_eq!(reaped().await, 0);
        store.release_upload(upload.id, 0, true).await.unwrap();
        let read = stored(&store, &upload).await;
        store.claim_upload(&read, Generation::random(), ahead, MINUTE).await.unwrap();
        assert_eq!(reaped().await, 0);
    }
}
