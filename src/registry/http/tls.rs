//! The certificate that a listener shows: read from files, and read again when they change, so that a renewed certificate
//! needs no restart.

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

/// How often the files are looked at. They are small, and a volume that a node swaps under them tells nobody.
const LOOK: Duration = Duration::from_secs(5);

/// What clients and listeners call the versions of HTTP when they agree on one (ALPN).
pub(crate) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// TLS with the certificate of two files.
pub struct Tls {
    acceptor: TlsAcceptor,
    files: Files,
    /// What the files held when they were last looked at, whether it was taken or not.
    seen: Pair,
    shown: Arc<Shown>,
}

/// Where the certificate chain and its key are.
#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What the two files hold.
#[derive(PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// The certificate that new connections see.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// TLS with the certificate chain and the key of these files, both PEM.
    ///
    /// # Errors
    /// When one can't be read, or they don't belong together.
    pub fn from_files(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let files = Files { certificate: certificate.into(), key: key.into() };
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
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

    /// What a listener wraps its connections in.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Looks at the files until `stop`, and shows what they hold to connections that come after a change. Files that don't
    /// hold a certificate and its key change nothing.
    // Boxed, so that this crate compiles it: an `async fn` is compiled with the crate that awaits it.
    pub fn follow_files(mut self, mut stop: Stop) -> BoxFuture<'static, ()> {
        async move {
            let mut looks = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => break,
                    _ = looks.tick() => {}
                }
                match self.look().await {
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

    /// Takes up what the files hold if it is not what they held before; whether it did.
    async fn look(&mut self) -> anyhow::Result<bool> {
        let Files { certificate, key } = &self.files;
        // A file that is gone for a moment is one that is being replaced.
        let (Ok(certificate), Ok(key)) = tokio::join!(tokio::fs::read(certificate), tokio::fs::read(key)) else {
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
        // The parser's message is kept away from what is in the file.
        let key_der = PrivateKeyDer::from_pem_slice(&pair.key)
            .map_err(|_| anyhow::anyhow!("cannot read a private key from {key}: it must be a PEM file"))?;
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

    /// Writes a new certificate for `localhost` where `files` says; it in DER.
    fn renew(folder: &std::path::Path) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("tls.crt"), cert.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), signing_key.serialize_pem()).unwrap();
        cert.der().clone()
    }

    /// The certificate that a client sees.
    async fn seen(tls: &Tls, trusted: &CertificateDer<'static>) -> std::io::Result<CertificateDer<'static>> {
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
        let connected = TlsConnector::from(Arc::new(client)).connect("localhost".try_into().unwrap(), near).await;
        let certificate = connected.map(|it| it.get_ref().1.peer_certificates().unwrap()[0].clone());
        drop(server.await.unwrap());
        certificate
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let first = renew(folder.path());
        let mut tls = Tls::from_files(folder.path().join("tls.crt"), folder.path().join("tls.key")).unwrap();
        assert_eq!(seen(&tls, &first).await.unwrap(), first);
        assert!(!tls.look().await.unwrap());

        let second = renew(folder.path());
        assert!(tls.look().await.unwrap());
        assert_eq!(seen(&tls, &second).await.unwrap(), second);
        assert!(seen(&tls, &first).await.is_err(), "the first one is still shown");

        let key = std::fs::read(folder.path().join("tls.key")).unwrap();
        let other = renew(folder.path());
        std::fs::write(folder.path().join("tls.key"), key).unwrap();
        let error = format!("{:#}", tls.look().await.unwrap_err());
        assert!(error.contains("do not belong together"), "{error}");
        assert!(!tls.look().await.unwrap(), "what is broken is told of once");
        assert_eq!(seen(&tls, &second).await.unwrap(), second);
        std::fs::remove_file(folder.path().join("tls.key")).unwrap();
        assert!(!tls.look().await.unwrap());
        assert_ne!(other, second);
    }

    #[test]
    fn what_is_no_certificate_is_named_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        renew(folder.path());
        let key = folder.path().join("tls.key");
        std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nSECRETISH\n").unwrap();
        let error = format!("{:#}", Tls::from_files(folder.path().join("tls.crt"), &key).unwrap_err());
        assert!(error.contains("tls.key") && !error.contains("SECRETISH"), "{error}");
    }
}
