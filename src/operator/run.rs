//! The operator as a process: finds its cluster, serves its health endpoints, campaigns for the
//! Lease, works while it leads, and ends in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::Request;
use kube::client::Body;
use kube::{Client, Config};
use tokio::task::JoinSet;

use super::health::Health;
use super::leader::{self, Election};
use super::manager;
use super::metrics::OperatorMetrics;
use super::settings::Settings;
use wharfage_process::admin;
use wharfage_process::listener::bind;

/// The environment in which the process runs.
#[derive(Debug, Clone)]
pub struct Process {
    /// The name of the Lease by which replicas agree on who works; none: this one works at once.
    pub lease: Option<String>,
    /// Where the admin server listens.
    pub admin: Option<SocketAddr>,
    /// The time that running reconciles may take to end after a stop.
    pub grace: Duration,
}

/// The cluster that is meant: by KUBECONFIG, by the user's kubeconfig, or the one that this Pod is in.
///
/// # Errors
/// When there is none.
pub async fn cluster() -> anyhow::Result<Config> {
    // It tries all; its error is about the last.
    Config::infer().await.context(
        "cannot tell which cluster: set KUBECONFIG to a kubeconfig, have one in ~/.kube/config, or run in a Pod with a service account",
    )
}

/// Runs the operator on a cluster until `stop`.
///
/// # Errors
/// When the cluster's configuration is of no use, an address cannot be listened on, or the work failed.
// Boxed, so that this crate compiles it: an `async fn` is compiled with the crate that awaits it.
pub fn run(
    cluster: Config,
    settings: Settings,
    process: Process,
    stop: BoxFuture<'static, ()>,
) -> BoxFuture<'static, anyhow::Result<()>> {
    async move {
        let metrics = Arc::new(OperatorMetrics::new());
        let health = Arc::new(Health::new(Arc::clone(&metrics)));
        let connect = || anyhow::Ok(counted(Client::try_from(cluster.clone())?, &metrics));
        let client = connect().context("cannot use the cluster's configuration")?;
        let mut admin = JoinSet::new();
        if let Some(address) = process.admin {
            let (listener, address) = bind(address).await?;
            tracing::info!(%address, "the admin server serves /healthz, /readyz and /metrics");
            admin.spawn(admin::serve(Arc::clone(&health) as _, listener));
        }
        let stop = async {
            stop.await;
            tracing::info!("stopping: running reconciles may end");
            health.stopping();
        };
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(version, server = %cluster.cluster_url, namespace = settings.namespace, cluster = settings.cluster, "starting");
        let reconcile = |term: leader::Term| {
            let leading = health.leading(&term);
            let work = manager::run(client.clone(), settings.clone(), Arc::clone(&metrics), term);
            async move {
                let outcome = work.await;
                drop(leading);
                outcome
            }
        };
        match process.lease {
            Some(name) => {
                let election = Election {
                    namespace: settings.namespace.clone(),
                    name,
                    identity: settings.identity.clone(),
                    grace: process.grace,
                };
                // A separate connection: renewals don't queue behind reconciles.
                leader::lead(connect()?, &election, stop, reconcile).await
            }
            None => leader::work_alone(process.grace, stop, reconcile).await,
        }
    }
    .boxed()
}

/// A client whose answers are counted.
fn counted(client: Client, metrics: &Arc<OperatorMetrics>) -> Client {
    let (namespace, metrics) = (client.default_namespace().to_owned(), Arc::clone(metrics));
    let counted = tower::service_fn(move |request: Request<Body>| {
        let (client, metrics) = (client.clone(), Arc::clone(&metrics));
        async move {
            let method = request.method().clone();
            let answer = client.send(request).await?;
            metrics.kubernetes_answered(&method, answer.status());
            Ok::<_, kube::Error>(answer)
        }
    });
    Client::new(counted, namespace)
}
