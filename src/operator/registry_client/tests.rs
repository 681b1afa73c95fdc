use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use serde_json::{Value, json};

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::health::{FIRST_PAUSE, pause};
use super::listing::{Listings, NotListed, Snapshot};
use super::rotation::RefreshDue;
use super::*;
use secrecy::SecretString;
use wharfage_apply::{Connection, ImageUsage, Listing, RepositoryNeeds};
use wharfage_domain::tag_mutability::TagMutability;
use wharfage_fake_ecr::{Asked, FakeEcr, fake_ecr};
use wharfage_plan::model::{ApiError, ErrorKind};
use wharfage_plan::{Action, Object, RepositoryCall, Step};

const HOUR: Duration = Duration::from_secs(3600);
const EVERY_HOUR: Freshness = Freshness { interval: HOUR, now: false };

/// A registry with some repositories, each with one image of 10 bytes. `refused` returns the error of a call.
async fn registry(
    names: impl Fn() -> Vec<String> + Send + Sync + 'static,
    refused: impl Fn(&Asked) -> Option<&'static str> + Send + Sync + 'static,
) -> FakeEcr {
    fake_ecr(move |_, asked| {
        let refuse = |name: &str| (400, json!({ "__type": name, "message": "no" }).to_string());
        if let Some(error) = refused(asked) {
            return refuse(error);
        }
        let body: Value = serde_json::from_str(&asked.body).unwrap();
        let answer = match asked.operation.as_str() {
            "DescribeRegistry" => json!({ "registryId": "123456789012" }),
            "DescribeRepositories" => {
                let wanted = body["repositoryNames"].as_array();
                let found = names().into_iter().filter(|name| wanted.is_none_or(|it| it.contains(&json!(name))));
                let found: Vec<Value> = found
                    .map(|name| json!({ "repositoryArn": format!("arn:aws:ecr:eu-home-1:123456789012:repository/{name}"), "repositoryName": name }))
                    .collect();
                if found.is_empty() && wanted.is_some() {
                    return refuse("RepositoryNotFoundException");
                }
                json!({ "repositories": found })
            }
            "ListTagsForResource" => json!({ "tags": [] }),
            "DescribeImages" => json!({ "imageDetails": [{ "imageSizeInBytes": 10 }] }),
            other => panic!("{other} was called"),
        };
        (200, answer.to_string())
    })
    .await
}

/// A client of the ECR API at this URL.
async fn client(endpoint: &str) -> Ecr {
    let region = "eu-home-1".parse().unwrap();
    let connection = Connection::with_key(
        endpoint.to_owned(),
        region,
        "AKIA".to_owned(),
        SecretString::from("secret"),
    );
    Ecr::new(connection, None).await.unwrap()
}

async fn registry_client(registry: &FakeEcr) -> Arc<RegistryClient> {
    Arc::new(RegistryClient::new("home", client(&registry.endpoint).await, 1, || {}))
}

async fn exists(registry_client: &Arc<RegistryClient>, name: &str) -> Result<bool, RegistryError> {
    let mut held = registry_client.repository(&name.parse().unwrap()).await;
    Ok(held.observe(RepositoryNeeds::default(), EVERY_HOUR).await?.is_some())
}

/// Concurrent callers share one result, also an error.
#[tokio::test]
async fn one_caller_lists_for_all() {
    let refuses = Arc::new(AtomicUsize::new(1));
    let refusals = Arc::clone(&refuses);
    let registry = registry(
        || vec!["aa".to_owned()],
        move |asked| {
            let refused =
                asked.operation == "DescribeRepositories" && refusals.load(Ordering::SeqCst) > 0;
            refused.then_some("AccessDeniedException")
        },
    )
    .await;
    let recoveries = Arc::new(AtomicUsize::new(0));
    let recovered = {
        let recoveries = Arc::clone(&recoveries);
        move || {
            recoveries.fetch_add(1, Ordering::SeqCst);
        }
    };
    let registry_client =
        Arc::new(RegistryClient::new("home", client(&registry.endpoint).await, 1, recovered));
    let names: Vec<String> = (0..32).map(|number| format!("shop/{number}")).collect();
    let results = join_all(names.iter().map(|name| exists(&registry_client, name))).await;
    assert!(
        results
            .iter()
            .all(|it| matches!(it, Err(RegistryError::Rejected(error)) if error.name == "AccessDeniedException"))
    );
    assert_eq!(registry.count("DescribeRepositories"), 1);

    refuses.store(0, Ordering::SeqCst);
    let listed = join_all((0..8).map(|_| registry_client.totals(Duration::ZERO))).await;
    assert!(listed.iter().all(Result::is_ok), "a caller that wants a new listing gets one");
    let asked = registry.count("DescribeRepositories");
    assert!(
        asked <= 3,
        "{asked}: what had begun when they asked does not serve them, the next serves all"
    );
    assert_eq!(recoveries.load(Ordering::SeqCst), 1);
    assert!(exists(&registry_client, "aa").await.unwrap());
    assert_eq!(registry.count("DescribeRepositories"), asked);
}

#[test]
fn a_rejected_listing_serves_longer_each_time() {
    let start = Instant::now();
    let ago = |seconds| start.checked_sub(Duration::from_secs(seconds)).unwrap();
    let serves = |times, seconds: u64, max_age| {
        let error = ApiError::new(ErrorKind::Other, "AccessDeniedException", "no");
        let refused = Some(NotListed { at: ago(seconds), times, error });
        Listings::<Listing> { last: None, refused }.serve(start, max_age).is_some()
    };
    assert!(
        !serves(1, 2, HOUR) && serves(3, 2, HOUR) && !serves(3, 5, HOUR) && serves(99, 50, HOUR)
    );
    assert!(!serves(99, 70, HOUR), "for a minute at most");
    assert!(!serves(99, 2, Duration::ZERO), "not those that want it now");
    let old = Some(Arc::new(Snapshot { at: ago(60), objects: Listing::new() }));
    let listings = Listings { last: old, refused: None };
    assert!(
        listings.serve(start, HOUR).is_some()
            && listings.serve(start, Duration::from_secs(30)).is_none()
    );
    assert!(
        listings.serve(ago(90), Duration::from_secs(30)).is_some(),
        "it began after that was asked"
    );
}

#[tokio::test]
async fn a_rejected_change_affects_one_repository() {
    let registry = registry(
        || vec!["aa".to_owned()],
        |asked| (asked.operation == "CreateRepository").then_some("LimitExceededException"),
    )
    .await;
    let registry_client = registry_client(&registry).await;
    assert!(exists(&registry_client, "aa").await.unwrap());
    for refused in 1..=3 {
        assert!(!exists(&registry_client, "bb").await.unwrap());
        let create = RepositoryCall::CreateRepository {
            tag_mutability: TagMutability::MUTABLE,
            scan_on_push: false,
            encryption: None,
            tags: BTreeMap::new(),
        };
        let step = Step {
            action: Action::Create,
            object: Object {
                kind: "Repository",
                namespace: "team".to_owned(),
                name: "bb".to_owned(),
            },
            key: ObjectKey::Repository("bb".parse().unwrap()),
            arn: None,
            changes: Vec::new(),
            calls: vec![create.into()],
        };
        let outcome = registry_client.repository(&"bb".parse().unwrap()).await.execute(&step).await;
        assert!(
            matches!(outcome, Err(RegistryError::Rejected(error)) if error.name == "LimitExceededException")
        );
        assert!(exists(&registry_client, "aa").await.unwrap());
        let asked = registry.asked();
        let (found, listed): (Vec<_>, Vec<_>) = asked
            .iter()
            .filter(|it| it.operation == "DescribeRepositories")
            .partition(|it| it.body.contains("repositoryNames"));
        assert_eq!(
            (listed.len(), found.len()),
            (1, refused - 1),
            "listed once, and asked for alone after each refusal"
        );
    }
    assert_eq!(registry.count("ListTagsForResource"), 1, "of aa, which is as it was");
}

#[tokio::test]
async fn images_without_a_resource_are_counted_in_rotation() {
    let names: Vec<String> = (0..25).map(|number| format!("shop/{number}")).collect();
    let denied =
        |asked: &Asked| asked.operation == "DescribeImages" && asked.body.contains("\"shop/7\"");
    let registry = registry(
        move || names.clone(),
        move |asked| denied(asked).then_some("AccessDeniedException"),
    )
    .await;
    let registry_client = registry_client(&registry).await;
    // A count by its own resource, too.
    assert!(exists(&registry_client, "shop/0").await.unwrap());
    registry_client.repository(&"shop/0".parse().unwrap()).await.usage(EVERY_HOUR).await.unwrap();
    let mut counts = Vec::new();
    for minute in 0..5 {
        // As if a minute had passed.
        let then = Instant::now().checked_sub(Duration::from_secs(60));
        if minute != 1 {
            *registry_client.counting.lock().unwrap() = then;
        }
        let Totals { repositories, images, all_counted } =
            registry_client.totals(HOUR).await.unwrap();
        assert_eq!((repositories, images.bytes), (25, images.images * 10));
        counts.push((registry.count("DescribeImages"), images.images, all_counted));
    }
    // Ten in a minute, of which one is refused; nothing at once after that; and each once.
    assert_eq!(
        counts,
        [
            (11, counts[0].1, false),
            (11, counts[0].1, false),
            (21, counts[2].1, false),
            (25, 24, true),
            (25, 24, true)
        ]
    );
    assert_eq!(registry.count("DescribeRepositories"), 1);
}

#[tokio::test]
async fn the_cache_outlives_its_client() {
    let registry = registry(|| vec!["aa".to_owned()], |_| None).await;
    let registry_clients = RegistryClients::default();
    let first = registry_client(&registry).await;
    first.found("https://registry.example.com", "123456789012");
    assert!(exists(&first, "aa").await.unwrap());
    registry_clients.put("home", first);
    assert!(registry_clients.remove("home") && !registry_clients.remove("home"));
    assert!(registry_clients.get("home").is_none());
    let before = registry_clients.last("home").unwrap();

    let next = registry_client(&registry).await;
    next.take_over(&before, "https://registry.example.com").await;
    assert!(exists(&next, "aa").await.unwrap());
    assert_eq!(registry.count("DescribeRepositories"), 2, "the repositories are listed again");
    assert_eq!(registry.count("ListTagsForResource"), 1, "its tags are cached");

    let elsewhere = registry_client(&registry).await;
    elsewhere.take_over(&before, "https://other.example.com").await;
    assert!(exists(&elsewhere, "aa").await.unwrap());
    assert_eq!(registry.count("ListTagsForResource"), 2);

    let another = registry_client(&registry).await;
    another.found("https://registry.example.com", "210987654321");
    assert!(exists(&another, "aa").await.unwrap());
    let accounts = registry_client(&registry).await;
    accounts.take_over(&another, "https://registry.example.com").await;
    assert!(accounts.repositories.entries().is_empty(), "another account's");
    registry_clients.forget("home");
    assert!(registry_clients.last("home").is_none());
}

#[test]
fn an_unreachable_registry_is_called_once_per_pause() {
    let (mut health, start) = (CircuitBreaker::default(), Instant::now());
    assert_eq!(health.admit(start).ok(), Some(false));
    let unavailable = health.failed(start, Timestamp::UNIX_EPOCH, "refused".to_owned());
    assert_eq!(unavailable.retry, FIRST_PAUSE);
    // Those that were under way at the same time change nothing.
    health.failed(start + Duration::from_millis(10), Timestamp::UNIX_EPOCH, "refused".to_owned());
    let later = start + Duration::from_millis(1020);
    assert_eq!(health.admit(later).ok(), Some(true), "one finds out");
    assert!(health.admit(later).is_err(), "the others wait");
    let unavailable = health.failed(later, Timestamp::UNIX_EPOCH, "refused".to_owned());
    assert_eq!((unavailable.retry, unavailable.since), (FIRST_PAUSE * 2, Timestamp::UNIX_EPOCH));
    assert!(health.answered());
    assert!(!health.answered());
    assert_eq!(health.admit(later).ok(), Some(false));
}

#[tokio::test]
async fn a_locked_repository_keeps_its_summary() {
    let registry_client =
        Arc::new(RegistryClient::new("home", client("http://127.0.0.1:9").await, 1, || {}));
    let name = "shop/api".parse().unwrap();
    let usage = ImageUsage { images: 3, ..ImageUsage::default() };

    let mut held = registry_client.repository(&name).await;
    held.known.usage = Some((RefreshDue::of(Instant::now()), usage));
    assert_eq!(registry_client.counted().images, 0, "summarized when the lock is released");
    drop(held);
    assert_eq!(registry_client.counted().images, 3);
    let mut held = registry_client.repository(&name).await;
    held.known.usage = None;
    assert_eq!(registry_client.counted().images, 3, "locked");
    drop(held);
    assert_eq!(registry_client.counted().images, 0);
}

#[test]
fn pauses_grow_to_a_limit() {
    let pauses: Vec<u64> = (1..9).map(|failures| pause(failures).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
}
