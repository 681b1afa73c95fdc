//! A registry that speaks TLS: under which name it is reached, and how its certificate is renewed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use wharfage::apply::{Connection, Ecr, Identity, registry_id};

use crate::bad_input::target::Target;
use crate::bed::tls::Certificate;
use crate::bed::wharfage::Wharfage;
use crate::bed::{self};
use crate::oci::client::{unique, with_parameter};

/// The name that certificates are for, and nothing resolves.
const NAME: &str = "registry.example.com";

/// Puts a new certificate into the folder; it in PEM.
fn issue(folder: &Path) -> String {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    std::fs::write(folder.join("tls.key"), signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("tls.crt"), cert.pem()).unwrap();
    cert.pem()
}

async fn start(folder: &Path) -> Wharfage {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let launch = bed::wharfage()
        .arg("--tls-cert")
        .arg(&file("tls.crt"))
        .arg("--tls-key")
        .arg(&file("tls.key"));
    launch.start().await
}

/// Asks the registry for its id, as the operator would: under its certificate's name, at its own address.
async fn ask(server: &Wharfage, trusted: &str, host: Option<&str>) -> Result<String, String> {
    let (id, secret) = server.root_key();
    let (_, port) = server.authority().rsplit_once(':').unwrap();
    let connection = Connection {
        endpoint: Some(format!("https://{NAME}:{port}")),
        region: "local-1".parse().unwrap(),
        identity: Identity::Key { id, secret: SecretString::from(secret), session_token: None },
        role: None,
        ca_bundle: Some(trusted.to_owned()),
        host: host.map(str::to_owned),
    };
    let ecr = Ecr::new(connection, None).await.unwrap();
    registry_id(&ecr).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_registry_is_reached_at_another_host_than_its_certificate_names() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = issue(folder.path());
    let server = start(folder.path()).await;
    assert_eq!(ask(&server, &certificate, Some("127.0.0.1")).await.unwrap(), "000000000000");
    let elsewhere = tempfile::tempdir().unwrap();
    let error = ask(&server, &issue(elsewhere.path()), Some("127.0.0.1")).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path());
    let server = start(folder.path()).await;
    let renewed = issue(folder.path());
    while ask(&server, &renewed, Some("127.0.0.1")).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sends a request by HTTP/2; its status, headers and body.
async fn http2(
    client: &mut h2::client::SendRequest<bytes::Bytes>,
    request: http::request::Builder,
    body: Vec<u8>,
) -> (http::response::Parts, Vec<u8>) {
    let mut ready = client.clone().ready().await.unwrap();
    let (answer, mut sending) =
        ready.send_request(request.body(()).unwrap(), body.is_empty()).unwrap();
    let mut rest = bytes::Bytes::from(body);
    while !rest.is_empty() {
        sending.reserve_capacity(rest.len());
        let capacity = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await.unwrap().unwrap();
        let piece = rest.split_to(capacity.min(rest.len()));
        sending.send_data(piece, rest.is_empty()).unwrap();
    }
    let (parts, mut incoming) = answer.await.unwrap().into_parts();
    let mut body = Vec::new();
    while let Some(piece) = incoming.data().await {
        let piece = piece.unwrap();
        incoming.flow_control().release_capacity(piece.len()).unwrap();
        body.extend_from_slice(&piece);
    }
    (parts, body)
}

#[tokio::test]
async fn who_offers_http_2_gets_it_for_both_apis() {
    let certificate = Arc::new(Certificate::new());
    let target = Target::of(bed::wharfage().tls(&certificate)).await;
    let authority = target.server.tls_authority();
    let repository = &target.repository;
    let mut client = certificate.connect_http2(authority).await;
    let request = |method: &str, path: &str| {
        let request =
            http::Request::builder().method(method).uri(format!("https://{authority}{path}"));
        request.header("authorization", repository.authorization())
    };
    let bytes = unique(3 * 1024 * 1024);
    let digest = wharfage::names::Digest::sha256(&bytes);
    let path = with_parameter(&repository.uploads(), "digest", &digest);
    let (pushed, _) = http2(&mut client, request("POST", &path), bytes.clone()).await;
    assert_eq!(pushed.status, 201);
    let (pulled, body) =
        http2(&mut client, request("GET", &repository.blob(&digest)), Vec::new()).await;
    assert_eq!((pulled.status.as_u16(), body == bytes), (200, true));
    assert_eq!(pulled.headers["docker-content-digest"], digest.as_str());
    let (absent, _) =
        http2(&mut client, request("GET", &repository.manifest("absent")), Vec::new()).await;
    assert_eq!(absent.status, 404);

    // The host is in the signature, and by HTTP/2 in the target alone.
    let call = target.api("DescribeRegistry", "{}").signed(authority);
    let mut signed = http::Request::builder().method("POST").uri(format!("https://{authority}/"));
    for (name, value) in &call.headers {
        signed = signed.header(name, value);
    }
    let (described, body) = http2(&mut client, signed, call.body).await;
    assert_eq!(described.status, 200, "{}", String::from_utf8_lossy(&body));

    // A refusal that comes before the body ends that stream alone.
    let elsewhere =
        http2(&mut client, request("PATCH", "/v2/no/such/blobs/uploads/x"), Vec::new()).await;
    assert_eq!(elsewhere.0.status, 404);
    let (again, _) = http2(&mut client, request("GET", "/v2/"), Vec::new()).await;
    assert_eq!(again.status, 200);
}

#[tokio::test]
async fn who_does_not_offer_http_2_gets_http_1() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let certificate = Arc::new(Certificate::new());
    let target = Target::of(bed::wharfage().tls(&certificate)).await;
    for offered in [&[][..], &["http/1.1"]] {
        let mut stream = certificate.connect(target.server.tls_authority(), offered).await;
        let head = target.head("GET", "/v2/", "Connection: close\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_layer_may_come_in_many_small_pieces() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let certificate = Arc::new(Certificate::new());
    let target = Target::of(bed::wharfage().tls(&certificate)).await;
    // 27 bytes and more of chunk and TLS record around each of them: more than the 4 MiB that may come and be no body.
    for (size, pieces) in [(512, 160_000), (1, 200_000)] {
        let piece = vec![b'x'; size];
        let mut stream = certificate.connect(target.server.tls_authority(), &["http/1.1"]).await;
        let digest = wharfage::names::Digest::sha256(&piece.repeat(pieces));
        let path = with_parameter(&target.repository.uploads(), "digest", &digest);
        let head =
            target.head("POST", &path, "Transfer-Encoding: chunked\r\nConnection: close\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = [format!("{size:x}\r\n").as_bytes(), &piece, b"\r\n"].concat();
        for number in 0..pieces {
            stream
                .write_all(&chunk)
                .await
                .unwrap_or_else(|error| panic!("cut off after {number} pieces: {error}"));
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        // Bytes that the socket did not accept at once wait for this.
        stream.flush().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{size}: {answer}");
    }
}

#[tokio::test]
async fn header_names_are_in_title_case_by_http_1() {
    let target = Target::start().await;
    let digest = target.repository.push_blob(b"x").await;
    let head = target.head("HEAD", &target.repository.blob(&digest), "Connection: close\r\n");
    let answer = target.raw(head.as_bytes()).await;
    for header in ["Docker-Content-Digest", "Content-Length", "Docker-Distribution-Api-Version"] {
        assert!(answer.contains(&format!("\r\n{header}: ")), "{answer}");
    }
    let refused = target.raw(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(refused.contains("\r\nWww-Authenticate: Basic"), "{refused}");
}
