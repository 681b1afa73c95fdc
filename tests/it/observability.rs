//! Tests of what operators see: health, readiness, metrics, the log, and an end that cuts nothing.

use std::time::Duration;

use futures::stream;
use reqwest::{Body, Method};
use tokio::sync::mpsc;
use wharfage::names::Digest;

use crate::bed::wharfage::{Launch, Wharfage};
use crate::bed::{self};
use crate::oci::client::{Repository, unique, with_parameter};
use crate::oci::images;

/// Starts the program with an admin server, and returns its URL.
pub async fn start(launch: Launch) -> (Wharfage, String) {
    let server = launch.arg("--admin-listen").arg("127.0.0.1:0").start().await;
    let admin = admin_of(&server);
    (server, admin)
}

/// The URL of the admin server of the program as it runs now.
pub fn admin_of(server: &Wharfage) -> String {
    let address = server.wait_for(|line| {
        let (_, rest) = line.split_once("the admin server serves")?;
        let (_, address) = rest.split_once("address")?;
        Some(address.trim_start_matches(['=', ':', '"']).split(['"', ' ', ',']).next()?.to_owned())
    });
    format!("http://{address}")
}

async fn get(admin: &str, path: &str) -> (u16, String) {
    let answer = reqwest::get(format!("{admin}{path}")).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// The value of a sample, by its whole name with labels.
pub fn sample(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
}

#[tokio::test]
async fn health_and_readiness_are_told_on_their_own_listener() {
    let (server, admin) = start(bed::wharfage()).await;
    assert_eq!(get(&admin, "/healthz").await, (200, "ok\n".into()));
    assert_eq!(get(&admin, "/readyz").await, (200, "ok\n".into()));
    assert_eq!(get(&admin, "/v2/").await.0, 404);
    assert_eq!(get(&server.url(), "/metrics").await.0, 404);
}

#[tokio::test]
async fn metrics_count_requests_bytes_uploads_and_jobs() {
    let (server, admin) = start(bed::wharfage()).await;
    let repository = Repository::create(&server).await;
    let bytes = unique(12_345);
    let digest = repository.push_blob(&bytes).await;
    repository.get(&repository.blob(&digest)).await.assert_status(200);
    repository.get(&repository.manifest("absent")).await.assert_status(404);
    repository.begin().await;
    let policy = serde_json::json!({"rules": [{"rulePriority": 1, "description": "only one image stays in here",
        "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 1},
        "action": {"type": "expire"}}]});
    let put = repository.ecr().put_lifecycle_policy().repository_name(&repository.name);
    put.lifecycle_policy_text(policy.to_string()).send().await.unwrap();

    let (status, metrics) = get(&admin, "/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let requests =
        |labels: &str| sample(&metrics, &format!("wharfage_http_requests_total{{{labels}}}"));
    assert_eq!(requests("operation=\"CreateRepository\",status=\"200\""), 1.0);
    assert_eq!(requests("operation=\"POST upload\",status=\"202\""), 2.0);
    assert_eq!(requests("operation=\"PUT upload\",status=\"201\""), 1.0);
    assert_eq!(requests("operation=\"GET manifest\",status=\"404\""), 1.0);
    assert_eq!(
        sample(&metrics, "wharfage_http_request_duration_seconds_count{operation=\"GET blob\"}"),
        1.0
    );
    assert_eq!(sample(&metrics, "wharfage_received_bytes_total"), 12_345.0);
    assert_eq!(sample(&metrics, "wharfage_sent_bytes_total"), 12_345.0);
    assert_eq!(sample(&metrics, "wharfage_uploads_open"), 1.0);
    assert!(sample(&metrics, "wharfage_connections") >= 1.0);
    // A policy's job runs sooner or later.
    loop {
        let (_, metrics) = get(&admin, "/metrics").await;
        if metrics
            .lines()
            .any(|line| line.starts_with("wharfage_jobs_ended_total{") && line.contains("done"))
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_deny_that_is_not_enforced_yet_is_logged_without_the_policy() {
    let (server, _) = start(bed::wharfage()).await;
    let repository = Repository::create(&server).await;
    let (ecr, name) = (repository.ecr(), &repository.name);
    let policy = |effect: &str, resource: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":{{"Sid":"told-to-nobody","Effect":"{effect}","Principal":"*",
                "Action":"ecr:BatchDeleteImage"{resource}}}}}"#
        )
    };
    for effect in ["Allow", "Deny"] {
        ecr.set_repository_policy()
            .repository_name(name)
            .policy_text(policy(effect, ""))
            .send()
            .await
            .unwrap();
        let text = policy(effect, r#","Resource":"*""#);
        ecr.put_registry_policy().policy_text(text).send().await.unwrap();
    }
    server.wait_for(|line| {
        (line.contains("a repository policy has a Deny") && line.contains(&**name)).then_some(())
    });
    server.wait_for(|line| line.contains("the registry's policy has a Deny").then_some(()));
    let warned = server.output().lines().filter(|line| line.contains("has a Deny")).count();
    assert_eq!(warned, 2, "{}", server.output());
    assert!(!server.output().contains("told-to-nobody"), "{}", server.output());
}

#[tokio::test]
async fn what_a_client_makes_up_is_no_label() {
    let (server, admin) = start(bed::wharfage()).await;
    let repository = Repository::create(&server).await;
    for target in ["/made-up", "/v2/made-up", "/v2/made/up/tags/list"] {
        repository.get(target).await;
    }
    repository.anonymous(Method::POST, "/").header("X-Amz-Target", "made-up").send().await;
    let (_, metrics) = get(&admin, "/metrics").await;
    assert!(!metrics.contains("made"), "{metrics}");
}

#[tokio::test]
async fn a_stop_lets_a_running_push_end_and_is_told_by_readyz() {
    let (mut server, admin) = start(bed::wharfage()).await;
    let repository = Repository::create(&server).await;
    let location = repository.begin().await;
    let bytes = unique(100_000);
    let (pieces, mut feed) = mpsc::channel::<Vec<u8>>(1);
    let body = Body::wrap_stream(stream::poll_fn(move |cx| {
        feed.poll_recv(cx).map(|piece| piece.map(Ok::<_, std::io::Error>))
    }));
    let digest = Digest::sha256(&bytes);
    let put =
        repository.call(Method::PUT, &with_parameter(&location, "digest", &digest)).body(body);
    let put = tokio::spawn(put.send());
    pieces.send(bytes[..60_000].to_vec()).await.unwrap();
    // The request runs once the server has counted some of its bytes.
    while sample(&get(&admin, "/metrics").await.1, "wharfage_received_bytes_total") == 0.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let stopping = tokio::spawn(async move {
        let ended = server.stop("TERM").await;
        (server, ended)
    });
    while get(&admin, "/readyz").await.0 == 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(get(&admin, "/readyz").await, (503, "stopping\n".into()));
    assert_eq!(get(&admin, "/healthz").await.0, 200);
    // The listener closes a moment after that is reported.
    while reqwest::get(repository.base()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    pieces.send(bytes[60_000..].to_vec()).await.unwrap();
    drop(pieces);
    put.await.unwrap().assert_status(201);
    let (mut server, (status, output)) = stopping.await.unwrap();
    assert!(status.success(), "{status}\n{output}");

    server.start_again().await;
    assert_eq!(repository.get(&repository.blob(&digest)).await.assert_status(200).body, bytes);
}

#[tokio::test]
async fn a_stop_that_is_to_be_heard_of_first_takes_requests_until_then() {
    // Longer than any test: the second signal ends it.
    let (mut server, admin) = start(bed::wharfage().arg("--shutdown-delay").arg("3600")).await;
    server.signal("TERM");
    while get(&admin, "/readyz").await.0 == 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(get(&admin, "/readyz").await, (503, "stopping\n".into()));
    Repository::create(&server).await.get("/v2/").await.assert_status(200);
    let (status, output) = server.stop("TERM").await;
    assert!(status.success(), "{status}\n{output}");
}

#[tokio::test]
async fn a_root_key_that_was_given_is_not_written_down() {
    let given = || {
        bed::wharfage()
            .env("WHARFAGE_ACCESS_KEY_ID", "AKIAGIVEN")
            .env("WHARFAGE_SECRET_ACCESS_KEY", "wonderland")
    };
    let files = |folder: &std::path::Path| -> Vec<_> {
        let names = std::fs::read_dir(folder)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    };
    let server = given().start().await;
    assert_eq!(files(server.data()), ["lock", "registries"]);
    let kept = files(&server.data().join("registries/default"));
    assert!(
        kept.iter().any(|name| name == "blobs") && !kept.iter().any(|name| name == "root-key.json"),
        "{kept:?}"
    );

    let server = given().on_postgres_and_s3().await.start().await;
    assert_eq!(files(server.data()), Vec::<String>::new());
}

#[tokio::test]
async fn a_stop_lets_a_running_pull_end() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut server, admin) = start(bed::wharfage()).await;
    let repository = Repository::create(&server).await;
    // More than the sockets' buffers hold, so that it cannot be over before it is read.
    let bytes = unique(24 * 1024 * 1024);
    let digest = repository.push_blob(&bytes).await;
    let mut pull = tokio::net::TcpStream::connect(server.authority()).await.unwrap();
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
        repository.blob(&digest),
        repository.authorization()
    );
    pull.write_all(head.as_bytes()).await.unwrap();
    let mut got = vec![0];
    pull.read_exact(&mut got).await.unwrap();
    let stopping = tokio::spawn(async move {
        let ended = server.stop("TERM").await;
        (server, ended)
    });
    while get(&admin, "/readyz").await.0 == 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pull.read_to_end(&mut got).await.unwrap();
    assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(got.ends_with(&bytes), "{} bytes came", got.len());
    let (_server, (status, output)) = stopping.await.unwrap();
    assert!(status.success(), "{status}\n{output}");
}

#[tokio::test]
async fn each_line_of_the_json_log_is_an_object_and_a_request_has_its_id() {
    let (mut server, _operations) =
        start(bed::wharfage().arg("--log-format").arg("json").arg("--log").arg("debug")).await;
    let repository = Repository::create(&server).await;
    let asked = [
        repository.get(&repository.manifest("absent")).await,
        repository.post(&repository.uploads()).await,
        repository.anonymous(Method::GET, "/v2/").send().await,
        repository.anonymous(Method::POST, "/").send().await,
        repository.anonymous(Method::GET, "/nothing").send().await,
    ];
    let (_, output) = server.stop("TERM").await;
    let lines: Vec<serde_json::Value> = output
        .lines()
        .filter(|line| !line.starts_with("Serving ") && !line.starts_with("To use it:"))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for answer in asked {
        let id = answer.header("x-amzn-requestid");
        let line = lines.iter().find(|line| line["request_id"] == id && line["status"].is_u64());
        let line = line.unwrap_or_else(|| panic!("no line of {id} in\n{output}"));
        assert_eq!(line["status"], answer.status.as_u16(), "{line}");
        assert!(
            line["method"].is_string() && line["path"].is_string() && line["operation"].is_string(),
            "{line}"
        );
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn no_secret_is_in_the_log() {
    let mut server = bed::wharfage().arg("--log").arg("debug").start().await;
    let (_, secret) = server.root_key();
    let repository = Repository::create(&server).await;
    images::pushed(&repository).await;
    let digest = repository.push_blob(&unique(100)).await;
    repository.get(&repository.blob(&digest)).await.assert_status(200);
    let token = repository.authorization().strip_prefix("Basic ").unwrap().to_owned();
    // Where people misplace it.
    repository.get(&format!("/v2/?token={token}")).await.assert_status(200);
    repository
        .anonymous(Method::GET, "/v2/")
        .header("Authorization", &format!("Bearer {token}"))
        .send()
        .await;
    let (_, output) = server.stop("TERM").await;
    assert!(output.contains("DEBUG"), "{output}");
    let decoded = String::from_utf8(
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &token).unwrap(),
    );
    let password = decoded.unwrap().strip_prefix("AWS:").unwrap().to_owned();
    for hidden in [&secret, &token, &password] {
        assert!(!output.contains(hidden.as_str()), "{output}");
    }
}
