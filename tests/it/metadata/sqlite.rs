//! The contract on SQLite, and what holds for SQLite alone.

use std::path::Path;

use wharfage::store::StoreError;
use wharfage::store::sqlite::SqliteStore;

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
    assert!(refused(&path).contains("another process"));
    drop(first);
    SqliteStore::open(&path).unwrap();
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    drop(SqliteStore::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 1000).unwrap();
    drop(connection);
    assert!(refused(&path).contains("newer version"));
    let connection = rusqlite::Connection::open(&path).unwrap();
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 1000);
}

#[test]
fn what_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    std::fs::write(&path, "certainly not a database, but long enough to look like one".repeat(100)).unwrap();
    refused(&path);
}

#[tokio::test]
async fn an_acknowledged_write_is_in_the_file_while_the_store_is_still_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wharfage.db");
    let store = SqliteStore::open(&path).unwrap();
    store.create_repository(new_repository("app"), 10).await.unwrap();
    // What a crash would leave behind: a copy of the files as they are now.
    let copy = folder.path().join("copy.db");
    for end in ["", "-wal"] {
        let name = |path: &Path| format!("{}{end}", path.display());
        std::fs::copy(name(&path), name(&copy)).unwrap();
    }
    let copy = SqliteStore::open(&copy).unwrap();
    assert!(copy.repository(&account(), &name("app")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_lease_only_moves_forward() {
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
