//! PostgreSQL that is frozen, unreachable or busy, or whose answer is lost.

use std::time::Duration;

use futures::future::join_all;
use reqwest::Method;
use sqlx::Connection;
use wharfage::names::Digest;

use super::{Watched, api_refused, refused};
use crate::bed;
use crate::bed::postgres::Postgres;
use crate::bed::postgres_proxy::PostgresProxy;
use crate::bed::wharfage::{Launch, wharfage};
use crate::oci::client::{Repository, unique, with_parameter};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_database_blocks_no_client_and_recovers() {
    let database = Postgres::start();
    let launch = wharfage().on_database(&database).await;
    let watched = Watched::start(launch).await;
    let repository = Repository::create(&watched.server).await;
    let bytes = unique(1000);
    let digest = repository.push_blob(&bytes).await;
    let blob = repository.blob(&digest);

    let frozen = database.freeze();
    assert_eq!(watched.get("/readyz").await.0, 503);
    // More than the pool's connections.
    let (refusals, api, metrics) = tokio::join!(
        join_all((0..40).map(|_| refused(&repository, Method::GET, &blob, Vec::new()))),
        api_refused(&repository),
        watched.sample("wharfage_store_up{store=\"metadata\"}"),
    );
    assert_eq!(refusals, vec![503; 40]);
    assert_eq!(api, (503, "ServiceUnavailable".to_owned()));
    assert_eq!(metrics, 0.0);
    assert_eq!(watched.sample("wharfage_store_up{store=\"blobs\"}").await, 1.0);

    drop(frozen);
    watched.recovered().await;
    assert_eq!(repository.get(&blob).await.assert_status(200).body, bytes);
    repository.push_blob(&unique(1000)).await;
    assert_eq!(watched.sample("wharfage_store_up{store=\"metadata\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_reconnects_to_a_killed_database() {
    let mut database = Postgres::start();
    let launch = wharfage().on_database(&database).await;
    let watched = Watched::start(launch).await;
    let repository = Repository::create(&watched.server).await;
    let bytes = unique(1000);
    let digest = repository.push_blob(&bytes).await;

    database.kill9();
    assert_eq!(watched.get("/readyz").await.0, 503);
    assert_eq!(refused(&repository, Method::GET, &repository.blob(&digest), Vec::new()).await, 503);
    database.start_again();
    watched.recovered().await;
    assert_eq!(repository.get(&repository.blob(&digest)).await.assert_status(200).body, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_waits_for_no_other_statement() {
    let launch = wharfage();
    let url = bed::postgres().database().await;
    let watched = Watched::start(launch.env("WHARFAGE_DATABASE_URL", &url)).await;
    let repository = Repository::create(&watched.server).await;
    let mut other = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE repository IN ACCESS EXCLUSIVE MODE")
        .execute(&mut other)
        .await
        .unwrap();
    // More than the pool's connections, each of which waits for the lock.
    let calls = (0..40).map(|_| {
        let repository = repository.clone();
        tokio::spawn(async move {
            refused(&repository, Method::GET, &repository.manifest("any"), Vec::new()).await
        })
    });
    let calls: Vec<_> = calls.collect();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    // A transaction sees the activity as of its first query.
    let mut watcher = sqlx::PgConnection::connect(&url).await.unwrap();
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watcher).await.unwrap() < 16 {
        tokio::task::yield_now().await;
    }
    assert_eq!(watched.get("/readyz").await, (200, "ok\n".to_owned()));
    other.close().await.unwrap();
    for call in calls {
        // A request that timed out while waiting for a connection reports it.
        assert!(matches!(call.await.unwrap(), 404 | 503));
    }
}

/// A trigger that delays the deletion of bytes.
const DELETE_LATER: &str = "
    CREATE FUNCTION an_hour_later() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NEW.run_at := NEW.run_at + 3600000; RETURN NEW; END';
    CREATE TRIGGER delete_later BEFORE INSERT ON job FOR EACH ROW WHEN (NEW.kind = 'delete-generation')
        EXECUTE FUNCTION an_hour_later()";

/// A server whose database loses answers to commits.
struct LostAnswers {
    proxy: PostgresProxy,
    database: sqlx::PgConnection,
    watched: Watched,
}

impl LostAnswers {
    async fn start(launch: Launch) -> Self {
        let proxy = PostgresProxy::start(bed::postgres()).await;
        let url = bed::postgres().database().await;
        let watched = Watched::start(launch.env("WHARFAGE_DATABASE_URL", &proxy.url(&url))).await;
        let mut database = sqlx::PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(DELETE_LATER).execute(&mut database).await.unwrap();
        Self { proxy, database, watched }
    }

    /// Starts one with a folder, and one with S3.
    async fn start_each() -> [Self; 2] {
        let bucket = bed::s3().bucket().await;
        [Self::start(wharfage()).await, Self::start(wharfage().on_s3(&bucket)).await]
    }

    fn lose_answer_to_next_push(&self) {
        self.proxy.lose_answer_to_commit_of("INSERT INTO blob ");
    }

    /// Counts the waiting deletions of a live blob's bytes.
    async fn deletions_of_blobs(&mut self) -> i64 {
        let count = "SELECT count(*) FROM job JOIN blob ON job.payload::json->>'generation' = blob.generation";
        sqlx::query_scalar(count).fetch_one(&mut self.database).await.unwrap()
    }

    /// Runs every deletion.
    async fn delete(&mut self) {
        let due = "UPDATE job SET run_at = 0 WHERE kind = 'delete-generation'";
        sqlx::raw_sql(due).execute(&mut self.database).await.unwrap();
        let waiting = "SELECT count(*) FROM job WHERE kind = 'delete-generation'";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut self.database).await.unwrap() > 0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn assert_whole(repository: &Repository, bytes: &[u8]) {
    let blob = repository.blob(&Digest::sha256(bytes));
    let head = repository.head(&blob).await;
    assert_eq!(head.assert_status(200).header("Content-Length"), bytes.len().to_string());
    assert_eq!(repository.get(&blob).await.assert_status(200).body, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_whose_commit_answer_was_lost_is_not_deleted() {
    for mut unheard in LostAnswers::start_each().await {
        let repository = Repository::create(&unheard.watched.server).await;
        // A single object, and one of several parts.
        for size in [5_000, 7 * 1024 * 1024] {
            let bytes = unique(size);
            let push = with_parameter(&repository.uploads(), "digest", Digest::sha256(&bytes));
            unheard.lose_answer_to_next_push();
            assert_eq!(refused(&repository, Method::POST, &push, bytes.clone()).await, 503);
            assert_eq!(
                unheard.deletions_of_blobs().await,
                1,
                "the request takes its bytes for left over"
            );
            let other = repository.sibling().await;
            for repository in [&repository, &other] {
                repository.push_blob(&bytes).await;
            }
            unheard.delete().await;
            for repository in [&repository, &other] {
                assert_whole(repository, &bytes).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_commit_answer_was_lost_is_gone() {
    for mut unheard in LostAnswers::start_each().await {
        let repository = Repository::create(&unheard.watched.server).await;
        let bytes = unique(5_000);
        let digest = Digest::sha256(&bytes);
        let location = repository.begin().await;
        unheard.lose_answer_to_next_push();
        repository.finish(&location, &digest, &bytes).await.assert_refused(503, "UNAVAILABLE");
        repository
            .finish(&location, &digest, &bytes)
            .await
            .assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
        assert_whole(&repository, &bytes).await;
        repository.push_blob(&bytes).await;
        unheard.delete().await;
        assert_whole(&repository, &bytes).await;
    }
}
