//! A client of the OCI API that takes nothing for granted: it follows no redirect, and every answer is the test's to judge.

use std::fmt::Write as _;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::OnceCell;
use wharfage::names::{Algorithm, Digest};

use crate::bed::wharfage::Wharfage;
use crate::bed::{self};

/// Where the program keeps its data.
#[derive(Debug, Clone, Copy)]
pub enum Backend {
    SqliteAndFolder,
    PostgresqlAndS3,
}

impl Backend {
    /// The server that the tests of this process share.
    async fn server(self) -> &'static Wharfage {
        static LOCAL: OnceCell<Wharfage> = OnceCell::const_new();
        static REMOTE: OnceCell<Wharfage> = OnceCell::const_new();
        let cell = match self {
            Self::SqliteAndFolder => &LOCAL,
            Self::PostgresqlAndS3 => &REMOTE,
        };
        cell.get_or_init(|| self.own_server()).await
    }

    /// A server of the test's own, for what would disturb others.
    pub async fn own_server(self) -> Wharfage {
        match self {
            Self::SqliteAndFolder => bed::wharfage().start().await,
            Self::PostgresqlAndS3 => bed::wharfage().on_postgres_and_s3().await.start().await,
        }
    }

    /// A fresh repository on the shared server.
    pub async fn repository(self) -> Repository {
        Repository::create(self.server().await).await
    }
}

/// A repository and what it takes to talk to it.
#[derive(Debug, Clone)]
pub struct Repository {
    http: reqwest::Client,
    ecr: aws_sdk_ecr::Client,
    base: String,
    token: String,
    pub name: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts the status, and the code of the specification's envelope.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        let error = &self.json()["errors"][0];
        assert_eq!(error["code"], code, "{error}");
        error["message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn assert_status(&self, status: u16) -> &Self {
        assert_eq!(self.status.as_u16(), status, "{:?} {}", self.headers, self.text());
        self
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(2000)]).into_owned()
    }
}

/// A request that is being prepared.
#[derive(Debug)]
pub struct Call {
    request: reqwest::RequestBuilder,
}

impl Call {
    pub fn header(self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).unwrap();
        Self { request: self.request.header(name, HeaderValue::try_from(value).unwrap()) }
    }

    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        Self { request: self.request.body(body) }
    }

    pub async fn send(self) -> Answer {
        let response = self.request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }
}

impl Repository {
    /// Creates a repository with a unique name on this server.
    pub async fn create(server: &Wharfage) -> Self {
        let ecr = server.ecr();
        let tokens = ecr.get_authorization_token().send().await.unwrap();
        let token = tokens.authorization_data()[0].authorization_token().unwrap().to_owned();
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        let mut repository = Self { http, ecr, base: server.url(), token, name: String::new() };
        repository.name = repository.another().await;
        repository
    }

    /// The name of one more repository.
    pub async fn another(&self) -> String {
        let name = format!("team/{}", uuid::Uuid::new_v4());
        self.ecr.create_repository().repository_name(&name).send().await.unwrap();
        name
    }

    /// The same client of another replica.
    pub fn at(&self, url: &str) -> Self {
        Self { base: url.to_owned(), ..self.clone() }
    }

    /// The same client with another repository.
    pub async fn sibling(&self) -> Self {
        Self { name: self.another().await, ..self.clone() }
    }

    pub fn ecr(&self) -> &aws_sdk_ecr::Client {
        &self.ecr
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns what the Authorization header says.
    pub fn authorization(&self) -> String {
        format!("Basic {}", self.token)
    }

    /// A request without credentials; `target` is a path or a whole URL.
    pub fn anonymous(&self, method: Method, target: &str) -> Call {
        let url = if target.starts_with('/') {
            format!("{}{target}", self.base)
        } else {
            target.to_owned()
        };
        Call { request: self.http.request(method, url) }
    }

    /// A request with the token.
    pub fn call(&self, method: Method, target: &str) -> Call {
        self.anonymous(method, target).header("Authorization", &self.authorization())
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.call(Method::GET, target).send().await
    }

    pub async fn head(&self, target: &str) -> Answer {
        self.call(Method::HEAD, target).send().await
    }

    pub async fn delete(&self, target: &str) -> Answer {
        self.call(Method::DELETE, target).send().await
    }

    pub async fn post(&self, target: &str) -> Answer {
        self.call(Method::POST, target).header("Content-Length", "0").send().await
    }

    pub fn manifest(&self, reference: impl std::fmt::Display) -> String {
        format!("/v2/{}/manifests/{reference}", self.name)
    }

    pub fn blob(&self, digest: &Digest) -> String {
        format!("/v2/{}/blobs/{digest}", self.name)
    }

    pub fn uploads(&self) -> String {
        format!("/v2/{}/blobs/uploads/", self.name)
    }

    /// Begins an upload and returns where it continues.
    pub async fn begin(&self) -> String {
        let begun = self.post(&self.uploads()).await;
        begun.assert_status(202);
        begun.header("Location").to_owned()
    }

    /// Sends a chunk; `first` is its first byte, if the request is to say it.
    pub async fn chunk(&self, location: &str, first: Option<usize>, bytes: &[u8]) -> Answer {
        let mut call =
            self.call(Method::PATCH, location).header("Content-Type", "application/octet-stream");
        if let Some(first) = first {
            call = call.header(
                "Content-Range",
                &format!("{first}-{}", (first + bytes.len()).saturating_sub(1)),
            );
        }
        call.body(bytes.to_vec()).send().await
    }

    /// Ends an upload.
    pub async fn finish(
        &self,
        location: &str,
        digest: impl std::fmt::Display,
        rest: &[u8],
    ) -> Answer {
        let target = with_parameter(location, "digest", digest);
        self.call(Method::PUT, &target)
            .header("Content-Type", "application/octet-stream")
            .body(rest.to_vec())
            .send()
            .await
    }

    /// Pushes a blob the shortest way.
    pub async fn push_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let location = self.begin().await;
        self.finish(&location, &digest, bytes).await.assert_status(201);
        digest
    }

    /// Puts a manifest under a tag or a digest, with its own media type.
    pub async fn put(&self, reference: impl std::fmt::Display, manifest: &[u8]) -> Answer {
        let media_type = serde_json::from_slice::<Value>(manifest).ok();
        let media_type = media_type
            .as_ref()
            .and_then(|json| json["mediaType"].as_str())
            .unwrap_or(super::images::IMAGE);
        self.call(Method::PUT, &self.manifest(reference))
            .header("Content-Type", media_type)
            .body(manifest.to_vec())
            .send()
            .await
    }

    /// Puts a manifest that the registry has to take, and returns its digest.
    pub async fn put_ok(&self, reference: impl std::fmt::Display, manifest: &[u8]) -> Digest {
        self.put(reference, manifest).await.assert_status(201);
        Digest::sha256(manifest)
    }
}

/// A location with one more parameter in its query.
pub fn with_parameter(location: &str, name: &str, value: impl std::fmt::Display) -> String {
    let mut target = location.to_owned();
    let separator = if location.contains('?') { '&' } else { '?' };
    write!(target, "{separator}{name}={value}").unwrap();
    target
}

/// The digests of these bytes by both algorithms.
pub fn digests(bytes: &[u8]) -> [Digest; 2] {
    [Algorithm::Sha256, Algorithm::Sha512].map(|algorithm| Digest::of(algorithm, bytes))
}

/// Bytes that no other test has.
pub fn unique(length: usize) -> Vec<u8> {
    let seed = uuid::Uuid::new_v4();
    seed.as_bytes()
        .iter()
        .copied()
        .cycle()
        .enumerate()
        .map(|(at, byte)| byte ^ (at / 16) as u8)
        .take(length)
        .collect()
}
