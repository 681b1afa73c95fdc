//! The OCI API's credentials: tokens that are too long, too old, or another registry's.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use reqwest::Method;
use wharfage::access_key::AccessKey;
use wharfage::names::Digest;
use wharfage::registry::auth::{SigningKey, token};

use super::target::Target;

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn only_a_fresh_token_of_this_registry_opens_anything() {
    let (target, other) = (Target::start().await, Target::start().await);
    let (id, secret) = target.server.root_key();
    let key = SigningKey::from(AccessKey::new(&id, &secret, "000000000000".parse().unwrap()));
    let issued =
        |ago: u64| token::issue(&key, Timestamp::now() - Duration::from_secs(ago)).unwrap().0;
    let hour = 60 * 60;
    let repository = &target.repository;
    let ask = |method: Method, path: String, authorization: String| async move {
        let mut call = repository.anonymous(method, &path);
        if !authorization.is_empty() {
            call = call.header("Authorization", &authorization);
        }
        call.header("Content-Length", "0").send().await
    };
    ask(Method::GET, "/v2/".into(), basic("AWS", &issued(11 * hour))).await.assert_status(200);
    for authorization in [
        String::new(),
        other.repository.authorization(),
        basic("AWS", &"A".repeat(75_000)),
        format!("Basic {}", "A".repeat(100_000)),
        "A".repeat(100_000),
        basic("AWS", &secret),
        basic(&id, &secret),
        basic("AWS", ""),
        basic("aws", &issued(0)),
        format!("{}, Basic x", basic("AWS", &issued(0))),
    ] {
        for (method, path) in [
            (Method::GET, "/v2/".to_owned()),
            (Method::POST, repository.uploads()),
            (Method::PUT, repository.manifest("x")),
        ] {
            let answer = ask(method, path, authorization.clone()).await;
            answer.assert_status(401);
            assert!(answer.header("www-authenticate").starts_with("Basic realm="));
        }
    }
    for method in [Method::GET, Method::DELETE] {
        let path = repository.blob(&Digest::sha256(b"x"));
        ask(method, path, basic("AWS", &issued(13 * hour))).await.assert_refused(403, "DENIED");
    }
    target.assert_unharmed().await;
}
