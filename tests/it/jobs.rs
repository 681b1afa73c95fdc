//! `wharfage jobs` beside a registry that serves, on both databases.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use sqlx::Connection;

use crate::bed::wharfage::Wharfage;
use crate::bed::{self};
use crate::oci::client::{Repository, unique};

/// A job about a repository that is not there: it is done as soon as it runs.
const DEAD: &str = "INSERT INTO job (kind, key, state, run_at, attempts, last_error, payload)
                    VALUES ('lifecycle', '4711', 'dead', 0, 10, 'it broke', '{\"repository\": 4711}')";

/// Writes rows as a registry would have left them.
async fn write(server: &Wharfage, sql: &'static str) {
    match server.database_url() {
        Some(url) => {
            let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        }
        None => {
            let path = server.data().join("registries/default/metadata.sqlite");
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.busy_timeout(Duration::from_secs(60)).unwrap();
            connection.execute_batch(sql).unwrap();
        }
    }
}

fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn dead(server: &Wharfage) -> Vec<Value> {
    let arguments = ["jobs", "list", "--kind", "lifecycle", "--state", "dead", "--output", "json"];
    serde_json::from_str(&printed(server.command(&arguments))).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_jobs_are_listed_and_requeued_while_the_registry_serves() {
    for launch in [bed::wharfage(), bed::wharfage().on_postgres_and_s3().await] {
        let server = launch.start().await;
        for by_id in [false, true] {
            write(&server, DEAD).await;
            let jobs = dead(&server);
            assert_eq!(jobs.len(), 1);
            assert_eq!(
                (
                    &jobs[0]["kind"],
                    &jobs[0]["key"],
                    &jobs[0]["state"],
                    &jobs[0]["attempts"],
                    &jobs[0]["lastError"]
                ),
                (
                    &"lifecycle".into(),
                    &"4711".into(),
                    &"dead".into(),
                    &10.into(),
                    &"it broke".into()
                )
            );
            assert!(printed(server.command(&["jobs", "list"])).contains("it broke"));
            let id = jobs[0]["id"].to_string();
            let which = if by_id { id.as_str() } else { "--all-dead" };
            assert_eq!(printed(server.command(&["jobs", "requeue", which])), "requeued 1\n");
            // It is tried again, and there is nothing to do.
            while !printed(server.command(&["jobs", "list", "--kind", "lifecycle"])).is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let unknown = server.command(&["jobs", "requeue", "999999"]);
        assert!(!unknown.status.success());
        assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no job 999999"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_leaves_what_a_blob_is_made_of() {
    for launch in [bed::wharfage(), bed::wharfage().on_postgres_and_s3().await] {
        let server = launch.start().await;
        let repository = Repository::create(&server).await;
        // A whole object, and one of several parts.
        for size in [5_000, 7 * 1024 * 1024] {
            let bytes = unique(size);
            let digest = repository.push_blob(&bytes).await;
            // As a session leaves it that takes its commit for refused.
            write(
                &server,
                "INSERT INTO job (kind, key, state, run_at, attempts, payload)
                 SELECT 'delete-generation', generation || '/late', 'waiting', 0, 0,
                        '{\"writer\": \"\", \"generation\": \"' || generation || '\"}' FROM blob",
            )
            .await;
            while !printed(server.command(&["jobs", "list", "--kind", "delete-generation"]))
                .is_empty()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(
                repository.get(&repository.blob(&digest)).await.assert_status(200).body,
                bytes
            );
        }
    }
}

#[tokio::test]
async fn a_folder_without_a_database_stays_without_one() {
    let server = bed::wharfage().start().await;
    let refused = server.command(&["jobs", "list", "--name", "other"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("there is no database at"));
    assert!(!server.data().join("registries/other").exists());
    assert!(!server.command(&["jobs", "list", "--name", "../default"]).status.success());
}
