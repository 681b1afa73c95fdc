//! `wharfage operator`: reconciles the kinds of a Kubernetes cluster.

use std::net::SocketAddr;
use std::time::Duration;

use super::StopSignals;
use super::identity::cluster_name;
use crate::operator::policy_rule::Feature;
use crate::operator::{ManagedNamespaces, Process, Settings, cluster, run};

/// The flags of `wharfage operator`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharfage crds | kubectl apply --server-side -f -     the kinds, once
  wharfage operator --cluster home                     on the cluster of KUBECONFIG, until Ctrl-C
  kubectl -n wharfage get lease wharfage-operator      which replica works

In a cluster it is installed by its Helm chart, which gives it the permissions that it needs. Without a cluster,
`wharfage up FOLDER` does the same for a folder of manifests.")]
pub struct Operator {
    /// Name recorded as the owner of what this cluster manages; what another cluster owns is never changed
    #[arg(long, env = "WHARFAGE_CLUSTER", default_value = "local", value_parser = cluster_name, value_name = "NAME")]
    cluster: String,

    /// The namespace of its Lease, and of what it makes for itself [default: the kubeconfig's, or the Pod's]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Address of /healthz, /readyz and /metrics; disabled by default
    #[arg(long, env = "WHARFAGE_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    admin_listen: Option<SocketAddr>,

    /// Work only while holding the Lease; false where there is one replica, and never two for a moment
    #[arg(
        long,
        env = "WHARFAGE_LEADER_ELECT",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        value_name = "BOOL"
    )]
    leader_elect: bool,

    /// The name of the Lease by which replicas agree on who works
    #[arg(
        long,
        env = "WHARFAGE_LEASE_NAME",
        default_value = "wharfage-operator",
        value_name = "NAME"
    )]
    lease_name: String,

    /// The image of managed registries whose Registry names none: the operator's own, mostly
    #[arg(long, env = "WHARFAGE_REGISTRY_IMAGE", value_name = "IMAGE")]
    registry_image: Option<String>,

    /// Disable a feature, which then needs no permissions; may be repeated
    #[arg(long, value_enum, value_name = "FEATURE")]
    without: Vec<Feature>,

    /// Namespaces in which managed registries may run, besides its own; * for every namespace
    #[arg(
        long,
        env = "WHARFAGE_MANAGED_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACE,…"
    )]
    managed_namespaces: Vec<String>,

    /// Time that running reconciles may take after a stop, in seconds
    #[arg(long, env = "WHARFAGE_SHUTDOWN_GRACE", default_value = "20", value_name = "SECONDS")]
    shutdown_grace: u64,

    /// Its name among replicas [default: this machine's]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    name: Option<String>,
}

impl Operator {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut signals = StopSignals::new()?;
        let config = cluster().await?;
        let name = self
            .name
            .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
        let namespace = self.namespace.unwrap_or_else(|| config.default_namespace.clone());
        let settings = Settings {
            cluster: self.cluster,
            managed_namespaces: ManagedNamespaces::new(&namespace, self.managed_namespaces),
            namespace,
            // A Pod's name outlives its container's restart, a container's hold on the Lease must not.
            identity: format!("{name}_{}", uuid::Uuid::new_v4()),
            without: self.without,
            registry_image: self.registry_image,
        };
        let process = Process {
            lease: self.leader_elect.then_some(self.lease_name),
            admin: self.admin_listen,
            grace: Duration::from_secs(self.shutdown_grace),
        };
        run(config, settings, process, Box::pin(async move { signals.next().await })).await
    }
}
