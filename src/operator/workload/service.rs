//! The Services: one for clients, and a headless one for health and metrics.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{ADMIN_PORT, Names, WorkloadBuilder, given, pod_template};
use wharfage_crd::registry::{ManagedRegistry, ServiceType};

/// Returns the URL of the Service, which the cluster resolves.
pub(super) fn url(managed: &ManagedRegistry, names: &Names, namespace: &str) -> String {
    let scheme = if managed.tls.is_some() { "https" } else { "http" };
    let host = host(names, namespace);
    match port(managed) {
        usual if usual == usual_port(managed) => format!("{scheme}://{host}"),
        port => format!("{scheme}://{host}:{port}"),
    }
}

/// Returns the host of the Service, which the cluster resolves.
pub(super) fn host(names: &Names, namespace: &str) -> String {
    format!("{}.{namespace}.svc", names.workload())
}

fn port(managed: &ManagedRegistry) -> i32 {
    managed.service.as_ref().and_then(|service| service.port).unwrap_or(usual_port(managed))
}

fn usual_port(managed: &ManagedRegistry) -> i32 {
    if managed.tls.is_some() { 443 } else { 80 }
}

impl WorkloadBuilder<'_> {
    /// Returns the Service for clients.
    pub(super) fn service(&self) -> Service {
        let service = self.managed.service.clone().unwrap_or_default();
        let mut metadata = self.metadata(self.names.workload());
        metadata.annotations = given(&service.annotations);
        let type_ = match service.type_.unwrap_or_default() {
            ServiceType::ClusterIP => "ClusterIP",
            ServiceType::NodePort => "NodePort",
            ServiceType::LoadBalancer => "LoadBalancer",
        };
        Service {
            metadata,
            spec: Some(ServiceSpec {
                type_: Some(type_.to_owned()),
                ip_family_policy: Some("PreferDualStack".to_owned()),
                selector: Some(self.names.selector()),
                ports: Some(vec![ServicePort {
                    name: Some(pod_template::REGISTRY.to_owned()),
                    port: port(self.managed),
                    node_port: service.node_port,
                    protocol: Some("TCP".to_owned()),
                    target_port: Some(IntOrString::String(pod_template::REGISTRY.to_owned())),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    /// Returns the Service for the metrics of each pod, which must not be public when the other Service is. A StatefulSet names
    /// its pods by it.
    pub(super) fn operations_service(&self) -> Service {
        Service {
            metadata: self.metadata(self.names.admin()),
            spec: Some(ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                cluster_ip: Some("None".to_owned()),
                ip_family_policy: Some("PreferDualStack".to_owned()),
                // The metrics of a pod that is not ready are the most useful.
                publish_not_ready_addresses: Some(true),
                selector: Some(self.names.selector()),
                ports: Some(vec![ServicePort {
                    name: Some(pod_template::ADMIN.to_owned()),
                    port: i32::from(ADMIN_PORT),
                    protocol: Some("TCP".to_owned()),
                    target_port: Some(IntOrString::String(pod_template::ADMIN.to_owned())),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }
}
