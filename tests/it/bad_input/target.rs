//! The server under fire, and what lets a test say that it took no harm.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::bed::wharfage::{Launch, Wharfage};
use crate::bed::{self};
use crate::oci::client::{Answer, Repository};

pub const PREFIX: &str = "AmazonEC2ContainerRegistry_V20150921.";

/// A program of the test's own with one empty repository.
pub struct Target {
    pub server: Wharfage,
    pub repository: Repository,
}

/// A call of the ECR API, to be signed, bent and sent.
#[derive(Debug, Clone)]
pub struct ApiCall {
    pub key: (String, String),
    pub region: &'static str,
    pub service: &'static str,
    pub time: SystemTime,
    pub unsigned_payload: bool,
    /// Before it is signed; what signing adds comes behind.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl ApiCall {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Signed by AWS's crate.
    pub fn signed(mut self, authority: &str) -> Self {
        let identity = Credentials::new(&self.key.0, &self.key.1, None, None, "test").into();
        let mut settings = SigningSettings::default();
        if self.unsigned_payload {
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(self.time)
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let body = if self.unsigned_payload {
            SignableBody::UnsignedPayload
        } else {
            SignableBody::Bytes(&self.body)
        };
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let request =
            SignableRequest::new("POST", format!("http://{authority}/"), headers, body).unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        let added = instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let added: Vec<_> = added.collect();
        self.headers.extend(added);
        self
    }

    /// With the header's value changed after the signing.
    pub fn bent(mut self, name: &str, bend: impl Fn(&str) -> String) -> Self {
        let header = self.headers.iter_mut().find(|(header, _)| header.eq_ignore_ascii_case(name));
        let (_, value) = header.unwrap_or_else(|| panic!("the call has no {name}"));
        *value = bend(value);
        self
    }
}

impl Target {
    pub async fn start() -> Self {
        Self::of(bed::wharfage()).await
    }

    pub async fn of(launch: Launch) -> Self {
        let server = launch.start().await;
        let repository = Repository::create(&server).await;
        Self { server, repository }
    }

    /// A call as an SDK would begin it.
    pub fn api(&self, operation: &str, body: impl Into<Vec<u8>>) -> ApiCall {
        ApiCall {
            key: self.server.root_key(),
            region: "local-1",
            service: "ecr",
            time: SystemTime::now(),
            unsigned_payload: false,
            headers: vec![
                ("content-type".into(), "application/x-amz-json-1.1".into()),
                ("x-amz-target".into(), format!("{PREFIX}{operation}")),
            ],
            body: body.into(),
        }
    }

    /// Sends the call as it is.
    pub async fn send(&self, call: ApiCall) -> Answer {
        let ApiCall { headers, body, .. } = call;
        let request = self.repository.anonymous(Method::POST, "/").body(body);
        headers
            .iter()
            .fold(request, |request, (name, value)| request.header(name, value))
            .send()
            .await
    }

    /// Signs a call and sends it.
    pub async fn call(&self, operation: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.send(self.api(operation, body).signed(self.server.authority())).await
    }

    /// Writes bytes to a fresh connection, as far as the server takes them, says that there are no more, and returns
    /// everything that it answers before it closes.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let stream = TcpStream::connect(self.server.authority()).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let bytes = bytes.to_vec();
        // A server that refuses what it has seen so far may close before it has taken everything.
        let writing = tokio::spawn(async move {
            let _ = write.write_all(&bytes).await;
            write
        });
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        drop(writing.await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Writes a request that ends before it should, and waits until the server has released the
    /// connection.
    pub async fn cut_off(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.server.authority()).await.unwrap();
        // A server that refuses what it has seen so far may have closed by then.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The head of a request with the token; each of `headers` with its line's end.
    pub fn head(&self, method: &str, target: &str, headers: &str) -> String {
        let (host, token) = (self.server.authority(), self.repository.authorization());
        format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\n{headers}\r\n"
        )
    }

    /// Asserts that the process answers, and that the repository is as empty as on its first day and alone.
    #[track_caller]
    pub fn assert_unharmed(&self) -> impl Future<Output = ()> + '_ {
        let caller = std::panic::Location::caller();
        async move {
            let repository = &self.repository;
            repository.get("/v2/").await.assert_status(200);
            let tags = repository.get(&format!("/v2/{}/tags/list", repository.name)).await.json();
            assert_eq!(tags["tags"], serde_json::json!([]), "{caller}");
            let (ecr, name) = (repository.ecr(), &repository.name);
            let repositories = ecr.describe_repositories().send().await.unwrap();
            assert_eq!(repositories.repositories().len(), 1, "{caller}: {repositories:?}");
            let images = ecr.describe_images().repository_name(name).send().await.unwrap();
            assert!(images.image_details().is_empty(), "{caller}: {images:?}");
            assert!(
                ecr.get_lifecycle_policy().repository_name(name).send().await.is_err(),
                "{caller}"
            );
            assert!(
                ecr.get_repository_policy().repository_name(name).send().await.is_err(),
                "{caller}"
            );
            let output = self.server.output();
            assert!(!output.contains("panicked"), "{caller}: {output}");
        }
    }
}

/// Asserts the name of an API error, in body and header; returns its message.
#[track_caller]
pub fn assert_named(answer: &Answer, status: u16, code: &str) -> String {
    let json = answer.json();
    let found = (answer.status.as_u16(), json["__type"].as_str().unwrap_or_default());
    assert_eq!(found, (status, code), "{json}");
    assert_eq!(answer.header("x-amzn-errortype"), code);
    json["message"].as_str().unwrap().to_owned()
}

/// Status and body of a raw answer.
pub fn parts(raw: &str) -> (u16, &str) {
    let status = raw
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|text| text.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no answer: {raw:?}"));
    (status, raw.split_once("\r\n\r\n").map_or("", |(_, body)| body))
}

/// The code in a raw answer of the OCI API.
pub fn code(body: &str) -> String {
    let json: Value =
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
    json["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
}
