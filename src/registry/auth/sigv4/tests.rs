//! The verifier against AWS's own signer and AWS's published examples.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use wharfage_domain::access_key::AccessKey;

const ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const NOW: &str = "2015-08-30T12:36:00Z";

fn keyring() -> Keyring {
    Keyring::new([AccessKey::new(ID, SECRET, "123456789012".parse().unwrap())])
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[derive(Clone)]
struct Sent {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Sent {
    /// A request as an SDK sends it, before it is signed.
    fn new(headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut sent = Self {
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers: HeaderMap::new(),
            body: body.to_vec(),
        };
        for (name, value) in
            [("host", "localhost:5000"), ("x-amz-target", "AmazonEC2ContainerRegistry_V20150921.X")]
        {
            sent.set(name, value);
        }
        for (name, value) in headers {
            sent.headers.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        sent
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.headers.insert(name, HeaderValue::from_str(value).unwrap());
    }

    fn signed(self) -> Self {
        self.signed_at("local-1", "ecr", at(NOW))
    }

    /// Signed by AWS's crate.
    fn signed_at(mut self, region: &str, service: &str, time: Timestamp) -> Self {
        let identity = Credentials::new(ID, SECRET, None, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(service)
            .time(SystemTime::from(time))
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let uri = format!("http://localhost:5000{}", self.uri);
        let headers =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let request = SignableRequest::new(
            self.method.as_str(),
            &uri,
            headers,
            SignableBody::Bytes(&self.body),
        )
        .unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        for (name, value) in instructions.headers() {
            self.headers
                .insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        self
    }

    fn verify(&self) -> Result<Principal, AuthError> {
        self.verify_at(at(NOW))
    }

    fn verify_at(&self, now: Timestamp) -> Result<Principal, AuthError> {
        let region: Region = "local-1".parse().unwrap();
        let scope = CredentialScope { region: &region, service: "ecr" };
        let body_hash = Sha256::digest(&self.body).into();
        let (method, uri, headers) = (&self.method, &self.uri, &self.headers);
        verify(SignedRequest { method, uri, headers, body_hash }, scope, &keyring(), now)
    }

    fn refusal(&self) -> String {
        self.verify().unwrap_err().to_string()
    }
}

#[test]
fn a_signature_of_the_sdk_verifies() {
    let sent = Sent::new(&[("content-type", "application/x-amz-json-1.1")], b"{}").signed();
    assert_eq!(sent.verify().unwrap().access_key_id.as_ref(), ID);
}

/// Method, target, headers, body, the names of the signed headers, the signature.
type Example = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
    &'static str,
);

/// From AWS's published test suite for Signature Version 4.
#[test]
fn the_published_examples_verify() {
    let examples: [Example; 5] = [
        (
            "POST",
            "/",
            &[],
            "",
            "host;x-amz-date",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            "GET",
            "/",
            &[("my-header1", " value1"), ("my-header2", " \"a   b   c\" ")],
            "",
            "host;my-header1;my-header2;x-amz-date",
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
        (
            "GET",
            "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
            &[],
            "",
            "host;x-amz-date",
            "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
        ),
        (
            "GET",
            "/?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
            &[],
            "",
            "host;x-amz-date",
            "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
        ),
        (
            "POST",
            "/",
            &[
                ("content-length", "13"),
                ("content-type", "application/x-www-form-urlencoded"),
                (
                    "x-amz-content-sha256",
                    "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
                ),
            ],
            "Param1=value1",
            "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
            "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
        ),
    ];
    for (method, uri, headers, body, signed_headers, signature) in examples {
        let mut sent = Sent::new(headers, body.as_bytes());
        sent.headers.remove(X_AMZ_TARGET);
        (sent.method, sent.uri) = (method.parse().unwrap(), uri.parse().unwrap());
        sent.set("host", "example.amazonaws.com");
        sent.set("x-amz-date", "20150830T123600Z");
        let credential = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";
        let authorization = format!(
            "{ALGORITHM} Credential={credential}, SignedHeaders={signed_headers}, Signature={signature}"
        );
        sent.set("authorization", &authorization);
        let region: Region = "us-east-1".parse().unwrap();
        let scope = CredentialScope { region: &region, service: "service" };
        let (method, uri, headers) = (&sent.method, &sent.uri, &sent.headers);
        let request =
            SignedRequest { method, uri, headers, body_hash: Sha256::digest(&sent.body).into() };
        let verified = verify(request, scope, &keyring(), at(NOW));
        assert!(verified.is_ok(), "{method} {uri}: {verified:?}");
    }
}

#[test]
fn a_request_without_a_signature_is_missing_its_token() {
    assert_eq!(Sent::new(&[], b"").verify(), Err(AuthError::MissingAuthenticationToken));
}

#[test]
fn a_presigned_request_must_use_the_header() {
    let mut sent = Sent::new(&[], b"");
    sent.uri = "/?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00".parse().unwrap();
    assert!(matches!(sent.verify(), Err(AuthError::IncompleteSignature(_))));
}

#[test]
fn a_malformed_header_names_what_is_missing() {
    let scope = "AKIDEXAMPLE/20150830/local-1/ecr/aws4_request";
    for (authorization, expected) in [
        ("Basic QVdTOg==".into(), "AWS4-HMAC-SHA256"),
        ("AWS4-ECDSA-P256-SHA256 Credential=a".into(), "AWS4-HMAC-SHA256"),
        ("AWS4-HMAC-SHA256".into(), "AWS4-HMAC-SHA256"),
        ("AWS4-HMAC-SHA256 Signature=00".into(), "'Credential'"),
        (format!("AWS4-HMAC-SHA256 Credential={scope}, Signature=00"), "'SignedHeaders'"),
        (format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host"), "'Signature'"),
        (
            format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature="),
            "'Signature'",
        ),
        (format!("AWS4-HMAC-SHA256 Credential={scope}, Credential={scope}"), "twice"),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=00".into(),
            "5 slash-delimited",
        ),
        ("AWS4-HMAC-SHA256 Surprise=1".into(), "a parameter that"),
    ] {
        let mut sent = Sent::new(&[("x-amz-date", "20150830T123600Z")], b"");
        sent.set("authorization", &authorization);
        match sent.verify() {
            Err(AuthError::IncompleteSignature(text)) => {
                assert!(text.contains(expected), "{authorization}: {text}")
            }
            other => panic!("{authorization}: {other:?}"),
        }
    }
}

#[test]
fn a_date_must_be_in_the_basic_format() {
    for date in [
        "2015-08-30T12:36:00Z",
        "20150830T123600",
        "20159930T123600Z",
        "Sun, 30 Aug 2015 12:36:00 GMT",
        "",
    ] {
        let mut sent = Sent::new(&[], b"").signed();
        sent.set("x-amz-date", date);
        assert!(matches!(sent.verify(), Err(AuthError::IncompleteSignature(_))), "{date}");
    }
}

#[test]
fn five_minutes_of_clock_skew_are_accepted() {
    let sent = Sent::new(&[], b"{}").signed();
    for fine in ["2015-08-30T12:31:00Z", "2015-08-30T12:41:00Z"] {
        assert!(sent.verify_at(at(fine)).is_ok(), "{fine}");
    }
    assert_eq!(
        sent.verify_at(at("2015-08-30T12:41:01Z")).unwrap_err().to_string(),
        "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T124101Z - 5 min.)"
    );
    assert_eq!(
        sent.verify_at(at("2015-08-30T12:30:59Z")).unwrap_err().to_string(),
        "Signature not yet current: 20150830T123600Z is still later than 20150830T123559Z (20150830T123059Z + 5 min.)"
    );
}

#[test]
fn a_signature_of_another_scope_is_refused() {
    let elsewhere = Sent::new(&[], b"{}").signed_at("eu-west-1", "ecr", at(NOW));
    assert!(elsewhere.refusal().contains("serves 'local-1'"), "{}", elsewhere.refusal());
    let service = Sent::new(&[], b"{}").signed_at("local-1", "s3", at(NOW));
    assert!(service.refusal().contains("correct service: 'ecr'"), "{}", service.refusal());
    let mut day = Sent::new(&[], b"{}").signed();
    let value = day.headers[AUTHORIZATION].to_str().unwrap().replace("/20150830/", "/20150829/");
    day.set("authorization", &value);
    assert!(day.refusal().contains("Date in Credential scope"), "{}", day.refusal());
}

#[test]
fn an_unknown_key_or_session_is_not_recognized() {
    let mut unknown = Sent::new(&[], b"{}").signed();
    let value = unknown.headers[AUTHORIZATION].to_str().unwrap().replace(ID, "AKIDUNKNOWN");
    unknown.set("authorization", &value);
    assert_eq!(unknown.verify(), Err(AuthError::UnrecognizedClient));
    let session = Sent::new(&[("x-amz-security-token", "session")], b"{}").signed();
    assert_eq!(session.verify(), Err(AuthError::UnrecognizedClient));
}

#[test]
fn headers_that_the_server_evaluates_must_be_signed() {
    for name in ["x-amz-target", "x-amz-date", "host"] {
        let mut sent = Sent::new(&[], b"{}").signed();
        let value = sent.headers[AUTHORIZATION].to_str().unwrap().to_owned();
        let value = value.replace(&format!(";{name}"), "").replace(&format!("{name};"), "");
        sent.set("authorization", &value);
        assert!(sent.refusal().contains("must be a 'SignedHeader'"), "{name}: {}", sent.refusal());
    }
    let mut added = Sent::new(&[], b"{}").signed();
    added.headers.append(
        X_AMZ_TARGET,
        HeaderValue::from_static("AmazonEC2ContainerRegistry_V20150921.Other"),
    );
    assert!(added.refusal().contains("does not match"), "{}", added.refusal());
}

#[test]
fn the_content_hash_may_not_lie() {
    let body = b"{}";
    let hash = hex::encode(Sha256::digest(body));
    assert!(Sent::new(&[("x-amz-content-sha256", &hash)], body).signed().verify().is_ok());
    for lie in ["UNSIGNED-PAYLOAD", &"0".repeat(64)] {
        let sent = Sent::new(&[("x-amz-content-sha256", lie)], body).signed();
        assert!(sent.refusal().contains("X-Amz-Content-Sha256"), "{lie}: {}", sent.refusal());
    }
}

#[test]
fn invalid_utf8_is_refused_without_a_panic() {
    let odd = HeaderValue::from_bytes(b"AWS4-HMAC-SHA256 Credential=\xff\xfe").unwrap();
    let mut sent = Sent::new(&[], b"{}").signed();
    sent.headers.insert(AUTHORIZATION, odd.clone());
    assert!(matches!(sent.verify(), Err(AuthError::IncompleteSignature(_))));
    let mut sent = Sent::new(&[], b"{}").signed();
    sent.headers.insert(HOST, odd);
    assert!(sent.refusal().contains("does not match"));
}

proptest! {
    #[test]
    fn aws_signatures_verify_and_changed_ones_do_not(
        headers in prop::collection::btree_map("x-[a-z][a-z0-9-]{0,12}", "[ -~]{0,30}", 0..6),
        query in prop::collection::vec(("[a-zA-Z0-9~._-]{1,6}", "[a-zA-Z0-9~._-]{0,6}"), 0..4),
        body in prop::collection::vec(any::<u8>(), 1..200),
        flip: prop::sample::Index,
        which in 0..4_usize,
    ) {
        prop_assume!(headers.keys().all(|name| !name.starts_with("x-amz")));
        let pairs: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut sent = Sent::new(&pairs, &body);
        let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        sent.uri = format!("/?{}", query.join("&")).parse().unwrap();
        let mut sent = sent.signed();
        prop_assert!(sent.verify().is_ok(), "{:?}", sent.verify());

        match which {
            0 => { let at = flip.index(sent.body.len()); sent.body[at] ^= 1; }
            1 => sent.method = Method::PUT,
            2 => sent.uri = format!("{}&added=1", sent.uri).parse().unwrap(),
            _ => {
                let mut value = sent.headers[AUTHORIZATION].as_bytes().to_vec();
                // A hexadecimal digit of the signature becomes another one.
                let at = value.len() - 1 - flip.index(64);
                value[at] = if value[at] == b'0' { b'1' } else { b'0' };
                sent.headers.insert(AUTHORIZATION, HeaderValue::from_bytes(&value).unwrap());
            }
        }
        prop_assert!(sent.verify().is_err());
    }

    #[test]
    fn no_header_makes_it_panic(
        authorization in prop::collection::vec(32..=255_u8, 0..200),
        parameters in "(Credential|SignedHeaders|Signature|[a-z]{0,3})(=[a-z0-9/;]{0,30})?(,( |\t){0,2}(Credential|SignedHeaders|Signature)=[a-zA-Z0-9/;]{0,60}){0,4}",
        date in "\\PC{0,20}",
    ) {
        let mut sent = Sent::new(&[], b"{}");
        if let Ok(date) = HeaderValue::from_bytes(date.as_bytes()) { sent.headers.insert(X_AMZ_DATE, date); }
        if let Ok(value) = HeaderValue::from_bytes(&authorization) {
            sent.headers.insert(AUTHORIZATION, value);
            prop_assert!(sent.verify().is_err());
        }
        sent.set("x-amz-date", "20150830T123600Z");
        sent.set("authorization", &format!("{ALGORITHM} {parameters}"));
        prop_assert!(sent.verify().is_err());
    }
}
