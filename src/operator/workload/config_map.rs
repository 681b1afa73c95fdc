//! The ConfigMap: the variables of `wharfage serve` that are no secrets.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;

use super::{ADMIN_PORT, REGISTRY_PORT, Shape, WorkloadBuilder, public_url};

/// The mount point of the volume: the data folder of the image.
pub(super) const DATA: &str = "/var/lib/wharfage";
/// The mount point of the certificate.
pub(super) const TLS: &str = "/etc/wharfage/tls";
/// The time for running transfers after a pod stops accepting connections.
pub(super) const GRACE_SECONDS: u16 = 60;
/// The time that a terminating pod still accepts connections, where other replicas serve: until the cluster's proxies have
/// removed it.
pub(super) const DELAY_SECONDS: u16 = 5;

impl WorkloadBuilder<'_> {
    pub(super) fn config(&self) -> ConfigMap {
        ConfigMap {
            metadata: self.metadata(self.names.config()),
            data: Some(self.variables()),
            ..ConfigMap::default()
        }
    }

    pub(super) fn variables(&self) -> BTreeMap<String, String> {
        // All addresses of the pod, of either family.
        let listen = |port: u16| format!("[::]:{port}");
        let mut variables = BTreeMap::from([
            ("WHARFAGE_NAME", self.registry.name_any()),
            ("WHARFAGE_REGION", self.registry.region().to_string()),
            ("WHARFAGE_REGISTRY_ID", self.registry_id()),
            ("WHARFAGE_PUBLIC_URL", public_url(self.managed, &self.names, &self.namespace)),
            ("WHARFAGE_LISTEN", listen(REGISTRY_PORT)),
            ("WHARFAGE_ADMIN_LISTEN", listen(ADMIN_PORT)),
            ("WHARFAGE_LOG_FORMAT", "json".to_owned()),
            ("WHARFAGE_SHUTDOWN_GRACE", GRACE_SECONDS.to_string()),
        ]);
        match self.shape() {
            Shape::Replicated => {
                variables.insert("WHARFAGE_SHUTDOWN_DELAY", DELAY_SECONDS.to_string())
            }
            Shape::Single(_) => variables.insert("WHARFAGE_DATA", DATA.to_owned()),
        };
        if self.managed.tls.is_some() {
            variables.insert("WHARFAGE_TLS_CERT", format!("{}/tls.crt", TLS));
            variables.insert("WHARFAGE_TLS_KEY", format!("{}/tls.key", TLS));
        } else {
            variables.insert("WHARFAGE_ALLOW_PLAIN_HTTP", true.to_string());
        }
        if let Some(s3) = self.managed.storage.as_ref().and_then(|storage| storage.s3.as_ref()) {
            variables.insert("WHARFAGE_S3_BUCKET", s3.bucket.clone());
            // Separates Registries that share a bucket.
            variables.insert("WHARFAGE_S3_PREFIX", self.registry.name_any());
            if let Some(region) = &s3.region {
                variables.insert("WHARFAGE_S3_REGION", region.to_string());
            }
            if let Some(endpoint) = &s3.endpoint {
                variables.insert("WHARFAGE_S3_ENDPOINT", endpoint.clone());
            }
            if s3.redirect.unwrap_or_default() {
                variables.insert("WHARFAGE_S3_REDIRECT", true.to_string());
            }
        }
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
