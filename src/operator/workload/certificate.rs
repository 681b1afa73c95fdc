//! The Certificate of cert-manager. Kubernetes does not define its kind, so it is written as JSON.

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::{WorkloadBuilder, service, tls_secret};
use crate::apply_set::DesiredObject;

/// Returns the kind of cert-manager's certificates.
pub(crate) fn certificate_kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"))
}

/// Returns why a Certificate is not issued, in cert-manager's words; nothing when it is, or nothing is known yet.
pub(crate) fn certificate_trouble(certificate: &Value) -> Option<String> {
    let conditions = certificate["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    (ready["status"] != "True")
        .then(|| ready["message"].as_str().unwrap_or("it is being issued").to_owned())
}

impl WorkloadBuilder<'_> {
    pub(super) fn certificate(&self) -> Option<DesiredObject> {
        let tls = self.managed.tls.as_ref()?;
        let wanted = tls.cert_manager.as_ref()?;
        let (kind, name) = (certificate_kind(), self.names.workload());
        let body = json!({
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": self.metadata(name.clone()),
            "spec": {
                "secretName": tls_secret(self.managed, &self.names),
                "issuerRef": {
                    "name": wanted.issuer_ref.name,
                    "kind": wanted.issuer_ref.kind.as_deref().unwrap_or("Issuer"),
                    "group": wanted.issuer_ref.group.as_deref().unwrap_or(&kind.group),
                },
                "dnsNames": if wanted.dns_names.is_empty() { self.dns_names() } else { wanted.dns_names.clone() },
                "usages": ["digital signature", "server auth"],
                "privateKey": { "algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always" },
            },
        });
        Some(DesiredObject { kind, name, body })
    }

    /// Returns the name that clients use. The Service's name is used only where it is that one: a public issuer would refuse
    /// it.
    fn dns_names(&self) -> Vec<String> {
        let public =
            self.managed.public_url.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
        let host = public.as_ref().and_then(|url| url.host()).map(str::to_owned);
        vec![host.unwrap_or_else(|| service::host(&self.names, &self.namespace))]
    }
}
