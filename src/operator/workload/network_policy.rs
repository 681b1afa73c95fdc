//! What limits others: how many pods a drain may take at once, and who may speak to them.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{WorkloadBuilder, pod_template};

impl WorkloadBuilder<'_> {
    /// Replicas go one at a time. There is none for a single pod: it would keep a node from ever being drained.
    pub(super) fn disruption_budget(&self) -> PodDisruptionBudget {
        PodDisruptionBudget {
            metadata: self.metadata(self.names.workload()),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(self.chosen_pods()),
                // A pod that doesn't serve isn't worth a blocked drain.
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        }
    }

    /// Clients come from anywhere, metrics are for the cluster. What the pods may reach isn't limited: a policy sees the
    /// ports behind Services, so a database or a bucket within the cluster could be cut off by the port of its own URL.
    pub(super) fn network_policy(&self) -> NetworkPolicy {
        let port = |name: &str| NetworkPolicyPort {
            port: Some(IntOrString::String(name.to_owned())),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        };
        let the_cluster =
            NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() };
        NetworkPolicy {
            metadata: self.metadata(self.names.workload()),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(self.chosen_pods()),
                policy_types: Some(vec!["Ingress".to_owned()]),
                ingress: Some(vec![
                    NetworkPolicyIngressRule { ports: Some(vec![port(pod_template::REGISTRY)]), from: None },
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
