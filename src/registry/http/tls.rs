//! The certificate of a listener: read from files, and read again when they change, so that a
//! renewed certificate needs no restart.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use wharfage_process::shutdown::Stop;

/// The interval between checks of the files. They are small, and a volume gives no notice of a
/// change.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The names of the HTTP versions in ALPN.
pub(crate) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// TLS with the certificate of two files.
pub struct ServerTls {
    acceptor: TlsAcceptor,
    files: Files,
    /// The content of the files at the last check, accepted or not.
    seen: Pair,
    shown: Arc<Shown>,
}

/// The paths of the certificate chain and of its key.
#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// The content of the two files.
#[derive(PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// The certificate of new connections.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Creates TLS with the certificate chain and the key of these files, both PEM.
    ///
    /// # Errors
    /// When a file cannot be read, or the key does not match the certificate.
    pub fn from_files(
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> anyhow::Result<Self> {
        let files = Files { certificate: certificate.into(), key: key.into() };
        let read = |path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let seen = Pair { certificate: read(&files.certificate)?, key: read(&files.key)? };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let shown = Arc::new(Shown(RwLock::new(Arc::new(files.parse(&seen, &provider)?))));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), files, seen, shown })
    }

    /// Returns the TLS acceptor of a listener.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Checks the files until `stop`, and uses a changed certificate for new connections. Files
    /// without a valid certificate and key change nothing.
    // Boxed, so that this crate compiles it: an `async fn` is compiled with the crate that awaits
    // it.
    pub fn watch_files(mut self, mut stop: Stop) -> BoxFuture<'static, ()> {
        async move {
            let mut looks = tokio::time::interval(CHECK_INTERVAL);
            loop {
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => break,
                    _ = looks.tick() => {}
                }
                match self.reload().await {
                    Ok(false) => {}
                    Ok(true) => tracing::info!(file = %self.files.certificate.display(), "a new certificate is shown"),
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(%error, "the certificate's files have changed, and the one before them is shown further");
                    }
                }
            }
        }
        .boxed()
    }

    /// Uses the content of the files if it has changed; returns whether it has.
    async fn reload(&mut self) -> anyhow::Result<bool> {
        let Files { certificate, key } = &self.files;
        // A file that is missing for a moment is being replaced.
        let (Ok(certificate), Ok(key)) =
            tokio::join!(tokio::fs::read(certificate), tokio::fs::read(key))
        else {
            return Ok(false);
        };
        let found = Pair { certificate, key };
        if found == self.seen {
            return Ok(false);
        }
        self.seen = found;
        let taken = self.files.parse(&self.seen, &aws_lc_rs::default_provider())?;
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(taken);
        Ok(true)
    }
}

impl Files {
    fn parse(&self, pair: &Pair, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        let chain = CertificateDer::pem_slice_iter(&pair.certificate)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("cannot read the certificates of {certificate}"))?;
        // The parser's message could contain parts of the file.
        let key_der = PrivateKeyDer::from_pem_slice(&pair.key).map_err(|_| {
            anyhow::anyhow!("cannot read a private key from {key}: it must be a PEM file")
        })?;
        CertifiedKey::from_der(chain, key_der, provider)
            .with_context(|| format!("{certificate} and {key} do not belong together"))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;

    /// Writes a new certificate for `localhost` to `files`; returns it in DER.
    fn renew(folder: &std::path::Path) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("tls.crt"), cert.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), signing_key.serialize_pem()).unwrap();
        cert.der().clone()
    }

    /// Returns the certificate that a client sees.
    async fn seen(
        tls: &ServerTls,
        trusted: &CertificateDer<'static>,
    ) -> std::io::Result<CertificateDer<'static>> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let acceptor = tls.acceptor();
        let server = tokio::spawn(async move { acceptor.accept(far).await });
        let connected = TlsConnector::from(Arc::new(client))
            .connect("localhost".try_into().unwrap(), near)
            .await;
        let certificate =
            connected.map(|it| it.get_ref().1.peer_certificates().unwrap()[0].clone());
        drop(server.await.unwrap());
        certificate
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_used_unless_it_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let first = renew(folder.path());
        let mut tls =
            ServerTls::from_files(folder.path().join("tls.crt"), folder.path().join("tls.key"))
                .unwrap();
        assert_eq!(seen(&tls, &first).await.unwrap(), first);
        assert!(!tls.reload().await.unwrap());

        let second = renew(folder.path());
        assert!(tls.reload().await.unwrap());
        assert_eq!(seen(&tls, &second).await.unwrap(), second);
        assert!(seen(&tls, &first).await.is_err(), "the first one is still shown");

        let key = std::fs::read(folder.path().join("tls.key")).unwrap();
        let other = renew(folder.path());
        std::fs::write(folder.path().join("tls.key"), key).unwrap();
        let error = format!("{:#}", tls.reload().await.unwrap_err());
        assert!(error.contains("do not belong together"), "{error}");
        assert!(!tls.reload().await.unwrap(), "an error is reported once");
        assert_eq!(seen(&tls, &second).await.unwrap(), second);
        std::fs::remove_file(folder.path().join("tls.key")).unwrap();
        assert!(!tls.reload().await.unwrap());
        assert_ne!(other, second);
    }

    #[test]
    fn an_invalid_certificate_is_reported_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        renew(folder.path());
        let key = folder.path().join("tls.key");
        std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nSECRETISH\n").unwrap();
        let error = format!(
            "{:#}",
            ServerTls::from_files(folder.path().join("tls.crt"), &key).unwrap_err()
        );
        assert!(error.contains("tls.key") && !error.contains("SECRETISH"), "{error}");
    }
}
