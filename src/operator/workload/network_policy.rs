//! The limits for others: how many pods a drain may evict at once, and which connections the pods accept.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{WorkloadBuilder, pod_template};

impl WorkloadBuilder<'_> {
    /// Allows the eviction of one replica at a time. A single pod has no budget, which would block every drain of its node.
    pub(super) fn disruption_budget(&self) -> PodDisruptionBudget {
        PodDisruptionBudget {
            metadata: self.metadata(self.names.workload()),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(self.chosen_pods()),
                // A pod that does not serve must not block a drain.
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        }
    }

    /// Accepts clients from anywhere, and readers of metrics from the cluster. Egress is not limited: a policy applies to the
    /// ports behind Services, so that the port of a URL could block a database or a bucket within the cluster.
    pub(super) fn network_policy(&self) -> NetworkPolicy {
        let port = |name: &str| NetworkPolicyPort {
            port: Some(IntOrString::String(name.to_owned())),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        };
        let the_cluster = NetworkPolicyPeer {
            namespace_selector: Some(LabelSelector::default()),
            ..NetworkPolicyPeer::default()
        };
        NetworkPolicy {
            metadata: self.metadata(self.names.workload()),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(self.chosen_pods()),
                policy_types: Some(vec!["Ingress".to_owned()]),
                ingress: Some(vec![
                    NetworkPolicyIngressRule {
                        ports: Some(vec![port(pod_template::REGISTRY)]),
                        from: None,
                    },
                    NetworkPolicyIngressRule {
                        ports: Some(vec![port(pod_template::ADMIN)]),
                        from: Some(vec![the_cluster]),
                    },
                ]),
                egress: None,
            }),
        }
    }
}
