//! The connection of the operator to a managed registry: to its Service, under a name that its certificate is for.

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::server::ParsedCertificate;

use super::{Names, cluster_url, service};
use crate::secrets::SecretContent;
use wharfage_crd::registry::ManagedRegistry;

/// The key of the certificate and its chain.
const CERTIFICATE: &str = "tls.crt";
/// The key of the issuer's certificate, which not every issuer writes.
const ISSUER: &str = "ca.crt";

/// The keys of a certificate's Secret that are read. The private key is read by the pods alone.
pub(crate) const CERTIFICATE_KEYS: [&str; 2] = [CERTIFICATE, ISSUER];

/// The address of a managed registry within its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// The URL, with a name that the certificate is for.
    pub url: String,
    /// The host to connect to, if it is not the URL's: the name of the Service.
    pub host: Option<String>,
    /// The certificates to trust, in PEM: that of the registry, and those of its issuers as far as its Secret has them.
    pub ca_bundle: Option<String>,
}

/// Returns the address of a managed registry that serves with the certificate of this Secret, if it has one.
///
/// A certificate is for the name that clients use, and mostly not for the Service's as well.
pub(crate) fn address(
    managed: &ManagedRegistry,
    names: &Names,
    namespace: &str,
    certificate: Option<&SecretContent>,
) -> Address {
    let url = cluster_url(managed, names, namespace);
    let Some(certificate) = certificate else {
        return Address { url, host: None, ca_bundle: None };
    };
    let host = service::host(names, namespace);
    let public = managed.public_url.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
    let public = public.as_ref().and_then(http::Uri::host).filter(|public| *public != host);
    let shown = certificate.raw(CERTIFICATE).unwrap_or_default();
    let ca_bundle = Some([certificate.raw(ISSUER).unwrap_or_default(), shown].join("\n"));
    match public {
        Some(public) if is_for(shown, public) && !is_for(shown, &host) => {
            Address { url: url.replacen(&host, public, 1), host: Some(host), ca_bundle }
        }
        _ => Address { url, host: None, ca_bundle },
    }
}

/// Returns whether the first certificate of a chain is for this DNS name.
fn is_for(chain: &str, name: &str) -> bool {
    let Ok(name @ ServerName::DnsName(_)) = ServerName::try_from(name) else { return false };
    let certificate = CertificateDer::from_pem_slice(chain.as_bytes());
    certificate.is_ok_and(|certificate| {
        ParsedCertificate::try_from(&certificate)
            .is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secrets::SecretName;

    fn certificate(names: &[&str], issuer: Option<&str>) -> SecretContent {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let certified = rcgen::generate_simple_self_signed(names).unwrap();
        let issuer = issuer.map(|issuer| ("ca.crt".to_owned(), issuer.as_bytes().to_vec()));
        let values =
            issuer.into_iter().chain([("tls.crt".to_owned(), certified.cert.pem().into_bytes())]);
        SecretContent::new(SecretName::new("wharfage", "cert"), values)
    }

    fn reached(managed: serde_json::Value, certificate: Option<&SecretContent>) -> Address {
        address(
            &serde_json::from_value(managed).unwrap(),
            &Names::of("home"),
            "wharfage",
            certificate,
        )
    }

    #[test]
    fn a_plain_registry_is_reached_by_its_service() {
        let plain = reached(json!({ "publicUrl": "https://r.example.com" }), None);
        assert_eq!(
            plain,
            Address { url: "http://home.wharfage.svc".into(), host: None, ca_bundle: None }
        );
    }

    #[test]
    fn a_certificate_decides_under_which_name() {
        let tls = json!({ "publicUrl": "https://r.example.com", "tls": { "secretName": "t" }, "service": { "port": 8443 } });
        for (names, url, host) in [
            (["r.example.com"].as_slice(), "https://r.example.com:8443", Some("home.wharfage.svc")),
            (&["*.example.com"], "https://r.example.com:8443", Some("home.wharfage.svc")),
            (&["home.wharfage.svc"], "https://home.wharfage.svc:8443", None),
            (&["r.example.com", "home.wharfage.svc"], "https://home.wharfage.svc:8443", None),
            (&["elsewhere"], "https://home.wharfage.svc:8443", None),
        ] {
            let certificate = certificate(names, None);
            let reach = reached(tls.clone(), Some(&certificate));
            assert_eq!((reach.url.as_str(), reach.host.as_deref()), (url, host), "{names:?}");
            assert!(reach.ca_bundle.unwrap().contains("BEGIN CERTIFICATE"));
        }
    }

    #[test]
    fn the_issuer_that_a_secret_names_is_trusted_too() {
        let secret = certificate(&["home.wharfage.svc"], Some("the issuer"));
        let bundle =
            reached(json!({ "tls": { "secretName": "t" } }), Some(&secret)).ca_bundle.unwrap();
        assert!(bundle.starts_with("the issuer\n-----BEGIN CERTIFICATE-----"), "{bundle}");
    }
}
