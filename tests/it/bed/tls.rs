//! A certificate for loopback, and clients that trust it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use super::service::Folder;

/// A certificate for `localhost`, in files.
#[derive(Debug)]
pub struct Certificate {
    folder: Folder,
    roots: Arc<RootCertStore>,
}

impl Certificate {
    pub fn new() -> Self {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let folder = Folder::new();
        std::fs::write(folder.path().join("tls.crt"), made.cert.pem())
            .expect("writing a certificate");
        std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem())
            .expect("writing a key");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a certificate to trust");
        Self { folder, roots: Arc::new(roots) }
    }

    /// The path of one of its files: `tls.crt` or `tls.key`.
    pub fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// Connects to a server that shows it, and offers these protocols.
    pub async fn connect(&self, authority: &str, protocols: &[&str]) -> TlsStream<TcpStream> {
        self.over(TcpStream::connect(authority).await.expect("a connection"), protocols).await
    }

    /// The same over a connection that is there.
    pub async fn over(&self, stream: TcpStream, protocols: &[&str]) -> TlsStream<TcpStream> {
        handshake(Arc::clone(&self.roots), stream, protocols).await.expect("a TLS connection")
    }

    /// Connects to a server that shows it, and speaks HTTP/2.
    pub async fn connect_http2(&self, authority: &str) -> h2::client::SendRequest<Bytes> {
        let stream = self.connect(authority, &["h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        client
    }

    /// Where plain connections are taken and passed on to `authority` by TLS, as long as the test's runtime lives.
    pub async fn tunnel(&self, authority: String) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of loopback");
        let address = listener.local_addr().expect("an address");
        let roots = Arc::clone(&self.roots);
        tokio::spawn(async move {
            while let Ok((mut plain, _)) = listener.accept().await {
                let (roots, authority) = (Arc::clone(&roots), authority.clone());
                tokio::spawn(async move {
                    let Ok(stream) = TcpStream::connect(&authority).await else { return };
                    if let Ok(mut stream) = handshake(roots, stream, &["http/1.1"]).await {
                        let _ = tokio::io::copy_bidirectional(&mut plain, &mut stream).await;
                    }
                });
            }
        });
        address
    }
}

async fn handshake(
    roots: Arc<RootCertStore>,
    stream: TcpStream,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(client)).connect(name, stream).await
}
