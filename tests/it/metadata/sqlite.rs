//! The metadata contract on SQLite, and tests of SQLite alone.

use std::path::Path;

use wharfage::store::StoreError;
use wharfage::store::jobs::JobStore as _;
use wharfage::store::layers::LayerStore as _;
use wharfage::store::manifests::ManifestStore as _;
use wharfage::store::repositories::RepositoryStore as _;
use wharfage::store::sqlite::SqliteStore;
use wharfage::store::uploads::UploadStore as _;

use super::*;

contract!(fixture);

async fn fixture() -> Option<Fixture> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata").join("wharfage.db");
    let open: Open = Box::new(move || {
        let store: Arc<dyn Metadata> = Arc::new(SqliteStore::open(&path).unwrap());
        Box::pin(async move { store })
    });
    Some(Fixture::new(open, folder).await)
}

fn refused(path: &Path) -> String {
    let error: StoreError = SqliteStore::open(path).expect_err("the database is not opened");
    let message = error.to_string();
    assert!(message.contains(path.to_str().unwrap()), "the message names the path: {message}");
    message
}

#[test]
fn a_database_is_open_once_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    let first = SqliteStore::open(&path).unwrap();
    assert!(refused(&path).contains("is in use by wharfage, process"));
    drop(first);
    SqliteStore::open(&path).unwrap();
}

#[test]
fn a_file_that_is_not_a_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    std::fs::write(&path, "certainly not a database, but long enough to look like one".repeat(100))
        .unwrap();
    refused(&path);
}

#[tokio::test]
async fn an_acknowledged_write_is_in_the_file_of_an_open_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    let store = SqliteStore::open(&path).unwrap();
    store.create_repository(new_repository("app"), 10).await.unwrap();
    // Copies the files in their current state, as a crash would leave them.
    let copy = folder.path().join("copy.db");
    for end in ["", "-wal"] {
        let name = |path: &Path| format!("{}{end}", path.display());
        std::fs::copy(name(&path), name(&copy)).unwrap();
    }
    let copy = SqliteStore::open(&copy).unwrap();
    assert!(copy.find_repository(&account(), &name("app")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_job_of_a_dead_process_runs_again_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    let (now, lease) = (Timestamp::now(), Duration::from_secs(3600));
    let claim = |store: SqliteStore| async move {
        (store.claim_job(&["k"], now, lease).await.unwrap(), store)
    };
    let store = SqliteStore::open(&path).unwrap();
    let job = NewJob { kind: "k".into(), key: "1".into(), payload: "{}".into(), run_at: now };
    store.enqueue_job(job).await.unwrap();
    let (first, store) = claim(store).await;
    let (none, store) = claim(store).await;
    drop(store);
    let (again, _store) = claim(SqliteStore::open(&path).unwrap()).await;
    let attempts = [first, none, again].map(|job| job.map(|job| job.attempts));
    assert_eq!(attempts, [Some(1), None, Some(2)]);
}

#[tokio::test]
async fn a_lease_is_never_shortened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    let open: Open = {
        let path = path.clone();
        Box::new(move || {
            let store: Arc<dyn Metadata> = Arc::new(SqliteStore::open(&path).unwrap());
            Box::pin(async move { store })
        })
    };
    let store = Fixture::new(open, folder).await;
    let (one, two) = (store.repository_named("one").await, store.repository_named("two").await);
    let layer = digest("layer");
    let lease = || -> i64 {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.query_row("SELECT lease_until FROM blob", [], |row| row.get(0)).unwrap()
    };
    let mut leases = Vec::new();
    store.commit(&one, &layer, at(10)).await;
    leases.push(lease());
    for until in [at(30), at(20)] {
        store.extend_lease(one.id, &layer, until).await.unwrap();
        leases.push(lease());
    }
    store.mount_blob(one.id, two.id, &layer, false, at(0), at(40)).await.unwrap();
    leases.push(lease());
    for until in [at(50), at(0)] {
        store.commit(&two, &layer, until).await;
        leases.push(lease());
    }
    assert_eq!(leases, [10, 30, 30, 40, 50, 50].map(|seconds| at(seconds).as_millisecond()));
}

/// Rows of the schema's second version: a repository and a deleted one, an active index over an
/// archived child, an archived index of the same child, a layer of both, and a tag of each index.
pub const ROWS_OF_VERSION_2: &str = "
    INSERT INTO repository (account_id, name, created_at, tag_mutability, exclusions, scan_on_push, encryption_type)
        VALUES ('123456789012', 'app', 1, 'MUTABLE', '[]', FALSE, 'AES256'),
               ('123456789012', 'gone', 1, 'MUTABLE', '[]', FALSE, 'AES256');
    DELETE FROM repository WHERE name = 'gone';
    INSERT INTO registry (account_id, policy) VALUES ('123456789012', '{}');
    INSERT INTO manifest (repository_id, digest, media_type, status, payload_size, image_size, pushed_at, archived_at)
        VALUES (1, 'sha256:CHILD', 'm', 'ARCHIVED', 5, 100, 1780000000000, 1780000001000),
               (1, 'sha256:INDEX', 'm', 'ACTIVE', 5, 100, 1780000000000, NULL),
               (1, 'sha256:OTHER', 'm', 'ARCHIVED', 5, 100, 1780000000000, 1780000001000);
    INSERT INTO manifest_child (parent_id, child_id) VALUES (2, 1), (3, 1);
    INSERT INTO tag (repository_id, name, manifest_id) VALUES (1, 'a', 2), (1, 'archived', 3);
    INSERT INTO blob (account_id, digest, encryption, size, generation, state, lease_until, created_at)
        VALUES ('123456789012', 'sha256:BOTH', 'AES256', 100, '00000000-0000-4000-8000-000000000001', 'live', 0, 0),
               ('123456789012', 'sha256:OWN', 'AES256', 100, '00000000-0000-4000-8000-000000000002', 'live', 0, 0);
    INSERT INTO repository_blob (repository_id, digest, blob_id, linked_at)
        VALUES (1, 'sha256:BOTH', 1, 1780000000000), (1, 'sha256:OWN', 2, 1780000000000);
    INSERT INTO manifest_blob (manifest_id, link_id, media_type) VALUES (1, 1, 'm'), (3, 1, 'm'), (3, 2, 'm');";

/// Returns [`ROWS_OF_VERSION_2`], with the digests of the names.
pub fn rows_of_version_2() -> String {
    ["CHILD", "INDEX", "OTHER", "BOTH", "OWN"]
        .iter()
        .fold(ROWS_OF_VERSION_2.to_owned(), |rows, name| {
            rows.replace(&format!("sha256:{name}"), digest(name).as_str())
        })
}

/// Checks an upgraded store with [`ROWS_OF_VERSION_2`].
pub async fn has_the_rows_of_version_2(store: &Fixture) {
    let repository = store.find_repository(&account(), &name("app")).await.unwrap().unwrap();
    assert_eq!((repository.version, repository.policy_version), (1, 1));
    assert_eq!(store.registry_settings(&account()).await.unwrap().policy.as_deref(), Some("{}"));
    assert_eq!(store.repository_usage(repository.id).await.unwrap(), (3, 300));
    let image = async |name: &str| store.image_of(&repository, &digest(name)).await.unwrap();
    let statuses = [image("CHILD").await, image("INDEX").await, image("OTHER").await]
        .map(|found| found.image.status);
    use wharfage::store::images::ImageStatus::{Active, Archived};
    assert_eq!(statuses, [Active, Active, Archived], "what an active index holds is active");
    assert_eq!(image("INDEX").await.tags, tags(&["a"]));
    assert_eq!(
        store.list_tags(repository.id, None, 10).await.unwrap(),
        tags(&["a"]),
        "the other's image is archived"
    );
    use wharfage::store::images::{StorageClass, StorageClassError};
    match store
        .set_storage_class(repository.id, &digest("CHILD"), StorageClass::Archive, at(8))
        .await
    {
        Err(StorageClassError::ReferencedBy(by)) => {
            assert_eq!(by, [digest("INDEX")], "the other index is archived")
        }
        other => panic!("{other:?}"),
    }
    assert!(store.has_blob(&repository, &digest("BOTH")).await, "an active image has it");
    assert!(!store.has_blob(&repository, &digest("OWN")).await);
    let taken = store.create_repository(new_repository("app"), 10).await;
    assert!(taken.is_err(), "{taken:?}");
    let next = store.repository_named("next").await;
    assert!(
        repository.id.0 == 1 && next.id.0 > 2,
        "the id of a deleted repository is not given again: {next:?}"
    );
    store.delete_repository(repository.id, true, at(9)).await.unwrap();
    while !store.empty_repository(repository.id, 100, at(9)).await.unwrap() {}
    assert_eq!(store.find_repository(&account(), &name("app")).await.unwrap(), None);
}

#[tokio::test]
async fn a_database_of_version_2_is_upgraded_with_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(include_str!("../../../src/store/sqlite/migrations/0001_initial.sql"))
        .unwrap();
    connection
        .execute_batch(include_str!("../../../src/store/sqlite/migrations/0002_registry.sql"))
        .unwrap();
    // On SQLite the number of images has a separate table.
    let usage = "INSERT INTO repository_usage VALUES (1, 0, 0);";
    let rows = rows_of_version_2().replacen(
        "INSERT INTO registry",
        &format!("{usage} INSERT INTO registry"),
        1,
    );
    connection.execute_batch(&rows).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    drop(connection);
    let open: Open = {
        let path = path.clone();
        Box::new(move || {
            let store: Arc<dyn Metadata> = Arc::new(SqliteStore::open(&path).unwrap());
            Box::pin(async move { store })
        })
    };
    let store = Fixture::new(open, folder).await;
    let connection = rusqlite::Connection::open(&path).unwrap();
    let times = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let times: (i64, i64) = connection
        .query_row("SELECT created_at, updated_at FROM tag WHERE name = 'a'", [], times)
        .unwrap();
    assert_eq!(times, (at(0).as_millisecond(), at(0).as_millisecond()));
    has_the_rows_of_version_2(&store).await;
    let broken = "SELECT count(*) FROM pragma_foreign_key_check";
    assert_eq!(connection.query_row(broken, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    let left = "SELECT (SELECT count(*) FROM manifest) + (SELECT count(*) FROM tag) + (SELECT count(*) FROM repository_blob)";
    assert_eq!(
        connection.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(),
        0,
        "foreign keys still cascade"
    );
}

#[tokio::test]
async fn a_tag_records_its_creation_and_its_last_move() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    let store = SqliteStore::open(&path).unwrap();
    let repository = store.create_repository(new_repository("app"), 10).await.unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    for (seconds, payload, created, updated) in
        [(1, "one", 1, 1), (2, "one", 1, 1), (3, "two", 1, 3), (4, "two", 1, 3), (5, "one", 1, 5)]
    {
        let push = PutManifest { now: at(seconds), ..put(&repository, manifest(payload), &["a"]) };
        store.put_manifest(push).await.unwrap();
        let times = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let times: (i64, i64) = connection
            .query_row("SELECT created_at, updated_at FROM tag WHERE name = 'a'", [], times)
            .unwrap();
        assert_eq!(
            times,
            (at(created).as_millisecond(), at(updated).as_millisecond()),
            "{seconds}"
        );
    }
}

#[tokio::test]
async fn blobs_and_uploads_of_version_2_survive_an_upgrade() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(include_str!("../../../src/store/sqlite/migrations/0001_initial.sql"))
        .unwrap();
    connection
        .execute_batch(include_str!("../../../src/store/sqlite/migrations/0002_registry.sql"))
        .unwrap();
    let (generation, writing, id) = (Generation::random(), Generation::random(), Uuid::new_v4());
    let rows = format!(
        "INSERT INTO repository (id, account_id, name, created_at, tag_mutability, exclusions, scan_on_push, encryption_type)
             VALUES (1, '{}', 'app', 0, 'MUTABLE', '[]', 0, 'AES256');
         INSERT INTO repository_usage VALUES (1, 0, 0);
         INSERT INTO blob (id, account_id, digest, encryption, size, generation, state, lease_until, created_at)
             VALUES (1, '{}', '{}', 'AES256', 42, '{generation}', 'live', 0, 0);
         INSERT INTO repository_blob (repository_id, digest, blob_id, linked_at) VALUES (1, '{}', 1, 0);
         INSERT INTO upload VALUES ('{id}', 1, '{writing}', 'sha256', 0, 3, 10, 0, x'01', x'02', x'03');
         PRAGMA user_version = 2;",
        account(),
        account(),
        digest("layer"),
        digest("layer"),
    );
    connection.execute_batch(&rows).unwrap();
    drop(connection);

    let store = SqliteStore::open(&path).unwrap();
    let repository = store.find_repository(&account(), &name("app")).await.unwrap().unwrap();
    match store.find_blob(&account(), &name("app"), &digest("layer")).await.unwrap() {
        Lookup::Found(blob) => {
            assert_eq!((blob.bytes, blob.damaged), (BlobKey::plain(generation, 42), false))
        }
        other => panic!("{other:?}"),
    }
    let upload = store.find_upload(repository.id, id).await.unwrap().unwrap();
    assert_eq!((upload.announced, upload.claimed_until, upload.key.as_ref()), (true, None, None));
    let UploadProgress { hash_state, protocol_state, writer, .. } = &upload.progress;
    assert_eq!(
        (&hash_state[..], &protocol_state[..], &writer.0[..]),
        (&[1][..], &[2][..], &[3][..])
    );
    let claim = store.claim_upload(&upload, Generation::random(), at(0), MINUTE).await.unwrap();
    assert_eq!((claim.generation, claim.takeover), (writing, false));
}
