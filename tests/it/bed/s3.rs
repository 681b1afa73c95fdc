//! An S3 server for tests: versitygw over a temporary folder, a bucket for each test.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use uuid::Uuid;

use super::service::Service;

/// Another process may take the port that was free a moment ago; so often in a row it doesn't happen.
const PORT_ATTEMPTS: u32 = 5;

const REGION: &str = "us-east-1";

/// The server that the tests of this process share.
pub fn s3() -> &'static S3Server {
    static SERVER: OnceLock<S3Server> = OnceLock::new();
    SERVER.get_or_init(S3Server::start)
}

/// A running server. Dropping it ends it.
pub struct S3Server {
    address: SocketAddr,
    root: PathBuf,
    access_key: String,
    secret_key: String,
    _server: Service,
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
        let mut refusals = String::new();
        for _ in 0..PORT_ATTEMPTS {
            match Self::try_start() {
                Ok(server) => return server,
                Err(why) => refusals += &why,
            }
        }
        panic!("versitygw doesn't start: {refusals}")
    }

    fn try_start() -> Result<Self, String> {
        let program = super::tool("WHARFAGE_TEST_VERSITYGW");
        let folder = tempfile::Builder::new().prefix("wharfage-s3-").tempdir().expect("a temporary folder").keep();
        let root = folder.join("buckets");
        std::fs::create_dir(&root).expect("a folder for the buckets");
        let access_key = format!("AKIA{}", &Uuid::new_v4().simple().to_string().to_uppercase()[..16]);
        let secret_key = Uuid::new_v4().simple().to_string();
        // The server reports no port that it chose itself.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .expect("a free port on loopback");

        let server = Service::start(
            "versitygw",
            Command::new(program)
                .current_dir(&folder)
                .env("ROOT_ACCESS_KEY_ID", &access_key)
                .env("ROOT_SECRET_ACCESS_KEY", &secret_key)
                .args(["--region", REGION, "--port", &address.to_string(), "posix"])
                .arg(&root),
            "KILL",
            Some(folder),
        );
        answers(&server, address)?;
        Ok(Self { address, root, access_key, secret_key, _server: server })
    }

    /// Makes an empty bucket.
    pub async fn bucket(&self) -> S3 {
        let bucket = format!("test-{}", Uuid::new_v4().simple());
        // versitygw takes the folders below its root for its buckets.
        std::fs::create_dir(self.root.join(&bucket)).expect("a bucket's folder");
        S3 {
            endpoint: format!("http://{}", self.address),
            region: REGION.to_owned(),
            bucket,
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
        }
    }
}

/// Returns when a request that was sent to `address` stands in the server's own log: so it was not another process that
/// answered.
fn answers(server: &Service, address: SocketAddr) -> Result<(), String> {
    server.try_wait_for(|line| line.contains("listening on").then_some(()))?;
    let probe = format!("/probe-{}/", Uuid::new_v4().simple());
    let request = format!("GET {probe} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    // The line comes a moment before the listener does.
    let connection = (0..1_000).find_map(|_| {
        let connected = TcpStream::connect(address).ok();
        if connected.is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        connected
    });
    let mut connection = connection.ok_or_else(|| server.output())?;
    connection.write_all(request.as_bytes()).map_err(|error| format!("{address}: {error}"))?;
    server.try_wait_for(|line| line.contains(&probe).then_some(()))
}

#[tokio::test]
async fn a_test_gets_an_empty_bucket_of_its_own() {
    use futures::TryStreamExt;
    use object_store::aws::AmazonS3Builder;
    use object_store::{ObjectStore, ObjectStoreExt, path::Path};

    let (one, other) = (s3().bucket().await, s3().bucket().await);
    let client = |s3: &S3| {
        AmazonS3Builder::new()
            .with_endpoint(&s3.endpoint)
            .with_allow_http(true)
            .with_region(&s3.region)
            .with_bucket_name(&s3.bucket)
            .with_access_key_id(&s3.access_key)
            .with_secret_access_key(&s3.secret_key)
            .build()
            .unwrap()
    };
    client(&one).put(&Path::from("a/b"), "bytes".into()).await.unwrap();
    let listed = |s3: &S3| client(s3).list(None).map_ok(|object| object.location.to_string()).try_collect::<Vec<_>>();
    assert_eq!(listed(&one).await.unwrap(), ["a/b"]);
    assert!(listed(&other).await.unwrap().is_empty());
}
