//! PostgreSQL that is frozen, away, or busy.

use futures::future::join_all;
use reqwest::Method;
use sqlx::Connection;

use super::{Watched, api_refused, refused};
use crate::bed;
use crate::bed::postgres::Postgres;
use crate::bed::wharfage::wharfage;
use crate::oci::client::{Repository, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_database_hangs_nobody_and_is_used_again_when_it_goes_on() {
    let database = Postgres::start();
    let launch = wharfage().on_database(&database).await;
    let watched = Watched::start(launch).await;
    let repository = Repository::create(&watched.server).await;
    let bytes = unique(1000);
    let digest = repository.push_blob(&bytes).await;
    let blob = repository.blob(&digest);

    let frozen = database.freeze();
    assert_eq!(watched.get("/readyz").await.0, 503);
    // More than the pool has connections.
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
async fn a_database_that_was_killed_is_found_again() {
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
async fn readiness_waits_for_nobodys_statements() {
    let launch = wharfage();
    let url = bed::postgres().database().await;
    let watched = Watched::start(launch.env("WHARFAGE_DATABASE_URL", &url)).await;
    let repository = Repository::create(&watched.server).await;
    let mut other = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE repository IN ACCESS EXCLUSIVE MODE").execute(&mut other).await.unwrap();
    // More than the pool has connections: each of them waits for the lock.
    let calls = (0..40).map(|_| {
        let repository = repository.clone();
        tokio::spawn(async move { refused(&repository, Method::GET, &repository.manifest("any"), Vec::new()).await })
    });
    let calls: Vec<_> = calls.collect();
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    // A transaction sees the activity as it was at its first look.
    let mut watcher = sqlx::PgConnection::connect(&url).await.unwrap();
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watcher).await.unwrap() < 16 {
        tokio::task::yield_now().await;
    }
    assert_eq!(watched.get("/readyz").await, (200, "ok\n".to_owned()));
    other.close().await.unwrap();
    for call in calls {
        // Who waited in vain for a connection was told so.
        assert!(matches!(call.await.unwrap(), 404 | 503));
    }
}
