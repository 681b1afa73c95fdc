//! The Query protocol: forms that are signed badly, name nothing, or are none. Their errors are XML.

use std::time::{Duration, SystemTime};

use super::target::{ApiCall, Target};
use crate::oci::client::Answer;

const IDENTITY: &str = "Action=GetCallerIdentity&Version=2011-06-15";

/// A form as an SDK would send it, not signed yet.
fn form(target: &Target, body: impl Into<Vec<u8>>) -> ApiCall {
    let content_type = "application/x-www-form-urlencoded; charset=utf-8";
    ApiCall {
        service: "sts",
        headers: vec![("content-type".into(), content_type.into())],
        ..target.api("", body)
    }
}

/// Status, code and message of an XML error.
#[track_caller]
fn refusal(answer: &Answer) -> (u16, String, String) {
    assert_eq!(answer.header("content-type"), "text/xml");
    let xml = String::from_utf8(answer.body.clone()).unwrap();
    let element = |name: &str| {
        let (_, rest) =
            xml.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {xml}"));
        rest.split_once(&format!("</{name}>"))
            .unwrap_or_else(|| panic!("no end of {name} in {xml}"))
            .0
            .to_owned()
    };
    assert!(
        xml.starts_with(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>"
        ),
        "{xml}"
    );
    assert_eq!(element("Type"), "Sender");
    assert_eq!(element("RequestId"), answer.header("x-amzn-requestid"));
    (answer.status.as_u16(), element("Code"), element("Message"))
}

#[tokio::test]
async fn a_form_without_a_good_signature_is_refused_in_xml() {
    let target = Target::start().await;
    let authority = target.server.authority();
    let call = || form(&target, IDENTITY);
    let (_, secret) = target.server.root_key();
    let cases: Vec<(&str, ApiCall, u16, &str, &str)> = vec![
        (
            "no signature",
            call(),
            403,
            "MissingAuthenticationToken",
            "Request is missing Authentication Token",
        ),
        (
            "no form at all",
            ApiCall { body: b"\xff%%&&=".to_vec(), ..call() },
            403,
            "MissingAuthenticationToken",
            "Request is missing Authentication Token",
        ),
        (
            "nonsense",
            call().header("authorization", "nonsense"),
            400,
            "IncompleteSignature",
            "Authorization header requires the algorithm 'AWS4-HMAC-SHA256'.",
        ),
        (
            "an unknown key",
            ApiCall { key: ("AKIAIOSFODNN7EXAMPLE".into(), secret), ..call() }.signed(authority),
            403,
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
        ),
        (
            "another body",
            ApiCall { body: b"Action=GetSessionToken".to_vec(), ..call().signed(authority) },
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match",
        ),
        (
            "another service",
            ApiCall { service: "ecr", ..call() }.signed(authority),
            403,
            "SignatureDoesNotMatch",
            "Credential should be scoped to correct service: 'sts'.",
        ),
        (
            "another region",
            ApiCall { region: "us-east-1", ..call() }.signed(authority),
            403,
            "SignatureDoesNotMatch",
            "Credential should be scoped to a valid region.",
        ),
        (
            "an hour ago",
            ApiCall { time: SystemTime::now() - Duration::from_secs(3600), ..call() }
                .signed(authority),
            403,
            "SignatureDoesNotMatch",
            "Signature expired: ",
        ),
    ];
    for (what, call, status, code, message) in cases {
        let (found_status, found_code, found_message) = refusal(&target.send(call).await);
        assert_eq!((found_status, &*found_code), (status, code), "{what}: {found_message}");
        assert!(found_message.contains(message), "{what}: {found_message}");
    }
    target.assert_unharmed().await;
}

#[tokio::test]
async fn a_form_that_names_no_operation_is_refused_in_xml() {
    let target = Target::start().await;
    let send = async |body: &[u8]| {
        target.send(form(&target, body).signed(target.server.authority())).await
    };
    let none = "Could not find operation";
    for (body, code, message) in [
        ("", "MissingAction", "Missing Action".to_owned()),
        ("Version=2011-06-15", "MissingAction", "Missing Action".to_owned()),
        (
            "Action=AssumeRole&Version=2011-06-15",
            "InvalidAction",
            format!("{none} AssumeRole for version 2011-06-15"),
        ),
        (
            "Action=getcalleridentity&Version=2011-06-15",
            "InvalidAction",
            format!("{none} getcalleridentity for"),
        ),
        (
            "Action=GetCallerIdentity",
            "InvalidAction",
            format!("{none} GetCallerIdentity for version NO_VERSION"),
        ),
        (
            "Action=GetCallerIdentity&Version=2010-05-08",
            "InvalidAction",
            format!("{none} GetCallerIdentity for"),
        ),
        (
            "Action=DescribeRepositories&Version=2015-09-21",
            "InvalidAction",
            format!("{none} DescribeRepositories"),
        ),
        (
            "Action=%3C/Message%3E%00%F0%9F&Version=%0d%0a",
            "InvalidAction",
            format!("{none} &lt;/Message&gt; for"),
        ),
    ] {
        let (status, found, text) = refusal(&send(body.as_bytes()).await);
        assert_eq!((status, &*found), (400, code), "{body}: {text}");
        assert!(text.starts_with(&message), "{body}: {text}");
    }
    let long = refusal(&send(format!("Action={}&Version=1", "x".repeat(60_000)).as_bytes()).await);
    assert!(long.1 == "InvalidAction" && long.2.len() < 300, "{long:?}");
    let longer = refusal(&send(format!("Action={}", "x".repeat(100_000)).as_bytes()).await);
    assert_eq!((longer.0, &*longer.1), (413, "RequestEntityTooLarge"));
    send(IDENTITY.as_bytes()).await.assert_status(200);
    target.assert_unharmed().await;
}

#[tokio::test]
async fn each_api_takes_signatures_for_its_own_service_only() {
    let target = Target::start().await;
    let authority = target.server.authority();
    for (prefix, service, right) in [
        ("AmazonEC2ContainerRegistry_V20150921.", "ecr-public", "ecr"),
        ("AmazonEC2ContainerRegistry_V20150921.", "sts", "ecr"),
        ("SpencerFrontendService.", "ecr", "ecr-public"),
    ] {
        let mut call = ApiCall { service, ..target.api("DescribeRepositories", "{}") };
        call.headers[1].1 = format!("{prefix}DescribeRepositories");
        let answer = target.send(call.signed(authority)).await;
        let message = super::target::assert_named(&answer, 400, "InvalidSignatureException");
        assert_eq!(message, format!("Credential should be scoped to correct service: '{right}'."));
    }
    target.assert_unharmed().await;
}
