//! How the operator reaches a managed registry: by its Service, and under a name that its certificate is for.

use k8s_openapi::api::core::v1::Secret;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::server::ParsedCertificate;

use super::{Names, cluster_url, service};
use wharfage_crd::registry::ManagedRegistry;

/// How a registry is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Its URL, with a name that its certificate is for.
    pub url: String,
    /// The name of its Service, if the URL's host is another one: connect to that.
    pub host: Option<String>,
    /// What to trust, in PEM: the certificate that the registry shows, and its issuers as far as its Secret names them.
    pub ca_bundle: Option<String>,
}

/// How a managed registry is reached that shows the certificate of this Secret, if it has one.
///
/// A certificate is for the name that clients use, and mostly not for the Service's as well.
pub fn address(managed: &ManagedRegistry, names: &Names, namespace: &str, certificate: Option<&Secret>) -> Address {
    let url = cluster_url(managed, names, namespace);
    let Some(certificate) = certificate else { return Address { url, host: None, ca_bundle: None } };
    let host = service::host(names, namespace);
    let public = managed.public_url.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
    let public = public.as_ref().and_then(http::Uri::host).filter(|public| *public != host);
    let entry = |key: &str| {
        let data = certificate.data.as_ref().and_then(|data| data.get(key));
        data.and_then(|bytes| std::str::from_utf8(&bytes.0).ok())
    };
    let shown = entry("tls.crt").unwrap_or_default();
    let ca_bundle = Some([entry("ca.crt").unwrap_or_default(), shown].join("\n"));
    match public {
        Some(public) if is_for(shown, public) && !is_for(shown, &host) => {
            Address { url: url.replacen(&host, public, 1), host: Some(host), ca_bundle }
        }
        _ => Address { url, host: None, ca_bundle },
    }
}

/// Whether the first certificate of a chain is for this DNS name.
fn is_for(chain: &str, name: &str) -> bool {
    let Ok(name @ ServerName::DnsName(_)) = ServerName::try_from(name) else { return false };
    let certificate = CertificateDer::from_pem_slice(chain.as_bytes());
    certificate.is_ok_and(|certificate| {
        ParsedCertificate::try_from(&certificate).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn certificate(names: &[&str]) -> Secret {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let certified = rcgen::generate_simple_self_signed(names).unwrap();
        let data = BTreeMap::from([("tls.crt".to_owned(), ByteString(certified.cert.pem().into_bytes()))]);
        Secret { data: Some(data), ..Secret::default() }
    }

    fn reached(managed: serde_json::Value, certificate: Option<&Secret>) -> Address {
        address(&serde_json::from_value(managed).unwrap(), &Names::of("home"), "wharfage", certificate)
    }

    #[test]
    fn a_plain_registry_is_reached_by_its_service() {
        let plain = reached(json!({ "publicUrl": "https://r.example.com" }), None);
        assert_eq!(plain, Address { url: "http://home.wharfage.svc".into(), host: None, ca_bundle: None });
    }

    #[test]
    fn a_certificate_decides_under_which_name() {
        let tls =
            json!({ "publicUrl": "https://r.example.com", "tls": { "secretName": "t" }, "service": { "port": 8443 } });
        for (names, url, host) in [
            (["r.example.com"].as_slice(), "https://r.example.com:8443", Some("home.wharfage.svc")),
            (&["*.example.com"], "https://r.example.com:8443", Some("home.wharfage.svc")),
            (&["home.wharfage.svc"], "https://home.wharfage.svc:8443", None),
            (&["r.example.com", "home.wharfage.svc"], "https://home.wharfage.svc:8443", None),
            (&["elsewhere"], "https://home.wharfage.svc:8443", None),
        ] {
            let certificate = certificate(names);
            let reach = reached(tls.clone(), Some(&certificate));
            assert_eq!((reach.url.as_str(), reach.host.as_deref()), (url, host), "{names:?}");
            assert!(reach.ca_bundle.unwrap().contains("BEGIN CERTIFICATE"));
        }
    }

    #[test]
    fn the_issuer_that_a_secret_names_is_trusted_too() {
        let mut secret = certificate(&["home.wharfage.svc"]);
        secret.data.as_mut().unwrap().insert("ca.crt".into(), ByteString(b"the issuer".to_vec()));
        let bundle = reached(json!({ "tls": { "secretName": "t" } }), Some(&secret)).ca_bundle.unwrap();
        assert!(bundle.starts_with("the issuer\n-----BEGIN CERTIFICATE-----"), "{bundle}");
    }
}
