//! Upgrades and rollbacks: which schemas a program accepts, and the copy that an upgrade of SQLite leaves.

use std::path::{Path, PathBuf};

use wharfage::store::StoreError;
use wharfage::store::sqlite::SqliteStore;

struct Database {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Database {
    /// Makes a database with the schema of its first two versions, and one repository.
    fn of_version_2() -> Self {
        let database = Self::empty();
        let connection = database.connect();
        for migration in [
            include_str!("../../../src/store/sqlite/migrations/0001_initial.sql"),
            include_str!("../../../src/store/sqlite/migrations/0002_registry.sql"),
        ] {
            connection.execute_batch(migration).unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO repository (account_id, name, created_at, tag_mutability, exclusions, scan_on_push, encryption_type)
                     VALUES ('123456789012', 'app', 1, 'MUTABLE', '[]', FALSE, 'AES256');
                 INSERT INTO repository_usage VALUES (1, 0, 0)",
            )
            .unwrap();
        connection.pragma_update(None, "user_version", 2).unwrap();
        database
    }

    fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { path: folder.path().join("wharfage.db"), _folder: folder }
    }

    fn connect(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(&self.path).unwrap()
    }

    /// Makes the schema one of a newer program, which programs of version `oldest` can work with.
    fn upgrade_to_the_future(&self, oldest: i64) {
        let connection = self.connect();
        connection.execute("UPDATE schema_compatibility SET oldest = ?1", [oldest]).unwrap();
        connection.pragma_update(None, "user_version", 1000).unwrap();
    }

    fn open(&self) -> Result<SqliteStore, StoreError> {
        SqliteStore::open(&self.path)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path.parent().unwrap()).unwrap();
        let mut names: Vec<String> = entries
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .filter(|it| it.contains(".schema-"))
            .collect();
        names.sort();
        names
    }
}

fn version(path: &Path) -> i64 {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

#[test]
fn a_newer_schema_that_this_version_can_work_with_is_served_unchanged() {
    let database = Database::empty();
    drop(database.open().unwrap());
    database.upgrade_to_the_future(1);
    drop(database.open().unwrap());
    drop(SqliteStore::open_beside(&database.path).unwrap());
    assert_eq!(version(&database.path), 1000);
}

#[test]
fn a_newer_schema_that_this_version_cannot_work_with_is_refused_and_unchanged() {
    let database = Database::empty();
    drop(database.open().unwrap());
    database.upgrade_to_the_future(1000);
    for opened in [database.open(), SqliteStore::open_beside(&database.path)] {
        let refused = opened.expect_err("the schema is too new").to_string();
        assert!(
            refused.contains("newer version") && refused.contains("wharfage.db.schema-"),
            "{refused}"
        );
    }
    assert_eq!(version(&database.path), 1000);
}

#[test]
fn a_newer_schema_that_says_nothing_is_refused() {
    let database = Database::of_version_2();
    database.connect().pragma_update(None, "user_version", 1000).unwrap();
    assert!(database.open().is_err());
}

#[test]
fn an_upgrade_leaves_a_copy_of_the_database_before_it() {
    let database = Database::of_version_2();
    drop(database.open().unwrap());
    assert_eq!(database.names(), ["wharfage.db.schema-2"]);
    let copy = database.path.with_file_name("wharfage.db.schema-2");
    assert_eq!(version(&copy), 2);
    let repositories = "SELECT name FROM repository";
    let connection = rusqlite::Connection::open(&copy).unwrap();
    let name: String = connection.query_row(repositories, [], |row| row.get(0)).unwrap();
    assert_eq!(name, "app");
    drop(database.open().unwrap());
    assert_eq!(database.names(), ["wharfage.db.schema-2"], "an unchanged schema needs no copy");
}

#[test]
fn a_database_that_cannot_be_copied_is_not_upgraded() {
    let database = Database::of_version_2();
    let partial = database.path.with_file_name("wharfage.db.schema-partial");
    std::fs::create_dir(&partial).unwrap();
    let refused = database.open().expect_err("there is no place for the copy").to_string();
    assert!(refused.contains("make room for the copy"), "{refused}");
    assert_eq!(version(&database.path), 2);
    std::fs::remove_dir(&partial).unwrap();
    drop(database.open().unwrap());
}

#[test]
fn what_a_crash_left_of_a_copy_is_replaced() {
    let database = Database::of_version_2();
    let partial = database.path.with_file_name("wharfage.db.schema-partial");
    std::fs::write(&partial, "half a copy").unwrap();
    drop(database.open().unwrap());
    assert_eq!(database.names(), ["wharfage.db.schema-2"]);
    assert_eq!(version(&database.path.with_file_name("wharfage.db.schema-2")), 2);
}

#[test]
fn the_copies_of_the_last_two_upgrades_stay() {
    let database = Database::of_version_2();
    for old in ["wharfage.db.schema-0", "wharfage.db.schema-1", "wharfage.db.schema-x"] {
        std::fs::write(database.path.with_file_name(old), "a copy").unwrap();
    }
    drop(database.open().unwrap());
    let left = ["wharfage.db.schema-1", "wharfage.db.schema-2", "wharfage.db.schema-x"];
    assert_eq!(database.names(), left);
}
