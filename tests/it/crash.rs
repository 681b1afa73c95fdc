//! `kill -9` in the middle of pushes, manifest PUTs and lifecycle runs, again and again on the same data: whatever was
//! acknowledged is whole after the restart, by digest, and the server comes up without a hand.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_ecr::config::retry::RetryConfig;
use reqwest::StatusCode;
use tokio::sync::watch;
use wharfage::names::Digest;

use crate::bed::wharfage::{Launch, Wharfage, wharfage};

const PUSHED: &str = "crash/pushed";
const EXPIRING: &str = "crash/expiring";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Returns how often the server is killed. More by hand: `WHARFAGE_CRASH_ROUNDS=200`.
fn rounds() -> usize {
    std::env::var("WHARFAGE_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12)
}

type Key = (&'static str, String);

/// The knowledge of one worker when the crash comes.
#[derive(Default)]
struct Tags {
    /// The digest that each tag's last answered PUT put there.
    acknowledged: HashMap<Key, Digest>,
    /// The PUT that got no answer: it may have happened or not.
    unanswered: Option<(Key, Digest)>,
}

/// Tells how many PUTs were acknowledged in a round.
type Acknowledged = watch::Sender<usize>;

/// The digests that each tag may point at after all the crashes so far. A tag that was never
/// acknowledged may be missing.
type Expected = BTreeMap<Key, Vec<Digest>>;

impl Tags {
    fn merge(self, expected: &mut Expected) {
        for (key, digest) in self.acknowledged {
            expected.insert(key, vec![digest]);
        }
        if let Some((key, digest)) = self.unanswered
            && let Some(possible) = expected.get_mut(&key)
        {
            possible.push(digest);
        }
    }
}

/// A running server and a client that may do everything.
#[derive(Clone)]
pub struct Registry {
    url: String,
    http: reqwest::Client,
    pub ecr: aws_sdk_ecr::Client,
    /// The value sent as `Basic`.
    token: String,
}

impl Registry {
    pub async fn of(server: &Wharfage) -> Self {
        // A request repeated after the crash would be neither acknowledged nor refused.
        let config =
            server.ecr().config().to_builder().retry_config(RetryConfig::disabled()).build();
        let ecr = aws_sdk_ecr::Client::from_conf(config);
        let answer = ecr.get_authorization_token().send().await.unwrap();
        let token = answer.authorization_data()[0].authorization_token().unwrap().to_owned();
        let http =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        Self { url: server.url(), http, ecr, token }
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let url =
            if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.url) };
        self.http.request(method, url).header("Authorization", format!("Basic {}", self.token))
    }

    /// Pushes a blob in two chunks and a closing PUT; an error is the crash.
    async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Result<Digest, reqwest::Error> {
        use reqwest::Method;
        let digest = Digest::sha256(bytes);
        let begin =
            self.request(Method::POST, &format!("/v2/{repository}/blobs/uploads/")).send().await?;
        let mut location = location_of(&begin.error_for_status()?);
        for part in bytes.chunks(bytes.len().div_ceil(2).max(1)) {
            let sent = self.request(Method::PATCH, &location).body(part.to_vec()).send().await?;
            location = location_of(&sent.error_for_status()?);
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let end = self
            .request(Method::PUT, &format!("{location}{separator}digest={digest}"))
            .send()
            .await?;
        end.error_for_status()?;
        Ok(digest)
    }

    /// Pushes an image of two fresh layers; returns its manifest.
    pub async fn push_layers(&self, repository: &str) -> Result<Vec<u8>, reqwest::Error> {
        let (config, layer) = (content(700), content(300_000));
        let mut descriptors = Vec::new();
        for (kind, bytes) in [("config.v1+json", &config), ("layer.v1.tar", &layer)] {
            let digest = self.push_blob(repository, bytes).await?;
            descriptors.push(serde_json::json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len(),
            }));
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": descriptors[0], "layers": [descriptors[1]],
        });
        Ok(manifest.to_string().into_bytes())
    }

    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: Vec<u8>,
    ) -> Result<(), reqwest::Error> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let put = self
            .request(reqwest::Method::PUT, &path)
            .header("Content-Type", MANIFEST_TYPE)
            .body(manifest);
        put.send().await?.error_for_status().map(drop)
    }

    async fn get(&self, path: &str) -> (StatusCode, Vec<u8>) {
        let answer = self.request(reqwest::Method::GET, path).send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap().to_vec())
    }

    /// Pulls what a reference names, whole, checking every digest; returns the manifest's, or the
    /// missing part.
    pub async fn pull_whole(&self, repository: &str, reference: &str) -> Result<Digest, String> {
        let there = |(status, bytes), what: &str| match status {
            StatusCode::OK => Ok(bytes),
            status => Err(format!("{repository}:{reference}: {what} is not there: {status}")),
        };
        let found = self.get(&format!("/v2/{repository}/manifests/{reference}")).await;
        let manifest: Vec<u8> = there(found, "the manifest")?;
        let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let layers = parsed["layers"].as_array().unwrap();
        for descriptor in std::iter::once(&parsed["config"]).chain(layers) {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = there(self.get(&format!("/v2/{repository}/blobs/{digest}")).await, digest)?;
            assert_eq!(
                Digest::sha256(&bytes).as_str(),
                digest,
                "{repository}:{reference}: its bytes are whole"
            );
        }
        Ok(Digest::sha256(&manifest))
    }

    async fn tags(&self, repository: &str) -> Vec<String> {
        let (status, body) = self.get(&format!("/v2/{repository}/tags/list")).await;
        assert_eq!(status, StatusCode::OK);
        let list: serde_json::Value = serde_json::from_slice(&body).unwrap();
        list["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| tag.as_str().unwrap().to_owned())
            .collect()
    }
}

fn location_of(response: &reqwest::Response) -> String {
    response.headers()["location"].to_str().unwrap().to_owned()
}

/// Bytes that no other call returns.
fn content(size: usize) -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let seed = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    seed.bytes().chain(std::iter::once(b' ')).cycle().take(size).collect()
}

/// Pushes images under its own two tags, in turn, until the crash.
async fn push_until_the_crash(
    registry: Registry,
    worker: usize,
    acknowledged: Acknowledged,
) -> Tags {
    let mut tags = Tags::default();
    for n in 0.. {
        let tag = format!("worker-{worker}-{}", n % 2);
        let Ok(manifest) = registry.push_layers(PUSHED).await else { break };
        let digest = Digest::sha256(&manifest);
        match registry.put_manifest(PUSHED, &tag, manifest).await {
            Ok(()) => {
                tags.acknowledged.insert((PUSHED, tag), digest);
                acknowledged.send_modify(|count| *count += 1);
            }
            Err(error) => {
                assert!(error.status().is_none(), "a PUT is refused only by the crash: {error}");
                tags.unanswered = Some(((PUSHED, tag), digest));
                break;
            }
        }
    }
    tags
}

/// Pushes one image to keep and several to expire, and puts the policy that expires them, until the crash.
async fn expire_until_the_crash(registry: Registry, round: usize) -> Tags {
    let policy = serde_json::json!({"rules": [
        {"rulePriority": 1, "description": "only the youngest of what is old stays, whatever its other tags are",
         "selection": {"tagStatus": "tagged", "tagPatternList": ["old-*"], "countType": "imageCountMoreThan", "countNumber": 1},
         "action": {"type": "expire"}},
        {"rulePriority": 2, "selection": {"tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 1},
         "action": {"type": "expire"}},
    ]});
    let mut tags = Tags::default();
    for n in 0.. {
        for (at, reference) in
            [None, Some(format!("old-{}", n % 4)), Some(format!("keep-{round}-{}", n % 3))]
                .iter()
                .enumerate()
        {
            let Ok(manifest) = registry.push_layers(EXPIRING).await else { return tags };
            let digest = Digest::sha256(&manifest);
            let name = reference.clone().unwrap_or_else(|| digest.to_string());
            let put = registry.put_manifest(EXPIRING, &name, manifest).await;
            // Only what no rule selects must be there afterwards.
            match (put, at) {
                (Ok(()), 2) => drop(tags.acknowledged.insert((EXPIRING, name), digest)),
                (Ok(()), _) => {}
                (Err(_), 2) => {
                    tags.unanswered = Some(((EXPIRING, name), digest));
                    return tags;
                }
                (Err(_), _) => return tags,
            }
        }
        let put = registry
            .ecr
            .put_lifecycle_policy()
            .repository_name(EXPIRING)
            .lifecycle_policy_text(policy.to_string());
        if put.send().await.is_err() {
            return tags;
        }
    }
    tags
}

/// Every tag that was acknowledged pulls whole, and so does every tag that is listed, but for one that the lifecycle run which
/// the crash interrupted takes meanwhile.
async fn check(registry: &Registry, expected: &Expected) {
    for ((repository, tag), possible) in expected {
        let found = registry.pull_whole(repository, tag).await.unwrap();
        assert!(
            possible.contains(&found),
            "{repository}:{tag} is {found}, not one of {possible:?}"
        );
    }
    for repository in [PUSHED, EXPIRING] {
        for tag in registry.tags(repository).await {
            if let Err(missing) = registry.pull_whole(repository, &tag).await {
                let expired = repository == EXPIRING && tag.starts_with("old-");
                assert!(expired && !registry.tags(repository).await.contains(&tag), "{missing}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9_at_any_moment() {
    crash_again_and_again(wharfage()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9_on_postgres_and_s3() {
    crash_again_and_again(wharfage().on_postgres_and_s3().await).await;
}

async fn crash_again_and_again(launch: Launch) {
    let mut server = launch.start().await;
    let mut expected = Expected::new();
    for round in 0..rounds() {
        let registry = Registry::of(&server).await;
        if round == 0 {
            for repository in [PUSHED, EXPIRING] {
                registry.ecr.create_repository().repository_name(repository).send().await.unwrap();
            }
        }
        check(&registry, &expected).await;
        let mut work = tokio::task::JoinSet::new();
        let (acknowledged, mut count) = watch::channel(0);
        for worker in 0..3 {
            work.spawn(push_until_the_crash(registry.clone(), worker, acknowledged.clone()));
        }
        drop(acknowledged);
        work.spawn(expire_until_the_crash(registry.clone(), round));
        // However slow the machine, most crashes come behind something that was acknowledged.
        let _ = count
            .wait_for(|count| *count >= round % 4)
            .await
            .expect("the workers go on until the crash");
        // The moment is random: that of a process id and a clock is as good as any.
        let spread = Digest::sha256(
            format!("{}{:?}", std::process::id(), std::time::Instant::now()).as_bytes(),
        );
        let moment = u64::from_str_radix(&spread.hex()[..4], 16).unwrap() % 900;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.kill9().await;
        while let Some(tags) = work.join_next().await {
            tags.unwrap().merge(&mut expected);
        }
        server.start_again().await;
    }
    let registry = Registry::of(&server).await;
    check(&registry, &expected).await;
}

#[tokio::test]
async fn an_upload_goes_on_after_kill_9_where_its_last_chunk_ended() {
    let bytes = content(1_000_000);
    let mut server = wharfage().start().await;
    let registry = Registry::of(&server).await;
    registry.ecr.create_repository().repository_name(PUSHED).send().await.unwrap();
    let begin = registry
        .request(reqwest::Method::POST, &format!("/v2/{PUSHED}/blobs/uploads/"))
        .send()
        .await
        .unwrap();
    let sent = registry
        .request(reqwest::Method::PATCH, &location_of(&begin))
        .body(bytes[..600_000].to_vec());
    let sent = sent.send().await.unwrap();
    assert_eq!(sent.headers()["range"], "0-599999");
    let path = location_of(&sent);
    server.kill9().await;
    server.start_again().await;
    let status = registry.request(reqwest::Method::GET, &path).send().await.unwrap();
    assert_eq!(
        (status.status(), &status.headers()["range"]),
        (StatusCode::NO_CONTENT, &"0-599999".parse().unwrap())
    );
    let digest = Digest::sha256(&bytes);
    let separator = if path.contains('?') { '&' } else { '?' };
    let end = registry.request(reqwest::Method::PUT, &format!("{path}{separator}digest={digest}"));
    let end = end
        .header("Content-Range", "600000-999999")
        .body(bytes[600_000..].to_vec())
        .send()
        .await
        .unwrap();
    assert_eq!(end.status(), StatusCode::CREATED);
    let (status, pulled) = registry.get(&format!("/v2/{PUSHED}/blobs/{digest}")).await;
    assert_eq!((status, Digest::sha256(&pulled)), (StatusCode::OK, digest));
}
