//! The metadata contract on PostgreSQL, and races of several replicas on one database.

use std::time::Duration;

use futures::future::join_all;
use sqlx::Connection;
use wharfage::store::StoreError;
use wharfage::store::images::{
    DeleteImageError, ImageFilter, ImageIdentifier, ImageStatus, LastTag, ReferrerFilter, Stale,
    StorageClass, StorageClassError, TagStatusFilter,
};
use wharfage::store::jobs::JobEnd;
use wharfage::store::layers::{MountOutcome, UnlinkOutcome};
use wharfage::store::manifests::{PutManifestError, TagEffect};
use wharfage::store::postgres::{PostgresOptions, PostgresStore};
use wharfage::store::registries::RegistryStore as _;
use wharfage::store::repositories::{
    DeleteRepositoryError, LifecycleSchedule, Mutability, NewRepository, RepositoryChange,
    RepositoryStore as _,
};
use wharfage::store::uploads::UploadError;

use super::*;
use crate::bed;

async fn connect(url: &str) -> StoreResult<PostgresStore> {
    PostgresStore::connect(
        url,
        PostgresOptions { max_connections: 8, ..PostgresOptions::default() },
    )
    .await
}

async fn fixture_at(url: String) -> Fixture {
    let open: Open = Box::new(move || {
        let url = url.clone();
        Box::pin(async move { Arc::new(connect(&url).await.unwrap()) as Arc<dyn Metadata> })
    });
    Fixture::new(open, ()).await
}

async fn postgres() -> Option<Fixture> {
    Some(fixture_at(bed::postgres().database().await).await)
}

contract!(postgres);

/// Opens two replicas on one database.
async fn replicas() -> (Fixture, Fixture) {
    let url = bed::postgres().database().await;
    (fixture_at(url.clone()).await, fixture_at(url).await)
}

async fn run_sql(url: &str, sql: &str) {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    // The comment distinguishes it from a statement of the store.
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("/* test */ {sql}")))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// The number of runs of a race: usually enough for both orders, which no test requires.
const ROUNDS: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_replicas_start_on_an_empty_database_at_once() {
    let url = bed::postgres().database().await;
    let stores = join_all((0..6).map(|_| connect(&url))).await;
    for store in stores {
        store.unwrap().ready().await.unwrap();
    }
}

/// Makes the schema one of a newer program, which programs of version `oldest` can work with.
async fn upgrade_to_the_future(url: &str, oldest: i64) {
    connect(url).await.unwrap().close().await;
    let upgrade = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'of the future', true, '', 0);
         UPDATE schema_compatibility SET oldest = {oldest}"
    );
    run_sql(url, &upgrade).await;
}

#[tokio::test]
async fn a_newer_schema_that_this_version_cannot_work_with_is_refused() {
    let url = bed::postgres().database().await;
    upgrade_to_the_future(&url, 9999).await;
    for migrate in [true, false] {
        let options = PostgresOptions { migrate, ..PostgresOptions::default() };
        let refused = PostgresStore::connect(&url, options).await.unwrap_err().to_string();
        assert!(refused.contains("9999") && refused.contains("newer"), "{refused}");
    }
}

#[tokio::test]
async fn a_newer_schema_that_this_version_can_work_with_is_served() {
    let url = bed::postgres().database().await;
    upgrade_to_the_future(&url, 1).await;
    for migrate in [true, false] {
        let options = PostgresOptions { migrate, ..PostgresOptions::default() };
        let store = PostgresStore::connect(&url, options).await.unwrap();
        assert!(store.list_account_settings(&account()).await.unwrap().is_empty());
        store.close().await;
    }
}

#[tokio::test]
async fn a_database_of_version_2_is_upgraded_with_its_rows() {
    let url = bed::postgres().database().await;
    let folder = tempfile::tempdir().unwrap();
    for version in ["0001_initial.sql", "0002_registry.sql"] {
        let migrations = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/postgres/migrations");
        std::fs::copy(std::path::Path::new(migrations).join(version), folder.path().join(version))
            .unwrap();
    }
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::migrate::Migrator::new(folder.path())
        .await
        .unwrap()
        .run_direct(None, &mut connection, false)
        .await
        .unwrap();
    run_sql(&url, &super::sqlite::rows_of_version_2()).await;
    let (id, generation) = (Uuid::new_v4(), Generation::random());
    let upload = format!(
        "INSERT INTO upload (id, repository_id, generation, algorithm, started_at, version, byte_offset, updated_at,
                             hash_state, door_state, writer_state)
         VALUES ('{id}', 1, '{generation}', 'sha256', 0, 3, 10, 0, '\\x01', '\\x02', '\\x03')"
    );
    run_sql(&url, &upload).await;
    let store = fixture_at(url).await;
    let times: (i64, i64) =
        sqlx::query_as("/* test */ SELECT created_at, updated_at FROM tag WHERE name = 'a'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(times, (at(0).as_millisecond(), at(0).as_millisecond()));
    connection.close().await.unwrap();
    let upload = store.find_upload(RepositoryId(1), id).await.unwrap().unwrap();
    let UploadProgress { hash_state, protocol_state, writer, .. } = &upload.progress;
    assert_eq!(
        (&hash_state[..], &protocol_state[..], &writer.0[..]),
        (&[1][..], &[2][..], &[3][..])
    );
    super::sqlite::has_the_rows_of_version_2(&store).await;
}

#[tokio::test]
async fn a_tag_records_its_creation_and_its_last_move() {
    let url = bed::postgres().database().await;
    let store = fixture_at(url.clone()).await;
    let repository = store.repository_named("app").await;
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    for (seconds, payload, created, updated) in
        [(1, "one", 1, 1), (2, "one", 1, 1), (3, "two", 1, 3), (4, "two", 1, 3), (5, "one", 1, 5)]
    {
        let push = PutManifest { now: at(seconds), ..put(&repository, manifest(payload), &["a"]) };
        store.put_manifest(push).await.unwrap();
        let times: (i64, i64) = sqlx::query_as("/* test */ SELECT created_at, updated_at FROM tag")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(
            times,
            (at(created).as_millisecond(), at(updated).as_millisecond()),
            "{seconds}"
        );
    }
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_push_and_an_archival_of_its_child_are_ordered() {
    let (one, two) = replicas().await;
    let repository = one.repository_named("app").await;
    for round in 0..ROUNDS {
        let leaf = one.image(&repository, &format!("leaf {round}"), &[]).await;
        let inner = one.index_of(&repository, &format!("inner {round}"), &[&leaf], &[]).await;
        let archive = async |store: &Fixture, digest: &Digest| {
            store.set_storage_class(repository.id, digest, StorageClass::Archive, at(1)).await
        };
        archive(&one, &inner).await.unwrap();
        let children = one.references_to(&repository, &[&inner]).await;
        let index = NewManifest { children, ..manifest(&format!("outer {round}")) };
        // The leaf may be archived while its index is archived, and must be restored with it.
        let restore = async {
            if round % 2 == 0 {
                one.put_manifest(put(&repository, index, &[])).await.map(drop).unwrap();
            } else {
                one.set_storage_class(repository.id, &inner, StorageClass::Standard, at(2))
                    .await
                    .map(drop)
                    .unwrap();
            }
        };
        let ((), archived) = tokio::join!(restore, archive(&two, &leaf));
        assert!(
            matches!(archived, Ok(_) | Err(StorageClassError::ReferencedBy(_))),
            "{archived:?}"
        );
        for image in [&leaf, &inner] {
            let found = one.image_of(&repository, image).await.unwrap().image;
            assert_eq!(found.status, ImageStatus::Active, "round {round}: {archived:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_does_not_expire_once_a_push_of_it_was_acknowledged() {
    let (one, two) = replicas().await;
    let repository = one.repository_named("app").await;
    let policy = RepositoryChange::LifecyclePolicy(Some("policy".into()));
    one.change_repository(repository.id, policy, Vec::new()).await.unwrap();
    for round in 0..ROUNDS {
        let payload = format!("image {round}");
        let image = one.image(&repository, &payload, &["old"]).await;
        let decision = one.decision(&repository, &image, "policy").await;
        // The same image again, the same image with another tag, or another image that takes its
        // tag.
        let (pushed, tag) = match round % 3 {
            0 => (payload.clone(), "old"),
            1 => (payload.clone(), "new"),
            _ => (format!("another {round}"), "old"),
        };
        let push = one.put_manifest(put(&repository, manifest(&pushed), &[tag]));
        let (pushed_outcome, expired) =
            tokio::join!(push, two.expire_image(repository.id, &image, decision, at(1)));
        let outcome = pushed_outcome.unwrap();
        let is_there = one.image_of(&repository, &image).await.is_some();
        match expired {
            // The expiry came before the push, which created the image again.
            Ok(()) => assert_eq!(is_there, round % 3 < 2, "round {round}: {outcome:?}"),
            Err(DeleteImageError::Stale(Stale::Image)) => {
                assert!(is_there, "round {round}: {outcome:?}")
            }
            other => panic!("round {round}: {other:?}"),
        }
        assert_eq!(one.tagged(&repository, tag).await, Some(digest(&pushed)));
    }
}

#[tokio::test]
async fn a_claim_ends_by_the_databases_clock_not_a_replicas() {
    let (behind, ahead) = replicas().await;
    let (early, late) = (Timestamp::now() - 24.hours(), Timestamp::now() + 24.hours());
    let repository = behind.repository_named("app").await;
    for announced in [true, false] {
        let upload = Upload { announced, started_at: early, ..new_upload(&repository) };
        behind.create_upload(upload.clone(), Some(MINUTE)).await.unwrap();
        behind.renew_upload(upload.id, 0, early, MINUTE).await.unwrap();
        assert_eq!(ahead.cancel_stale_uploads(late, late, 10).await.unwrap(), 0);
        let read = ahead.find_upload(repository.id, upload.id).await.unwrap().unwrap();
        let taken = ahead.claim_upload(&read, Generation::random(), late, MINUTE).await;
        assert!(matches!(taken, Err(UploadError::Conflict)), "{taken:?}");
    }
}

#[tokio::test]
async fn a_silent_database_is_unavailable_until_it_answers() {
    let url = bed::postgres().database().await;
    let store = connect(&url).await.unwrap();
    let database = url.rsplit('/').next().unwrap();
    let others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname";
    run_sql(&url, &format!("SELECT pg_terminate_backend(pid) {others} = '{database}'")).await;
    // The old connections are found dead once; new ones work.
    for _ in 0..8 {
        match store.find_repository(&account(), &name("app")).await {
            Ok(found) => assert_eq!(found, None),
            Err(error) => assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}"),
        }
    }
    store.ready().await.unwrap();

    let server = bed::postgres::Postgres::start();
    let url = server.database().await;
    let store = PostgresStore::connect(&url, PostgresOptions::default()).await.unwrap();
    drop(server);
    let gone = store.ready().await.unwrap_err();
    assert!(matches!(gone, StoreError::Unavailable(_)), "{gone:?}");
    // The server is gone, so this only measures how fast that is detected.
    let options =
        PostgresOptions { acquire_timeout: Duration::from_secs(1), ..PostgresOptions::default() };
    let gone = PostgresStore::connect(&url, options).await.unwrap_err();
    assert!(matches!(gone, StoreError::Unavailable(_)), "{gone:?}");
}

#[tokio::test]
async fn keys_are_in_byte_order_in_any_locale() {
    let url = bed::postgres().database().await;
    let (server, database) = url.rsplit_once('/').unwrap();
    let english = format!("{database}_en");
    run_sql(
        &url,
        &format!(
            "CREATE DATABASE {english} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'"
        ),
    )
    .await;
    let store = fixture_at(format!("{server}/{english}")).await;
    let repository = store.repository_named("a-b").await;
    for other in ["a/b", "a.b", "ab"] {
        store.repository_named(other).await;
    }
    let image = store.image(&repository, "image", &["b", "B", "_b", "a.b", "a-b", "ab", "1"]).await;
    let in_bytes = tags(&["1", "B", "_b", "a-b", "a.b", "ab", "b"]);
    assert_eq!(store.list_tags(repository.id, None, 10).await.unwrap(), in_bytes);
    assert_eq!(store.list_tags(repository.id, Some("B"), 10).await.unwrap(), in_bytes[2..]);
    let named =
        store.find_images(repository.id, &[reference_to("_b")]).await.unwrap().remove(0).unwrap();
    assert_eq!(named.tags, in_bytes);
    let after = ImageIdentifier { digest: image.clone(), tag: Some(tag("B")) };
    let ids = store
        .list_image_ids(repository.id, ImageFilter::EVERYTHING, Some(&after), 10)
        .await
        .unwrap();
    assert_eq!(ids.into_iter().filter_map(|id| id.tag).collect::<Vec<_>>(), in_bytes[2..]);
    let names: Vec<_> = store
        .list_repositories(&account(), None, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|r| r.name)
        .collect();
    assert_eq!(names, ["a-b", "a.b", "a/b", "ab"].map(name));
    assert_eq!(
        store.delete_image(repository.id, &image, Referrers::Stay, at(1)).await.unwrap(),
        in_bytes
    );
}

#[tokio::test]
async fn a_page_may_begin_after_any_text() {
    let store = postgres().await.unwrap();
    let repository = store.repository_named("app").await;
    store.image(&repository, "image", &["a", "b"]).await;
    assert_eq!(store.list_tags(repository.id, Some("a\0z"), 10).await.unwrap(), tags(&["b"]));
    assert_eq!(store.list_tags(repository.id, Some("\0"), 10).await.unwrap(), tags(&["a", "b"]));
    assert_eq!(store.list_repositories(&account(), Some("ap\0"), 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn bytes_pushed_again_during_deletion_are_a_new_blob() {
    let url = bed::postgres().database().await;
    let store = fixture_at(url.clone()).await;
    let (repository, other) =
        (store.repository_named("app").await, store.repository_named("other").await);
    let layer = store.blob(&repository, "layer").await;
    assert_eq!(store.unlink_blob(repository.id, &layer).await.unwrap(), UnlinkOutcome::Unlinked);
    run_sql(&url, "UPDATE blob SET state = 'deleting'").await;
    assert_eq!(store.commit(&repository, &layer, at(0)).await, CommitOutcome::New);
    assert_eq!(store.commit(&other, &layer, at(0)).await, CommitOutcome::Shared);
    run_sql(&url, "DELETE FROM blob WHERE state = 'deleting'").await;
    assert!(store.has_blob(&repository, &layer).await && store.has_blob(&other, &layer).await);
}

#[tokio::test]
async fn annotations_hold_any_character() {
    let store = postgres().await.unwrap();
    let repository = store.repository_named("app").await;
    let annotations = BTreeMap::from([("a\0b".to_owned(), "\0\u{1f600}\\u0000".to_owned())]);
    let subject = Some(digest("subject"));
    let referrer =
        NewManifest { subject, annotations: annotations.clone(), ..manifest("referrer") };
    store.put_manifest(put(&repository, referrer, &[])).await.unwrap();
    let filter = ReferrerFilter { artifact_types: Vec::new(), status: None };
    let found =
        store.list_referrers(repository.id, &digest("subject"), &filter, None, 10).await.unwrap();
    assert_eq!(found[0].annotations, annotations);
    let filter = ReferrerFilter { artifact_types: vec!["a\0b".to_owned()], status: None };
    assert_eq!(
        store.list_referrers(repository.id, &digest("subject"), &filter, None, 10).await.unwrap(),
        []
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_pushes_of_an_immutable_tag_wins() {
    let (one, two) = replicas().await;
    let tag_mutability = TagMutability { mode: Mutability::Immutable, exclusions: Vec::new() };
    let new = NewRepository { tag_mutability, ..new_repository("app") };
    let repository = one.create_repository(new, 10).await.unwrap();
    for round in 0..ROUNDS {
        let tag = format!("v{round}");
        let push = |payload: &str| put(&repository, manifest(payload), &[&tag]);
        // Every other round both push the same image: an immutable tag is set once, even to the
        // same digest.
        let first = format!("one {round}");
        let second = if round % 2 == 0 { first.clone() } else { format!("two {round}") };
        let (left, right) =
            tokio::join!(one.put_manifest(push(&first)), two.put_manifest(push(&second)));
        let (outcome, refused, winner) = match (left, right) {
            (Ok(outcome), Err(refused)) => (outcome, refused, digest(&first)),
            (Err(refused), Ok(outcome)) => (outcome, refused, digest(&second)),
            other => panic!("{other:?}"),
        };
        assert_eq!(outcome.tags[0].1, TagEffect::Created);
        assert!(
            matches!(&refused, PutManifestError::TagAlreadyExists { current, .. } if *current == winner),
            "{refused:?}"
        );
        assert_eq!(one.tagged(&repository, &tag).await, Some(winner));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_cannot_both_reach_a_limit() {
    let (one, two) = replicas().await;
    for round in 0..ROUNDS {
        let repository = one.repository_named(&format!("app-{round}")).await;
        let push = |payload: &str, limits: (u64, u64), tag: &str| PutManifest {
            max_images: limits.0,
            max_tags: limits.1,
            ..put(&repository, manifest(payload), &[tag])
        };
        let (left, right) = tokio::join!(
            one.put_manifest(push("1", (1, 9), "a")),
            two.put_manifest(push("2", (1, 9), "b"))
        );
        let refused = match (left, right) {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused, PutManifestError::TooManyImages(1)), "{refused:?}");
        assert_eq!(one.repository_usage(repository.id).await.unwrap().0, 1);

        let (left, right) = tokio::join!(
            one.put_manifest(push("3", (9, 1), "x")),
            two.put_manifest(push("3", (9, 1), "y"))
        );
        let refused = match (left, right) {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused, PutManifestError::TooManyTags(1)), "{refused:?}");
    }
    let count = one.list_repositories(&account(), None, 100).await.unwrap().len() as u64;
    let (left, right) = tokio::join!(
        one.create_repository(new_repository("left"), count + 1),
        two.create_repository(new_repository("right"), count + 1)
    );
    assert!(left.is_ok() != right.is_ok(), "{left:?} {right:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_push_and_a_deletion_of_its_child_are_ordered() {
    let (one, two) = replicas().await;
    let repository = one.repository_named("app").await;
    for round in 0..ROUNDS {
        let child = one.image(&repository, &format!("child {round}"), &["child"]).await;
        let children = one.references_to(&repository, &[&child]).await;
        let index = NewManifest { children, ..manifest(&format!("index {round}")) };
        let (digest, child_tag) = (index.digest.clone(), tag("child"));
        let delete = async {
            // Deletes by digest, or by the last tag.
            if round % 2 == 0 {
                two.delete_image(repository.id, &child, Referrers::Stay, at(1)).await.map(|_| ())
            } else {
                two.delete_tag(repository.id, &child_tag, None, LastTag::DeletesImage, at(1))
                    .await
                    .map(|_| ())
            }
        };
        let (pushed, deleted) =
            tokio::join!(one.put_manifest(put(&repository, index, &[])), delete);
        match (pushed, deleted) {
            (Ok(_), Err(DeleteImageError::ReferencedBy(by))) => {
                assert_eq!(by, [digest]);
                assert_eq!(
                    one.tagged(&repository, "child").await,
                    Some(child),
                    "nothing of the deletion is written"
                );
            }
            (Err(PutManifestError::ChildrenNotFound(missing)), Ok(())) => {
                assert_eq!(missing, [child]);
                assert_eq!(one.found(&repository, digest.as_str()).await, Lookup::Missing);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_and_a_removal_of_its_blob_are_ordered() {
    let (one, two) = replicas().await;
    let repository = one.repository_named("app").await;
    for round in 0..ROUNDS {
        let layers = [
            one.blob(&repository, &format!("a{round}")).await,
            one.blob(&repository, "shared").await,
        ];
        let image = NewManifest {
            blobs: blobs(&[&layers[0], &layers[1]]),
            ..manifest(&format!("image {round}"))
        };
        let (pushed, unlinked) = tokio::join!(
            one.put_manifest(put(&repository, image, &["latest"])),
            two.unlink_blob(repository.id, &layers[0])
        );
        match (pushed, unlinked.unwrap()) {
            (Ok(_), UnlinkOutcome::InUse) => assert!(one.has_blob(&repository, &layers[0]).await),
            (Err(PutManifestError::BlobsNotFound(missing)), UnlinkOutcome::Unlinked) => {
                assert_eq!(missing, layers[..1]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_tag_survives_a_deletion_of_the_last_tag() {
    let (one, two) = replicas().await;
    let repository = one.repository_named("app").await;
    for round in 0..ROUNDS {
        let image = one.image(&repository, "image", &["old"]).await;
        let (old, new) = (tag("old"), format!("new-{round}"));
        let (pushed, deleted) = tokio::join!(
            one.put_manifest(put(&repository, manifest("image"), &[&new])),
            two.delete_tag(repository.id, &old, None, LastTag::DeletesImage, at(1))
        );
        let (pushed, deleted) = (pushed.unwrap(), deleted.unwrap());
        assert_eq!(
            pushed.created, deleted.image_deleted,
            "the image went before the push, or not at all"
        );
        assert_eq!(one.tagged(&repository, &new).await, Some(image));
        one.delete_tag(repository.id, &tag(&new), None, LastTag::DeletesImage, at(2))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_during_a_repository_deletion_succeed_or_are_refused() {
    let (one, two) = replicas().await;
    let source = one.repository_named("source").await;
    let shared = one.blob(&source, "shared").await;
    for round in 0..ROUNDS {
        let repository = one.repository_named("app").await;
        let layer = one.blob(&repository, &format!("layer {round}")).await;
        let upload = new_upload(&repository);
        assert!(one.create_upload(upload.clone(), None).await.unwrap());
        let image = NewManifest { blobs: blobs(&[&layer]), ..manifest("image") };
        let (deleted, pushed, committed, mounted, begun) = tokio::join!(
            two.delete_repository(repository.id, true, at(1)),
            one.put_manifest(put(&repository, image, &["latest"])),
            one.commit_upload(commit(&upload, &digest(&format!("upload {round}")))),
            one.mount_blob(source.id, repository.id, &shared, false, at(1), at(2)),
            one.create_upload(new_upload(&repository), None),
        );
        deleted.unwrap();
        assert!(matches!(pushed, Ok(_) | Err(PutManifestError::NoRepository)), "{pushed:?}");
        assert!(
            matches!(committed, Ok(CommitOutcome::New) | Err(UploadError::NotFound)),
            "{committed:?}"
        );
        assert!(
            matches!(mounted, Ok(MountOutcome::Mounted | MountOutcome::NotMountable)),
            "{mounted:?}"
        );
        begun.unwrap();
        assert_eq!(one.found(&repository, "latest").await, Lookup::NoRepository);
        let again = one.delete_repository(repository.id, true, at(2)).await;
        assert!(matches!(again, Err(DeleteRepositoryError::NotFound)), "{again:?}");
        while !two.empty_repository(repository.id, 3, at(3)).await.unwrap() {}
        assert_eq!(one.count_uploads().await.unwrap(), 0);
    }
    assert!(one.has_blob(&source, &shared).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_on_one_queue_run_each_job_once() {
    let (one, two) = replicas().await;
    for key in 0..20 {
        one.enqueue_job(job("scan", &key.to_string(), "{}", at(key))).await.unwrap();
    }
    let work = async |store: &Fixture| {
        let mut done = Vec::new();
        while let Some(job) = store.claim_job(&["scan"], at(60), MINUTE).await.unwrap() {
            store.end_job(job.id, job.attempts, JobEnd::Done).await.unwrap();
            done.push(job.key.parse::<i64>().unwrap());
        }
        done
    };
    let (mut left, right) = tokio::join!(work(&one), work(&two));
    left.extend(right);
    // One may find nothing while the other claims the last.
    left.extend(work(&one).await);
    left.sort_unstable();
    assert_eq!(left, (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_due_policies() {
    let (one, two) = replicas().await;
    for number in 0..30 {
        let repository = one.repository_named(&format!("app-{number}")).await;
        let policy = RepositoryChange::LifecyclePolicy(Some("{}".into()));
        assert!(one.change_repository(repository.id, policy, Vec::new()).await.unwrap());
    }
    let look = async |store: &Fixture| {
        let mut due = 0;
        for _ in 0..10 {
            let again = (at(100), at(200));
            due += store
                .schedule_lifecycle(LifecycleSchedule { now: at(1), next_due: again, limit: 7 })
                .await
                .unwrap();
        }
        due
    };
    let (left, right) = tokio::join!(look(&one), look(&two));
    assert_eq!(left + right, 30, "{left} {right}");
    assert_eq!(one.waiting("lifecycle").await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_failing_during_an_enqueue_leaves_one_waiting() {
    let (one, two) = replicas().await;
    for _ in 0..ROUNDS {
        one.enqueue_job(job("scan", "key", "old", at(0))).await.unwrap();
        let claimed = one.claim_job(&["scan"], at(1), MINUTE).await.unwrap().unwrap();
        let retry = JobEnd::Retry { at: at(5), error: "it failed".into() };
        let (ended, enqueued) = tokio::join!(
            one.end_job(claimed.id, claimed.attempts, retry),
            two.enqueue_job(job("scan", "key", "new", at(9)))
        );
        ended.unwrap();
        enqueued.unwrap();
        assert_eq!(one.waiting("scan").await, 1);
        let next = one.claim_job(&["scan"], at(5), MINUTE).await.unwrap().unwrap();
        assert_eq!(next.payload, "new", "due when the failed one was, with the newer payload");
        one.end_job(next.id, next.attempts, JobEnd::Done).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_tag_moves_are_counted_correctly() {
    let (one, two) = replicas().await;
    let repository = one.repository_named("app").await;
    let images =
        [one.image(&repository, "a", &["x", "y"]).await, one.image(&repository, "b", &["z"]).await];
    for round in 0..ROUNDS {
        let (left, right) = if round % 2 == 0 { ("b", "a") } else { ("a", "b") };
        let (x, y, z) = tokio::join!(
            one.put_manifest(put(&repository, manifest(left), &["x"])),
            two.put_manifest(put(&repository, manifest(left), &["y"])),
            two.put_manifest(put(&repository, manifest(right), &["z"])),
        );
        for pushed in [x, y, z] {
            pushed.unwrap();
        }
        for tag_status in [TagStatusFilter::Tagged, TagStatusFilter::Untagged] {
            let filter = ImageFilter { tag_status, status: None };
            for image in one.list_images(repository.id, filter, None, 10).await.unwrap() {
                assert_eq!(image.tags.is_empty(), tag_status == TagStatusFilter::Untagged);
            }
        }
        assert_eq!(
            one.tagged(&repository, "x").await,
            Some(images[usize::from(left == "b")].clone())
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_folding_usage_count_each_image_once() {
    let (one, two) = replicas().await;
    let repository = one.repository_named("app").await;
    let push = async |store: &Fixture, from: u32| {
        for number in from..from + 20 {
            store.image(&repository, &format!("image {number}"), &[]).await;
            store.fold_usage(3).await.unwrap();
        }
    };
    tokio::join!(push(&one, 0), push(&two, 100));
    assert_eq!(one.repository_usage(repository.id).await.unwrap().0, 40);
    while one.fold_usage(1000).await.unwrap() > 0 {}
    assert_eq!(two.repository_usage(repository.id).await.unwrap().0, 40);
}
