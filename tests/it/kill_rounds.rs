//! Two replicas on PostgreSQL and S3, of which one is killed in each round, or the database, or the
//! S3 server, while clients push. Clients retry, at the other replica. All acknowledged pushes are
//! whole afterwards, at both replicas, and everything that was not killed recovers by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinSet, block_in_place};
use wharfage::names::Digest;

use crate::bed::postgres::Postgres;
use crate::bed::s3::S3Server;
use crate::bed::service::STARTUP;
use crate::bed::wharfage::{Wharfage, wharfage};
use crate::crash::Registry;

const REPOSITORY: &str = "kill/rounds";
const CLIENTS: usize = 3;
/// The number of pushes that show that all works again.
const RECOVERED: usize = 2 * CLIENTS;

/// Returns how often something is killed: everything in turn. More by hand: `WHARFAGE_CRASH_ROUNDS=50`.
fn rounds() -> usize {
    std::env::var("WHARFAGE_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

/// Pushes that were acknowledged: each under a separate tag.
type Pushed = BTreeMap<String, Digest>;

/// Everything that runs.
struct Bed {
    replicas: [Wharfage; 2],
    postgres: Postgres,
    s3: S3Server,
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Replica(usize),
    Postgres,
    S3,
}

impl Bed {
    async fn start() -> Self {
        let (postgres, s3) = block_in_place(|| (Postgres::start(), S3Server::start()));
        let (database, bucket) = (postgres.database().await, s3.bucket().await);
        let replica = async || {
            let launch = wharfage().env("WHARFAGE_DATABASE_URL", &database).on_s3(&bucket);
            let launch = launch
                .env("WHARFAGE_ACCESS_KEY_ID", "AKIAROUNDS")
                .env("WHARFAGE_SECRET_ACCESS_KEY", "wonderland");
            launch.start().await
        };
        Self { replicas: [replica().await, replica().await], postgres, s3 }
    }

    async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Replica(which) => self.replicas[which].kill9().await,
            Victim::Postgres => block_in_place(|| self.postgres.kill9()),
            Victim::S3 => block_in_place(|| self.s3.kill9()),
        }
    }

    async fn start_again(&mut self, victim: Victim) {
        match victim {
            Victim::Replica(which) => self.replicas[which].start_again().await,
            Victim::Postgres => block_in_place(|| self.postgres.start_again()),
            Victim::S3 => block_in_place(|| self.s3.start_again()),
        }
    }
}

/// Pushes images until `stop`, at the replicas in turn. A push that fails is repeated with another
/// image.
async fn push(
    registries: [Registry; 2],
    name: String,
    stop: watch::Receiver<bool>,
    acknowledged: watch::Sender<usize>,
) -> Pushed {
    let mut pushed = Pushed::new();
    for n in 0.. {
        if *stop.borrow() {
            break;
        }
        let registry = &registries[n % 2];
        let tag = format!("{name}-{n}");
        let attempt = async {
            let manifest = registry.push_layers(REPOSITORY).await?;
            let digest = Digest::sha256(&manifest);
            registry.put_manifest(REPOSITORY, &tag, manifest).await?;
            Ok::<_, reqwest::Error>(digest)
        };
        match attempt.await {
            Ok(digest) => {
                pushed.insert(tag, digest);
                acknowledged.send_modify(|count| *count += 1);
            }
            // No answer, or one that says to come back.
            Err(error) => {
                assert!(error.status().is_none_or(|status| status == 503), "{name} {n}: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    pushed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9_of_a_replica_of_postgres_and_of_s3() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bed = Bed::start().await;
    let registries = [Registry::of(&bed.replicas[0]).await, Registry::of(&bed.replicas[1]).await];
    registries[0].ecr.create_repository().repository_name(REPOSITORY).send().await.unwrap();
    let mut all = Pushed::new();
    for round in 0..rounds() {
        let victim = [Victim::Replica(random.usize(..2)), Victim::Postgres, Victim::S3][round % 3];
        eprintln!("round {round}: kill -9 of {victim:?} (seed {seed})");
        let (stop, stopped) = watch::channel(false);
        let (acknowledged, mut count) = watch::channel(0);
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let name = format!("round-{round}-client-{client}");
            clients.spawn(push(registries.clone(), name, stopped.clone(), acknowledged.clone()));
        }
        let some = random.usize(..5);
        count.wait_for(|count| *count >= some).await.unwrap();
        tokio::time::sleep(Duration::from_millis(random.u64(..400))).await;
        bed.kill(victim).await;
        tokio::time::sleep(Duration::from_millis(random.u64(..700))).await;
        bed.start_again(victim).await;
        let before = *count.borrow();
        let recovered = count.wait_for(|count| *count >= before + RECOVERED);
        // Its return value would lock the count.
        let recovered = tokio::time::timeout(STARTUP, recovered).await.is_ok();
        if !recovered {
            panic!(
                "nothing is pushed any more after kill -9 of {victim:?}:\n{}",
                bed.replicas[0].output()
            );
        }
        stop.send_replace(true);
        let mut pushed = Pushed::new();
        while let Some(ended) = clients.join_next().await {
            pushed.extend(ended.unwrap());
        }
        for replica in &mut bed.replicas {
            assert!(replica.is_running(), "a replica ended after kill -9 of {victim:?}");
        }
        whole(&registries, &pushed).await;
        all.extend(pushed);
    }
    eprintln!("{} pushes were acknowledged", all.len());
    whole(&registries, &all).await;
}

/// Pulls everything whole from each replica.
async fn whole(registries: &[Registry; 2], pushed: &Pushed) {
    for registry in registries {
        for (tag, digest) in pushed {
            assert_eq!(registry.pull_whole(REPOSITORY, tag).await.as_ref(), Ok(digest), "{tag}");
        }
    }
}
