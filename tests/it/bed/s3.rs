//! An S3 server for tests: versitygw over a temporary folder, a bucket for each test.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use object_store::signer::{SignedUrlOptions, Signer};
use tokio::net::TcpSocket;
use uuid::Uuid;

use super::service::{Folder, Frozen, STARTUP, Service, reserved_port};

const REGION: &str = "us-east-1";

/// The server that the tests of this process share.
pub fn s3() -> &'static S3Server {
    static SERVER: OnceLock<S3Server> = OnceLock::new();
    SERVER.get_or_init(S3Server::start)
}

/// A running server. Dropping it ends it.
pub struct S3Server {
    // In this order: the server ends before its data go.
    server: Service,
    folder: Folder,
    port: TcpSocket,
    access_key: String,
    secret_key: String,
}

/// An empty bucket, and what a client needs to use it.
#[derive(Debug, Clone)]
pub struct S3 {
    /// `http://127.0.0.1:PORT`; buckets are the first segment of the path.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket's name.
    pub bucket: String,
    /// The access key's id.
    pub access_key: String,
    /// The access key's secret.
    pub secret_key: String,
}

impl S3Server {
    /// Starts a server of the caller's own, for tests that harm it.
    pub fn start() -> Self {
        let folder = Folder::new();
        std::fs::create_dir(folder.path().join("buckets")).expect("a folder for the buckets");
        let port = reserved_port();
        let access_key =
            format!("AKIA{}", &Uuid::new_v4().simple().to_string().to_uppercase()[..16]);
        let secret_key = Uuid::new_v4().simple().to_string();
        let server = serve(&folder, &port, &access_key, &secret_key);
        Self { server, folder, port, access_key, secret_key }
    }

    /// Kills the server, as a power cut would.
    pub fn kill9(&mut self) {
        self.server.kill_all();
    }

    /// Starts the server again after its end, on the same data and port.
    pub fn start_again(&mut self) {
        self.server = serve(&self.folder, &self.port, &self.access_key, &self.secret_key);
    }

    /// Stops the server until the returned guard is dropped: it neither answers nor hangs up.
    #[must_use]
    pub fn freeze(&self) -> Frozen<'_> {
        self.server.freeze()
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.local_addr().expect("a bound socket has an address")
    }

    /// A bucket's folder, with its objects as files.
    pub fn folder(&self, bucket: &S3) -> PathBuf {
        self.folder.path().join("buckets").join(&bucket.bucket)
    }

    /// Makes an empty bucket.
    pub async fn bucket(&self) -> S3 {
        let bucket = format!("test-{}", Uuid::new_v4().simple());
        // versitygw takes the folders below its root for its buckets.
        let s3 = S3 {
            endpoint: format!("http://{}", self.address()),
            region: REGION.to_owned(),
            bucket,
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
        };
        std::fs::create_dir(self.folder(&s3)).expect("a bucket's folder");
        s3
    }
}

impl S3 {
    /// A client of the bucket that is not the code under test.
    pub fn client(&self) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_region(&self.region)
            .with_bucket_name(&self.bucket)
            .with_access_key_id(&self.access_key)
            .with_secret_access_key(&self.secret_key)
            .build()
            .expect("the configuration of a client")
    }

    /// The multipart uploads that are open: the object's key and the upload's id.
    pub async fn open_uploads(&self) -> Vec<(String, String)> {
        let mut options = SignedUrlOptions::default();
        options.extra_query.push(("uploads".to_owned(), String::new()));
        let (root, minute) = (ObjectPath::default(), Duration::from_secs(60));
        let url = self
            .client()
            .signed_url_opts(reqwest::Method::GET, &root, minute, &options)
            .await
            .expect("a signed URL");
        let listed = reqwest::get(url)
            .await
            .expect("S3 answers")
            .error_for_status()
            .expect("the list of uploads");
        let listed = listed.text().await.expect("the list of uploads");
        let value = |upload: &str, name: &str| {
            let (_, rest) = upload
                .split_once(&format!("<{name}>"))
                .unwrap_or_else(|| panic!("no {name} in {listed}"));
            rest.split('<').next().unwrap_or_default().to_owned()
        };
        listed
            .split("<Upload>")
            .skip(1)
            .map(|upload| (value(upload, "Key"), value(upload, "UploadId")))
            .collect()
    }

    /// Aborts all multipart uploads, as a bucket's lifecycle rule does.
    pub async fn abort_uploads(&self) {
        let open = self.open_uploads().await;
        assert!(!open.is_empty(), "there are multipart uploads");
        for (key, id) in open {
            self.client()
                .abort_multipart(&ObjectPath::from(key), &id)
                .await
                .expect("aborting a multipart upload");
        }
    }
}

/// Starts the server and waits until it answers.
fn serve(folder: &Folder, port: &TcpSocket, access_key: &str, secret_key: &str) -> Service {
    let address = port.local_addr().expect("a bound socket has an address");
    let mut command = Command::new(super::tool("WHARFAGE_TEST_VERSITYGW"));
    command
        .current_dir(folder.path())
        .env("ROOT_ACCESS_KEY_ID", access_key)
        .env("ROOT_SECRET_ACCESS_KEY", secret_key)
        .args(["--region", REGION, "--port", &address.to_string(), "posix"])
        .arg(folder.path().join("buckets"));
    let server = Service::start("versitygw", &mut command, "KILL", None);
    server.wait_for(|line| line.contains("listening on").then_some(()));
    // The line comes a moment before the listener does.
    let deadline = Instant::now() + STARTUP;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "versitygw does not answer: {}", server.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    server
}

#[tokio::test]
async fn a_test_gets_an_empty_bucket_of_its_own() {
    use futures::TryStreamExt;
    use object_store::{ObjectStore, ObjectStoreExt};

    let (one, other) = (s3().bucket().await, s3().bucket().await);
    one.client().put(&ObjectPath::from("a/b"), "bytes".into()).await.unwrap();
    let listed = |s3: &S3| {
        s3.client().list(None).map_ok(|object| object.location.to_string()).try_collect::<Vec<_>>()
    };
    assert_eq!(listed(&one).await.unwrap(), ["a/b"]);
    assert!(listed(&other).await.unwrap().is_empty());
}
