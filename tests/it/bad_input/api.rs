//! The ECR API: signatures that do not hold, targets that are none, JSON that is none or has the wrong types.

use std::time::{Duration, SystemTime};

use super::target::{ApiCall, PREFIX, Target, assert_named};

const OPERATION: &str = "DescribeRepositories";

#[tokio::test]
async fn a_request_without_a_good_signature_is_refused_by_name() {
    let target = Target::start().await;
    let authority = target.server.authority();
    let call = || target.api(OPERATION, "{}");
    let good = || call().signed(authority);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let without = |call: ApiCall, name: &str| {
        let headers = call
            .headers
            .into_iter()
            .filter(|(header, _)| !header.eq_ignore_ascii_case(name))
            .collect();
        ApiCall { headers, ..call }
    };
    let bent = |bend: &dyn Fn(&str) -> String| good().bent("authorization", bend);
    let last_changed = |text: &str| {
        let (rest, last) = text.split_at(text.len() - 1);
        format!("{rest}{}", if last == "0" { '1' } else { '0' })
    };
    let (id, secret) = target.server.root_key();
    let cases: Vec<(&str, ApiCall, &str)> = vec![
        ("no signature", call(), "MissingAuthenticationTokenException"),
        (
            "another scheme",
            call().header("authorization", &target.repository.authorization()),
            "IncompleteSignatureException",
        ),
        ("nonsense", bent(&|_| "nonsense".into()), "IncompleteSignatureException"),
        (
            "an algorithm only",
            bent(&|_| "AWS4-HMAC-SHA256 ".into()),
            "IncompleteSignatureException",
        ),
        (
            "a part is missing",
            bent(&|text| text.replace("SignedHeaders", "Signed")),
            "IncompleteSignatureException",
        ),
        (
            "SigV4a",
            bent(&|text| text.replace("AWS4-HMAC", "AWS4-ECDSA-P256")),
            "IncompleteSignatureException",
        ),
        (
            "a scope too short",
            bent(&|text| text.replace("/aws4_request", "")),
            "IncompleteSignatureException",
        ),
        (
            "100 KB",
            bent(&|text| format!("{text}{}", "0".repeat(100_000))),
            "InvalidSignatureException",
        ),
        ("100 KB of nothing", bent(&|_| "A".repeat(100_000)), "IncompleteSignatureException"),
        (
            "two signatures",
            good().header("authorization", "AWS4-HMAC-SHA256 x"),
            "IncompleteSignatureException",
        ),
        ("no date", without(good(), "x-amz-date"), "IncompleteSignatureException"),
        (
            "a date in words",
            good().bent("x-amz-date", |_| "yesterday".into()),
            "IncompleteSignatureException",
        ),
        ("the last digit", bent(&last_changed), "InvalidSignatureException"),
        ("another body", ApiCall { body: b"{ }".to_vec(), ..good() }, "InvalidSignatureException"),
        (
            "another target",
            good().bent("x-amz-target", |_| format!("{PREFIX}DescribeRegistry")),
            "InvalidSignatureException",
        ),
        (
            "a header behind the signer's back",
            good().header("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            "InvalidSignatureException",
        ),
        (
            "another secret",
            ApiCall { key: (id.clone(), "secret".into()), ..call() }.signed(authority),
            "InvalidSignatureException",
        ),
        (
            "an unknown key",
            ApiCall { key: ("AKIAIOSFODNN7EXAMPLE".into(), secret), ..call() }.signed(authority),
            "UnrecognizedClientException",
        ),
        (
            "a session token",
            call().header("x-amz-security-token", "x").signed(authority),
            "UnrecognizedClientException",
        ),
        (
            "an hour ago",
            ApiCall { time: SystemTime::now() - minutes(60), ..call() }.signed(authority),
            "InvalidSignatureException",
        ),
        (
            "in an hour",
            ApiCall { time: SystemTime::now() + minutes(60), ..call() }.signed(authority),
            "InvalidSignatureException",
        ),
        (
            "another region",
            ApiCall { region: "us-east-1", ..call() }.signed(authority),
            "InvalidSignatureException",
        ),
        (
            "another service",
            ApiCall { service: "s3", ..call() }.signed(authority),
            "InvalidSignatureException",
        ),
        (
            "an unsigned payload",
            ApiCall { unsigned_payload: true, ..call() }.signed(authority),
            "InvalidSignatureException",
        ),
    ];
    for (what, call, expected) in cases {
        let answer = target.send(call).await;
        let found = (
            answer.status.as_u16(),
            answer.json()["__type"].as_str().unwrap_or_default().to_owned(),
        );
        assert_eq!(found, (400, expected.to_owned()), "{what}: {}", answer.json());
        assert!(answer.headers.contains_key("x-amzn-requestid"), "{what}");
    }
    for call in [
        good(),
        ApiCall { time: SystemTime::now() - minutes(4), ..call() }.signed(authority),
        ApiCall { time: SystemTime::now() + minutes(4), ..call() }.signed(authority),
    ] {
        target.send(call).await.assert_status(200);
    }
    target.assert_unharmed().await;
}

#[tokio::test]
async fn a_stale_date_is_told_with_both_times() {
    let target = Target::start().await;
    let time = SystemTime::now() - Duration::from_secs(3600);
    let call = ApiCall { time, ..target.api(OPERATION, "{}") }.signed(target.server.authority());
    let message = assert_named(&target.send(call).await, 400, "InvalidSignatureException");
    assert!(
        message.starts_with("Signature expired: ") && message.ends_with("- 5 min.)"),
        "{message}"
    );
}

#[tokio::test]
async fn a_signature_in_the_query_is_not_accepted() {
    let target = Target::start().await;
    let query = "/?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=x&X-Amz-Signature=00";
    let call = target
        .repository
        .anonymous(reqwest::Method::POST, query)
        .header("X-Amz-Target", "x")
        .body("{}");
    assert_named(&call.send().await, 400, "IncompleteSignatureException");
    target.assert_unharmed().await;
}

#[tokio::test]
async fn an_unknown_target_is_an_unknown_operation() {
    let target = Target::start().await;
    let long = "x".repeat(50_000);
    // The last but one is ECR's, and not this registry's yet.
    for name in [
        "Nope",
        "",
        "describeRepositories",
        "Describe Repositories",
        "../CreateRepository",
        "StartImageScan",
        &long,
    ] {
        assert_named(&target.call(name, "{}").await, 400, "UnknownOperationException");
    }
    let mut other = target.api(OPERATION, "{}");
    other.headers[1].1 = "SpencerFrontendService.DescribeRegistries".into();
    other.service = "ecr-public";
    let other = target.send(other.signed(target.server.authority())).await;
    assert_named(&other, 400, "UnknownOperationException");
    let mut none = target.api(OPERATION, "{}");
    none.headers.truncate(1);
    let none = target.send(none.signed(target.server.authority())).await;
    assert_named(&none, 400, "UnknownOperationException");
    target.assert_unharmed().await;
}

#[tokio::test]
async fn what_is_no_json_object_or_has_a_wrong_type_is_a_serialization_exception() {
    let target = Target::start().await;
    let deep = format!("{{\"x\":{}", "[".repeat(200_000));
    let name = &target.repository.name;
    let with_name = |rest: &str| format!("{{\"repositoryName\":\"{name}\",{rest}}}");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("CreateRepository", b"{".to_vec()),
        ("CreateRepository", b"[]".to_vec()),
        ("CreateRepository", b"null".to_vec()),
        ("CreateRepository", b"\"name\"".to_vec()),
        ("CreateRepository", b"{\"repositoryName\":\"a/b\"} x".to_vec()),
        ("CreateRepository", b"{'repositoryName':'a/b'}".to_vec()),
        ("CreateRepository", b"\xff\xfe{}".to_vec()),
        ("CreateRepository", b"{\"repositoryName\":\"\xff\"}".to_vec()),
        ("CreateRepository", b"{\"repositoryName\":\"\\ud800\"}".to_vec()),
        ("CreateRepository", b"{\"repositoryName\":1}".to_vec()),
        ("CreateRepository", b"{\"repositoryName\":[\"a\"]}".to_vec()),
        ("CreateRepository", b"{\"repositoryName\":\"a/b\",\"tags\":{}}".to_vec()),
        (
            "CreateRepository",
            b"{\"repositoryName\":\"a/b\",\"imageScanningConfiguration\":[]}".to_vec(),
        ),
        ("CreateRepository", b"{\"repositoryName\":\"a/b\",\"imageTagMutability\":true}".to_vec()),
        ("CreateRepository", deep.into_bytes()),
        ("DescribeRepositories", b"{\"maxResults\":\"1\"}".to_vec()),
        ("DescribeRepositories", b"{\"maxResults\":1e400}".to_vec()),
        ("DescribeRepositories", b"{\"repositoryNames\":\"a\"}".to_vec()),
        ("PutImage", with_name("\"imageManifest\":{}").into()),
        ("BatchGetImage", with_name("\"imageIds\":\"x\"").into()),
        ("BatchDeleteImage", with_name("\"imageIds\":[[\"x\"]]").into()),
        ("SetRepositoryPolicy", with_name("\"policyText\":{}").into()),
        ("PutLifecyclePolicy", with_name("\"lifecyclePolicyText\":{\"rules\":[]}").into()),
        ("UploadLayerPart", with_name("\"partFirstByte\":\"0\"").into()),
    ];
    for (operation, body) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let answer = target.call(operation, body).await;
        let found = (
            answer.status.as_u16(),
            answer.json()["__type"].as_str().unwrap_or_default().to_owned(),
        );
        assert_eq!(
            found,
            (400, "SerializationException".to_owned()),
            "{operation} {shown}: {}",
            answer.json()
        );
        assert!(answer.body.len() < 2_000, "{shown}");
    }
    target.assert_unharmed().await;
}

#[tokio::test]
async fn documents_that_nest_absurdly_are_refused_by_name() {
    let target = Target::start().await;
    let name = &target.repository.name;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let text = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for (operation, member, depth) in [
            ("SetRepositoryPolicy", "policyText", 1_500),
            ("PutLifecyclePolicy", "lifecyclePolicyText", 4_000),
            ("PutImage", "imageManifest", 300_000),
            ("StartLifecyclePolicyPreview", "lifecyclePolicyText", 4_000),
        ] {
            for text in [text(depth), open.repeat(depth)] {
                let body = serde_json::json!({"repositoryName": name, member: text}).to_string();
                let answer = target.call(operation, body).await;
                assert_named(&answer, 400, "InvalidParameterException");
            }
        }
        let refused = target.repository.put("deep", text(300_000).as_bytes()).await;
        let message = refused.assert_refused(405, "UNSUPPORTED");
        assert!(message.contains("nests deeper"), "{message}");
    }
    target.assert_unharmed().await;
}

#[tokio::test]
async fn names_with_tricks_are_no_names() {
    let target = Target::start().await;
    for name in [
        "..",
        "a/../b",
        "/a",
        "a/",
        "a//b",
        "A",
        "a\u{0}b",
        "a b",
        "a:b",
        "a@sha256",
        "a%2fb",
        "\u{e4}",
        "",
        &"a".repeat(257),
    ] {
        let body = serde_json::json!({"repositoryName": name}).to_string();
        assert_named(
            &target.call("CreateRepository", body).await,
            400,
            "InvalidParameterException",
        );
    }
    target.assert_unharmed().await;
}
