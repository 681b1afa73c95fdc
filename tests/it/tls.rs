//! A registry that speaks TLS: under which name it is reached, and how its certificate is renewed.

use std::path::Path;
use std::time::Duration;

use wharfage::apply::{Access, Ecr, Identity, registry_id};
use wharfage::registry::auth::Secret;

use crate::bed::wharfage::Wharfage;
use crate::bed::{self};

/// The name that certificates are for, and nothing resolves.
const NAME: &str = "registry.example.com";

/// Puts a new certificate into the folder; it in PEM.
fn issue(folder: &Path) -> String {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    std::fs::write(folder.join("tls.key"), signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("tls.crt"), cert.pem()).unwrap();
    cert.pem()
}

async fn start(folder: &Path) -> Wharfage {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let launch = bed::wharfage().arg("--tls-cert").arg(&file("tls.crt")).arg("--tls-key").arg(&file("tls.key"));
    launch.start().await
}

/// Asks the registry for its id, as the operator would: under its certificate's name, at its own address.
async fn ask(server: &Wharfage, trusted: &str, host: Option<&str>) -> Result<String, String> {
    let (id, secret) = server.root_key();
    let (_, port) = server.authority().rsplit_once(':').unwrap();
    let access = Access {
        endpoint: Some(format!("https://{NAME}:{port}")),
        region: "local-1".parse().unwrap(),
        identity: Identity::Key { id, secret: Secret::new(&secret), session_token: None },
        role: None,
        ca_bundle: Some(trusted.to_owned()),
        host: host.map(str::to_owned),
    };
    let ecr = Ecr::new(access, None).await.unwrap();
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
